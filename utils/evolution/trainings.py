"""Objective of an evolution: one training per generation, in processes of its own, with a device, a limit and a log.

A training that crashes, runs out of memory or hangs is one failed generation with its log. No training outlives the
evolution.
"""

import math
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from utils.console import warn
from utils.environment import NUM_TRAININGS_ENV, child_environment
from utils.evolution.supervise import kill_group
from utils.evolve import Hyp, Key, Outcome, do_nothing
from utils.files import atomic_write, write_yaml
from utils.metrics import Fitness, fitness
from utils.results_csv import RESULTS

T = TypeVar("T")

SUPERVISOR = Path(__file__).with_name("supervise.py")
POLL_SECONDS = 0.25  # between checks of a training
MAX_STEP = 10.0  # seconds that one check counts at most: the rest is a jump of the clock or a suspended machine
MAX_SILENCE = 3600.0  # seconds without a line in its log after which a training counts as hung
KILL_SECONDS = 5.0  # for killed processes to end; one that waits for a dead disk never does
START_PAUSES = (1, 5, 15, 30, 60)  # seconds between tries to start a training without disk space or processes
MIN_LIMIT = 600.0  # seconds that every training may take if the limit is derived from others
LIMIT_FACTOR = 4  # derived limit: this many times the longest successful training

Row = Mapping[str, float]  # of results.csv: column -> value


