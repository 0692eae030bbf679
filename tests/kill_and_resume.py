"""Tool that kills and resumes a real training many times and compares its bytes with an uninterrupted run.

    python tests/kill_and_resume.py --kills 25 --epochs 20 --workers any --multi-scale --image-weights
    python tests/kill_and_resume.py --kills 10 --processes 2      two processes under torchrun

Prints a line for every attempt and the number of differences; the exit code is 1 if there are any. It compares every
tensor and number in last.pt: weights, EMA, optimizer, scaler, early stop, best fitness and more. The inference
checkpoints, those of --save-period and the bytes of results.csv and hyp.yaml are compared too.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # it runs as a program too

from conftest import draw_boxes

from utils.training.resume import LAST_HALF_FILE
from utils.training.signals import EXIT_CODE

ROOT = Path(__file__).resolve().parents[1]
AUGMENTATION = {"mosaic": 1.0, "mixup": 0.5, "copy_paste": 0.3, "degrees": 10.0, "flipud": 0.5, "warmup_epochs": 1.0}
STARTED = "Training for"  # a run prints this when it is built


def draw_data(folder: Path, num_images: int) -> Path:
    """Write a data set with `num_images` training images and 8 validation images. Return its YAML."""
    rng = np.random.default_rng(0)
    for split, count in (("train", num_images), ("val", 8)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for number in range(count):
            image, rows = draw_boxes(rng, int(rng.integers(0, 4)))
            cv2.imwrite(str(folder / "images" / split / f"{number}.png"), image)
            (folder / "labels" / split / f"{number}.txt").write_text("".join(rows))
    (folder / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [dark, bright]\n")
    return folder / "data.yaml"


def write_model(folder: Path) -> Path:
    content = yaml.safe_load((ROOT / "models" / "yolov5n.yaml").read_text())
    content.update(width_multiple=0.125, depth_multiple=0.1)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(content))
    return folder / "tiny.yaml"


def write_hyp(folder: Path) -> Path:
    content = yaml.safe_load((ROOT / "data" / "hyps" / "hyp.scratch-low.yaml").read_text())
    (folder / "hyp.yaml").write_text(yaml.safe_dump({**content, **AUGMENTATION}))
    return folder / "hyp.yaml"


# ---- one process of a run --------------------------------------------------------------------------------------------


@dataclass
class TrainingProcess:
    """Training process that may be killed at any moment. Its output goes to `log`."""

    pid: int
    log: Path
    # timeout in seconds -> exit code (negative for a signal), or None while it runs
    wait: Callable[[float], int | None]

    def wait_for_text(self, text: str, limit: float) -> float | None:
        """Wait until the process has printed `text`. Return the seconds, or None if it ends before."""
        started = time.monotonic()
        while time.monotonic() - started < limit:
            if text in self.log.read_text(errors="replace"):
                return time.monotonic() - started
            if self.wait(0.02) is not None:
                return None
        raise TimeoutError(f"no {text!r} in {self.log} after {limit} s")

    def send(self, number: int) -> None:
        """Send a signal. SIGKILL also goes to all processes below this one, as in a power cut."""
        for pid in [self.pid, *descendants(self.pid)] if number == signal.SIGKILL else [self.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def descendants(pid: int) -> list[int]:
    """Return the ids of all processes below `pid`."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError, ValueError):
            continue
    found, grown = {pid}, True
    while grown:
        more = {child for child, parent in parents.items() if parent in found} - found
        found, grown = found | more, bool(more)
    return sorted(found - {pid})


def is_finished(process: TrainingProcess, code: int | None, run: Path) -> bool:
    """Return whether the run is finished: in this process, or in the last one just before its signal."""
    ended_before = code == 1 and "epochs are done; add" in process.log.read_text(errors="replace")
    return code == 0 or ended_before or (run / "weights" / LAST_HALF_FILE).is_file()  # a run writes it last


def start(arguments: list[str], log: Path, processes: int = 1) -> TrainingProcess:
    """Start train.py as a program of its own, or several processes under torchrun."""
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)] if processes > 1 else []
    )
    log.write_text("")
    with open(log, "ab") as output:
        process = subprocess.Popen(
            [sys.executable, *launcher, "train.py", *arguments],
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        )

    def wait(seconds: float) -> int | None:
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    return TrainingProcess(process.pid, log, wait)


