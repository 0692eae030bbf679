"""Train a detector: `python train.py --data my.yaml --cos-lr`, `torchrun --nproc_per_node 4 train.py`, `--resume`.

Top to bottom: command line, model and loss, start-up, the loop, the program. Letters: B batch, H W rows and columns,
A anchors per level, L levels, C classes, M labels.
"""

from utils.errors import silence_ctrl_c_during_imports

silence_ctrl_c_during_imports(__name__)

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.loading import load_model
from models.setup import (
    anchors_to_fit,
    build_model,
    carry_head_over,
    freeze_layers,
    rebuild_model,
    resolve_initial_weights,
    take_names,
)
from models.yolo import DetectionModel
from utils import console
from utils.autoanchor import check_anchors
from utils.autobatch import advice_on_memory
from utils.checkpoint import is_finite
from utils.cli import Arguments, Flags, parse_flags, read_flags
from utils.config import Hyperparameters, TrainOptions
from utils.datasets.class_balance import loss_weights
from utils.datasets.locate import fill_names, read_dataset
from utils.datasets.spec import DatasetYaml
from utils.datasets.splits import class_names, label_sizes, require_images
from utils.detector import DetectionAdvice, Detector, as_detector, as_module
from utils.device import amp_dtype, describe_device, seed_everything, select_device, tune_malloc
from utils.distributed import Distributed, launch_token
from utils.download import fetch_typed
from utils.errors import UnreadableData, UserError
from utils.errors import run as run_command
from utils.evolution.dry_run import flags_of_a_training, report_search
from utils.evolution.plan import Plan, make_plan
from utils.evolution.run import open_run
from utils.evolution.verdict import Verdict
from utils.evolve import evolve
from utils.files import free_path
from utils.inference.evaluate import evaluate
from utils.inference.observer import EvaluationObserver, StopHook
from utils.inference.preprocess import to_network_input
from utils.inference.reporting import ConsoleTable, DiagnosisTable, Drawings
from utils.loading.dataset import Batch
from utils.loading.loader import explain_worker_error
from utils.loading.prefetch import prefetch
from utils.loss import DetectionLoss, Losses, scale_gains
from utils.metrics import Fitness, Metrics
from utils.optim import set_rates, take_step
from utils.process_state import unchanged_process
from utils.schedule import EarlyStopping, Schedule
from utils.training.checked_data import load_data
from utils.training.checkpoints import Checkpoints
from utils.training.compile import compile_if_faster
from utils.training.ddp import wrap_model
from utils.training.dry_run import measure_run
from utils.training.launch_record import write_launch_record
from utils.training.loaders import build_loaders
from utils.training.log import RunLog, print_stop
from utils.training.loggers import Loggers, installed_tools
from utils.training.nan_guard import NonFiniteError, propagate_nan
from utils.training.observer import EpochReport, Observer, Observers, StepReport
from utils.training.progress import Progress
from utils.training.recipe import settle_search
from utils.training.reproducibility import dataset_fingerprints, environment_fingerprint
from utils.training.result import TrainResult
from utils.training.run import Run
from utils.training.run_folder import RunFolder, require_whole
from utils.training.signals import EXIT_CODE, LAUNCHER_SECONDS, Interrupted, SignalHandler
from utils.training.startup import (
    Launch,
    Setup,
    checks_anchors,
    complete_options,
    num_replicas,
    open_run_folder,
    read_hyperparameters,
    reject_conflicts,
    reject_torchrun,
    resolve_launch,
)
from utils.training.state import make_ema, make_nan_guard, make_optimizer, restore
from utils.training.threads import Threads
from utils.training.time_budget import settle_run
from utils.user_observers import as_observers

PROGRAM = {"prog": "train.py", "description": "Train a detector."}
MAX_GRADIENT_NORM = 10.0


def parse_opt(known: bool = False) -> Flags:
    """Return all flags of the command line, for `main`. `known`: ignore words that are no flags."""
    return parse_flags(TrainOptions, **PROGRAM, known=known)


def parse_args(argv: Arguments = None) -> dict[str, Any]:
    """Return the options that were typed, by name."""
    typed = read_flags(TrainOptions, argv, **PROGRAM)
    typed.pop("local_rank", None)  # launchers pass it; the environment says the same
    return typed


# ---------------------------------------------------------------------------------------------------------------------
# Model, loss and data


