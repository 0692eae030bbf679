"""Folder of a run: settings, results.csv and images, with the checkpoints in `weights` below it."""

import os
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from utils.console import info
from utils.datasets.division import FILE_NAME
from utils.datasets.splits import Splits
from utils.errors import UserError
from utils.files import sync_folder, write_yaml
from utils.output.drawing import plot_batch
from utils.output.plots import plot_label_correlogram, plot_labels, plot_results
from utils.output.plotter import Plotter
from utils.pending_files import PendingFiles, require_written
from utils.results_csv import ResultsFile
from utils.training.observer import EpochReport, Observer, StepReport
from utils.training.open_folder import OpenFolder
from utils.training.resume import EPOCH_START_FILE, epochs_of_interrupted_run, mark_unedited, resume_advice
from utils.training.run import Run

NUM_BATCH_IMAGES = 3  # training batches that are drawn


class RunFolder(Observer):
    """Writer of opt.yaml, hyp.yaml, results.csv and, unless `plots` is False, images.

    The folder is locked until the end of the `with` block. A `new_run` moves an interrupted run in the folder aside.
    """

    def __init__(self, path: Path, *, plots: bool = True, new_run: bool = False):
        self.plots, self.place = plots, OpenFolder(path)
        for folder in (path, path / "weights"):
            remove_temporary_files(folder)
        if new_run:
            keep_interrupted_run(path)
        self._pending = PendingFiles()
        self._results, self.plotter = ResultsFile(path / "results.csv", self._pending), Plotter()

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_: object) -> None:
        """Finish the images that are being drawn, and unlock the folder."""
        self.plotter.close()
        self.place.close()

    @property
    def path(self) -> Path:
        """Path where the folder is now: somebody may have renamed or removed it."""
        return self.place.path

    @property
    def weights(self) -> Path:
        """Folder of the checkpoints, which is made if it is absent."""
        weights = self.path / "weights"
        with suppress(OSError):  # what is written next fails, with a warning
            weights.mkdir(exist_ok=True)
        return weights

    def on_start(self, run: Run) -> None:
        """Write the settings, and draw the labels (M, 5) = class, x, y, w, h."""
        hyp, labels = run.hyp.to_dict(), run.data.train.labels
        settings = {**run.options.to_dict(), "hyp": hyp, "resume": False, "save_dir": str(self.path)}
        self.place.keep(partial(self._write_settings, "opt.yaml", mark_unedited(settings)))
        self.place.keep(partial(self._write_settings, "hyp.yaml", hyp))
        if run.data.spec.division:
            self.place.keep(partial(self._write_division, run.data))
        self._draw(plot_labels, labels, run.data.names, self.path / "labels.jpg")
        self._draw(plot_label_correlogram, labels, self.path / "labels_correlogram.jpg")

    def _write_settings(self, name: str, content: dict[str, Any], folder: Path) -> None:
        self._pending.write(folder / name, partial(write_yaml, content=content))

    def _write_division(self, data: Splits, folder: Path) -> None:
        self._pending.write(folder / FILE_NAME, partial(data.write_division))

    def on_batch(self, run: Run, report: StepReport) -> None:
        """Draw the first batches as train_batch<number>.jpg."""
        number, batch = run.progress.iteration, report.batch
        if number < NUM_BATCH_IMAGES and self.plots:
            file = self.path / f"train_batch{number}.jpg"
            self._draw(plot_batch, batch.images.cpu(), batch.targets, batch.paths, file, names=run.data.names)

    def on_epoch(self, run: Run, report: EpochReport) -> None:
        """Add a row to results.csv."""
        metrics, rates = report.metrics, report.rates
        scores = [0.0] * 4 if metrics is None else [metrics.precision, metrics.recall, metrics.map50, metrics.map]
        val_losses = [0.0] * 3 if metrics is None else list(metrics.losses)
        rates_of_groups = [rates.lr_bias, rates.lr_weight, rates.lr_norm]
        self._pending.move(self.path)
        self._results.path = self.path / "results.csv"
        self._results.write(report.epoch, report.losses, scores, val_losses, rates_of_groups)

    def on_trained(self, run: Run) -> None:
        """Draw results.png."""
        self._draw(plot_results, self.path / "results.csv", self.path / "results.png")

    def _draw(self, function: Callable[..., None], *args: Any, **named: Any) -> None:
        if self.plots:
            self.plotter.submit(function, *args, **named)

    def close(self) -> None:
        """Write again what could not be written: a resumed run lacks the rows of its earlier part."""
        self._retry()

    def _retry(self) -> dict[Path, str]:
        self._pending.move(self.path)
        return self._pending.retry()


def require_whole(folder: RunFolder | None, checkpoints: Mapping[Path, str]) -> None:
    """Write again what could not be written. Raise UserError that names what is missing, `checkpoints` first.

    Without a folder, as on ranks other than 0, do nothing.
    """
    if folder:
        missing = {**checkpoints, **folder._retry(), **folder.plotter.finish()}
        require_written(missing, resume_advice(folder.path) if checkpoints else "")


def keep_interrupted_run(path: Path) -> None:
    """Move a run that was interrupted in the folder (`--exist-ok`) to a folder below, where it can still be resumed.

    Whenever this process is killed, the run is whole in one of the two places.
    """
    last = path / "weights" / "last.pt"
    try:
        epochs = epochs_of_interrupted_run(last)
    except UserError:  # damaged: it cannot be resumed
        return
    if epochs is None:
        return
    files = [
        last,
        *(path / name for name in ("results.csv", "opt.yaml", "hyp.yaml")),
        *(path / "weights" / name for name in ("best.pt", EPOCH_START_FILE)),
        *(path / "weights").glob("epoch[0-9]*.pt"),
        *path.glob("log-*.json"),
    ]
    copies = [file.parents[1] for file in path.glob("interrupted*/weights/last.pt") if file.samefile(last)]
    kept = copies[0] if copies else link_run(path, files)  # else a killed process has made it
    for file in files:  # last.pt first: without it the rest is no run
        file.unlink(missing_ok=True)
    info(
        f"{path} holds a run that was interrupted after {epochs} epochs: it is kept, resume it with "
        f"--resume {shlex.quote(str(kept))}"
    )


def link_run(path: Path, files: Sequence[Path]) -> Path:
    """Return a new folder below `path` with a second name, or a copy, of each of `files`. It is there at once."""
    draft = path / ".interrupted.tmp"
    (draft / "weights").mkdir(parents=True)
    for file in filter(Path.is_file, files):
        place = draft / file.relative_to(path)
        try:
            os.link(file, place)
        except OSError:  # a file system without hard links
            shutil.copy2(file, place)
    number, kept = 1, path / "interrupted"
    while kept.exists():
        number += 1
        kept = path / f"interrupted{number}"
    draft.rename(kept)
    sync_folder(path)
    return kept


def remove_temporary_files(folder: Path) -> None:
    """Remove the temporary files of atomic_write that a killed process left in a folder that is now ours."""
    for file in folder.glob(".*.tmp"):
        with suppress(OSError):
            shutil.rmtree(file) if file.is_dir() else file.unlink()
