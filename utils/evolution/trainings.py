"""Objective of an evolution: one training per generation, in processes of its own, with a device, a limit and a log.

A training that crashes, runs out of memory or hangs is one failed generation with its log. No training outlives the
evolution.
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

from utils.environment import NUM_TRAININGS_ENV, child_environment
from utils.evolve import Hyp, Key, Outcome, do_nothing
from utils.files import write_yaml
from utils.metrics import fitness
from utils.results_csv import RESULTS

SUPERVISOR = Path(__file__).with_name("supervise.py")
POLL_SECONDS = 0.25  # between checks of a training
MAX_SILENCE = 3600.0  # seconds without a line in its log after which a training counts as hung
MIN_LIMIT = 600.0  # seconds that every training may take if the limit is derived from others
LIMIT_FACTOR = 4  # derived limit: this many times the longest successful training

Row = Mapping[str, float]  # of results.csv: column -> value


class Trainings:
    """Objective that runs a training and reads its results.csv: objective(hyp, generation, repeat=0) -> Outcome.

    command(hyp file, folder, number, repeat, device): returns the words of the command line.
    The training must write its results.csv into `folder`.
    devices: one word per worker; a device may occur several times.
    limit: seconds that a training may take; 0 derives it from successful ones, at first from `durations` (seconds).
    validated: every epoch is validated, so that there is a curve; stop(hyp, curve) then decides on pruning.
    threads: CPU threads of each training; 0 lets PyTorch choose.
    on_epoch: called with number, repeat, epochs done, seconds and fitness after every epoch.
    """

    def __init__(
        self,
        command: Callable[[Path, Path, int, int, str], Sequence[str]],
        folder: Path,
        *,
        devices: Sequence[str],
        limit: float = 0.0,
        validated: bool = False,
        threads: int = 0,
        durations: Sequence[float] = (),
        stop: Callable[[Hyp, Sequence[float]], bool] = lambda hyp, curve: False,
        on_epoch: Callable[[int, int, int, float, float | None], object] = do_nothing,
    ):
        self.command, self.folder, self.limit, self.validated = command, folder, limit, validated
        self.stop, self.on_epoch, self.threads = stop, on_epoch, threads
        self.durations, self.num_parallel = list(durations), len(devices)
        self.devices: queue.SimpleQueue[str] = queue.SimpleQueue()
        for device in devices:
            self.devices.put(device)
        self.cancelled = threading.Event()

    def cancel(self) -> None:
        """End every training at once. Their calls return failures."""
        self.cancelled.set()

    def __call__(self, hyp: Hyp, generation: int, repeat: int = 0) -> Outcome:
        folder = make_new_folder(self.folder, f"{generation:04d}" + f"-seed{repeat + 1}" * bool(repeat))
        write_yaml(folder / "hyp.yaml", {key: value for key, value in hyp.items() if key != "anchors" or value})
        device = self.devices.get()
        try:
            command = self.command(folder / "hyp.yaml", folder, generation, repeat, device)
            reason = self._run(command, folder, (generation, repeat), hyp)
        finally:
            self.devices.put(device)
            shutil.rmtree(folder / "weights", ignore_errors=True)  # large, and never used again
        return self._outcome(folder, reason)

    def _run(self, command: Sequence[str], folder: Path, key: Key, hyp: Hyp) -> str:
        """Run the command to its end. Return "" for success, `pruned`, or why it failed."""
        settings = {}
        if self.threads:
            settings = {"OMP_NUM_THREADS": str(self.threads), NUM_TRAININGS_ENV: str(self.num_parallel)}
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
            assert process.stdin is not None
            process.stdin.close()  # the supervisor then kills what still runs
            status = process.wait()
        strip_progress_bars(folder / "train.log")
        if reason is None and status:
            killed = " (killed, probably out of memory)" if status == 137 else ""
            reason = f"exit status {status}{killed}: {last_error_line(folder / 'train.log')}"
        if not reason:
            self.durations.append(time.monotonic() - begin)
        return reason or ""

    def _watch(self, process: subprocess.Popen[bytes], folder: Path, key: Key, hyp: Hyp) -> str | None:
        """Wait until the process exits (return None), or until there is a reason to end it (return that)."""
        begin, reported = time.monotonic(), 0
        while process.poll() is None:
            if self.cancelled.wait(POLL_SECONDS):
                return "cancelled"
            rows = read_rows(folder / "results.csv")
            seconds = time.monotonic() - begin
            if len(rows) > reported:
                reported = len(rows)
                curve = to_curve(rows)
                self.on_epoch(*key, reported, seconds, curve[-1] if self.validated else None)
                if self.validated and self.stop(hyp, curve):
                    return "pruned"
            limit = self._current_limit()
            if limit and seconds > limit:
                return f"took longer than {limit / 60:.4g} minutes (--evolve-timeout)"
            if time.time() - last_write_time(folder) > MAX_SILENCE:
                return f"no sign of life for {MAX_SILENCE / 60:.0f} minutes"
        return None

    def _current_limit(self) -> float:
        """Return the seconds that a training may take now, 0 for no limit."""
        if self.limit or not self.durations:
            return self.limit
        return max(MIN_LIMIT, LIMIT_FACTOR * max(self.durations))

    def _outcome(self, folder: Path, reason: str) -> Outcome:
        """Read the results of a training that ended with `reason`."""
        rows = read_rows(folder / "results.csv")
        curve = to_curve(rows) if self.validated else ()
        log = f"log: {folder / 'train.log'}"
        if reason == "pruned":
            return Outcome(curve[-1], "pruned", results_of(rows[-1]), len(rows), curve, log)
        if not reason and not rows:
            reason = f"no results.csv: {last_error_line(folder / 'train.log')}"
        if reason:
            return Outcome(None, "failed", (), len(rows), curve, f"{reason}; {log}")
        return Outcome(fitness_of(rows[-1]), "done", results_of(rows[-1]), len(rows), curve)


def make_new_folder(parent: Path, name: str) -> Path:
    """Make a folder `name`, or name-2, name-3, ... if earlier tries have left theirs."""
    number = 1
    while True:
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1


def read_rows(file: Path) -> list[Row]:
    """Read the complete rows of a results.csv that may still be written, one per epoch."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return []
    names = [name.strip() for name in lines[0].split(",")] if lines else []
    return [dict(zip(names, map(float, cells))) for cells in csv.reader(lines[1:]) if len(cells) == len(names)]


