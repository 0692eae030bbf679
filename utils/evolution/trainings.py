"""One training per generation, each in processes of its own: with a device, a time limit and a log file.

`Trainings` is the objective of an evolution. A training that crashes, runs out of memory or hangs is one failed
generation with its log; nothing of it outlives the evolution.
"""

import csv
import math
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.environment import NUM_TRAININGS_ENV, child_environment
from utils.evolution.csv_store import RESULTS
from utils.evolve import Hyp, Outcome
from utils.files import write_yaml
from utils.metrics import fitness

SUPERVISOR = Path(__file__).with_name("supervise.py")
POLL = 0.25  # seconds between looks at a training
SILENCE = 3600.0  # seconds without a word in its log after which a training is taken for hung
LEAST_LIMIT = 600.0  # seconds that a training has in any case, where the limit is found from the others
LIMIT_FACTOR = 4  # times the longest successful one


class Trainings:
    """objective(hyp, generation, repeat=0) -> Outcome: runs `command` and reads the results.csv that it writes.

    command(hyp file, folder, number, repeat, device) gives the words of the command line; the training must write its
    results.csv into `folder`. devices: one word per worker, a device may stand there several times.
    limit: seconds one may take, 0 finds it from those that succeeded, which `lasted` so many seconds before.
    threads: of each training, 0 leaves it to it.
    validated: whether every epoch is validated, so that the curve means something; then `stop(hyp, curve)` is asked.
    on_epoch: called with number, repeat, epochs done, seconds and fitness after every epoch.
    """

    def __init__(
        self,
        command: Callable[..., Sequence[str]],
        folder: Path,
        *,
        devices: Sequence[str],
        limit: float = 0.0,
        validated: bool = False,
        threads: int = 0,
        lasted: Sequence[float] = (),
        stop: Callable[[Hyp, Sequence[float]], bool] = lambda hyp, curve: False,
        on_epoch: Callable[..., None] = lambda *report: None,
    ):
        self.command, self.folder, self.limit, self.validated = command, folder, limit, validated
        self.stop, self.on_epoch, self.threads = stop, on_epoch, threads
        self.lasted, self.side_by_side = list(lasted), len(devices)
        self.devices: queue.SimpleQueue[str] = queue.SimpleQueue()
        for device in devices:
            self.devices.put(device)
        self.cancelled = threading.Event()

    def cancel(self) -> None:
        """End every training at once; their calls return failures."""
        self.cancelled.set()

    def __call__(self, hyp: Hyp, generation: int, repeat: int = 0) -> Outcome:
        folder = claim_folder(self.folder, f"{generation:04d}" + f"-seed{repeat + 1}" * bool(repeat))
        write_yaml(folder / "hyp.yaml", {key: value for key, value in hyp.items() if key != "anchors" or value})
        device = self.devices.get()
        try:
            command = self.command(folder / "hyp.yaml", folder, generation, repeat, device)
            ended = self._run(command, folder, (generation, repeat), hyp)
        finally:
            self.devices.put(device)
            shutil.rmtree(folder / "weights", ignore_errors=True)  # of use to nobody, and large
        return self._outcome(folder, ended)

    def _run(self, command: Sequence[str], folder: Path, key: tuple[int, int], hyp: Hyp) -> str:
        """Run the command to its end. Returns "" for a good one, `pruned`, or why it failed."""
        settings = (
            {"OMP_NUM_THREADS": str(self.threads), NUM_TRAININGS_ENV: str(self.side_by_side)} if self.threads else {}
        )
        begin = time.monotonic()
        with open(folder / "train.log", "wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-I", str(SUPERVISOR), *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=child_environment(**settings),
            )
        try:
            reason = self._watch(process, folder, key, hyp)
        finally:
            process.stdin.close()  # the guard takes it as the order to end what still runs
            status = process.wait()
        strip_progress_bars(folder / "train.log")
        if reason is None and status:
            killed = " (killed, perhaps for want of memory)" if status == 137 else ""
            reason = f"exit status {status}{killed}: {last_error_line(folder / 'train.log')}"
        if not reason:
            self.lasted.append(time.monotonic() - begin)
        return reason or ""

    def _watch(self, process: subprocess.Popen, folder: Path, key: tuple[int, int], hyp: Hyp) -> str | None:
        """Wait for the end, or find a reason for it. None: it ended by itself."""
        begin, reported = time.monotonic(), 0
        while process.poll() is None:
            if self.cancelled.wait(POLL):
                return "cancelled"
            rows = read_rows(folder / "results.csv")
            seconds = time.monotonic() - begin
            if len(rows) > reported:
                reported = len(rows)
                curve = to_curve(rows)
                self.on_epoch(*key, reported, seconds, curve[-1] if self.validated else None)
                if self.validated and self.stop(hyp, curve):
                    return "pruned"
            limit = self.limit or (max(LEAST_LIMIT, LIMIT_FACTOR * max(self.lasted)) if self.lasted else 0)
            if limit and seconds > limit:
                return f"took longer than {limit / 60:.4g} minutes (--evolve-timeout)"
            if time.time() - last_write_time(folder) > SILENCE:
                return f"no sign of life for {SILENCE / 60:.0f} minutes"
        return None

    def _outcome(self, folder: Path, reason: str) -> Outcome:
        rows = read_rows(folder / "results.csv")
        curve = to_curve(rows) if self.validated else ()
        place = f"log: {folder / 'train.log'}"
        if reason == "pruned":
            return Outcome(curve[-1], "pruned", results_of(rows[-1]), len(rows), curve, place)
        if not reason and not rows:
            reason = f"no results.csv: {last_error_line(folder / 'train.log')}"
        if reason:
            return Outcome(None, "failed", (), len(rows), curve, f"{reason}; {place}")
        return Outcome(score(rows[-1]), "done", results_of(rows[-1]), len(rows), curve)


