"""Dry run: what a training takes and writes, from its own first steps. Nothing is written but the caches of the data.

The steps are those of the training loop, and the validation is that of its first batches.
"""

import itertools
import math
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from utils import console
from utils.autobatch import MAX_BATCH, MEMORY_SHARE, advice_on_memory, largest_batch
from utils.checkpoint import inference_checkpoint
from utils.config import Hyperparameters, TrainOptions
from utils.detector import as_detector, as_module
from utils.device import return_freed_memory
from utils.distributed import Distributed
from utils.environment import processes_on_this_machine
from utils.errors import UserError
from utils.inference.evaluate import evaluate
from utils.inference.observer import EvaluatedBatch, EvaluationObserver
from utils.loading.loader import Loader, explained_worker_errors
from utils.machine import available_memory, process_memory
from utils.schedule import largest_shape
from utils.timing import now
from utils.training.nan_guard import NonFiniteError
from utils.training.observer import Observer, StepReport
from utils.training.run import Run
from utils.training.startup import find_batch_of_each, num_replicas
from utils.training.time_budget import area_of_epoch

WARM_UP = 2  # steps that are not counted
MIN_STEPS, MAX_STEPS, ENOUGH_SECONDS = 4, 500, 15.0
PART_SECONDS = 0.3  # steps are timed in parts of at least so long, since each time waits for the GPU
VALIDATION_BATCHES = 3
QUARTERS = (25, 75)  # percentiles of the parts, for the spread


class Part(NamedTuple):
    """Successive steps or batches that were timed together."""

    seconds: float
    steps: int
    area: int  # pixels of an image of each batch, summed


@dataclass(frozen=True)
class DryRun:
    """Estimates for what is left of a run, without its start-up."""

    seconds: float
    seconds_low: float  # if all steps were as fast as the faster quarter of those measured
    seconds_high: float
    epochs: int
    steps: int  # training batches of all epochs
    steps_measured: int
    step_seconds: float
    validations: int
    validation_seconds: float  # of each
    process_bytes: int  # most memory of the process so far; 0 where the system does not report it
    gpu_bytes: int  # most memory of the GPU that was reserved
    largest_batch: int | None  # that fits in memory; None if unknown
    folder: Path  # where the training writes
    files: Mapping[str, int]  # size in bytes of the large files there

    @property
    def bytes_written(self) -> int:
        """Size of all files in `files`."""
        return sum(self.files.values())


class EnoughError(Exception):
    """The steps that were timed are enough."""


class StepTimer(Observer):
    """Times of the steps of a training. It raises EnoughError after the last, on all ranks at the same step."""

    def __init__(self, group: Distributed):
        self.group, self.parts = group, list[Part]()
        self._count = self._steps = self._area = 0
        self._start = 0.0

    def on_batch(self, run: Run, report: StepReport) -> None:
        """Count a step, and close a part if it is long enough."""
        self._count += 1
        if self._count > WARM_UP:
            self._steps, self._area = self._steps + 1, self._area + math.prod(report.batch.images.shape[2:])
            if time.perf_counter() - self._start >= PART_SECONDS:
                self._close_part()
        elif self._count == WARM_UP:
            self._start = now(self.group.device)
        if self.group.any(self._is_enough()):
            if self._steps:
                self._close_part()
            raise EnoughError

    def _close_part(self) -> None:
        end = now(self.group.device)
        self.parts.append(Part(end - self._start, self._steps, self._area))
        self._start, self._steps, self._area = end, 0, 0

    def _is_enough(self) -> bool:
        counted = self._count - WARM_UP
        seconds = sum(part.seconds for part in self.parts)
        return counted >= MAX_STEPS or (counted >= MIN_STEPS and seconds >= ENOUGH_SECONDS)


class BatchTimer(EvaluationObserver):
    """Times of the batches of a validation."""

    def __init__(self, device: torch.device):
        self.device, self.parts = device, list[Part]()
        self._start = 0.0

    def on_start(self, num_batches: int | None) -> None:
        """Start the clock."""
        self._start = now(self.device)

    def on_batch(self, evaluated: EvaluatedBatch) -> None:
        """Note the time of a batch."""
        end = now(self.device)
        self.parts.append(Part(end - self._start, 1, math.prod(evaluated.batch.images.shape[2:])))
        self._start = end


