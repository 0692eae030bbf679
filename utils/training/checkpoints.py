"""Checkpoints of a run: last, best and periodic files, and when they are due."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from utils.checkpoint import inference_checkpoint, is_finite, read_checkpoint, snapshot, write_checkpoint
from utils.console import info, warn
from utils.detector import DetectionAdvice
from utils.metrics import Metrics
from utils.pending_files import PendingFiles, require_written
from utils.training.observer import CheckpointReport, Observer
from utils.training.resume import EPOCH_START_FILE, LAST_HALF_FILE, resume_advice
from utils.training.run import Run

MAX_PENDING = 2  # files epoch<k>.pt that are kept in memory because they could not be written


class CheckpointWriter:
    """Thread that writes snapshots one after the other, so that training does not wait for the disk.

    A file that cannot be written (disk full, read-only folder) costs one warning. The file before it stays, and each
    later submission tries again.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._tasks: list[Future] = []
        self._written: list[CheckpointReport] = []
        self.pending = PendingFiles()  # what still has to be written; known after `wait`
        self.failed = False  # True if a part of the last submission could not be written; known after `wait`

    def submit(self, content: dict[str, Any], *, full: list[Path], stripped: list[Path]) -> None:
        """Write the weights of `content` for inference to the files `stripped`, then all of it to `full`, in order.

        What could not be written before is tried again first: no later epoch may be as good. Non-finite weights are
        never written. At most one earlier snapshot is kept waiting in memory, besides what could not be written.
        """
        self.wait()
        if not is_finite(content):
            warn("not saved: the weights hold NaN or infinity. The checkpoints before stay.")
            self.failed = True
            return
        for path in [*stripped, *full]:
            self.pending.drop(path)
        for path in [path for path in self.pending if path.match("epoch[0-9]*.pt")][:-MAX_PENDING]:
            self.pending.give_up(path)
        self._tasks = [self._thread.submit(self.pending.retry)]
        for path in stripped:
            self._write(path, inference_checkpoint(content), "weights")
        for path in full:
            self._write(path, content, "train")

    def _write(self, path: Path, content: dict[str, Any], kind: str) -> None:
        self._tasks.append(self._thread.submit(self.pending.write, path, self._writer_of(content, kind)))

    def _writer_of(self, content: dict[str, Any], kind: str) -> Callable[[Path], None]:
        """Return a function that writes a checkpoint and notes it."""

        def write(path: Path) -> None:
            write_checkpoint(path, content, kind=kind)
            self._written.append(CheckpointReport(path, content["epoch"]))

        return write

    def rewrite(self, path: Path, content: dict[str, Any]) -> None:
        """Write weights for inference again, with more in them. This counts as no new checkpoint."""
        self.wait()
        task = self._thread.submit(
            self.pending.write, path, lambda target: write_checkpoint(target, content, kind="weights")
        )
        self._tasks.append(task)

    def take_written(self) -> list[CheckpointReport]:
        """Wait, then return what was written since the last call."""
        self.wait()
        written, self._written = self._written, []
        return written

    def hold(self, content: dict[str, Any], stripped: list[Path]) -> None:
        """Keep weights for inference in memory, for the next submission to write."""
        self.wait()
        if is_finite(content):
            weights = snapshot(inference_checkpoint(content))
            for path in stripped:
                self.pending.add(path, self._writer_of(weights, "weights"))

    def move(self, folder: Path) -> None:
        """Write to `folder` from here on, also what is still held."""
        self.wait()
        self.pending.move(folder)

    def wait(self) -> None:
        """Wait until everything submitted is on the disk, or has `failed`."""
        if self._tasks:
            for task in self._tasks:
                task.result()
            self._tasks, self.failed = [], bool(self.pending)

    def retry(self) -> dict[Path, str]:
        """Wait, then write what is held or could not be written. Return what is still missing, with the reasons."""
        self.wait()
        return self._thread.submit(self.pending.retry).result() if self.pending else {}

    def close(self) -> None:
        """Wait, write what is not written yet, and end the thread."""
        self.retry()
        self._thread.shutdown()


class SaveTimer:
    """Timer of the saves within an epoch (`--save-minutes`), which 0 minutes switch off."""

    def __init__(self, minutes: float):
        self.seconds, self.saved_at = minutes * 60, time.monotonic()

    def is_due(self) -> bool:
        """Return True if the minutes have passed since the last save."""
        return self.seconds > 0 and time.monotonic() - self.saved_at >= self.seconds

    def reset(self) -> None:
        """Count from now on."""
        self.saved_at = time.monotonic()


