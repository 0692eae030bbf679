"""Report of a validation: a table of the metrics, drawings of batches, and curves."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from utils.diagnosis import Diagnosis
from utils.loading.dataset import Batch
from utils.metrics import Metrics, best_f1_by_class
from utils.output.drawing import plot_batch
from utils.output.plots import plot_confusion, plot_curve, plot_pr_curve
from utils.output.plotter import Plotter

COLUMNS = ("Images", "Instances", "P", "R", "mAP50", "mAP50-95")
HEADER = f"{'Class':>22}" + "".join(f"{title:>11}" for title in COLUMNS)


def metrics_table(metrics: Metrics, names: Mapping[int, str], *, verbose: bool) -> Iterator[str]:
    """Yield the rows below HEADER: all classes together and, if `verbose`, each class that has labels."""

    def row(name: str, instances: int, *values: float) -> str:
        return f"{name:>22}{metrics.images:>11}{instances:>11}" + "".join(f"{value:11.3g}" for value in values)

    overall = row("all", metrics.instances, metrics.precision, metrics.recall, metrics.map50, metrics.map)
    yield f"{overall}   (P and R at confidence {metrics.best_confidence:.3f})"
    if verbose and len(names) > 1:
        found = metrics.per_class
        for k, cls in enumerate(found.classes.tolist()):
            name = names[cls][:21]
            yield row(name, metrics.label_counts[k], found.p[k], found.r[k], found.ap[k, 0], found.ap[k].mean())


def thresholds_table(metrics: Metrics, names: Mapping[int, str]) -> Iterator[str]:
    """Yield a table of the confidence at which each class has its best F1, and the flag with them. Nothing without."""
    best = best_f1_by_class(metrics.curves)
    if not len(best.classes):
        return
    yield f"{'Best F1 of':>22}" + "".join(f"{title:>11}" for title in ("Confidence", "P", "R", "F1"))
    for cls, *values in zip(*best, strict=True):
        yield f"{names[int(cls)][:21]:>22}" + "".join(f"{value:11.3g}" for value in values)
    words = (f"{names[cls]}={value}" for cls, value in metrics.thresholds.items())
    yield f"To detect with these: {shlex.join(['--conf-thres', *words])}"


def diagnosis_table(diagnosis: Diagnosis) -> Iterator[str]:
    """Yield the AP by object size and by level of the head, then the errors of each kind and what each costs."""

    def row(name: str, *values: float) -> str:
        cells = (f"{value:>11}" if isinstance(value, int) else f"{value:11.3g}" for value in values)
        return f"{name:>22}" + "".join("          -" if cell.strip() == "nan" else cell for cell in cells)

    yield f"{'Objects':>22}" + "".join(f"{title:>11}" for title in ("Instances", "mAP50", "mAP50-95"))
    for group in (*diagnosis.sizes, *diagnosis.levels):
        yield row(*group)
    yield f"{'Errors':>22}" + "".join(f"{title:>11}" for title in ("all", "confident", "mAP50 lost"))
    for error in (*diagnosis.errors, diagnosis.false_positives, diagnosis.false_negatives):
        yield row(*error)


def costliest_errors(diagnosis: Diagnosis) -> Iterator[str]:
    """Yield a line with the three kinds of errors that cost most mAP50, nothing if none costs any."""
    worst = sorted(diagnosis.errors, key=lambda error: -error.cost)[:3]
    kinds = [f"{error.kind} {error.cost:.3f}" for error in worst if error.cost > 0]
    if kinds:
        yield f"mAP50 lost by kind of error: {', '.join(kinds)}. val.py has the table"


def draw_batch(
    plotter: Plotter, folder: Path, number: int, batch: Batch, detections: Sequence[Tensor], names: Mapping[int, str]
) -> None:
    """Draw the labels and the detections of a batch, as val_batch<number>_labels.jpg and _pred.jpg.

    detections: per image (n, 6) x1, y1, x2, y2 in pixels of the batch, confidence, class.
    """
    images = batch.images.cpu()  # (B, 3, H, W)
    for kind, boxes in (("labels", batch.targets), ("pred", detections)):
        plotter.submit(plot_batch, images, boxes, batch.paths, folder / f"val_batch{number}_{kind}.jpg", names=names)


def draw_curves(plotter: Plotter, folder: Path, metrics: Metrics, names: Mapping[int, str]) -> None:
    """Draw the confusion matrix and, if anything was found, precision, recall, F1 over confidence and the PR curve."""
    curves, classes = metrics.curves, metrics.curves.classes.tolist()
    plotter.submit(plot_confusion, metrics.confusion.matrix, names, folder / "confusion_matrix.png")
    if not curves.f1.any():
        return
    for title, rows in (("Precision", curves.precision), ("Recall", curves.recall), ("F1", curves.f1)):
        file = folder / f"{title if title == 'F1' else title[0]}_curve.png"
        plotter.submit(plot_curve, curves.confidence, rows, names, file, ylabel=title, classes=classes)
    plotter.submit(plot_pr_curve, curves, metrics.per_class.ap[:, 0], names, folder / "PR_curve.png")
