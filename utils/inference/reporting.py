"""Observers that show an evaluation: a table in the terminal, drawings and files in the run folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from utils import console
from utils.inference.observer import EvaluatedBatch, EvaluationObserver
from utils.metrics import Metrics
from utils.output.plotter import Plotter
from utils.output.prediction_files import DetectionWriter
from utils.output.validation_report import (
    HEADER,
    costliest_errors,
    diagnosis_table,
    draw_batch,
    draw_curves,
    metrics_table,
    thresholds_table,
)

DRAWN_BATCHES = 3  # batches that are drawn into the run folder


class ValidationBar(EvaluationObserver):
    """A progress bar over the batches."""

    images_read = 0

    def __init__(self, text: str = "Validating"):
        self.text = text
        self.bar: console.ProgressBar | None = None

    def on_start(self, num_batches: int | None) -> None:
        self.bar = console.progress_bar(desc=self.text, total=num_batches, leave=False)

    def on_batch(self, evaluated: EvaluatedBatch) -> None:
        if self.bar is not None:
            self.bar.update()

    def on_end(self, metrics: Metrics) -> None:
        self._close_bar()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close_bar()

    def _close_bar(self) -> None:
        if self.bar is not None:
            self.bar.close()


class ConsoleTable(ValidationBar):
    """A progress bar, then a table of the metrics: all classes together and, if `verbose`, a row per class.

    With `final` the table is a result of the program, which is printed also with `--quiet`. `thresholds`: if `verbose`,
    add a table of the confidence at which each class has its best F1.
    """

    def __init__(
        self, names: Mapping[int, str], *, verbose: bool = False, final: bool = False, thresholds: bool = False
    ):
        super().__init__()
        self.names, self.verbose, self.thresholds = names, verbose, thresholds
        self.print = console.result if final else console.info

    def on_end(self, metrics: Metrics) -> None:
        super().on_end(metrics)
        self.print(HEADER, *metrics_table(metrics, self.names, verbose=self.verbose))
        if self.thresholds and self.verbose:
            self.print(*thresholds_table(metrics, self.names))
        if metrics.instances == 0:
            console.warn("these images have no labels, so there is nothing to measure. Give a labelled split: --data")


class DiagnosisTable(EvaluationObserver):
    """A table of AP by object size and of the errors of each kind. With it the metrics get their diagnosis.

    With `short` it is one line of the kinds that cost most.
    """

    images_read, reads_diagnosis = 0, True

    def __init__(self, *, short: bool = False):
        self.describe = costliest_errors if short else diagnosis_table

    def on_end(self, metrics: Metrics) -> None:
        if metrics.diagnosis and metrics.instances:
            console.result(*self.describe(metrics.diagnosis))


class Drawings(EvaluationObserver):
    """Labels and detections of the first batches, curves and confusion matrix, drawn into `folder`.

    Drawing happens in the background. The end of the evaluation waits for it, unless there is an error. If a `plotter`
    is given, its owner waits for it.
    """

    images_read = DRAWN_BATCHES

    def __init__(self, folder: str | Path, names: Mapping[int, str], plotter: Plotter | None = None):
        self.folder, self.names, self.plotter = Path(folder), names, plotter or Plotter()
        self._owns_plotter = plotter is None

    def on_batch(self, evaluated: EvaluatedBatch) -> None:
        if evaluated.number < DRAWN_BATCHES:
            draw_batch(self.plotter, self.folder, evaluated.number, evaluated.batch, evaluated.rows, self.names)

    def on_end(self, metrics: Metrics) -> None:
        draw_curves(self.plotter, self.folder, metrics, self.names)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._owns_plotter:
            self.plotter.__exit__(kind, error, trace)


class DetectionFiles(EvaluationObserver):
    """Files that `writers` fill with the detections of each image."""

    images_read = 0

    def __init__(self, writers: Sequence[DetectionWriter]):
        self.writers = writers

    def on_batch(self, evaluated: EvaluatedBatch) -> None:
        for detections in evaluated.detections:
            for writer in self.writers:
                writer.write(detections)
