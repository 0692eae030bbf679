"""Train a detector: `python train.py --data my.yaml --cos-lr`, `torchrun --nproc_per_node 4 train.py`, `--resume`.

Top to bottom: read what was asked for, build data, model and optimizer, then the loop. Letters: B batch, H W rows and
columns, T targets.
"""

from utils.errors import silence_ctrl_c_during_imports

if __name__ == "__main__":
    silence_ctrl_c_during_imports()  # amid the imports

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import val
from models.adaptation import fit_model_anchors, freeze_layers, round_to_stride
from models.building import build_model, settle_start
from models.loading import load_model
from models.yolo import DetectionModel
from utils.autobatch import advice_on_memory, find_batch_size
from utils.checkpoint import is_finite, snapshot
from utils.cli import read_flags
from utils.config import Hyperparameters, TrainOptions
from utils.datasets.locate import find_dataset_yaml, locate_images
from utils.datasets.spec import read_dataset_yaml
from utils.datasets.splits import Splits, class_names, label_sizes, load_splits, require_images
from utils.device import amp_dtype, cores_for_loading, describe_device, seed_everything, select_device, tune_malloc
from utils.distributed import Distributed, launch_token
from utils.download import fetch_typed
from utils.ema import ModelEMA
from utils.errors import UserError
from utils.errors import run as run_command
from utils.evolution.plan import Plan, make_plan
from utils.evolution.run import open_run
from utils.evolution.verdict import Verdict
from utils.evolve import evolve
from utils.inference.preprocess import to_network_input
from utils.loading.dataset import Batch, Loader, explain_worker_error, make_loader
from utils.loading.prefetch import prefetch
from utils.loading.sampler import class_weights, image_weights
from utils.loss import DetectionLoss, Losses, scale_gains
from utils.metrics import Metrics
from utils.optim import set_rates, take_step
from utils.schedule import NOMINAL, EarlyStopping, Rates, Schedule, largest_size, multi_scale_size, nominal_batch
from utils.training.compile import compile_if_faster
from utils.training.ddp import wrap_model
from utils.training.launch_record import remember_launch
from utils.training.log import RunLog, SilentLog, say_how_to_go_on
from utils.training.nan_guard import NanGuard, propagate_nan
from utils.training.reproducibility import name_contents, surroundings
from utils.training.resume import rescaled
from utils.training.run_folder import RunFolder
from utils.training.run_state import TrainState
from utils.training.signals import EXIT_CODE, LAUNCHER_SECONDS, Interrupted, SignalHandler
from utils.training.startup import Request, open_run_folder, read_hyperparameters, understand
from utils.training.state import begin_again, build_state, describe_weights, go_back, is_over, steps_before

MAX_GRADIENT_NORM = 10.0


# ---------------------------------------------------------------------------------------------------------------------
# What was asked for