class Trainings:
    """Objective that runs a training and reads its results.csv: objective(hyp, generation, repeat=0) -> Outcome.

    command(hyp file, folder, number, repeat, device): returns the words of the command line.
    The training must write its results.csv into `folder`.
    devices: one word per worker; a device may occur several times.
    limit: seconds that a training may take; 0 derives it from successful ones, at first from `durations` (seconds).
    is_complete: whether a results.csv with these fitnesses, one per epoch, has the row of the last epoch.
    validated: every epoch is validated, so that there is a curve; stop(hyp, curve) then decides on pruning.
    threads: CPU threads of each training; 0 lets PyTorch choose.
    on_epoch: called with number, repeat, epochs done, seconds and fitness after every epoch.
    """

    measure: Fitness = fitness  # of a row

    def __init__(
        self,
        command: Callable[[Path, Path, int, int, str], Sequence[str]],
        folder: Path,
        *,
        devices: Sequence[str],
        limit: float = 0.0,
        is_complete: Callable[[Sequence[float]], bool] = lambda fitnesses: True,
        validated: bool = False,
        threads: int = 0,
        durations: Sequence[float] = (),
        stop: Callable[[Hyp, Sequence[float]], bool] = lambda hyp, curve: False,
        on_epoch: Callable[[int, int, int, float, float | None], object] = do_nothing,
    ):
        self.command, self.folder, self.limit, self.validated = command, folder, limit, validated
        self.stop, self.on_epoch, self.threads = stop, on_epoch, threads
        self.is_complete = is_complete
        self.durations, self.num_parallel = list(durations), len(devices)
        self.devices: queue.SimpleQueue[str] = queue.SimpleQueue()
        for device in devices:
            self.devices.put(device)
        self.killed: list[subprocess.Popen[bytes]] = []  # may still be ending
        self.lock, self.cancelled = threading.Lock(), threading.Event()

    def close(self) -> None:
        """Wait a moment for the trainings that were killed."""
        deadline = time.monotonic() + KILL_SECONDS
        while self.killed and time.monotonic() < deadline:
            self._reap()
            time.sleep(0.01)

    def cancel(self) -> None:
        """End every training at once. Their calls return failures."""
        self.cancelled.set()

    def __call__(self, hyp: Hyp, generation: int, repeat: int = 0) -> Outcome:
        device = self.devices.get()
        try:
            folder = self._retry(lambda: self._make_folder(hyp, generation, repeat))
            try:
                command = self.command(folder / "hyp.yaml", folder, generation, repeat, device)
                reason = self._run(command, folder, (generation, repeat), hyp)
            finally:
                shutil.rmtree(folder / "weights", ignore_errors=True)  # large, and never used again
        finally:
            self.devices.put(device)
        return self._outcome(folder, reason)

    def _make_folder(self, hyp: Hyp, generation: int, repeat: int) -> Path:
        """Make the folder of a training, with its hyp.yaml."""
        folder = make_new_folder(self.folder, f"{generation:04d}" + f"-seed{repeat + 1}" * bool(repeat))
        write_yaml(folder / "hyp.yaml", {key: value for key, value in hyp.items() if key != "anchors" or value})
        return folder

    def _retry(self, act: Callable[[], T]) -> T:
        """Return the result of `act`. A full disk or too many processes are no fault of the generation: try again."""
        for pause in START_PAUSES:
            try:
                return act()
            except OSError as error:
                warn(f"a training could not start ({error}). Trying again in {pause} s.")
                if self.cancelled.wait(pause):
                    break
        return act()

    def _run(self, command: Sequence[str], folder: Path, key: Key, hyp: Hyp) -> str:
        """Run the command to its end. Return "" for success, `pruned`, or why it failed."""
        process, watch = self._retry(lambda: self._start(command, folder)), Stopwatch()
        try:
            reason = self._watch(process, watch, folder, key, hyp)
        finally:
            status = self._end(process)
        strip_progress_bars(folder / "train.log")
        if reason is None and status:
            reason = f"{describe_status(status)}: {last_error_line(folder / 'train.log')}"
        if not reason:
            self.durations.append(watch.seconds)
        return reason or ""

    def _start(self, command: Sequence[str], folder: Path) -> subprocess.Popen[bytes]:
        """Start the command under a supervisor, which leads a process group. Its output goes to train.log."""
        settings = {}
        if self.threads:
            settings = {"OMP_NUM_THREADS": str(self.threads), NUM_TRAININGS_ENV: str(self.num_parallel)}
        with open(folder / "train.log", "wb") as log:
            return subprocess.Popen(
                [sys.executable, "-I", str(SUPERVISOR), *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=child_environment(**settings),
            )

    def _end(self, process: subprocess.Popen[bytes]) -> int | None:
        """Kill what still runs of a training, also if it is stopped. Return the exit status of one that had ended."""
        assert process.stdin is not None
        status = process.poll()
        kill_group(process.pid)
        process.stdin.close()
        self._reap([process] if status is None else [])  # not waited for: it may hang in a system call
        return status

    def _reap(self, more: Sequence[subprocess.Popen[bytes]] = ()) -> None:
        with self.lock:
            self.killed = [*(process for process in self.killed if process.poll() is None), *more]

    def _watch(
        self, process: subprocess.Popen[bytes], watch: "Stopwatch", folder: Path, key: Key, hyp: Hyp
    ) -> str | None:
        """Wait until the process exits (return None), or until there is a reason to end it (return that)."""
        silence, sign, reported = Stopwatch(), sign_of_life(folder), 0
        while process.poll() is None:
            if self.cancelled.wait(POLL_SECONDS):
                return "cancelled"
            rows = read_rows(folder / "results.csv")
            seconds = watch.tick()
            if len(rows) > reported:
                reported = len(rows)
                curve = to_curve(rows, self.measure)
                self.on_epoch(*key, reported, seconds, curve[-1] if self.validated else None)
                if self.validated and self.stop(hyp, curve):
                    return "pruned"
            limit = self._current_limit()
            if limit and seconds > limit:
                return f"took longer than {limit / 60:.4g} minutes (--evolve-timeout)"
            if (now := sign_of_life(folder)) != sign:
                silence, sign = Stopwatch(), now
            if silence.tick() > MAX_SILENCE:
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
        curve = to_curve(rows, self.measure) if self.validated else ()
        log = f"log: {folder / 'train.log'}"
        if reason == "pruned":
            return Outcome(curve[-1], "pruned", results_of(rows[-1]), len(rows), curve, log)
        if not reason and not rows:
            reason = f"no results.csv: {last_error_line(folder / 'train.log')}"
        if not reason and not self.is_complete(to_curve(rows, self.measure)):
            reason = f"results.csv ends after {len(rows)} epochs: the last row is missing"
        if reason:
            return Outcome(None, "failed", (), len(rows), curve, f"{reason}; {log}")
        return Outcome(fitness_of(rows[-1], self.measure), "done", results_of(rows[-1]), len(rows), curve)


class Stopwatch:
    """Time since the start, by many ticks. A step of more than MAX_STEP seconds is a jump of the clock."""

    def __init__(self) -> None:
        self.seconds, self._last = 0.0, time.monotonic()

    def tick(self) -> float:
        """Return the seconds up to now."""
        now = time.monotonic()
        self.seconds += min(max(now - self._last, 0.0), MAX_STEP)
        self._last = now
        return self.seconds


def describe_status(status: int) -> str:
    """Describe the exit status of a supervisor."""
    if status < 0:
        return f"its supervisor was killed by signal {-status}"
    return f"exit status {status}" + " (killed, probably out of memory)" * (status == 137)


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
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        return []
    names = [name.strip() for name in lines[0].split(",")] if lines else []
    rows: list[Row] = []
    for line in lines[1:]:
        with suppress(ValueError):  # incomplete or damaged
            rows.append(dict(zip(names, map(float, line.split(",")), strict=True)))
    return rows


def results_of(row: Row) -> tuple[float, ...]:
    return tuple(row.get(name, 0.0) for name in RESULTS)


def to_curve(rows: Sequence[Row], measure: Fitness = fitness) -> tuple[float, ...]:
    """Return the fitness after each epoch, 0 if it is not finite."""
    values = [fitness_of(row, measure) for row in rows]
    return tuple(value if math.isfinite(value) else 0.0 for value in values)


def fitness_of(row: Row, measure: Fitness) -> float:
    return round(measure(*results_of(row)[:4]), 6)


def sign_of_life(folder: Path) -> list[tuple[int, int] | None]:
    """Return a value that changes when the training writes. It is compared, not subtracted: clocks may jump."""
    return [_stamp(folder / "train.log"), _stamp(folder)]


def _stamp(file: Path) -> tuple[int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def strip_progress_bars(log: Path) -> None:
    """Remove what a terminal would have overwritten. Progress bars make a log hundreds of times larger."""
    with suppress(OSError):  # a full disk: the log stays as it is
        lines = log.read_bytes().replace(b"\r\n", b"\n").split(b"\n")
        with atomic_write(log, sync=False) as file:
            file.write(b"\n".join(line.rstrip(b"\r").rpartition(b"\r")[2] for line in lines))


def last_error_line(log: Path, limit: int = 4000) -> str:
    """Return the last error line within the last `limit` bytes of a log, else its last line."""
    try:
        content = log.read_bytes()[-limit:]
    except OSError as error:
        return f"the log cannot be read ({error.strerror})"
    data = content.decode(errors="replace").replace("\r", "\n")
    lines = [line.strip() for line in data.splitlines() if line.strip()]
    kinds = [line.split(":")[0] for line in lines]
    errors = [line for line, kind in zip(lines, kinds) if kind == "error" or kind.endswith(("Error", "Exception"))]
    return (errors or lines or ["the log is empty"])[-1][:300]