class Network(NamedTuple):
    """Model on the CPU, and what it was built from."""

    model: DetectionModel
    frozen: list[int]  # layers
    hyp: Hyperparameters
    dataset: DatasetYaml
    weights: str  # "" from scratch
    cfg: str


def build_network(launch: Launch) -> Network:
    """Build backbone, neck and head as the model YAML describes them, and freeze layers.

    Nothing is downloaded for the data set, and no label is read, so that mistakes up to here cost no time.
    """
    options = launch.options
    hyp = read_hyperparameters(launch)
    dataset = fill_names(read_dataset(options.data, division=launch.division))
    names = class_names(dataset.names, single_cls=options.single_cls)
    if launch.checkpoint:
        weights, cfg, saved = options.weights, options.cfg, launch.checkpoint["model"]
        model = rebuild_model(saved, len(names), str(options.resume), data=options.data, pixels=dataset.pixels)
    else:
        start = resolve_initial_weights(options.weights, options.cfg, typed="weights" in options.typed)
        weights, cfg = options.weights if start.weights else "", start.cfg
        anchors = anchors_to_fit(hyp.anchors, noautoanchor=options.noautoanchor)
        model = build_model(start.weights, cfg, num_classes=len(names), anchors=anchors, pixels=dataset.pixels)
    take_names(model, names, options.data)
    return Network(model, freeze_layers(model, options.freeze), hyp, dataset.with_pixels(model.pixels), weights, cfg)


def fit_anchors(model: Detector, sizes: np.ndarray, threshold: float, seed: int) -> bool:
    """Keep the model's anchors if they recall 98 % of the labels, or fit new ones if those are better.

    `sizes` (M, 2) are widths and heights of the labels in pixels. Return True if the anchors were replaced.
    """
    strides = model.stride.cpu().numpy()
    anchors = model.head.anchors.cpu().numpy() * strides[:, None, None]  # (L, A, 2) pixels
    report = check_anchors(anchors, sizes, threshold, np.random.default_rng(seed), strides=strides)
    console.info(report.message)
    if report.replaced:
        grid = report.anchors_px / strides[:, None, None]  # (L, A, 2) grid cells
        model.head.anchors.copy_(torch.from_numpy(np.asarray(grid, np.float32)))
    return report.replaced


def build_loss(
    model: Detector, options: TrainOptions, hyp: Hyperparameters, group: Distributed, weights: np.ndarray | None = None
) -> DetectionLoss:
    """Return the loss, with gains scaled to the number of levels and classes and to the image size.

    weights: (C,) of the classes in the class loss.
    """
    num_levels, num_classes, smoothing = len(model.stride), model.num_classes, options.label_smoothing
    gains = scale_gains(hyp, num_levels, num_classes, options.imgsz, label_smoothing=smoothing)
    counts, anchors = group.sum if group.world_size > 1 else None, model.head.anchors
    return DetectionLoss(anchors, model.stride, num_classes, gains, sum_over_processes=counts, class_weights=weights)


# ---------------------------------------------------------------------------------------------------------------------
# Start-up: Launch -> Setup -> Run


def prepare_on_rank0(launch: Launch, distributed: Distributed, autocast: torch.dtype | None) -> Setup:
    """Build the model, read the data set, complete the options and fit the anchors."""
    options = launch.options
    model, frozen, hyp, dataset, weights, cfg = build_network(launch)
    data = load_data(dataset, options)
    if launch.checkpoint is None:
        options, hyp = settle_run(
            options, hyp, model, data, weights=weights, distributed=distributed, autocast=autocast
        )
    final = complete_options(
        options,
        model,
        weights=weights,
        cfg=cfg,
        num_images=data.train.epoch_size,
        distributed=distributed,
        autocast=autocast,
    )
    if launch.checkpoint is None:
        carry_head_over(model, weights, hyp.head_rows)
    if launch.checkpoint is None and checks_anchors(options, hyp, weights=weights):
        replaced = fit_anchors(model, label_sizes(data.train, final.imgsz), hyp.anchor_t, options.seed)
        if replaced and weights and "weights" in options.typed:
            console.info(
                "the weights were trained with other anchors and must get used to these: for a few epochs of "
                "fine-tuning try --noautoanchor and --hyp hyp.VOC.yaml"
            )
    return Setup(final, hyp, data, model, frozen)