def parse_args(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """The options that were typed, by name."""
    given = read_flags(TrainOptions, argv, prog="train.py", description="Train a detector.")
    given.pop("local_rank", None)  # from launchers: the environment says the same
    return given


# ---------------------------------------------------------------------------------------------------------------------
# Data


def build_loaders(
    options: TrainOptions, hyp: Hyperparameters, data: Splits, stride: int, distributed: Distributed
) -> tuple[Loader, Loader]:
    """The training and the validation loader of this process."""
    shared = {
        "imgsz": options.imgsz,
        "stride": stride,
        "workers": options.workers,
        "seed": options.seed,
        "rank": distributed.rank,
        "world_size": distributed.world_size,
        "progress": distributed.is_main,
        "pin_memory": distributed.device.type == "cuda",
        "cores": cores_for_loading(distributed.device),
    }
    if options.rect and options.image_weights:
        print("WARNING --rect has no effect with --image-weights, which draws pictures of any shape")
    wanted = {None: ("auto", "auto"), "off": (None, None), "val": (None, "ram")}
    for_train, for_val = wanted.get(options.cache, (options.cache, options.cache))
    train = make_loader(
        data.train,
        batch_size=options.batch_size,
        hyp=hyp,
        rect=options.rect,
        shuffle=not options.rect,
        cache=for_train,
        image_weights=options.image_weights,
        quad=options.quad,
        finish_on_device=distributed.device.type == "cuda",
        **shared,
    )
    validation = make_loader(
        data.val,
        batch_size=2 * options.batch_size,
        rect=True,
        pad=0.5,
        cache=None if options.noval else for_val,
        **shared,
    )
    return train, validation


# ---------------------------------------------------------------------------------------------------------------------
# The run


@dataclass(frozen=True)
class Run:
    """Everything the loop needs, built once."""

    options: TrainOptions
    hyp: Hyperparameters
    data: Splits
    distributed: Distributed
    train_loader: Loader
    val_loader: Loader
    model: DetectionModel
    wrapped: nn.Module  # the model in its parallel wrapper, or itself
    frozen: list[int]  # layers of the model
    loss: DetectionLoss
    schedule: Schedule
    state: TrainState
    autocast: torch.dtype | None
    grid: int  # pixels; sizes of pictures are multiples of it
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
    def guard(self) -> NanGuard:
        return self.state.members["guard"]

    def set_modes(self) -> None:
        """Training mode, except for frozen layers, which keep their batch statistics."""
        self.wrapped.train()
        for index in self.frozen:
            self.model.model[index].eval()


class Parts(NamedTuple):
    """What rank 0 prepares for all: files are read, fetched and fitted to the data once."""

    hyp: Hyperparameters
    data: Splits
    model: DetectionModel
    frozen: list[int]
    options: TrainOptions


def prepare(request: Request) -> Parts:
    options, hyp = settle_start(request), read_hyperparameters(request)
    request = replace(request, options=options)
    dataset = read_dataset_yaml(find_dataset_yaml(options.data))
    model = build_model(request, hyp, class_names(dataset.names, single_cls=options.single_cls))
    frozen = freeze_layers(model, options.freeze)  # mistakes so far cost no download of data and no scan
    data = load_splits(locate_images(dataset), single_cls=options.single_cls, fraction=options.evolve_fraction)
    imgsz = round_to_stride(options.imgsz, model.size_multiple)
    if not request.resumed and not options.noautoanchor:
        replaced = fit_model_anchors(model, label_sizes(data.train, imgsz), hyp.anchor_t, options.seed)
        if replaced and options.weights and "weights" in request.typed:
            print(
                "the weights were trained with other anchors and must get used to these: for a few epochs of "
                "fine-tuning try --noautoanchor and --hyp hyp.VOC.yaml"
            )
    return Parts(hyp, data, model, frozen, options.replace(imgsz=imgsz))


def build_run(request: Request, distributed: Distributed) -> Run:
    """Data, model, optimizer and schedule as asked for, with the state of the resumed run in them."""
    device = distributed.device
    autocast = amp_dtype(request.options.amp, device, data_parallel=len(distributed.devices) > 1)
    hyp, data, model, frozen, options = distributed.on_main(lambda: prepare(request))
    require_images(data)
    grid = model.size_multiple
    model = model.to(device, memory_format=torch.channels_last)
    if options.batch_size == -1:
        largest = largest_size(options.imgsz, grid) if options.multi_scale else options.imgsz
        of_each = distributed.on_main(lambda: find_batch_size(model, largest, autocast))
        options = options.replace(batch_size=of_each * shares(distributed))
    train_loader, val_loader = build_loaders(options, hyp, data, grid, distributed)
    options = with_nominal_batch(options, options.epochs * len(train_loader))
    state = build_state(model, options, hyp, autocast, request.resumed)
    around = surroundings(distributed, name_contents(data.train, data.val), autocast, len(train_loader))
    if request.resumed:
        state.good = distributed.on_main(lambda: begin_again(state, request, options, around))
        state.step, state.iteration = rescaled(state.step, state.epoch, steps_before(request), len(train_loader))
    schedule = Schedule(
        hyp.to_dict(), options.epochs, len(train_loader), options.batch_size, options.cos_lr, options.nbs
    )
    loss = build_loss(model, options, hyp, distributed)
    distributed.wait_for_all()  # caching pictures may have taken some longer than others
    wrapped = wrap_model(model, options, distributed, static=not frozen)
    run = Run(
        options,
        hyp,
        data,
        distributed,
        train_loader,
        val_loader,
        model,
        wrapped,
        frozen,
        loss,
        schedule,
        state,
        autocast,
        grid,
        around,
    )
    return compile_if_faster(run, learn_anew) if options.compile else run


def with_nominal_batch(options: TrainOptions, iterations: int) -> TrainOptions:
    """The options with --nbs settled for a run of so many iterations, where it was left open; a line says when it is
    fewer pictures than usual."""
    if options.nbs:
        return options
    options = options.replace(nbs=nominal_batch(options.batch_size, iterations))
    if options.nbs < NOMINAL:
        print(
            f"A short run has few optimizer steps: one for every {options.nbs} pictures (--nbs {NOMINAL} takes one "
            f"for every {NOMINAL})"
        )
    return options


def build_loss(
    model: DetectionModel, options: TrainOptions, hyp: Hyperparameters, distributed: Distributed
) -> DetectionLoss:
    gains = scale_gains(
        hyp, len(model.stride), model.num_classes, options.imgsz, label_smoothing=options.label_smoothing
    )
    counts = distributed.sum if distributed.world_size > 1 else None
    return DetectionLoss(model.head.anchors, model.stride, model.num_classes, gains, sum_over_processes=counts)


class NumbersWentBad(Exception):
    """Several optimizer steps in a row were not finite, or the weights after them."""


def train(run: Run, log: "RunLog", interruption: SignalHandler) -> Metrics | None:
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
            log.close()
            go_back(run, state.good)
            continue
        if epoch + 1 == run.options.epochs or not run.options.noval:
            metrics = validate(run, log, interruption)
            state.class_maps = [float(value) for value in metrics.maps]
            run.stopper.update(epoch, metrics.fitness)
        improved = metrics is not None and metrics.fitness > state.best_fitness
        if improved:
            state.best_fitness = float(metrics.fitness)
        log.epoch_done(epoch, losses, metrics, rates_at(run, state.iteration - 1))
        state.epoch, state.step = epoch + 1, 0
        over, asked = (
            run.distributed.any(is_over(state, run.options)),
            run.distributed.any(bool(interruption.signal_name)),
        )
        if over or asked or not run.options.nosave:
            log.save(metrics, improved=improved)
            interruption.mark_saved()
        elif improved:
            log.hold_best(metrics)
        if asked:
            raise Interrupted(interruption.signal_name or "another process")
        if over:
            break
    if state.epoch < run.options.epochs:
        print(f"Stopped: no better fitness for {run.options.patience} epochs (best: epoch {run.stopper.best_epoch})")
    return metrics


def train_one_epoch(run: Run, log: "RunLog", interruption: SignalHandler) -> list[float]:
    """The rest of the present epoch, from the state's step on. Returns the epoch's mean box, obj and cls loss."""
    run.set_modes()
    loader, state, group, device = run.train_loader, run.state, run.distributed, run.distributed.device
    loader.set_epoch(state.epoch, start_batch=state.step, weights=sampling_weights(run))
    run.optimizer.zero_grad(set_to_none=True)
    means = torch.tensor(state.means if state.step else [0.0] * 3, device=device)
    pending = 0
    for step, batch in enumerate(prefetch(loader, device), start=state.step):
        rates = rates_at(run, state.iteration)
        set_rates(run.optimizer, rates)
        images = prepare_images(run, batch.images)  # (B, 3, H, W)
        steps_now = pending + 1 >= rates.accumulate or step + 1 == len(loader)  # what is left is not thrown away
        with group.exchange_gradients(run.wrapped, now=steps_now):
            losses = learn(run, images, batch)
        shown = group.sum(torch.stack(losses))  # each process has its share of the sums
        means = means + (torch.where(shown.isfinite(), shown, means) - means) / (step + 1)
        log.batch_done(step, batch, means, images.shape[-1])
        pending, state.iteration = pending + 1, state.iteration + 1
        if steps_now:
            optimizer_step(run)
            pending, state.step, state.means = 0, step + 1, means
            save_between_steps(run, log, interruption)
    run.guard.sync()
    if group.any(run.guard.needs_rollback or not is_finite(describe_weights(run))):
        raise NumbersWentBad
    return means.tolist()


def learn(run: Run, images: Tensor, batch: Batch) -> Losses:
    """Forward and backward: add the gradients of a batch."""
    with torch.autocast(images.device.type, run.autocast, enabled=run.autocast is not None):
        predictions = counted(run.wrapped(images), batch)
    total, losses = run.loss(predictions, batch.targets)
    factor = run.distributed.world_size * (4 if run.options.quad else 1)  # DDP averages where a sum is meant
    run.scaler.scale(propagate_nan(total) * factor).backward()
    return losses


def learn_anew(run: Run, batch: Batch) -> Losses:
    return learn(run, prepare_images(run, batch.images), batch)


def rates_at(run: Run, iteration: int) -> Rates:
    """The schedule's rates, lower after each return to a good state."""
    rates, factor = run.schedule.at(iteration), run.guard.lr_factor
    return rates._replace(
        lr_bias=rates.lr_bias * factor, lr_weight=rates.lr_weight * factor, lr_norm=rates.lr_norm * factor
    )


def optimizer_step(run: Run) -> None:
    """Clip, step, follow with the EMA; a step that is not finite is left out. Nothing here waits for a GPU."""
    run.scaler.unscale_(run.optimizer)
    norm = nn.utils.clip_grad_norm_(run.model.parameters(), MAX_GRADIENT_NORM)
    admitted = run.guard.allow_step(norm)  # a decision of the device's: the scaler's own would be waited for
    take_step(run.optimizer, admitted)
    run.ema.update(run.model, admitted)
    run.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    if run.guard.needs_rollback:
        raise NumbersWentBad


def save_between_steps(run: Run, log: "RunLog", interruption: SignalHandler) -> None:
    """Save when it is time to, or when a signal has asked any process to stop; then raise Interrupted."""
    asked = run.distributed.any(bool(interruption.signal_name))
    if asked or interruption.save_due():
        log.save(None)
        interruption.mark_saved()
    if asked:
        raise Interrupted(interruption.signal_name or "another process")


def prepare_images(run: Run, images: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) to 0…1 on the device, at this iteration's size when sizes vary."""
    if not run.options.multi_scale:
        return to_network_input(images, run.distributed.device, run.autocast)
    images = to_network_input(images, run.distributed.device)
    rng = np.random.default_rng([run.options.seed, run.state.iteration])
    factor = multi_scale_size(rng, run.options.imgsz, run.grid) / max(images.shape[2:])
    if factor == 1:
        return images
    shape = [int(np.ceil(side * factor / run.grid)) * run.grid for side in images.shape[2:]]
    images = F.interpolate(images, size=shape, mode="bilinear", align_corners=False)
    return images.contiguous(memory_format=torch.channels_last)


def counted(predictions: list[Tensor], batch: Batch) -> list[Tensor]:
    """What the loss is to see: of a filler nothing, though its pass takes part in the exchange of gradients."""
    return [level[:0] for level in predictions] if batch.is_padding else predictions


def sampling_weights(run: Run) -> np.ndarray | None:
    """Weight of each picture for `--image-weights`: many labels of rare classes with a low mAP weigh most."""
    if not run.options.image_weights:
        return None
    by_class = class_weights(run.data.train, run.model.num_classes) * (1 - np.array(run.state.class_maps)) ** 2
    return image_weights(run.data.train, by_class)


def validate(run: Run, log: "RunLog", interruption: SignalHandler) -> Metrics:
    """Metrics of the EMA weights on the validation pictures; where a signal ends it, a resumed run validates anew."""
    if run.distributed.world_size > 1 and not run.options.nosave:  # launchers wait less than a validation may take
        log.save(None)
        interruption.mark_saved()
    run.distributed.share_buffers(run.ema.ema)  # batch statistics differ by process; rank 0's are saved
    try:
        coarse = run.autocast == torch.bfloat16  # 8 bits place boxes too roughly to be measured by
        return val.evaluate(
            run.ema.ema,
            run.val_loader,
            single_cls=run.options.single_cls,
            names=run.data.names,
            autocast=None if coarse else run.autocast,
            loss=run.loss,
            distributed=run.distributed,
            before_batch=heeding(run, interruption),
        )
    except Interrupted:
        log.save(None)
        raise


def heeding(run: Run, interruption: SignalHandler) -> Callable[[], None] | None:
    """What an evaluation asks before each batch; of several processes none may leave the others waiting."""
    return interruption.raise_if_signalled if run.distributed.world_size == 1 else None


# ---------------------------------------------------------------------------------------------------------------------
# What a run says and leaves behind


def finish(run: Run, log: RunLog, interruption: SignalHandler) -> None:
    """Validate best.pt with pictures on all processes, and draw the curves."""
    best = run.distributed.on_main(lambda: load_model(log.training_over()))  # other machines may not see the file
    best = best.to(run.distributed.device)
    pictured = run.distributed.is_main and not run.options.noplots
    iou = val.COCO_IOU if run.data.spec.is_coco else val.IOU
    val.evaluate(
        best,
        run.val_loader,
        iou=iou,
        single_cls=run.options.single_cls,
        names=run.data.names,
        plots=log.folder.path if pictured else None,
        verbose=True,
        distributed=run.distributed,
        before_batch=heeding(run, interruption),
    )


def refuse_launcher(group: Distributed) -> None:
    """UserError where a launcher started this process: an evolution of each of its processes is not what was meant."""
    if group.local_rank is not None:
        raise UserError(
            "--evolve starts its own processes: type python train.py --evolve ... --device 0,1,2,3, without torchrun"
        )


def evolve_main(given: dict[str, Any]) -> Verdict:
    """Search hyperparameters with trainings in processes of their own, as `given` says. Returns who won."""
    with Distributed.join().session() as group:
        group.on_main(lambda: refuse_launcher(group))
    given = fetch_typed({key: value for key, value in given.items() if key != "resume"})  # which goes on anyway
    options = TrainOptions.from_typed(given)
    request = Request(options, options.typed, None)
    dataset = read_dataset_yaml(find_dataset_yaml(options.data))
    names = class_names(dataset.names, single_cls=options.single_cls)
    model = build_model(request, read_hyperparameters(request), names)  # mistakes show before it begins
    freeze_layers(model, options.freeze)
    amp_dtype(options.amp, select_device(options.device)[0])
    load_splits(locate_images(dataset), single_cls=options.single_cls)
    return search_hyperparameters(make_plan(options, script=Path(__file__)))


def search_hyperparameters(plan: Plan) -> Verdict:
    """Evolve hyperparameters, then train the best again under other seeds. Return the winner."""
    with open_run(plan) as run:
        evolved = evolve(
            objective=run.trainings,
            hyp=plan.start,
            generations=plan.options.evolve,
            seed=plan.options.seed,
            workers=len(plan.devices),
            population=plan.population,
            store=run.store,
            on_end=run.on_end,
            cancel=run.trainings.cancel,
        )
        return run.repeat_best(evolved.records)


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
        tune_malloc()
        print(f"train: {describe_device(distributed.device)} x {distributed.world_size}, torch {torch.__version__}")
        with advice_on_memory(options.batch_size, options.imgsz, shares(distributed)):
            run = build_run(request, distributed)
        if not distributed.is_main:
            return train_and_finish(run, SilentLog())
        with closing(RunFolder(open_run_folder(request), plots=not options.noplots)) as folder:
            remember_launch(folder.path, launchers)
            return train_and_finish(run, RunLog(run, folder))


def shares(group: Distributed) -> int:
    """Into how many parts a batch is divided."""
    return max(group.world_size, len(group.devices))


def train_and_finish(run: Run, log: RunLog) -> Metrics | None:
    """Train and finish, or stop for a signal or for want of GPU memory. Returns the metrics of the last validation."""
    group, options = run.distributed, run.options
    echo = 0.0 if group.local_rank is None else LAUNCHER_SECONDS
    try:
        with (
            advice_on_memory(options.batch_size, options.imgsz, shares(group)),
            closing(run.train_loader),
            closing(run.val_loader),
            closing(log),
            SignalHandler(options.save_minutes, echo) as stop,
        ):
            metrics = train(run, log, stop)
            if not options.score_only:
                finish(run, log, stop)
                log.say_next()  # and marks the run as finished: a signal is too late for it from here on
            return metrics
    except Interrupted as signal:
        raise SystemExit(say_how_to_go_on(str(signal), log.folder) if group.is_main else EXIT_CODE) from None
    except RuntimeError as error:
        explain_worker_error(error, run.train_loader.workers)
        raise


if __name__ == "__main__":
    run_command(main)