def measure_run(run: Run, train_epoch: Callable[[Observer], Any], folder: Path) -> DryRun | None:
    """Train the first steps of a run, validate a few batches, and return and print estimates: None on other ranks.

    `train_epoch` trains the rest of an epoch, watched by an observer. `folder` is that of the run.
    """
    group, options = run.distributed, run.options
    with (
        advice_on_memory(options.batch_size, options.imgsz, num_replicas(group)),
        closing(run.train_loader),
        closing(run.val_loader),
        explained_worker_errors(run.train_loader.workers),
    ):
        console.info(f"Dry run: timing steps for about {ENOUGH_SECONDS:.0f} s...")
        first = run.progress.state_dict()
        largest = measure_largest_batch(run) if group.device.type == "cuda" else None
        return_freed_memory()  # of the start-up: the steps would reuse it
        before = process_memory()
        steps = time_steps(run, train_epoch)
        after = process_memory()
        used = (after.peak if after.peak > before.peak else after.now) - before.now if before.now else 0
        batches = time_validation(run)
        run.progress.load_state_dict(first)
        if not group.is_main:
            return None
        largest = estimate_largest_batch(run, used) if largest is None else largest
        result = estimate(run, steps, batches, largest, folder)
    print_report(result, options)
    return result


def measure_largest_batch(run: Run) -> int:
    """Return the largest batch that fits in the memory of the GPUs, measured with a copy of the model."""
    options, multiple = run.options, run.model.size_multiple
    imgsz = largest_shape(options.imgsz, multiple) if options.multi_scale else options.imgsz
    each = find_batch_of_each(run.model, imgsz, run.autocast, run.distributed.device, largest_batch)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(run.distributed.device)
    return each * num_replicas(run.distributed)


def time_steps(run: Run, train_epoch: Callable[[Observer], Any]) -> list[Part]:
    """Train until enough steps are timed, an epoch again where it is short."""
    timer, first = StepTimer(run.distributed), run.progress.state_dict()
    run.keep_epoch_start()  # for its memory
    try:
        while True:
            train_epoch(timer)
            run.progress.load_state_dict(first)
    except EnoughError:
        return timer.parts
    except NonFiniteError:
        raise UserError("the loss is NaN or infinite in the first steps; try a lower lr0 in the --hyp file") from None


def time_validation(run: Run) -> list[Part]:
    """Validate the first batches. Return their times on rank 0, without the first one if there are several."""
    timer = BatchTimer(run.distributed.device)
    evaluate(
        as_detector(run.ema.ema),
        itertools.islice(run.val_loader, VALIDATION_BATCHES),
        views=run.validation_views(),
        names=run.data.names,
        single_cls=run.options.single_cls,
        autocast=run.validation_autocast,
        loss=run.loss,
        distributed=run.distributed,
        observers=[timer],
    )
    return timer.parts[1:] or timer.parts


def estimate_largest_batch(run: Run, used: int) -> int | None:
    """Return the largest batch that fits in the memory of a CPU's machine, None if unknown.

    `used` are the bytes that the process took for its steps: those of the images, the gradients and the optimizer.
    """
    copies = processes_on_this_machine()
    fixed = tensor_bytes(run.optimizer.state_dict()) + tensor_bytes(list(as_module(run.model).parameters()))
    mine = run.options.batch_size / num_replicas(run.distributed)
    per_image = (used - fixed) / mine
    if used <= fixed:
        return None
    more = MEMORY_SHARE * available_memory() / copies / per_image
    return min(MAX_BATCH, int(mine + more) * num_replicas(run.distributed))


def estimate(run: Run, steps: list[Part], batches: list[Part], largest: int | None, folder: Path) -> DryRun:
    """Return the estimates for the rest of a run from the times of its steps and validation batches."""
    options, progress, device = run.options, run.progress, run.distributed.device
    epochs = range(progress.epoch, options.epochs)
    rates = [part.seconds / part.area for part in steps]
    rate = sum(part.seconds for part in steps) / sum(part.area for part in steps)
    low, high = (min(rates), max(rates)) if len(rates) < 4 else np.percentile(rates, QUARTERS)
    sizes = relative_sizes(options, run.hyp, epochs, stride=run.model.size_multiple)
    per_step = epoch_area(run.train_loader) * (4 if options.quad else 1) / len(run.train_loader)
    num_steps = len(epochs) * len(run.train_loader) - progress.step
    area = sum(sizes) / max(len(sizes), 1) * num_steps * per_step
    validation = sum(part.seconds for part in batches) / max(sum(part.area for part in batches), 1)
    validation *= epoch_area(run.val_loader)
    validations = (1 if options.noval else len(epochs)) + (0 if options.score_only else 1)
    gpu = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else 0
    return DryRun(
        *(each * area + validations * validation for each in (rate, min(low, rate), max(high, rate))),
        epochs=len(epochs),
        steps=num_steps,
        steps_measured=sum(part.steps for part in steps),
        step_seconds=rate * per_step,
        validations=validations,
        validation_seconds=validation,
        process_bytes=process_memory().peak,
        gpu_bytes=gpu,
        largest_batch=largest,
        folder=folder,
        files=large_files(run, epochs),
    )