def build_run(launch: Launch, distributed: Distributed) -> Run:
    """Build loaders, optimizer, schedule and loss around the model, and restore the state of a resumed run."""
    device = distributed.device
    autocast = amp_dtype(launch.options.amp, device, data_parallel=len(distributed.devices) > 1)
    setup = distributed.on_main(lambda: prepare_on_rank0(launch, distributed, autocast))
    options, hyp, data = setup.options, setup.hyp, setup.data
    require_images(data)
    model = setup.model.to(device, memory_format=torch.channels_last)
    train_loader, val_loader = build_loaders(setup, distributed)
    steps = len(train_loader)
    scaler = torch.amp.GradScaler(device.type, enabled=autocast == torch.float16)
    fingerprints = dataset_fingerprints(data.train, data.val)
    run = Run(
        options=options,
        hyp=hyp,
        data=data,
        distributed=distributed,
        train_loader=train_loader,
        val_loader=val_loader,
        model=model,
        wrapped=as_module(model),
        frozen=setup.frozen,
        loss=build_loss(model, options, hyp, distributed, loss_weights(options.class_weights, data.names, data.train)),
        schedule=Schedule(hyp.to_dict(), options.epochs, steps, options.batch_size, options.cos_lr, options.nbs),
        optimizer=make_optimizer(model, options, hyp, autocast),
        ema=make_ema(model, hyp),
        scaler=scaler,
        early_stop=EarlyStopping(options.patience, options.min_delta),
        nan_guard=make_nan_guard(model, scaler),
        progress=Progress(class_maps=[0.0] * model.num_classes),
        autocast=autocast,
        environment=environment_fingerprint(distributed, fingerprints, autocast, steps),
    )
    if launch.checkpoint:
        restore(run, launch)
    distributed.wait_for_all()  # caching images may have taken some processes longer than others
    run.wrapped = wrap_model(model, options, distributed, static=not setup.frozen)
    return compile_if_faster(run, forward_backward_on) if options.compile else run


# ---------------------------------------------------------------------------------------------------------------------
# The loop


def train(run: Run, watch: Observer, checkpoints: Checkpoints, signals: SignalHandler) -> Metrics | None:
    """Train to the last epoch, or until early stopping. Return the metrics of the last validation."""
    metrics = None
    while not run.is_finished():
        run.keep_epoch_start()
        watch.on_epoch_start(run)
        try:
            losses = train_one_epoch(run, watch, checkpoints, signals)
        except NonFiniteError:
            run.roll_back()
            continue
        except UnreadableData:
            run.drop_pending()
            checkpoints.save(run)
            raise
        epoch, improved = run.progress.epoch, False
        if epoch + 1 == run.options.epochs or not run.options.noval:
            metrics = validate(run, checkpoints, signals)
            improved = run.note_validation(metrics)
        watch.on_epoch(run, EpochReport(epoch, losses, metrics, run.rates(run.progress.iteration - 1)))
        run.progress.finish_epoch()
        if save_after_epoch(run, metrics, checkpoints, signals, improved=improved):
            break
    if run.progress.epoch < run.options.epochs:
        best = run.early_stop.best_epoch
        console.info(f"Stopped: no better fitness for {run.options.patience} epochs (best: epoch {best})")
    return metrics


def train_one_epoch(run: Run, watch: Observer, checkpoints: Checkpoints, signals: SignalHandler) -> list[float]:
    """Train the rest of the current epoch. Return the epoch's mean box, obj and cls loss."""
    run.begin_epoch()
    loader, progress, group = run.train_loader, run.progress, run.distributed
    loader.set_epoch(progress.epoch, start_batch=progress.step, weights=run.sampling_weights())
    run.optimizer.zero_grad(set_to_none=True)
    means = progress.losses(group.device)  # (3,)
    pending = 0  # batches whose gradients wait for an optimizer step
    for step, batch in enumerate(group.in_step(prefetch(loader, group.device)), start=progress.step):
        rates = run.rates(progress.iteration)
        set_rates(run.optimizer, rates)
        if not pending:
            run.begin_step(batches=rates.accumulate)
        images = prepare_images(run, batch.images)  # (B, C, H, W)
        steps_now = pending + 1 >= rates.accumulate or step + 1 == len(loader)  # an epoch leaves no gradients behind
        with group.exchange_gradients(run.wrapped, now=steps_now):
            losses = forward_backward(run, images, batch)
        summed = group.sum(torch.stack(losses))  # (3,); each process has its share of the sums
        means = means + (torch.where(summed.isfinite(), summed, means) - means) / (step + 1)
        watch.on_batch(run, StepReport(step, batch, means, images.shape[-1]))
        pending, progress.iteration = pending + 1, progress.iteration + 1
        if steps_now:
            optimizer_step(run)
            pending, progress.step, progress.means = 0, step + 1, means
            save_between_steps(run, checkpoints, signals)
    run.nan_guard.sync()
    if group.any(run.nan_guard.needs_rollback or not is_finite(run.weights())):
        raise NonFiniteError
    return means.tolist()


