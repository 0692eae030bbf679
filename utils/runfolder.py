"""The folder of a training run: settings, results, pictures and checkpoints, each written off the training path."""

from pathlib import Path
from typing import Any

import numpy as np

from utils.checkpoint import CheckpointWriter, snapshot
from utils.dataset import Batch
from utils.files import write_yaml
from utils.drawing import plot_batch
from utils.plots import Plotter, plot_label_correlogram, plot_labels, plot_results
from utils.runlog import ResultsFile


class RunFolder:
    """opt.yaml, hyp.yaml, results.csv, pictures (unless `plots` is false) and weights/ below `path`."""

    def __init__(self, path: Path, plots: bool = True):
        self.path, self.plots, self.weights = path, plots, path / "weights"
        self.weights.mkdir(parents=True, exist_ok=True)
        self.results = ResultsFile(path / "results.csv")
        self._plotter, self._writer = Plotter(), CheckpointWriter()

    @property
    def last(self) -> Path:
        """The whole state of the run, to resume from, also after its end."""
        return self.weights / "last.pt"

    @property
    def best(self) -> Path:
        """The weights of the best epoch, for use."""
        return self.weights / "best.pt"

    def describe(self, options: dict[str, Any], hyp: dict[str, float], labels: np.ndarray,
                 names: dict[int, str]) -> None:
        """Write the settings, and the pictures of the labels (M, 5) = class, x, y, w, h."""
        write_yaml(self.path / "opt.yaml", {**options, "resume": False, "save_dir": str(self.path)})
        write_yaml(self.path / "hyp.yaml", hyp)
        self._draw(plot_labels, labels, names, self.path / "labels.jpg")
        self._draw(plot_label_correlogram, labels, self.path / "labels_correlogram.jpg")

    def picture_batch(self, number: int, batch: Batch, names: dict[int, str]) -> None:
        """Draw a training batch as train_batch<number>.jpg."""
        file = self.path / f"train_batch{number}.jpg"
        self._draw(plot_batch, batch.images, batch.targets, batch.paths, file, names=names)

    def save(self, content: dict[str, Any], *, best: bool = False, period: int = 0) -> None:
        """Write last.pt; best.pt too when the state is the `best`; epoch<k>.pt every `period` epochs, at their ends.

        best.pt comes first: a run cut off between the two repeats the epoch and writes both again.
        """
        epoch_ended = content["step"] == 0
        full, finished = [self.last], content["epoch"] - 1
        if period > 0 and epoch_ended and finished % period == 0:
            full.append(self.weights / f"epoch{finished}.pt")
        stripped = [self.best] if best or (epoch_ended and not self.best.exists()) else []
        self._writer.submit(snapshot(content), full=full, stripped=stripped)

    def finish(self) -> None:
        """Everything written, with results.png."""
        self._writer.wait()
        self._draw(plot_results, self.results.path, self.path / "results.png")

    def close(self) -> None:
        self._writer.close()
        self._plotter.close()

    def _draw(self, function: Any, *args: Any, **named: Any) -> None:
        if self.plots:
            self._plotter.submit(function, *args, **named)
