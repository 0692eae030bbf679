"""Train a detector: `python train.py --data my.yaml --cos-lr`, `torchrun --nproc_per_node 4 train.py`, `--resume`.

Top to bottom: read what was asked for, build data, model and optimizer, then the loop. Letters: B batch, H W rows and
columns, T targets.
"""

import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

import val
from models.loading import load_model, read_weights, resolve_weights, transfer
from models.yolo import DetectionModel
from utils.acquire import acquire
from utils.autoanchor import check_anchors
from utils.autobatch import find_batch_size
from utils.checkpoint import TrainState, is_finite, snapshot
from utils.config import DatasetSpec, Hyperparameters, SuggestingParser, TrainOptions, add_flags
from utils.dataset import Batch, Loader, class_weights, image_weights, make_loader
from utils.ema import ModelEMA
from utils.errors import UserError, run as run_command
from utils.evolve_run import run_evolution
from utils.evolve_verdict import Verdict
from utils.files import increment_path
from utils.guard import PATIENCE, SEARCHING_PATIENCE, Guard, poison
from utils.interruption import EXIT_CODE, LAUNCHER_SECONDS, Interrupted, Interruption
from utils.labels import LabelIndex, load_index
from utils.launch import find_launch, remember_launch
from utils.loss import DetectionLoss, scale_gains
from utils.metrics import Metrics
from utils.optim import build_optimizer, scaled_weight_decay, set_rates
from utils.resume import (changed_options, find_run, fingerprint, read_start, read_state, report_differences, rescaled,
                          run_folder, surroundings, was_finished)
from utils.runfolder import RunFolder
from utils.runlog import header, memory_used, progress_line
from utils.runtime import ROOT, Distributed, amp_dtype, describe_device, launch_token, seed_everything
from utils.schedule import EarlyStopping, Rates, Schedule, accumulation, multi_scale_size
from utils.subset import fraction

MAX_GRADIENT_NORM = 10.0
PICTURED_BATCHES = 3  # training batches drawn into the run folder


# ---------------------------------------------------------------------------------------------------------------------
# What was asked for


@dataclass(frozen=True)
class Request:
    """The options, which of them the user typed, and the checkpoint of the run to go on with (None for a new run).

    folder: where this launch began to write before its launcher restarted it, None at first.
    """

    options: TrainOptions
    typed: frozenset[str]
    resumed: dict | None
    folder: Path | None = None


