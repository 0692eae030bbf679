"""Training on a GPU: images per second, their share of what the device could do, and where the rest of the time goes.

    python benchmarks/gpu.py                                   yolov5 n, s, m, l and x at 640
    python benchmarks/gpu.py --sizes n s --parts rates loader together
    python benchmarks/gpu.py --device cpu --sizes n --imgsz 64 --batch 2 --seconds 1         check without a GPU

Synthetic images in a temporary folder, cached in memory; train.py's own loop, loss and loaders, one data worker per
core. `step` trains on batches that are already on the device, `loader` only makes batches, `together` is what train.py
does.

The first limit is the FLOPs of a step, as torch.utils.flop_counter counts them (convolutions and products). The second
is the bytes of its kernels: every tensor that a kernel reads or writes, once. They are compared with the rates of a
large matrix product and a large copy measured here, and with the data sheet. A share of 100 % is a step that does
nothing else. Fused kernels move fewer bytes, so the second share is no bound for a compiled step.
"""

import argparse
import dataclasses
import os
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train
from benchmarks.batches import RepeatedBatches
from benchmarks.device_limits import DATA_SHEET, Limits, Traffic, measure_limits, now
from benchmarks.timing import Timing, compare, machine, print_rows, row
from utils.device import tune_malloc
from utils.distributed import Distributed
from utils.images.augment import ColorFlip
from utils.images.gpu_augment import apply_color_flips
from utils.loading.dataset import Batch
from utils.loading.prefetch import prefetch
from utils.training.compile import compile_model
from utils.training.nan_guard import PATIENCE, SEARCHING_PATIENCE
from utils.training.signals import SignalHandler

TARGETS = {"n": (1400, 5000), "s": (1300, 2500), "m": (650, 1100), "l": (330, 550), "x": (190, 310)}  # first, strong
BATCHES = {"n": 128, "s": 128, "m": 96, "l": 64, "x": 48}  # where there are 75 GB of memory
PARTS = ("rates", "loader", "together", "limits", "profile", "precision", "kernels", "compile")
READY = 4  # batches on the device
CLASSES = 80
WARM_UP = 8  # steps


# ---------------------------------------------------------------------------------------------------------------------
# Data


def draw_data(folder: Path, count: int, distinct: int = 256) -> Path:
    """Write a data set of `count` files: soft noise of 640 x 480, about seven boxes per image. Return its YAML."""
    rng = np.random.default_rng(0)
    for kind in ("images/train", "labels/train", "images/val", "labels/val"):
        (folder / kind).mkdir(parents=True)
    for number in range(count):
        image, label = (
            folder / kind / "train" / f"{number}{end}" for kind, end in (("images", ".jpg"), ("labels", ".txt"))
        )
        if number < distinct:
            noise = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
            cv2.imwrite(str(image), cv2.resize(noise, (640, 480), interpolation=cv2.INTER_CUBIC))
            label.write_text("".join(box_row(rng) for _ in range(rng.integers(1, 14))))
        else:
            os.link(folder / "images" / "train" / f"{number % distinct}.jpg", image)
            os.link(folder / "labels" / "train" / f"{number % distinct}.txt", label)
        if number < 4:
            os.link(image, folder / "images" / "val" / image.name)
            os.link(label, folder / "labels" / "val" / label.name)
    file = folder / "made.yaml"
    names = "".join(f"  {k}: c{k}\n" for k in range(CLASSES))
    file.write_text(f"train: images/train\nval: images/val\nnames:\n{names}")
    return file


def box_row(rng: np.random.Generator) -> str:
    w, h = np.exp(rng.uniform(np.log(0.03), np.log(0.7), 2))
    x, y = rng.uniform(w / 2, 1 - w / 2), rng.uniform(h / 2, 1 - h / 2)
    return f"{rng.integers(CLASSES)} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n"


# ---------------------------------------------------------------------------------------------------------------------
# Running the program's loop


class Stopwatch(train.Observer):
    """Observer that records when batch `start` and batch `last` are done, on the device too."""

    def __init__(self, device: torch.device, start: int, last: int):
        self.device, self.marks, self.times = device, (start, last), []

    def on_batch(self, run: train.Run, report: train.StepReport) -> None:
        if report.step in self.marks:
            self.times.append(now(self.device))


class SyncWarnings(Stopwatch):
    """Observer that lets PyTorch warn of synchronisations between the marks."""

    def on_batch(self, run: train.Run, report: train.StepReport) -> None:
        if report.step == self.marks[1]:
            torch.cuda.set_sync_debug_mode("default")
        super().on_batch(run, report)
        if report.step == self.marks[0]:
            torch.cuda.set_sync_debug_mode("warn")