def prepare_images(run: Run, images: Tensor) -> Tensor:
    """Convert levels (B, C, H, W) to 0…1 on the device, resized to the size of this epoch or iteration."""
    factor = run.resize_factor()
    if factor == 1:
        return to_network_input(images, run.distributed.device, run.autocast)
    images, multiple = to_network_input(images, run.distributed.device), run.model.size_multiple
    shape = [int(np.ceil(side * factor / multiple)) * multiple for side in images.shape[2:]]
    images = F.interpolate(images, size=shape, mode="bilinear", align_corners=False)
    return images.contiguous(memory_format=torch.channels_last)


def forward_backward(run: Run, images: Tensor, batch: Batch) -> Losses:
    """Add the gradients of a batch, and return its losses."""
    with torch.autocast(images.device.type, run.autocast, enabled=run.autocast is not None):
        predictions = without_padding(run.wrapped(images), batch)  # L x (B, A, H, W, 5+C)
    total, losses = run.loss(predictions, batch.targets)
    factor = run.distributed.world_size * (4 if run.options.quad else 1)  # DDP averages, but a sum is needed
    run.scaler.scale(propagate_nan(total) * factor).backward()
    return losses


def forward_backward_on(run: Run, batch: Batch) -> Losses:
    """Add the gradients of a batch as the loader made it."""
    return forward_backward(run, prepare_images(run, batch.images), batch)


def without_padding(predictions: list[Tensor], batch: Batch) -> list[Tensor]:
    """Drop the predictions of a padding batch.

    Its forward pass still has to run, because DDP waits for every rank's gradients.
    """
    return [level[:0] for level in predictions] if batch.is_padding else predictions


def optimizer_step(run: Run) -> None:
    """Clip the gradients, step, and update the EMA. Skip a non-finite step. Nothing here syncs with a GPU."""
    run.scaler.unscale_(run.optimizer)
    norm = nn.utils.clip_grad_norm_(run.model.parameters(), MAX_GRADIENT_NORM)
    allowed = run.nan_guard.allow_step(norm)  # decided on the GPU; `GradScaler.step` would force a sync
    take_step(run.optimizer, allowed)
    run.ema.update(as_module(run.model), allowed)
    run.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    if run.nan_guard.needs_rollback:
        raise NonFiniteError


def save_between_steps(run: Run, checkpoints: Checkpoints, signals: SignalHandler) -> None:
    """Save if it is time to. After a signal to any process, save and raise Interrupted."""
    interrupted = run.distributed.any(bool(signals.signal_name))
    if interrupted or checkpoints.is_due():
        checkpoints.save(run)
    if interrupted:
        raise Interrupted(signals.signal_name or "another process")


def save_after_epoch(
    run: Run, metrics: Metrics | None, checkpoints: Checkpoints, signals: SignalHandler, *, improved: bool
) -> bool:
    """Save as the flags say. Return True if the run is finished; raise Interrupted after a signal."""
    finished = run.distributed.any(run.is_finished())
    interrupted = run.distributed.any(bool(signals.signal_name))
    if finished or interrupted or not run.options.nosave:
        checkpoints.save(run, metrics, best=improved)
    elif improved and metrics is not None:
        checkpoints.keep_best_in_memory(run, metrics)
    if interrupted:
        raise Interrupted(signals.signal_name or "another process")
    return finished