def epoch_area(loader: Loader) -> int:
    """Return the pixels of an image of each batch of an epoch, summed."""
    return sum(math.prod(shape) for shape in loader.sampler.shapes[: len(loader)])


def relative_sizes(options: TrainOptions, hyp: Hyperparameters, epochs: range, *, stride: int) -> list[float]:
    """Return the areas of images in each of `epochs`, in parts of that of the first of them."""
    areas = [area_of_epoch(options, hyp, epoch, options.epochs, stride=stride) for epoch in epochs]
    return [area / areas[0] for area in areas]


def large_files(run: Run, epochs: range) -> dict[str, int]:
    """Return the sizes in bytes of the checkpoints that the run writes, by their names."""
    options, content = run.options, run.checkpoint()
    if options.score_only:
        return {}
    state, half = tensor_bytes(content), tensor_bytes(inference_checkpoint(content))
    files = {"last.pt": state, "best.pt": half, "last-half.pt": half}
    if options.save_period > 0:
        files |= {f"epoch{epoch}.pt": state for epoch in epochs if epoch % options.save_period == 0}
    return files


def tensor_bytes(content: object) -> int:
    """Return the bytes of all tensors in nested dicts and lists."""
    if isinstance(content, torch.Tensor):
        return content.numel() * content.element_size()
    parts = content.values() if isinstance(content, Mapping) else content if isinstance(content, list | tuple) else ()
    return sum(map(tensor_bytes, parts))


# ---- the report


def print_report(found: DryRun, options: TrainOptions) -> None:
    """Print what a run takes and writes."""
    low, high = describe_time(found.seconds_low), describe_time(found.seconds_high)
    console.result(
        f"Time: {describe_time(found.seconds)}, between {low} and {high} if all steps were like the faster or the "
        "slower quarter of those measured",
        f"  {found.epochs} epochs with {found.steps} steps of {found.step_seconds:.3g} s ({found.steps_measured} "
        f"measured), {found.validations} x {found.validation_seconds:.3g} s of validation; without start-up, plots and "
        "early stopping",
        f"Memory: {describe_memory(found, options)}",
        f"Writes: {describe_files(found)}",
        "Nothing was written but the caches of the data. To train, type the same without --dry-run",
    )


def describe_time(seconds: float) -> str:
    """Return a time in minutes, or from two hours on in hours too."""
    minutes = seconds / 60
    return f"{minutes:.3g} min" if minutes < 120 else f"{minutes:.0f} min ({minutes / 60:.1f} h)"


def describe_memory(found: DryRun, options: TrainOptions) -> str:
    """Return the memory that was used, and the largest batch."""
    used = [
        f"{number / 2**30:.2f} GiB of the {where}"
        for number, where in ((found.gpu_bytes, "GPU"), (found.process_bytes, "process"))
        if number
    ]
    more = f"; {available_memory() / 2**30:.1f} GiB are free now"
    largest = f"; --batch-size {found.largest_batch} is about the largest that fits" if found.largest_batch else ""
    return f"{' and '.join(used) or 'unknown'} with --batch-size {options.batch_size}{more}{largest}"


def describe_files(found: DryRun) -> str:
    """Return where the run writes, its large files, and what is free there."""
    place = next(folder for folder in (found.folder, *found.folder.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if free < found.bytes_written:
        console.warn(f"{place}: too little room for the checkpoints. Make room, or choose another --project")
    names = [f"{name} {size / 1e6:.1f} MB" for name, size in itertools.islice(found.files.items(), 3)]
    extra = list(found.files)[3:]
    if extra:
        names.append(f"{len(extra)} files {extra[0]}... of {found.files[extra[0]] / 1e6:.1f} MB")
    checkpoints = f"weights/ {', '.join(names)}; " if names else ""
    small = "results.csv, settings, plots" if names else "results.csv and settings"
    written = f"{found.bytes_written / 1e6:.0f} MB and a few more, {free / 1e9:.1f} GB are free there"
    return f"{found.folder}: {checkpoints}{small}; {written}"