def build(size: str, data: Path, folder: Path, batch: int, args: argparse.Namespace) -> train.Run:
    flags = (
        f"--cfg yolov5{size}.yaml --weights= --imgsz {args.imgsz} --batch-size {batch} --epochs 1000 --cache "
        f"--workers {args.workers} --noplots --nosave --noautoanchor --device={args.device} --amp {args.amp}"
    )
    words = [*flags.split(), "--data", str(data), "--project", str(folder)]
    launch = train.resolve_launch(train.parse_args(words), [])
    group = Distributed.join().use(launch.options.device, batch)
    train.seed_everything(launch.options.seed)
    return train.build_run(launch, group)


def run_steps(run: train.Run, batches: Any, count: int, kind: type[Stopwatch] = Stopwatch) -> float:
    """Return the seconds per step of train.py's loop, after WARM_UP steps."""
    device = run.distributed.device
    watch = kind(device, WARM_UP, WARM_UP + count)
    run.progress.epoch = run.progress.step = run.progress.iteration = 0
    again = dataclasses.replace(run, train_loader=RepeatedBatches(batches, WARM_UP + count + 1))
    with SignalHandler() as signals:
        train.train_one_epoch(again, watch, train.Checkpoints(), signals)
    return (watch.times[1] - watch.times[0]) / count


def steps_within(seconds: float, once: float) -> int:
    return max(3, round(seconds / once))


def measure_loading(run: train.Run, seconds: float) -> float:
    """Return the seconds per batch of the loader alone. Its queues are full before and after."""
    iterator = iter(RepeatedBatches(run.train_loader, sys.maxsize))
    for _ in range(2 * run.train_loader.workers + 1):
        next(iterator)
    start, count = time.perf_counter(), 0
    while count < 3 or time.perf_counter() - start < seconds:
        next(iterator)
        count += 1
    return (time.perf_counter() - start) / count


@contextmanager
def with_precision(run: train.Run, dtype: torch.dtype | None) -> Iterator[train.Run]:
    """Switch the run to another autocast type, with the gradient scaler that belongs to it."""
    patience = run.nan_guard.patience
    scaler = torch.amp.GradScaler(run.distributed.device.type, enabled=dtype == torch.float16)
    run.nan_guard.patience = SEARCHING_PATIENCE if dtype == torch.float16 else PATIENCE
    try:
        yield dataclasses.replace(run, autocast=dtype, scaler=scaler)
    finally:
        run.nan_guard.patience = patience


# ---------------------------------------------------------------------------------------------------------------------
# Limits


def count_work(run: train.Run, batches: list[Batch]) -> tuple[float, float]:
    """Return the matrix FLOPs and the bytes of a step, counted over a few steps of the loop."""
    device, count = run.distributed.device, 2 * WARM_UP
    with FlopCounterMode(display=False) as operations, Traffic(device) as traffic:
        run_steps(run, batches, count - WARM_UP - 1)
    return operations.get_total_flops() / count, traffic.bytes / count


# ---------------------------------------------------------------------------------------------------------------------
# Where the time goes


def profile(run: train.Run, batches: list[Batch], top: int) -> list[str]:
    """Profile a few steps. Return lines on the slowest kernels and on the idle time of the device."""
    device = run.distributed.device
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    count = 2 * WARM_UP
    with torch.profiler.profile(activities=activities) as found:
        run_steps(run, batches, count - WARM_UP - 1)
        now(device)
    kernels: Counter[str] = Counter()
    spans = []
    for event in found.events():
        if device.type == "cuda" and is_kernel(event):
            kernels[event.name] += event.time_range.elapsed_us()
            spans.append((event.time_range.start, event.time_range.end))
        elif device.type == "cpu":
            kernels[event.name] += event.self_cpu_time_total
    total = sum(kernels.values()) or 1
    lines = [
        f"| {taken / count / 1000:.2f} | {taken / total:.1%} | `{name[:110]}` |"
        for name, taken in kernels.most_common(top)
    ]
    whole = max((end for _, end in spans), default=0) - min((start for start, _ in spans), default=0)
    idle = f"{1 - busy_time(spans) / whole:.1%}" if spans else "an unknown share"
    return [
        "| ms per step | share | kernel |",
        "| --- | --- | --- |",
        *lines,
        "",
        f"The device is idle for {idle} of the time (under the profiler, which slows the program down).",
    ]