def parse_args(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """The options that were typed, by name."""
    parser = add_flags(SuggestingParser(prog="train.py", description="Train a detector."), TrainOptions)
    given = vars(parser.parse_args(argv))
    given.pop("local_rank", None)  # from launchers: the environment says the same
    return given


def understand(given: dict[str, Any], launchers: Sequence[str]) -> Request:
    """What is to be done: with `--resume` the options are those of the resumed run, then those typed.

    launchers: those of all processes. A run that they began before a restart of theirs is gone on with, unasked.
    """
    given = dict(given)
    resume = given.pop("resume", False)
    folder = find_launch(given.get("project", TrainOptions.project), launchers)
    if folder is not None:
        resume = (folder / "weights" / "last.pt").is_file() and str(folder)
        if resume and given.get("batch_size") == -1:
            del given["batch_size"]  # found the first time, and kept
        print(f"Restarted by the launcher: going on with {folder}")
    if not resume:
        return Request(TrainOptions(**given), frozenset(given), None, folder)
    checkpoint = find_run(resume, given.get("project", TrainOptions.project))
    content = read_state(checkpoint)
    return Request(changed_options(content, checkpoint, given), frozenset(given), content, folder)


def open_run_folder(request: Request) -> Path:
    """The folder that this run writes into: the one it began in, or the next free number."""
    options = request.options
    begun = run_folder(Path(options.resume)) if options.resume else None
    if request.folder is not None or begun is not None:
        return request.folder or begun
    name = Path(options.cfg or options.weights or "exp").stem if options.name == "cfg" else options.name
    return increment_path(Path(options.project) / name, options.exist_ok)


# ---------------------------------------------------------------------------------------------------------------------
# Data


@dataclass(frozen=True)
class Data:
    spec: DatasetSpec
    names: dict[int, str]
    train: LabelIndex
    val: LabelIndex


def read_data(options: TrainOptions) -> Data:
    spec = acquire(options.data)
    single = options.single_cls
    names = {0: "item"} if single and spec.num_classes != 1 else spec.names
    train, validation = (
        load_index(spec.sources(split), spec.num_classes, prefix=f"{split}: ", single_cls=single)
        for split in ("train", "val")
    )
    if not len(train.labels):
        raise UserError(f"{spec.file}: the training images have no labels at all; labels belong beside them, "
                        "with /images/ replaced by /labels/ and .txt for the suffix")
    return Data(spec, names, fraction(train, options.evolve_fraction), validation)


def expect_pictures(data: Data) -> None:
    """UserError where this machine lacks the pictures that rank 0, maybe on another one, has found."""
    for path in (data.train.paths[0], data.val.paths[0]):
        if not Path(path).is_file():
            raise UserError(f"{path} is not on this machine: all machines need the data set in the same place")


def build_loaders(options: TrainOptions, hyp: Hyperparameters, data: Data, stride: int,
                  distributed: Distributed) -> tuple[Loader, Loader]:
    """The training and the validation loader of this process."""
    shared = {"imgsz": options.imgsz, "stride": stride, "workers": options.workers, "seed": options.seed,
              "rank": distributed.rank, "world_size": distributed.world_size, "progress": distributed.is_main,
              "pin_memory": distributed.device.type == "cuda"}
    train = make_loader(data.train, batch_size=options.batch_size, hyp=hyp, rect=options.rect,
                        shuffle=not options.rect, cache=None if options.cache == "val" else options.cache,
                        image_weights=options.image_weights, quad=options.quad, **shared)
    cache = None if options.noval else "ram" if options.cache == "val" else options.cache
    validation = make_loader(data.val, batch_size=2 * options.batch_size, rect=True, pad=0.5, cache=cache, **shared)
    return train, validation


def label_sizes(index: LabelIndex, imgsz: int) -> np.ndarray:
    """Width and height in pixels of every label (M, 2) when each picture's longer side is `imgsz`."""
    scale = imgsz / index.shapes.max(1, keepdims=True)
    sides = (index.shapes * scale)[:, ::-1].repeat(np.diff(index.offsets), axis=0)  # (M, 2) picture width, height
    return index.labels[:, 3:5] * sides


# ---------------------------------------------------------------------------------------------------------------------
# Model


def build_model(request: Request, hyp: Hyperparameters, names: dict[int, str]) -> DetectionModel:
    """The model on the CPU: of a resumed run, from weights (transferred by name and shape), or new from a YAML."""
    options = request.options
    settings = {"num_classes": len(names), "anchors": fitted_anchors(options, hyp)}
    path = None if request.resumed else find_weights(options, request.typed)
    if request.resumed:
        model = DetectionModel(request.resumed["model"]["yaml"])
        if model.num_classes != len(names):
            raise UserError(f"{options.resume}: a model of {model.num_classes} classes, but {options.data} names "
                            f"{len(names)}; start a new run with --weights {options.resume}")
    elif path is None:
        cfg = options.cfg or Path(options.weights).with_suffix(".yaml").name
        print(f"Model {cfg} from scratch")
        model = DetectionModel(cfg, **settings)
    else:
        file = read_weights(path)
        model = DetectionModel(options.cfg or file.yaml, **settings)
        moved = transfer(model, file.state_dict, exclude=("anchor",) if options.cfg or settings["anchors"] else ())
        print(f"Transferred {moved.matched}/{moved.total} tensors from {path}")
    model.names = names
    return model


def fitted_anchors(options: TrainOptions, hyp: Hyperparameters) -> int | None:
    """How many anchors a level are to be fitted to the data; None keeps the model's own."""
    if hyp.anchors and options.noautoanchor:
        print(f"WARNING anchors: {hyp.anchors} in --hyp must be fitted to the data, which --noautoanchor switches off: "
              "keeping the model's own anchors")
        return None
    return round(hyp.anchors) or None


def find_weights(options: TrainOptions, typed: frozenset[str]) -> Path | None:
    """The file to start from, None to start from scratch. Only weights that the user named are ever downloaded."""
    if not options.weights or (options.cfg and "weights" not in typed):
        return None
    if "weights" in typed:
        return resolve_weights(options.weights, allow_download=True)
    try:
        return resolve_weights(options.weights, allow_download=False)
    except UserError:
        print(f"{options.weights} is not here: starting from scratch (--weights {options.weights} would fetch it)")
        return None


def freeze_layers(model: DetectionModel, freeze: Sequence[int]) -> list[nn.Module]:
    """Stop gradients of layers 0 … N-1 (one number N) or of exactly the listed ones; returns those layers."""
    indices = range(freeze[0]) if len(freeze) == 1 else freeze
    for index in indices:
        if not 0 <= index < len(model.model):
            raise UserError(f"--freeze {index}: the model has layers 0 to {len(model.model) - 1}")
    layers = [model.model[index] for index in indices]
    for layer in layers:
        layer.requires_grad_(False)
    if layers:
        print(f"Frozen layers: {', '.join(str(index) for index in indices)}")
    return layers


def round_to_stride(imgsz: int, stride: int) -> int:
    """The image size that the model can take: up to the next multiple of its stride, at least two of them."""
    rounded = max(-(-imgsz // stride) * stride, 2 * stride)
    if rounded != imgsz:
        print(f"WARNING --imgsz {imgsz} is not a multiple of the model's stride {stride}; using {rounded}")
    return rounded


def fit_model_anchors(model: DetectionModel, sizes: np.ndarray, threshold: float, seed: int) -> None:
    """AutoAnchor: keep the model's anchors where they recall 98 % of the labels, fit new ones where better."""
    stride = model.stride.cpu().numpy()[:, None, None]
    anchors = model.head.anchors.cpu().numpy() * stride  # (L, A, 2) pixels
    report = check_anchors(anchors, sizes, threshold, np.random.default_rng(seed), strides=model.stride.tolist())
    print(report.message)
    if report.replaced:
        model.head.anchors.copy_(torch.from_numpy(np.asarray(report.anchors_px / stride, np.float32)))


# ---------------------------------------------------------------------------------------------------------------------
# The run


@dataclass(frozen=True)
class Run:
    """Everything the loop needs, built once."""

    options: TrainOptions
    hyp: Hyperparameters
    data: Data
    distributed: Distributed
    train_loader: Loader
    val_loader: Loader
    model: DetectionModel
    wrapped: nn.Module  # the model in its parallel wrapper, or itself
    frozen: list[nn.Module]
    loss: DetectionLoss
    schedule: Schedule
    state: TrainState
    autocast: torch.dtype | None
    surroundings: dict[str, Any]  # what else its bytes depend on

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self.state.members["optimizer"]

    @property
    def ema(self) -> ModelEMA:
        return self.state.members["ema"]

    @property
    def scaler(self) -> torch.amp.GradScaler:
        return self.state.members["scaler"]

    @property
    def stopper(self) -> EarlyStopping:
        return self.state.members["stopper"]

    @property
    def guard(self) -> Guard:
        return self.state.members["guard"]


class Parts(NamedTuple):
    """What rank 0 prepares for all: files are read, fetched and fitted to the data once."""

    hyp: Hyperparameters
    data: Data
    model: DetectionModel
    imgsz: int


def prepare(request: Request) -> Parts:
    options, hyp = request.options, read_hyperparameters(request)
    data = read_data(options)
    model = build_model(request, hyp, data.names)
    imgsz = round_to_stride(options.imgsz, max(int(model.stride.max()), 32))
    if not request.resumed and not options.noautoanchor:
        fit_model_anchors(model, label_sizes(data.train, imgsz), hyp.anchor_t, options.seed)
    return Parts(hyp, data, model, imgsz)


def build_run(request: Request, distributed: Distributed) -> Run:
    """Data, model, optimizer and schedule as asked for, with the state of the resumed run in them."""
    hyp, data, model, imgsz = distributed.on_main(lambda: prepare(request))
    expect_pictures(data)
    options, device = request.options.replace(imgsz=imgsz), distributed.device
    grid = max(int(model.stride.max()), 32)
    model = model.to(device, memory_format=torch.channels_last)
    autocast = amp_dtype(options.amp, device)
    if options.batch_size == -1:
        of_each = distributed.on_main(lambda: find_batch_size(model, options.imgsz, autocast))
        options = options.replace(batch_size=of_each * max(distributed.world_size, len(distributed.devices)))
    frozen = freeze_layers(model, options.freeze)
    train_loader, val_loader = build_loaders(options, hyp, data, grid, distributed)
    state = build_state(model, options, hyp, autocast, request.resumed)
    content = fingerprint(data.train.shapes, data.train.labels, data.train.offsets)
    around = surroundings(distributed, content, len(train_loader))
    if request.resumed:
        state.good = distributed.on_main(lambda: begin_again(state, request, options, around))
        state.step, state.iteration = rescaled(state.step, state.epoch, steps_before(request), len(train_loader))
    schedule = Schedule(hyp.to_dict(), options.epochs, len(train_loader), options.batch_size, options.cos_lr)
    loss = build_loss(model, options, hyp, distributed)
    distributed.wait_for_all()  # caching pictures may have taken some longer than others
    wrapped = wrap_model(model, options, distributed, static=not frozen)
    return Run(options, hyp, data, distributed, train_loader, val_loader, model, wrapped, frozen, loss,
               schedule, state, autocast, around)


def begin_again(state: TrainState, request: Request, options: TrainOptions, around: dict[str, Any]) -> dict | None:
    """Say what is another than before; returns the state at the start of the present epoch, where that was kept.

    Raises UserError for a run that is over.
    """
    checkpoint = Path(options.resume)
    report_differences(request.resumed.get("surroundings"), around)
    if is_over(state, options) and request.folder is None and was_finished(checkpoint, state.epoch):
        more = "--patience" if state.epoch < options.epochs else f"--epochs {2 * state.epoch}"
        raise UserError(f"{checkpoint}: all {state.epoch} epochs are done; add {more} to go on")
    return read_start(checkpoint, request.resumed) if steps_before(request) == around["steps_per_epoch"] else None


def steps_before(request: Request) -> int | None:
    """Steps of an epoch in the run that is gone on with."""
    around = request.resumed.get("surroundings")
    return around.get("steps_per_epoch") if isinstance(around, dict) else None


def read_hyperparameters(request: Request) -> Hyperparameters:
    """Of the resumed run, unless another file is typed; else of `--hyp`."""
    if request.resumed and "hyp" not in request.typed:
        return Hyperparameters.from_dict(request.resumed["hyp"], request.options.resume)
    return Hyperparameters.load(request.options.hyp, ROOT, ROOT / "data" / "hyps")


def build_state(model: DetectionModel, options: TrainOptions, hyp: Hyperparameters, autocast: torch.dtype | None,
                resumed: dict | None) -> TrainState:
    """Optimizer, EMA, scaler and early stop around `model`, as the checkpoint `resumed` left them if there is one."""
    decay = scaled_weight_decay(hyp.weight_decay, options.batch_size, accumulation(options.batch_size))
    optimizer = build_optimizer(model, options.optimizer, hyp.lr0, hyp.momentum, decay)
    if options.optimizer != "SGD" and hyp.lr0 >= 0.01:
        print(f"WARNING --optimizer {options.optimizer} with lr0 {hyp.lr0}: 0.001 is usual; set lr0 in the --hyp file")
    decays = [group["weight_decay"] for group in optimizer.param_groups]
    scaler = torch.amp.GradScaler(next(model.parameters()).device.type, enabled=autocast == torch.float16)
    guard = Guard(model, SEARCHING_PATIENCE if scaler.is_enabled() else PATIENCE)
    state = TrainState(model, ema=ModelEMA(model), optimizer=optimizer, scaler=scaler, guard=guard,
                       stopper=EarlyStopping(options.patience))
    state.class_maps = [0.0] * model.num_classes
    if resumed:
        state.load_state_dict(fitting_state(resumed, options, optimizer, scaler))
        for group, decay in zip(optimizer.param_groups, decays):  # options may have changed it
            group["weight_decay"] = decay
    return state


def fitting_state(resumed: dict, options: TrainOptions, optimizer: torch.optim.Optimizer,
                  scaler: torch.amp.GradScaler) -> dict:
    """`resumed` without the parts that mean nothing to another optimizer, or to a precision without a scaler."""
    fresh = {}
    if resumed["options"].get("optimizer") != options.optimizer:
        fresh["optimizer"] = optimizer.state_dict()
    if bool(resumed.get("scaler")) != scaler.is_enabled():
        fresh["scaler"] = scaler.state_dict()
    return {**resumed, **fresh}


def build_loss(model: DetectionModel, options: TrainOptions, hyp: Hyperparameters,
               distributed: Distributed) -> DetectionLoss:
    gains = scale_gains(hyp, len(model.stride), model.num_classes, options.imgsz,
                        label_smoothing=options.label_smoothing)
    counts = distributed.sum if distributed.world_size > 1 else None
    return DetectionLoss(model.head.anchors, model.stride, model.num_classes, gains, sum_over_processes=counts)


def wrap_model(model: DetectionModel, options: TrainOptions, distributed: Distributed, *, static: bool) -> nn.Module:
    """The model in its parallel wrapper. static: every parameter gets a gradient in every step."""
    several, on_gpu = distributed.world_size > 1, distributed.device.type == "cuda"
    if options.sync_bn and several and on_gpu:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # in place below the top: `model` itself is no BatchNorm
    elif several:
        print(f"Batch statistics are those of each process's {options.batch_size // distributed.world_size} pictures"
              + ("; --sync-bn takes them over all" if on_gpu else ""))
    wrapped = distributed.wrap(model, static_graph=static)
    if several:
        settle_buckets(wrapped, 2 * max(int(model.stride.max()), 32), distributed.device)
    return wrapped


def settle_buckets(wrapped: nn.Module, size: int, device: torch.device) -> None:
    """One pass forward and backward over nothing, which leaves no trace in the model.

    DistributedDataParallel arranges its buckets in the first pass, which must exchange gradients. Sums in another
    order round otherwise: after this every pass adds up alike, also the first one of a resumed run.
    """
    wrapped.eval()  # batch statistics stay as they are
    _, raw = wrapped(torch.zeros(1, 3, size, size, device=device))
    sum(level.sum() for level in raw).backward()
    wrapped.zero_grad(set_to_none=True)


class NumbersWentBad(Exception):
    """Several optimizer steps in a row were not finite, or the weights after them."""


def train(run: Run, log: "RunLog", interruption: Interruption) -> Metrics | None:
    """Train to the last epoch, or until fitness stands still. Returns the metrics of the last validation."""
    metrics, state = None, run.state
    while not is_over(state, run.options):
        epoch = state.epoch
        if state.good is None or state.good["epoch"] != epoch:
            state.good = snapshot(state.state_dict())
        log.start_epoch(epoch)
        try:
            losses = train_one_epoch(run, log, interruption)
        except NumbersWentBad:
            go_back(run, state.good)
            continue
        if epoch + 1 == run.options.epochs or not run.options.noval:
            metrics = validate(run, log, interruption)
            state.class_maps = [float(value) for value in metrics.maps]
            run.stopper.update(epoch, metrics.fitness)
        improved = metrics is not None and metrics.fitness > state.best_fitness
        if improved:
            state.best_fitness = float(metrics.fitness)
        log.epoch_done(epoch, losses, metrics)
        state.epoch, state.step = epoch + 1, 0
        over, asked = run.distributed.any(is_over(state, run.options)), run.distributed.any(bool(interruption.asked))
        if over or asked or not run.options.nosave:
            log.save(metrics, improved=improved)
            interruption.note_save()
        if asked:
            raise Interrupted(interruption.asked or "another process")
        if over:
            break
    if state.epoch < run.options.epochs:
        print(f"Stopped: no better fitness for {run.options.patience} epochs (best: epoch {run.stopper.best_epoch})")
    return metrics


def is_over(state: TrainState, options: TrainOptions) -> bool:
    """Whether all epochs are done, or fitness has stood still for long enough."""
    stopped = not options.noval and state.members["stopper"].is_over(state.epoch - 1)
    return state.epoch >= options.epochs or stopped


def train_one_epoch(run: Run, log: "RunLog", interruption: Interruption) -> list[float]:
    """The rest of the present epoch, from the state's step on. Returns the epoch's mean box, obj and cls loss."""
    run.wrapped.train()
    for layer in run.frozen:
        layer.eval()  # frozen layers keep their batch statistics
    loader, state, group, device = run.train_loader, run.state, run.distributed, run.distributed.device
    loader.set_epoch(state.epoch, start_batch=state.step, weights=sampling_weights(run))
    run.optimizer.zero_grad(set_to_none=True)
    means = torch.tensor(state.means if state.step else [0.0] * 3, device=device)
    pending = 0
    for step, batch in enumerate(loader, start=state.step):
        rates = rates_at(run, state.iteration)
        set_rates(run.optimizer, rates)
        images = prepare_images(run, batch.images)  # (B, 3, H, W)
        steps_now = pending + 1 >= rates.accumulate or step + 1 == len(loader)  # what is left is not thrown away
        with group.exchange_gradients(run.wrapped, now=steps_now):
            with torch.autocast(device.type, run.autocast, enabled=run.autocast is not None):
                predictions = run.wrapped(images)
            total, losses = run.loss(predictions, batch.targets)
            factor = group.world_size * (4 if run.options.quad else 1)  # DDP averages where a sum is meant
            run.scaler.scale(poison(total) * factor).backward()
        shown = group.sum(torch.stack(losses))  # each process has its share of the sums
        means += (torch.where(shown.isfinite(), shown, means) - means) / (step + 1)
        log.batch_done(step, batch, means, images.shape[-1])
        pending, state.iteration = pending + 1, state.iteration + 1
        if steps_now:
            optimizer_step(run)
            pending, state.step, state.means = 0, step + 1, means.tolist()
            save_between_steps(run, log, interruption)
    if group.any(not is_finite(describe_weights(run))):
        raise NumbersWentBad
    return means.tolist()


def rates_at(run: Run, iteration: int) -> Rates:
    """The schedule's rates, lower after each return to a good state."""
    rates, factor = run.schedule.at(iteration), run.guard.rate
    return rates._replace(lr_bias=rates.lr_bias * factor, lr_weight=rates.lr_weight * factor,
                          lr_norm=rates.lr_norm * factor)


def optimizer_step(run: Run) -> None:
    """Clip, step, follow with the EMA; a step that is not finite is left out."""
    run.scaler.unscale_(run.optimizer)
    norm = nn.utils.clip_grad_norm_(run.model.parameters(), MAX_GRADIENT_NORM)
    if run.guard.admit(norm):
        run.scaler.step(run.optimizer)
        run.ema.update(run.model)
    run.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    if run.guard.must_return:
        raise NumbersWentBad


def go_back(run: Run, good: dict) -> None:
    """Return to the state at the epoch's start (where that is not known, where the run was taken up), at a lower rate."""
    guard = run.guard
    if guard.exhausted:
        raise UserError(f"the loss is not finite, also after {guard.returns} returns to a good state at lower rates; "
                        "try a lower lr0 in the --hyp file, --amp off, and look for damaged labels or pictures")
    counts = guard.state_dict()
    run.state.load_state_dict(good)
    guard.load_state_dict(counts)
    guard.note_return()
    print("WARNING the numbers went bad (NaN or infinity, several steps in a row): back to the state at the epoch's "
          f"start, learning rates x {guard.rate}")


def describe_weights(run: Run) -> dict[str, Any]:
    return {"model": {"state_dict": run.model.state_dict()}, "ema": run.ema.state_dict()}


def save_between_steps(run: Run, log: "RunLog", interruption: Interruption) -> None:
    """Save when it is time to, or when a signal has asked any process to stop; then raise Interrupted."""
    asked = run.distributed.any(bool(interruption.asked))
    if asked or interruption.save_due():
        log.save(None)
        interruption.note_save()
    if asked:
        raise Interrupted(interruption.asked or "another process")


def prepare_images(run: Run, images: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) to float 0…1 on the device, at this iteration's size when sizes vary."""
    images = images.to(run.distributed.device, non_blocking=True).float() / 255
    if run.options.multi_scale:
        grid = max(int(run.model.stride.max()), 32)
        rng = np.random.default_rng([run.options.seed, run.state.iteration])
        size = multi_scale_size(rng, run.options.imgsz, grid)
        factor = size / max(images.shape[2:])
        if factor != 1:
            shape = [int(np.ceil(side * factor / grid)) * grid for side in images.shape[2:]]
            images = F.interpolate(images, size=shape, mode="bilinear", align_corners=False)
    return images.contiguous(memory_format=torch.channels_last)


def sampling_weights(run: Run) -> np.ndarray | None:
    """Weight of each picture for `--image-weights`: many labels of rare classes with a low mAP weigh most."""
    if not run.options.image_weights:
        return None
    by_class = class_weights(run.data.train, run.model.num_classes) * (1 - np.array(run.state.class_maps)) ** 2
    return image_weights(run.data.train, by_class)


def validate(run: Run, log: "RunLog", interruption: Interruption) -> Metrics:
    """Metrics of the EMA weights on the validation pictures; where a signal ends it, a resumed run validates anew."""
    run.distributed.share_buffers(run.ema.ema)  # batch statistics differ by process; rank 0's are saved
    try:
        with interruption.at_once(run.distributed.world_size == 1):  # of several, none may leave the others waiting
            coarse = run.autocast == torch.bfloat16  # 8 bits place boxes too roughly to be measured by
            return val.evaluate(run.ema.ema, run.val_loader, single_cls=run.options.single_cls, names=run.data.names,
                                autocast=None if coarse else run.autocast, loss=run.loss,
                                distributed=run.distributed)
    except Interrupted:
        log.save(None)
        raise


# ---------------------------------------------------------------------------------------------------------------------
# What a run says and leaves behind


class RunLog:
    """Progress, results and checkpoints of a run; on ranks other than 0 its twin is silent."""

    def __init__(self, run: Run, folder: RunFolder):
        self.run, self.folder, self.bar = run, folder, None
        self.started, self.first_epoch = time.monotonic(), run.state.epoch
        self.skipped = run.guard.skipped
        options, labels = run.options, run.data.train.labels
        folder.describe(options.to_dict(), run.hyp.to_dict(), labels, run.data.names)
        amp = str(run.autocast).removeprefix("torch.") if run.autocast else "off"
        print(f"Image size {options.imgsz}, batch {options.batch_size}, {run.train_loader.workers} data workers, "
              f"mixed precision {amp}\nLogging to {folder.path}\nTraining for {options.epochs} epochs...")
        if run.state.iteration == 0:  # from here on there is something to resume
            folder.half.unlink(missing_ok=True)  # of an earlier run, with --exist-ok
            self.save(None)

    def start_epoch(self, epoch: int) -> None:
        print("\n" + header())
        self.bar = tqdm(total=len(self.run.train_loader), initial=self.run.state.step, mininterval=0.5,
                        bar_format="{l_bar}{bar:10}{r_bar}")

    def batch_done(self, step: int, batch: Batch, means: Tensor, size: int) -> None:
        state, last = self.run.state, step + 1 == len(self.run.train_loader)
        if self.bar.update() or last or step == 0:  # reading the losses waits for the device: only when they are shown
            line = progress_line(state.epoch, self.run.options.epochs, memory_used(means.device), means.tolist(),
                                 len(batch.targets), size)
            self.bar.set_description_str(line, refresh=last)
        if state.iteration < PICTURED_BATCHES:
            self.folder.picture_batch(state.iteration, batch, self.run.data.names)
        if last:
            self.bar.close()

    def epoch_done(self, epoch: int, losses: list[float], metrics: Metrics | None) -> None:
        scores = [0.0] * 4 if metrics is None else [metrics.precision, metrics.recall, metrics.map50, metrics.map]
        val_losses = [0.0] * 3 if metrics is None else list(metrics.losses)
        if self.run.guard.skipped > self.skipped:
            self.skipped = self.run.guard.skipped
            print(f"WARNING {self.skipped} optimizer steps so far were left out: loss or gradients were not finite")
        rates = rates_at(self.run, self.run.state.iteration - 1)
        self.folder.results.write(epoch, losses, scores, val_losses, [rates.lr_bias, rates.lr_weight, rates.lr_norm])

    def save(self, metrics: Metrics | None, improved: bool = False) -> None:
        run = self.run
        if run.options.score_only:
            return
        content = {**run.state.state_dict(), "options": {**run.options.to_dict(), "resume": False},
                   "hyp": run.hyp.to_dict(), "surroundings": run.surroundings,
                   "metrics": {} if metrics is None else {"map50": float(metrics.map50), "map": float(metrics.map)}}
        self.folder.save(content, start=run.state.good, best=improved, period=run.options.save_period)

    def load_best(self) -> DetectionModel:
        """best.pt, once everything is written."""
        hours = (time.monotonic() - self.started) / 3600
        self.folder.finish()
        print(f"\n{self.run.state.epoch - self.first_epoch} epochs completed in {hours:.3f} hours.\n"
              f"Validating {self.folder.best}...")
        return load_model(self.folder.best)

    def say_next(self) -> None:
        print(f"Results saved to {self.folder.path}\n"
              f"Next: python detect.py --weights {shlex.quote(str(self.folder.best))} --source YOUR_PICTURES")
        self.folder.mark_end(self.run.state.state_dict())


def finish(run: Run, log: RunLog) -> None:
    """Validate best.pt with pictures on all processes, draw the curves, say where everything is."""
    if run.options.score_only:
        return
    best = run.distributed.on_main(log.load_best).to(run.distributed.device)  # other machines may not see the file
    pictured = run.distributed.is_main and not run.options.noplots
    val.evaluate(best, run.val_loader, single_cls=run.options.single_cls, names=run.data.names,
                 plots=log.folder.path if pictured else None, verbose=True, distributed=run.distributed)
    log.say_next()


class SilentLog:
    """What ranks other than 0 have in place of a RunLog."""

    def __getattr__(self, name: str) -> Callable:
        return lambda *args, **named: None


def evolve_main(given: dict[str, Any]) -> Verdict:
    """Search hyperparameters with trainings in processes of their own, as `given` says. Returns who won."""
    given = {key: value for key, value in given.items() if key != "resume"}  # the same command goes on anyway
    options, typed = TrainOptions(**given), frozenset(given)
    request = Request(options, typed, None)
    build_model(request, read_hyperparameters(request), read_data(options).names)  # what is wrong shows before it begins
    return run_evolution(options, typed, Path(__file__))


def main(argv: Sequence[str] | None = None) -> Metrics | Verdict | None:
    """Train as the command line `argv` says. Returns the metrics of the last validation.

    Raises SystemExit with interruption.EXIT_CODE when a signal stopped the run and its state is saved.
    """
    given = parse_args(argv)
    if given.get("evolve"):
        return evolve_main(given)
    with Distributed.join().session() as group:
        launchers = group.gather(launch_token())
        request = group.on_main(lambda: understand(given, launchers))
        options = request.options
        distributed = group.use(options.device, options.batch_size)
        seed_everything(options.seed)
        print(f"train: {describe_device(distributed.device)} x {distributed.world_size}, torch {torch.__version__}")
        run = build_run(request, distributed)
        if not distributed.is_main:
            return train_and_finish(run, SilentLog())
        with closing(RunFolder(open_run_folder(request), plots=not options.noplots)) as folder:
            remember_launch(folder.path, launchers)
            return train_and_finish(run, RunLog(run, folder))


def train_and_finish(run: Run, log: RunLog) -> Metrics | None:
    """Train and finish, or stop for a signal or for want of GPU memory. Returns the metrics of the last validation."""
    group = run.distributed
    echo = 0.0 if group.local_rank is None else LAUNCHER_SECONDS
    try:
        with closing(run.train_loader), closing(run.val_loader), Interruption(run.options.save_minutes, echo) as stop:
            metrics = train(run, log, stop)
            with stop.at_once(group.world_size == 1):
                finish(run, log)
            return metrics
    except Interrupted as signal:
        raise SystemExit(say_how_to_go_on(str(signal), log.folder) if group.is_main else EXIT_CODE) from None
    except torch.OutOfMemoryError as error:
        batch, imgsz = run.options.batch_size, run.options.imgsz
        raise UserError(f"out of GPU memory at --batch-size {batch}, --imgsz {imgsz}: try --batch-size "
                        f"{max(batch // 2, 1)}, or --batch-size -1, which finds the largest that fits") from error


def say_how_to_go_on(signal: str, folder: RunFolder) -> int:
    """Print how to go on after `signal`; returns the exit code."""
    saved = folder.is_saved()
    state = "the state is saved" if saved else "the state could NOT be saved, only that of an earlier save is there"
    print(f"\nInterrupted ({signal}), {state}. Go on with: python train.py --resume {shlex.quote(str(folder.path))}")
    return EXIT_CODE if saved else 1


if __name__ == "__main__":
    run_command(main)