def validate(run: Run, checkpoints: Checkpoints, signals: SignalHandler) -> Metrics:
    """Return metrics of the EMA weights on the validation split.

    If a signal or unreadable data interrupts it, the resumed run repeats the validation.
    """
    if run.distributed.world_size > 1 and not run.options.nosave:  # launchers wait less than a validation may take
        checkpoints.save(run)
    run.distributed.share_buffers(run.ema.ema)  # batch statistics differ by process; rank 0's are saved
    try:
        metrics = evaluate(
            as_detector(run.ema.ema),
            run.val_loader,
            nms=run.validation_nms(),
            views=run.validation_views(),
            names=run.data.names,
            single_cls=run.options.single_cls,
            autocast=run.validation_autocast,
            loss=run.loss,
            distributed=run.distributed,
            observers=[*stop_hook(run, signals), ConsoleTable(run.data.names)],
        )
        return replace(metrics, measure=Fitness.parse(run.options.fitness))
    except (Interrupted, UnreadableData):
        checkpoints.save(run)
        raise


def stop_hook(run: Run, signals: SignalHandler) -> list[EvaluationObserver]:
    """Return the observer that stops validation on a signal.

    Single process only: with several, one rank must not leave while the others wait.
    """
    return [StopHook(signals.raise_if_signalled)] if run.distributed.world_size == 1 else []


# ---------------------------------------------------------------------------------------------------------------------
# The program


def main(argv: Arguments = None, observers: Sequence[object] = ()) -> Metrics | Verdict | None:
    """Train as the command line `argv` says. Return the metrics of the last validation.

    `observers` have methods of utils.training.observer.Observer. One that raises is reported and dropped.
    Raises SystemExit with signals.EXIT_CODE if a signal stopped the run and its state is saved.
    """
    typed = parse_args(argv)
    result = evolve_main(typed, observers) if typed.get("evolve") else start(typed, observers)
    return result.metrics if isinstance(result, TrainResult) else result


def run(*, observers: Sequence[object] = (), **flags: Any) -> TrainResult | Verdict:
    """Train with flags as keywords (`epochs=3`). Return its result, with `evolve=N` the winner. Raises UserError."""
    with unchanged_process():
        typed = parse_args(flags)
        return evolve_main(typed, observers) if typed.get("evolve") else start(typed, observers)


def start(typed: dict[str, Any], observers: Sequence[object] = ()) -> TrainResult:
    """Train with the options `typed`, as one of the processes that a launcher started."""
    observers = as_observers(observers)
    with Distributed.join(typed).session() as group:
        launchers = group.gather(launch_token())
        launch = group.on_main(lambda: resolve_launch(typed, launchers))
        options = launch.options
        distributed = group.use(options.device, options.batch_size)
        seed_everything(options.seed)
        tune_malloc()
        threads = Threads(options, distributed, resumed=launch.checkpoint is not None)
        device = describe_device(distributed.device)
        console.info(f"train: {device} x {distributed.world_size}, torch {torch.__version__}")
        with advice_on_memory(options.batch_size, options.imgsz, num_replicas(distributed)):
            run = build_run(launch, distributed)
        options = run.options
        if launch.dry_run:
            with closing(threads):
                folder, idle, signals = open_run_folder(launch, free_path), Checkpoints(), SignalHandler()
                found = measure_run(run, lambda watch: train_one_epoch(run, watch, idle, signals), folder)
                return TrainResult(options, None, None, found)
        if not distributed.is_main:
            others = Checkpoints(save_minutes=options.save_minutes)
            return TrainResult(options, train_and_finish(run, Observers(), others), None)
        saves = not options.score_only
        new_run = saves and run.progress.iteration == 0
        with RunFolder(open_run_folder(launch), plots=not options.noplots, new_run=new_run) as folder:
            folder.place.keep(lambda path: write_launch_record(path, launchers))
            with closing(
                Checkpoints(
                    folder.weights if saves else None,
                    save_minutes=options.save_minutes,
                    period=options.save_period,
                    locate=lambda: folder.weights,
                )
            ) as checkpoints:
                ours = [folder, RunLog(lambda: folder.path), threads, Loggers(lambda: folder.path)]
                watch = Observers(ours, observers)
                checkpoints.observer = watch
                metrics = train_and_finish(run, watch, checkpoints, folder)
                return TrainResult(options, metrics, folder.path)