def is_kernel(event: Any) -> bool:
    """Return whether an event of the profiler is a kernel. User annotations span many kernels."""
    return event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation


def busy_time(spans: Sequence[tuple[float, float]]) -> float:
    """Return the length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(end - max(start, reached), 0.0)
        reached = max(reached, end)
    return total


def find_synchronisations(run: train.Run, batches: list[Batch]) -> str:
    """List the lines where a step synchronises with the device, as PyTorch reports them."""
    if run.distributed.device.type != "cuda":
        return "not measured, no GPU"
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        try:
            run_steps(run, batches, 5, SyncWarnings)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = Counter(
        f"{Path(warning.filename).name}:{warning.lineno}"
        for warning in found
        if "called a synchronizing" in str(warning.message)
    )
    return ", ".join(f"{place} {times} times" for place, times in places.most_common(12)) or "none"


# ---------------------------------------------------------------------------------------------------------------------
# The report


def report(size: str, data: Path, folder: Path, batch: int, limits: Limits, args: argparse.Namespace) -> str:
    """Measure one model size and print the results. Return its row of the last table."""
    run = build(size, data, folder, batch, args)
    device = run.distributed.device
    batches = list(islice(prefetch(run.train_loader, device), READY))
    step = run_steps(run, batches, 3)
    step = run_steps(run, batches, steps_within(args.seconds, step))
    memory = f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB" if device.type == "cuda" else "-"
    loading = measure_loading(run, args.seconds) if "loader" in args.parts else float("nan")
    together = float("nan")
    if "together" in args.parts:
        together = run_steps(run, run.train_loader, steps_within(args.seconds, max(step, np.nan_to_num(loading))))
    print(f"\n### yolov5{size}, batch {batch}, {args.imgsz}\n", flush=True)
    first, strong = TARGETS[size]
    shares = describe_limits(run, batches, step, limits) if "limits" in args.parts else ["-", "-"]
    if "profile" in args.parts:
        lines = [*profile(run, batches, args.top), f"Synchronisations: {find_synchronisations(run, batches)}."]
        print(*lines, "", sep="\n", flush=True)
    print_variants(run, batches, step, args)
    run.train_loader.close(), run.val_loader.close()
    speeds = [f"{batch / seconds:.0f}" for seconds in (step, loading, together)]
    return f"| {' | '.join([size, str(batch), *speeds, str(first), str(strong), *shares, memory])} |"


def describe_limits(run: train.Run, batches: list[Batch], step: float, limits: Limits) -> list[str]:
    """Return the shares of a step that its bytes and its FLOPs would take by themselves. Print the details."""
    operations, moved = count_work(run, batches)
    name = torch.cuda.get_device_name() if run.distributed.device.type == "cuda" else ""
    sheet = next((Limits(*rates) for key, rates in DATA_SHEET.items() if key in name), None)
    lines = [
        f"A step of {step * 1000:.2f} ms: {operations / 1e9:.3g} GFLOP, {moved / 1e9:.2f} GB.\n",
        "| rates | GB/s | TFLOP/s | of the memory's | of the arithmetic's |",
        "| --- | --- | --- | --- | --- |",
    ]
    for kind, rates in (("measured", limits), ("data sheet", sheet)):
        if rates:
            lines.append(
                f"| {kind} | {rates.copy / 1e9:.0f} | {rates.product / 1e12:.1f} | "
                f"{moved / rates.copy / step:.1%} | {operations / rates.product / step:.1%} |"
            )
    print(*lines, "", sep="\n", flush=True)
    return [f"{moved / limits.copy / step:.0%}", f"{operations / limits.product / step:.0%}"]


Setting = Callable[[train.Run], AbstractContextManager[train.Run]]


def print_variants(run: train.Run, batches: list[Batch], step: float, args: argparse.Namespace) -> None:
    """Print a table of variants of a step, each in alternation with its baseline."""
    count, rows = steps_within(args.seconds / 10, step), []
    on_gpu = run.distributed.device.type == "cuda"

    def add(name: str, baseline: Setting, other: Setting) -> None:
        def steps(setting: Setting) -> None:
            with setting(run) as changed:
                run_steps(changed, batches, count)

        rows.append(row(name, compare(lambda: steps(baseline), lambda: steps(other), pairs=args.pairs), at_least="-"))

    if "precision" in args.parts:
        plain = torch.float16 if on_gpu else None
        add(
            f"bf16 beside {'fp16' if plain else 'fp32'}",
            lambda run: with_precision(run, plain),
            lambda run: with_precision(run, torch.bfloat16),
        )
    if "kernels" in args.parts and on_gpu:
        add("cudnn.benchmark beside deterministic kernels", nullcontext, free_kernels)
        rows.append(
            row(
                "colours of a batch, in one kernel beside many steps",
                time_colours(batches[0].images, args.pairs),
                at_least="-",
            )
        )
    if "compile" in args.parts and (compiled := compiled_run(run, batches)):
        add("--compile beside eager", lambda run: eager(run, compiled), lambda run: nullcontext(compiled))
        compiled.wrapped.discard()
    if rows:
        print_rows(rows, f"{WARM_UP + count + 1} steps per side and turn.")


@contextmanager
def free_kernels(run: train.Run) -> Iterator[train.Run]:
    """Allow the fastest kernels that cuDNN finds, even if they sum in another order each time."""
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = False, True
    try:
        yield run
    finally:
        cudnn.deterministic, cudnn.benchmark = before


def time_colours(images: torch.Tensor, pairs: int) -> Timing:
    """Time the colours of a batch (B, 3, H, W): in steps that every device has, and as train.py does them."""
    color_flips = torch.tensor([ColorFlip(1.1, 1.1, 1.1)] * len(images), dtype=torch.float32)

    def change() -> None:
        apply_color_flips(images, color_flips)
        now(images.device)

    def in_steps() -> None:
        with mock.patch("utils.color_kernel.kernel_works", return_value=False):
            change()

    return compare(in_steps, change, pairs=pairs)


@contextmanager
def eager(run: train.Run, compiled: train.Run) -> Iterator[train.Run]:
    """Use the run without compilation. Meanwhile `compiled`, whose hooks are on the same parameters, copies nothing."""
    compiled.wrapped.replayed = False
    yield run


def compiled_run(run: train.Run, batches: list[Batch]) -> train.Run | None:
    compiled = compile_model(run.model, batch_size=run.options.batch_size, varying=False)
    changed, start = dataclasses.replace(run, wrapped=compiled), time.perf_counter()
    try:
        run_steps(changed, batches, 3)
    except Exception as error:  # no compiler, an unknown operation: many types
        print(f"--compile fails: {type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}\n")
        compiled.discard()
        return None
    print(f"--compile took {time.perf_counter() - start:.0f} s to be ready.\n")
    return changed


def batch_of(size: str, args: argparse.Namespace) -> int:
    if args.batch:
        return args.batch
    if not torch.cuda.is_available():
        return 2
    memory = torch.cuda.get_device_properties(None).total_memory  # of the current device
    return max(int(BATCHES[size] * min(memory / 75e9, 1) * (640 / args.imgsz) ** 2) // 8 * 8, 8)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--batch", type=int, default=0, help="0 chooses it by the GPU's memory")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each measurement")
    parser.add_argument(
        "--parts", nargs="+", default=list(PARTS), choices=PARTS, help="parts of the report; rates is always there"
    )
    parser.add_argument("--images", "--pictures", type=int, default=0, help="0 makes 32 batches of them, at most 4096")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="")
    parser.add_argument("--amp", default="auto")
    parser.add_argument("--pairs", type=int, default=5, help="number of turns where two ways are compared")
    parser.add_argument("--top", type=int, default=15, help="kernels to list")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    tune_malloc()
    on_gpu = args.device != "cpu" and torch.cuda.is_available()
    device = Distributed.join().use(args.device).device
    print(f"{machine()}, {args.workers} data workers\n")
    if not on_gpu:
        print("**No GPU is used: these numbers only show that the script runs.**\n")
    limits = measure_limits(device)
    rows = []
    for size in args.sizes:
        batch = batch_of(size, args)
        while batch:
            if on_gpu:
                torch.cuda.empty_cache(), torch.cuda.reset_peak_memory_stats()
            with tempfile.TemporaryDirectory() as folder:
                data = draw_data(Path(folder) / "data", args.images or min(32 * batch, 4096))
                try:
                    rows.append(report(size, data, Path(folder), batch, limits, args))
                    break
                except torch.OutOfMemoryError:
                    print(f"\nyolov5{size}: batch {batch} does not fit, trying half of it", flush=True)
                    batch //= 2
    print(
        "\n## Images per second\n\n| model | batch | step | loader | together | first target | strong target | "
        "memory share | arithmetic share | memory |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    )
    print(*rows, sep="\n", flush=True)


if __name__ == "__main__":
    train.run_command(main)
