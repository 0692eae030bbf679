"""The folder of a training run: settings, results, pictures and checkpoints, each written off the training path."""

import shlex
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from utils.checkpoint import snapshot
from utils.errors import UserError
from utils.files import increment_path, write_yaml
from utils.loading.dataset import Batch
from utils.output.drawing import plot_batch
from utils.output.plots import plot_label_correlogram, plot_labels, plot_results
from utils.output.plotter import Plotter
from utils.results_csv import ResultsFile
from utils.training.checkpoints import CheckpointWriter
from utils.training.resume import HALF, START, unfinished


class RunFolder:
    """opt.yaml, hyp.yaml, results.csv, pictures (unless `plots` is false) and weights/ below `path`."""

    def __init__(self, path: Path, plots: bool = True):
        self.path, self.plots, self.weights = path, plots, path / "weights"
        self.weights.mkdir(parents=True, exist_ok=True)
        self._lock = lock_folder(path)
        for folder in (path, self.weights):
            remove_leftovers(folder)
        self._start_written: Any = None
        self.results = ResultsFile(path / "results.csv")
        self._plotter, self._writer = Plotter(), CheckpointWriter()

    @property
    def last(self) -> Path:
        """The whole state of the run, to resume from, also after its end."""
        return self.weights / "last.pt"

    @property
    def half(self) -> Path:
        """The weights of last.pt for use; written when the run has ended."""
        return self.weights / HALF

    @property
    def best(self) -> Path:
        """The weights of the best epoch, for use."""
        return self.weights / "best.pt"

    def describe(
        self, options: dict[str, Any], hyp: dict[str, float], labels: np.ndarray, names: dict[int, str]
    ) -> None:
        """Write the settings, and the pictures of the labels (M, 5) = class, x, y, w, h."""
        write_yaml(self.path / "opt.yaml", {**options, "hyp": hyp, "resume": False, "save_dir": str(self.path)})
        write_yaml(self.path / "hyp.yaml", hyp)
        self._draw(plot_labels, labels, names, self.path / "labels.jpg")
        self._draw(plot_label_correlogram, labels, self.path / "labels_correlogram.jpg")

    def picture_batch(self, number: int, batch: Batch, names: dict[int, str]) -> None:
        """Draw a training batch as train_batch<number>.jpg."""
        file = self.path / f"train_batch{number}.jpg"
        self._draw(plot_batch, batch.images.cpu(), batch.targets, batch.paths, file, names=names)

    def keep_interrupted_run(self) -> None:
        """Move a run that was interrupted here (--exist-ok) to a folder below, where it can still be gone on with."""
        try:
            epoch = unfinished(self.last)
        except UserError:  # damaged: nothing can go on with it
            return
        if epoch is None:
            return
        kept = increment_path(self.path / "interrupted")
        (kept / "weights").mkdir()
        for file in [
            self.path / "results.csv",
            self.path / "opt.yaml",
            self.path / "hyp.yaml",
            self.best,
            self.weights / START,
            *self.weights.glob("epoch[0-9]*.pt"),
            self.last,
        ]:
            if file.is_file():
                file.rename(kept / file.relative_to(self.path))
        self.results = ResultsFile(self.results.path)
        print(
            f"{self.path} holds a run that was interrupted after {epoch} epochs: it is kept, go on with it by "
            f"--resume {shlex.quote(str(kept))}"
        )

    def forget_earlier_run(self) -> None:
        """Remove the checkpoints of a run that was here before (--exist-ok): they must not pass for this one's.

        last.pt stays until the first save takes its place.
        """
        for file in [self.half, self.best, self.weights / START, *self.weights.glob("epoch[0-9]*.pt")]:
            file.unlink(missing_ok=True)

    def save(
        self, content: dict[str, Any], *, start: dict[str, Any] | None = None, best: bool = False, period: int = 0
    ) -> None:
        """Write last.pt; best.pt too when the state is the `best`; epoch<k>.pt every `period` epochs, at their ends.

        last.pt comes last: a run cut off before it repeats the epoch and writes all of them again. Within an epoch
        the snapshot `start` of the epoch's start is kept beside it, for a resumed run whose numbers go bad.
        """
        finished = content["epoch"] - 1 if content["step"] == 0 else -1
        full = [self.last]
        if period > 0 and finished >= 0 and finished % period == 0:
            full.insert(0, self.weights / f"epoch{finished}.pt")
        self._writer.wait()
        within = 0 < content["step"] < content["surroundings"]["steps_per_epoch"]  # after the last step none can go bad
        if start is not None and within and self._start_written != start["iteration"]:
            self._writer.submit(start, full=[self.weights / START], stripped=[])
            self._start_written = start["iteration"] if self.is_saved() else None
        missing = finished >= 0 and not self.best.exists() and self.best not in self._writer.unwritten
        self._writer.submit(snapshot(content), full=full, stripped=[self.best] if best or missing else [])

    def hold_best(self, content: dict[str, Any]) -> None:
        """Keep the weights of the best epoch so far in memory until the next `save`, which writes them as best.pt."""
        self._writer.hold(content, [self.best])

    def is_saved(self) -> bool:
        """Wait for the disk; whether all that was handed over last is on it."""
        self._writer.wait()
        return not self._writer.failed

    def finish(self) -> None:
        """Everything written, with results.png."""
        self._writer.wait()
        self._draw(plot_results, self.results.path, self.path / "results.png")

    def mark_end(self, content: dict[str, Any]) -> None:
        """The run is over, its last validation too: keep the last weights for use, drop what only resuming needs."""
        (self.weights / START).unlink(missing_ok=True)
        self._writer.submit(snapshot(content), full=[], stripped=[self.half])

    def close(self) -> None:
        self._writer.close()
        self._plotter.close()
        self._lock.close()

    def _draw(self, function: Any, *args: Any, **named: Any) -> None:
        if self.plots:
            self._plotter.submit(function, *args, **named)


def lock_folder(path: Path) -> BinaryIO:
    """Claim a run folder for this process until the file is closed. UserError while another process has it.

    The lock goes with the process, however it ends, and does not pass to its children.
    """
    file = open(path / ".lock", "ab")
    try:
        import fcntl  # late: only POSIX has it

        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.close()
        raise UserError(
            f"{path}: another process is training in this folder; wait for it, or give another --name"
        ) from error
    except (ImportError, OSError):
        pass  # a file system without locks
    return file


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of atomic_write that a killed process left in a folder that is now ours."""
    for file in folder.glob(".*.tmp"):
        with suppress(OSError):
            file.unlink()
