"""results.csv: one row per epoch of a training."""

from collections.abc import Sequence
from pathlib import Path

from utils import console
from utils.files import atomic_write

TRAIN_LOSSES = ("train/box_loss", "train/obj_loss", "train/cls_loss")
METRICS = ("metrics/precision", "metrics/recall", "metrics/mAP_0.5", "metrics/mAP_0.5:0.95")
VAL_LOSSES = ("val/box_loss", "val/obj_loss", "val/cls_loss")
LEARNING_RATES = ("x/lr0", "x/lr1", "x/lr2")  # of biases, weights and norms
RESULTS = (*METRICS, *VAL_LOSSES)  # of one validation; evolve.csv begins with them
COLUMNS = ("epoch", *TRAIN_LOSSES, *RESULTS, *LEARNING_RATES)


class ResultsFile:
    """A results.csv that is complete on the disk after each epoch."""

    def __init__(self, path: Path):
        self.path = path
        self.rows = _read_rows(path)

    def write(
        self,
        epoch: int,
        train_losses: Sequence[float],
        metrics: Sequence[float],
        val_losses: Sequence[float],
        learning_rates: Sequence[float],
    ) -> None:
        """Add the row of `epoch`. It replaces rows of this and later epochs that an interrupted run left.

        Warn if the file cannot be written. The next epoch writes all rows again.
        """
        values = [*train_losses, *metrics, *val_losses, *learning_rates]
        cells = [f"{epoch:>20}"] + [f"{value:20.5g}" for value in values]
        self.rows = [row for row in self.rows if int(row[0]) < epoch] + [cells]
        text = "\n".join(",".join(row) for row in [[f"{name:>20}" for name in COLUMNS], *self.rows])
        try:
            with atomic_write(self.path) as file:
                file.write((text + "\n").encode())
        except OSError as error:
            console.warn(
                f"{self.path} could not be written: {error.strerror}. Training continues, the next epoch tries again."
            )


def _read_rows(path: Path) -> list[list[str]]:
    """Return the rows of an earlier part of the run as cells, none without a file.

    Skip damaged rows, with a warning that counts them.
    """
    if not path.is_file():
        return []
    lines = path.read_bytes().decode("ascii", errors="replace").splitlines()[1:]
    rows = [line.split(",") for line in lines if line.strip()]
    good = [row for row in rows if len(row) == len(COLUMNS) and _is_numbers(row)]
    if len(good) < len(rows):
        console.warn(f"{path}: {len(rows) - len(good)} damaged rows skipped, {len(good)} kept.")
    return good


def _is_numbers(row: list[str]) -> bool:
    """Return True if the first cell is an epoch and all others are numbers."""
    try:
        [float(cell) for cell in row]
        return int(row[0]) >= 0
    except ValueError:
        return False