def fork(arguments: list[str], log: Path, processes: int = 1) -> TrainingProcess:
    """Run train.py in a fork of this process, which saves the second of the imports."""
    assert processes == 1, "several processes need torchrun"
    import train

    log.write_text("")
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            torch.set_num_threads(1)
            output = os.open(log, os.O_WRONLY | os.O_APPEND)
            os.dup2(output, 1), os.dup2(output, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
            train.run_command(lambda: train.main(arguments))
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    exit_codes: list[int] = []

    def wait(seconds: float) -> int | None:
        deadline = time.monotonic() + seconds
        while not exit_codes:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                exit_codes.append(os.waitstatus_to_exitcode(status))
            elif time.monotonic() >= deadline:
                return None
            else:
                time.sleep(0.005)
        return exit_codes[0]

    return TrainingProcess(pid, log, wait)


# ---- comparing -------------------------------------------------------------------------------------------------------


def flatten(value, prefix: str = "") -> dict[str, object]:
    """Return the leaves of nested dicts and lists by path, tensors as their type, shape and bytes."""
    if isinstance(value, dict):
        return {path: leaf for key, entry in value.items() for path, leaf in flatten(entry, f"{prefix}/{key}").items()}
    if isinstance(value, (list, tuple)):
        return flatten(dict(enumerate(value)), prefix)
    if isinstance(value, torch.Tensor):
        return {prefix: (str(value.dtype), tuple(value.shape), value.contiguous().view(-1).numpy().tobytes())}
    return {prefix: value}


VARYING = ("/options/workers", "/options/project", "/options/name")  # they do not change the numbers


def find_differences(one: Path, other: Path) -> list[str]:
    """List the differences between two run folders, one line each."""
    found = []
    names = {str(file.relative_to(folder)) for folder in (one, other) for file in folder.rglob("*.pt")}
    for name in sorted(names):
        if not (one / name).is_file() or not (other / name).is_file():
            found.append(f"{name} is missing in one of the runs")
            continue
        a, b = (flatten(torch.load(folder / name, weights_only=True)) for folder in (one, other))
        keys = sorted(key for key in a.keys() | b.keys() if key not in VARYING)
        found += [f"{name}: {key}" for key in keys if a.get(key, "absent") != b.get(key, "absent")]
    for name in ("results.csv", "hyp.yaml"):
        if (one / name).read_bytes() != (other / name).read_bytes():
            found.append(name)
    return found


# ---- the experiment --------------------------------------------------------------------------------------------------


@dataclass
class Plan:
    """Settings of the training and of the signals that interrupt it."""

    epochs: int = 20
    kills: int = 25
    workers: str = "0"  # a number, or `any`: a random one in each attempt
    batch_size: int = 8
    num_images: int = 48
    processes: int = 1
    signals: str = "KILL"  # comma-separated; one is drawn for each attempt
    seed: int = 0
    extra: list[str] = field(default_factory=list)  # more flags for train.py
    forked: bool = False
    limit: float = 600.0  # seconds for one attempt


class Experiment:
    """An uninterrupted run and a run that is killed and resumed, in one folder."""

    def __init__(self, plan: Plan, folder: Path, report: Callable[[str], None] = print):
        self.plan, self.folder, self.report = plan, folder, report
        self.rng = random.Random(plan.seed)
        data, cfg, hyp = draw_data(folder / "data", plan.num_images), write_model(folder), write_hyp(folder)
        flags = (
            f"--imgsz 64 --batch-size {plan.batch_size} --epochs {plan.epochs} --device cpu --amp off --nbs 64 "
            "--noplots --save-minutes 0.00001 --save-period 3"
        )
        files = ["--data", str(data), "--cfg", str(cfg), "--hyp", str(hyp), "--project", str(folder)]
        self.common = [*flags.split(), *files, *plan.extra]

    def start(self, name: str) -> TrainingProcess:
        new = fork if self.plan.forked else start
        last = self.folder / name / "weights" / "last.pt"
        workers = str(self.rng.randrange(3)) if self.plan.workers == "any" else self.plan.workers
        arguments = (
            ["--resume", str(self.folder / name)] if last.is_file() else [*self.common, "--name", name, "--exist-ok"]
        )
        return new([*arguments, "--workers", workers], self.folder / f"{name}.log", self.plan.processes)

    def wait_for_iteration(self, process: TrainingProcess, iteration: float) -> None:
        """Wait until the run in folder `killed` has saved a state of `iteration` or later, or has ended."""
        deadline = time.monotonic() + self.plan.limit
        while process.wait(0.01) is None and self.iteration("killed") < iteration:
            if time.monotonic() > deadline:
                raise TimeoutError(f"not at iteration {iteration} after {self.plan.limit} s: {process.log}")

    def finish(self, name: str, process: TrainingProcess) -> None:
        code = process.wait(self.plan.limit)
        if code is None:
            process.send(signal.SIGKILL)
        if not is_finished(process, code, self.folder / name):
            raise RuntimeError(f"the run ended with {code}:\n{process.log.read_text(errors='replace')[-3000:]}")

    def iteration(self, name: str) -> int:
        last = self.folder / name / "weights" / "last.pt"
        return torch.load(last, weights_only=True)["iteration"] if last.is_file() else 0

    def run(self) -> tuple[int, list[str]]:
        """Return the number of kills and the differences."""
        whole = self.start("whole")
        startup = whole.wait_for_text(STARTED, self.plan.limit)
        started = time.monotonic()
        self.finish("whole", whole)
        training, total = time.monotonic() - started, self.iteration("whole")
        self.report(f"uninterrupted: {startup:.1f} s to start, {training:.1f} s for {total} iterations")
        return self.interrupt(startup, training, total)

    def interrupt(self, startup: float, training: float, total: int) -> tuple[int, list[str]]:
        """Interrupt the run by signals until there were enough, then let it finish. Return kills and differences.

        A run that finishes before its signal is compared too, and another takes its place.
        """
        kills, found = 0, []
        for _ in range(12 * self.plan.kills):
            if kills == self.plan.kills:
                break
            before = self.iteration("killed")
            target = before + self.rng.uniform(0, 2 * (total - before) / (self.plan.kills - kills + 1))
            # leave iterations for the remaining kills
            target = min(target, 0.85 * total * (kills + 2) / (self.plan.kills + 1))
            process = self.start("killed")
            name = self.rng.choice(self.plan.signals.split(","))
            early = name == "KILL" and (self.rng.random() < 0.2 or before > 0.9 * total)
            if early or process.wait_for_text(STARTED, self.plan.limit) is not None:
                self.wait_for_iteration(process, 0 if early else target)
                ended = process.wait(self.rng.uniform(0, startup if early else training / total))
                process.send(getattr(signal, f"SIG{name}"))
            ended = process.wait(self.plan.limit)
            self.report(
                f"attempt {kills + 1}: {'during start-up' if early else 'in training'}, SIG{name} -> exit {ended}, "
                f"saved up to iteration {self.iteration('killed')} of {total}"
            )
            if is_finished(process, ended, self.folder / "killed"):  # it finished before the signal
                found += find_differences(self.folder / "whole", self.folder / "killed")
                shutil.rmtree(self.folder / "killed")
            elif ended == (-signal.SIGKILL if name == "KILL" else EXIT_CODE):
                kills += 1
            else:
                raise RuntimeError(f"exit code {ended}:\n{process.log.read_text(errors='replace')[-3000:]}")
        self.finish("killed", self.start("killed"))
        return kills, found + find_differences(self.folder / "whole", self.folder / "killed")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=Plan.epochs)
    parser.add_argument("--kills", type=int, default=Plan.kills)
    parser.add_argument("--workers", default=Plan.workers, help="a number, or any: a random one in each attempt")
    parser.add_argument("--batch-size", type=int, default=Plan.batch_size, help="below 64 gradients are accumulated")
    parser.add_argument("--images", dest="num_images", type=int, default=Plan.num_images)
    parser.add_argument("--processes", type=int, default=Plan.processes, help="above 1: under torchrun")
    parser.add_argument("--signals", default=Plan.signals, help="comma-separated, of KILL TERM INT USR1")
    parser.add_argument("--seed", type=int, default=Plan.seed)
    parser.add_argument("--fork", dest="forked", action="store_true", help="fork, to save the time of the imports")
    parser.add_argument("--folder", type=Path, help="working folder; default: a temporary one")
    args, extra = parser.parse_known_args()  # all other flags are train.py's
    values = {key: value for key, value in vars(args).items() if key != "folder"}
    import tempfile

    with tempfile.TemporaryDirectory(prefix="kill and resume ") as temporary:
        folder = args.folder or Path(temporary)
        kills, found = Experiment(Plan(**values, extra=extra), folder).run()
    print(*found[:20], sep="\n")
    print(f"{kills} kills, {len(found)} differences")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