class Checkpoints:
    """Checkpoints of a run in the folder `weights`, written by a thread of their own.

    Without a folder, as on ranks other than 0, nothing is saved. `period` is that of `--save-period`, in epochs.
    `locate` returns where the folder is now, if it may be renamed or removed. `observer` watches what is written.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        save_minutes: float = 0.0,
        period: int = -1,
        locate: Callable[[], Path] | None = None,
    ):
        self.folder, self.period, self._locate = folder, period, locate
        self._timer, self._writer = SaveTimer(save_minutes), CheckpointWriter()
        self.observer = Observer()
        self._start_written: int | None = None  # iteration of the epoch start that is on the disk
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def begin(self, run: Run) -> None:
        """Remove the checkpoints of an earlier run in the folder (`--exist-ok`), and save the new one's start.

        Its last.pt stays until the first save replaces it.
        """
        if self.folder is not None:
            names = (LAST_HALF_FILE, "best.pt", EPOCH_START_FILE)
            for file in [*(self.folder / name for name in names), *self.folder.glob("epoch[0-9]*.pt")]:
                file.unlink(missing_ok=True)
        self.save(run)

    def _follow_folder(self) -> None:
        """Find the folder again. It may have been renamed, or removed and made again."""
        if self._locate is None or self.folder is None:
            return
        folder = self._locate()
        if folder != self.folder:
            self._writer.move(folder)
            self.folder = folder
        if not (folder / EPOCH_START_FILE).exists():
            self._start_written = None

    def is_due(self) -> bool:
        """Return True if it is time for a save within the epoch."""
        return self._timer.is_due()

    def save(self, run: Run, metrics: Metrics | None = None, *, best: bool = False) -> None:
        """Write last.pt, best.pt if the state is the `best`, and epoch<k>.pt after every `period` epochs.

        last.pt is written last: a run that is killed before it repeats the epoch and writes all of them again. Within
        an epoch the snapshot of the epoch's start is kept beside it, for a resumed run that has to roll back.
        """
        self._timer.reset()
        if self.folder is None:
            return
        self._follow_folder()
        content, start = run.checkpoint(metrics), run.epoch_start
        finished = content["epoch"] - 1 if content["step"] == 0 else -1  # number of the epoch that has just ended
        full = [self.folder / "last.pt"]
        if self.period > 0 and finished >= 0 and finished % self.period == 0:
            full.insert(0, self.folder / f"epoch{finished}.pt")
        self._report_written(run)
        within = 0 < content["step"] < content["surroundings"]["steps_per_epoch"]  # no rollback after the last step
        if start is not None and within and self._start_written != start["iteration"]:
            start_file = self.folder / EPOCH_START_FILE
            self._writer.submit({**run.settings(), **start}, full=[start_file], stripped=[])
            self._writer.wait()
            self._start_written = None if start_file in self._writer.pending else start["iteration"]
            self._writer.pending.drop(start_file)
        best_file = self.folder / "best.pt"
        missing = finished >= 0 and not best_file.exists() and best_file not in self._writer.pending
        self._writer.submit(snapshot(content), full=full, stripped=[best_file] if best or missing else [])

    def _report_written(self, run: Run) -> None:
        """Wait for the disk, and report to the observer what was written."""
        for report in self._writer.take_written():
            if report.file.name not in (EPOCH_START_FILE, LAST_HALF_FILE):
                self.observer.on_checkpoint(run, report)

    def keep_best_in_memory(self, run: Run, metrics: Metrics) -> None:
        """Keep the weights of the best epoch in memory, for the next `save` to write as best.pt."""
        if self.folder is not None:
            self._writer.hold(run.checkpoint(metrics), [self.folder / "best.pt"])

    def is_saved(self) -> bool:
        """Wait for the disk. Return True if the last submission is on it."""
        self._writer.wait()
        return not self._writer.failed

    def unwritten(self) -> dict[Path, str]:
        """Write again what could not be written. Return the files that are still missing, with the reasons."""
        self._follow_folder()
        return self._writer.retry()

    def written_best(self, run: Run) -> Path:
        """Wait for the disk and return best.pt, the weights of the best epoch for inference.

        If it is gone, the last weights take its place. UserError if it cannot be written.
        """
        assert self.folder is not None, "only rank 0 has checkpoints"
        missing, best = self.unwritten(), self.folder / "best.pt"
        if best in missing:
            require_written(missing, resume_advice(self.folder.parent))
        if not best.exists():
            self.save(run)
            require_written(self.unwritten(), resume_advice(self.folder.parent))
        return best

    def keep_advice(self, advice: DetectionAdvice) -> None:
        """Add the advice to best.pt, which is on the disk. A file that cannot be written is tried again at the end."""
        if self.folder is None:
            return
        self._follow_folder()
        best = self.folder / "best.pt"
        if not best.exists():  # removed in the meantime
            return
        self._writer.rewrite(best, {**read_checkpoint(best), "advice": advice.to_dict()})
        if advice.thresholds:
            info(f"{best} holds these thresholds: detect.py --conf-thres auto takes them")

    def mark_finished(self, run: Run) -> None:
        """Write last-half.pt, the last weights for inference, and remove what only resuming needs.

        The run is over, including its final validation. While another checkpoint is missing, it is not: resuming it
        repeats its end.
        """
        missing = self.unwritten()
        self._report_written(run)
        if self.folder is not None and not missing:
            with suppress(OSError):
                (self.folder / EPOCH_START_FILE).unlink(missing_ok=True)
            self._writer.submit(snapshot(run.state_dict()), full=[], stripped=[self.folder / LAST_HALF_FILE])

    def close(self) -> None:
        """Wait for the disk and end the thread that writes."""
        self._writer.close()