def claim_folder(parent: Path, name: str) -> Path:
    """A new folder: `name`, or where an earlier try has left that one: name-2, name-3, …"""
    number = 1
    while True:
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1


def read_rows(file: Path) -> list[Mapping[str, float]]:
    """The rows of a results.csv as far as it is written, one per epoch."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return []
    names = [name.strip() for name in lines[0].split(",")] if lines else []
    return [dict(zip(names, map(float, cells))) for cells in csv.reader(lines[1:]) if len(cells) == len(names)]


def results_of(row: Mapping[str, float]) -> tuple[float, ...]:
    return tuple(row.get(name, 0.0) for name in RESULTS)


def to_curve(rows: Sequence[Mapping[str, float]]) -> tuple[float, ...]:
    """Fitness after each epoch, 0 where it is no number."""
    return tuple(value if math.isfinite(value) else 0.0 for value in map(score, rows))


def score(row: Mapping[str, float]) -> float:
    return round(fitness(*results_of(row)[:4]), 6)


def last_write_time(folder: Path) -> float:
    """When anything in `folder` was last written."""
    return max(file.stat().st_mtime for file in (folder / "train.log", folder))


def strip_progress_bars(log: Path) -> None:
    """Drop from a log what a terminal would have overwritten: progress bars make it hundreds of times larger."""
    lines = log.read_bytes().replace(b"\r\n", b"\n").split(b"\n")
    log.write_bytes(b"\n".join(line.rstrip(b"\r").rpartition(b"\r")[2] for line in lines))


def last_error_line(log: Path, limit: int = 4000) -> str:
    """What a training said last, in one line: its error where there is one."""
    data = log.read_bytes()[-limit:].decode(errors="replace").replace("\r", "\n")
    lines = [line.strip() for line in data.splitlines() if line.strip()]
    kinds = [line.split(":")[0] for line in lines]
    errors = [line for line, kind in zip(lines, kinds) if kind == "error" or kind.endswith(("Error", "Exception"))]
    return (errors or lines or ["it said nothing"])[-1][:300]


def to_flags(values: Mapping[str, Any]) -> list[str]:
    """Command line words for options: True is a bare flag, a list several words; False and None are left out."""
    words: list[str] = []
    for name, value in values.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif isinstance(value, (list, tuple)):
            words += [flag, *map(str, value)]
        elif value is not False and value is not None:
            words.append(f"{flag}={value}")
    return words