def results_of(row: Row) -> tuple[float, ...]:
    return tuple(row.get(name, 0.0) for name in RESULTS)


def to_curve(rows: Sequence[Row]) -> tuple[float, ...]:
    """Return the fitness after each epoch, 0 if it is not finite."""
    return tuple(value if math.isfinite(value) else 0.0 for value in map(fitness_of, rows))


def fitness_of(row: Row) -> float:
    return round(fitness(*results_of(row)[:4]), 6)


def last_write_time(folder: Path) -> float:
    """Return the time of the last change in `folder`, in seconds since the epoch."""
    return max(file.stat().st_mtime for file in (folder / "train.log", folder))


def strip_progress_bars(log: Path) -> None:
    """Remove what a terminal would have overwritten. Progress bars make a log hundreds of times larger."""
    lines = log.read_bytes().replace(b"\r\n", b"\n").split(b"\n")
    log.write_bytes(b"\n".join(line.rstrip(b"\r").rpartition(b"\r")[2] for line in lines))


def last_error_line(log: Path, limit: int = 4000) -> str:
    """Return the last error line within the last `limit` bytes of a log, else its last line."""
    data = log.read_bytes()[-limit:].decode(errors="replace").replace("\r", "\n")
    lines = [line.strip() for line in data.splitlines() if line.strip()]
    kinds = [line.split(":")[0] for line in lines]
    errors = [line for line, kind in zip(lines, kinds) if kind == "error" or kind.endswith(("Error", "Exception"))]
    return (errors or lines or ["the log is empty"])[-1][:300]