def train_and_finish(
    run: Run, watch: Observer, checkpoints: Checkpoints, folder: RunFolder | None = None
) -> Metrics | None:
    """Train and finish, or stop after a signal, without data or GPU memory. Return the last validation's metrics."""
    group, options = run.distributed, run.options
    echo = 0.0 if group.local_rank is None else LAUNCHER_SECONDS
    try:
        with (
            advice_on_memory(options.batch_size, options.imgsz, num_replicas(group)),
            closing(run.train_loader),
            closing(run.val_loader),
            closing(watch),
            SignalHandler(echo) as signals,
        ):
            watch.on_start(run)
            if run.progress.iteration == 0:
                checkpoints.begin(run)
            metrics = train(run, watch, checkpoints, signals)
            if not options.score_only:
                watch.on_trained(run)
                finish(run, checkpoints, signals, folder)
                checkpoints.mark_finished(run)  # from here on a signal is too late to interrupt the run
            group.on_main(lambda: require_whole(folder, checkpoints.unwritten()))
            watch.on_end(run)
            return metrics
    except (Interrupted, UnreadableData) as reason:
        if folder is None:
            raise SystemExit(EXIT_CODE) from None
        resumed = None if options.score_only else folder.path
        raise SystemExit(print_stop(reason, resumed, saved=checkpoints.is_saved())) from None
    except RuntimeError as error:
        explain_worker_error(error, run.train_loader.workers)
        raise


def finish(run: Run, checkpoints: Checkpoints, signals: SignalHandler, folder: RunFolder | None) -> None:
    """Validate best.pt with all processes, keep its advice for detection in it, and draw images and curves."""

    def load_best() -> DetectionModel:
        best = checkpoints.written_best(run)
        console.info(f"Validating {best}...")
        return load_model(best)

    model = run.distributed.on_main(load_best)  # other machines may not see the file
    table = ConsoleTable(run.data.names, verbose=True, final=True, thresholds=True)
    observers = [*stop_hook(run, signals), table, DiagnosisTable(short=True)]
    if folder and folder.plots:
        observers.append(Drawings(folder.path, run.data.names, folder.plotter))
    metrics = evaluate(
        model.to(run.distributed.device),
        run.val_loader,
        nms=run.validation_nms(published=True),
        views=run.validation_views(published=True),
        names=run.data.names,
        single_cls=run.options.single_cls,
        distributed=run.distributed,
        observers=observers,
    )
    advice = DetectionAdvice(metrics.thresholds, run.data.val.most_labels)
    if run.options.tile:
        advice = replace(advice, tile=run.options.tile, tile_overlap=run.options.tile_overlap)
    checkpoints.keep_advice(advice)


def evolve_main(typed: dict[str, Any], observers: Sequence[object] = ()) -> Verdict | TrainResult:
    """Check the command line of a search as a training would, then search. Return the winner, or the dry run."""
    if observers:
        raise UserError("observers watch one training, and evolve starts many in other processes: omit one of the two")
    with Distributed.join(typed).session() as group:
        group.on_main(lambda: reject_torchrun(group))
    typed = fetch_typed({key: value for key, value in typed.items() if key != "resume"})  # a search always resumes
    options = TrainOptions.from_typed(typed)
    reject_conflicts(options)
    network = build_network(Launch(options))  # mistakes show before the search begins
    amp_dtype(options.amp, select_device(options.device)[0])
    data = load_data(network.dataset, options)
    settled, hyp = settle_search(options, network.hyp, weights=network.weights, num_images=data.train.epoch_size)
    installed_tools(options.log)  # the line for those that are not; the trainings log
    plan = make_plan(settled, script=Path(__file__), hyp=hyp, typed=options)
    if options.dry_run:
        first = start(flags_of_a_training(typed, plan))
        if first.dry_run:
            report_search(plan, first.dry_run)
        return first
    return search_hyperparameters(plan)


def search_hyperparameters(plan: Plan) -> Verdict:
    """Evolve hyperparameters, then train the best again under other seeds. Return the winner."""
    with open_run(plan) as evolution:
        evolved = evolve(
            objective=evolution.trainings,
            hyp=plan.start,
            generations=plan.options.evolve,
            seed=plan.options.seed,
            workers=len(plan.devices),
            population=plan.population,
            store=evolution.store,
            on_end=evolution.on_end,
            cancel=evolution.trainings.cancel,
        )
        return evolution.repeat_best(evolved.records)


if __name__ == "__main__":
    run_command(main)
