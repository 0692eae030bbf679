"""Scaling of training over processes: images per second, and the shares of time in communication and validation.

    python benchmarks/scaling.py                         1, 2, 4 and 8 processes, at most one per GPU (2 without a GPU)
    python benchmarks/scaling.py --processes 1 2 -- --device cpu --cfg yolov5n.yaml --imgsz 160

Flags after `--` go to train.py. Each row is a launch of torchrun with train.py's own loop, loss and loaders. The batch
is the total over all processes; with --per-process it is that of each. `DDP of 1` is one process in a group of one: the
cost of the wrapper itself. Communication is the extra time of a step over one without any exchange of gradients and
counts. Ratios are to the plain process of the same run of this script, because times of different runs on a shared
machine cannot be compared.
"""

import argparse
import dataclasses
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train
from benchmarks.batches import RepeatedBatches
from utils.distributed import Distributed
from utils.environment import child_environment
from utils.errors import UserError
from utils.inference.evaluate import evaluate
from utils.training.ddp import smallest_size, warm_up_ddp_buckets
from utils.training.signals import SignalHandler

COLUMNS = ("processes", "batch", "images/s", "ratio", "ms/step", "communication", "validation")
ROUNDS = 2


# ---------------------------------------------------------------------------------------------------------------------
# One process of a row


class StepTimer(train.Observer):
    """Observer that records when each batch is done, on the device too."""

    def __init__(self, device: torch.device):
        self.device, self.times = device, []

    def on_batch(self, *_: object) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.times.append(time.perf_counter())


@contextmanager
def without_communication(run: train.Run) -> Iterator[None]:
    """Switch communication off: each process uses its own numbers for those of all."""
    with ExitStack() as patches:
        for name, alone in (
            ("sum", lambda group, tensor: tensor),
            ("any", lambda group, flag: flag),
            (
                "exchange_gradients",
                lambda group, wrapped, now: wrapped.no_sync() if hasattr(wrapped, "no_sync") else nullcontext(),
            ),
        ):
            patches.enter_context(mock.patch.object(Distributed, name, alone))
        patches.enter_context(mock.patch.object(run.loss, "sum_over_processes", None))
        yield


def measure_step(run: train.Run, steps: int, warmup: int) -> float:
    """Return the median seconds of `steps` steps after `warmup` steps, of the slowest process."""
    timer = StepTimer(run.distributed.device)
    run.progress.epoch = run.progress.step = run.progress.iteration = 0
    again = dataclasses.replace(run, train_loader=RepeatedBatches(run.train_loader, steps + warmup + 1))
    with SignalHandler() as signals:
        train.train_one_epoch(again, timer, train.Checkpoints(), signals)
    taken = sorted(after - before for before, after in zip(timer.times[warmup:], timer.times[warmup + 1 :]))
    return max(run.distributed.gather(taken[len(taken) // 2]))


def seconds_of(function: Callable[[], object], group: Distributed) -> float:
    """Return the seconds of a call, of the slowest process."""
    group.wait_for_all()
    begin = time.perf_counter()
    function()
    return max(group.gather(time.perf_counter() - begin))


def validate(run: train.Run) -> None:
    run.distributed.share_buffers(run.ema.ema)
    evaluate(
        run.ema.ema,
        run.val_loader,
        names=run.data.names,
        autocast=run.autocast,
        loss=run.loss,
        distributed=run.distributed,
    )


def wrap_in_ddp(run: train.Run) -> train.Run:
    """Return the run of one process with its model wrapped in DDP, in a group of one."""
    device = run.distributed.device
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    wrapped = run.distributed.wrap_ddp(run.model, static_graph=not run.frozen)
    side = smallest_size(run.model)
    warm_up_ddp_buckets(wrapped, (3, side, side), device)
    return dataclasses.replace(run, wrapped=wrapped)


def run_process(out: str, steps: int, warmup: int, wrapped: bool, words: list[str]) -> None:
    """Measure as one of a row's processes. Rank 0 writes the figures to the file `out`."""
    with Distributed.join().session() as group:
        launch = train.resolve_launch(train.parse_args(words), [])
        group = group.use(launch.options.device, launch.options.batch_size)
        train.seed_everything(launch.options.seed)
        run = train.build_run(launch, group)
        run = wrap_in_ddp(run) if wrapped else run
        found = {"batch": run.options.batch_size, "step": math.inf, "alone": math.inf}
        for _ in range(ROUNDS):  # in alternation, the best of each: other programs only add time
            found["step"] = min(found["step"], measure_step(run, steps, warmup))
            with without_communication(run):
                found["alone"] = min(found["alone"], measure_step(run, steps, warmup))
        validate(run)  # the first time is slower
        found["validation"] = seconds_of(lambda: validate(run), group)
        found["epoch"] = len(run.train_loader) * found["step"] + found["validation"]
        if group.is_main:
            Path(out).write_text(json.dumps(found))


# ---------------------------------------------------------------------------------------------------------------------
# The table


def measure(processes: int, wrapped: bool, args: argparse.Namespace) -> dict[str, float]:
    """Launch a row's processes and read their figures."""
    batch = args.batch_size * (processes if args.per_process else 1)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        command = [
            *(launcher if processes > 1 else [sys.executable]),
            __file__,
            "--work",
            str(out),
            "--steps",
            str(args.steps),
            "--warmup",
            str(args.warmup),
            *(["--wrapped"] if wrapped else []),
            "--",
            *args.words,
            "--batch-size",
            str(batch),
            "--project",
            folder,
        ]
        threads = os.cpu_count() // max(args.processes) or 1  # the same for all rows, so that only the processes differ
        done = subprocess.run(
            command, env=child_environment(OMP_NUM_THREADS=str(threads)), capture_output=True, text=True
        )
        if done.returncode or not out.is_file():
            print(done.stdout[-2000:], done.stderr[-4000:], file=sys.stderr)
            raise UserError(f"the launch of {processes} process(es) failed; the output above says why")
        return json.loads(out.read_text())


def row(name: str, found: dict[str, float], first: dict[str, float]) -> str:
    speed, before = found["batch"] / found["step"], first["batch"] / first["step"]
    communication = "-" if name == "1" else f"{max(found['step'] - found['alone'], 0) / found['step']:.1%}"
    cells = (
        name,
        int(found["batch"]),
        f"{speed:.1f}",
        f"{speed / before:.2f}",
        f"{1000 * found['step']:.1f}",
        communication,
        f"{found['validation'] / found['epoch']:.1%}",
    )
    return "".join(f"{cell:>15}" for cell in cells)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", help="one row each; the first row is always 1")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--per-process", action="store_true", help="--batch-size is that of each process")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--wrapped", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("words", nargs="*", help="for train.py")
    args = parser.parse_args()
    most = torch.cuda.device_count() or 2
    args.processes = sorted({1, *(args.processes or [n for n in (1, 2, 4, 8) if n <= most])})
    return args


def main() -> None:
    args = parse_args()
    if args.work:
        return run_process(args.work, args.steps, args.warmup, args.wrapped, args.words)
    print(
        f"torch {torch.__version__}, {os.cpu_count()} processor cores, {torch.cuda.device_count()} GPUs\n"
        + "".join(f"{title:>15}" for title in COLUMNS),
        flush=True,
    )
    first = measure(1, False, args)
    print(row("1", first, first), flush=True)
    for processes in args.processes:
        name = "DDP of 1" if processes == 1 else str(processes)
        print(row(name, measure(processes, processes == 1, args), first), flush=True)


if __name__ == "__main__":
    train.run_command(main)
