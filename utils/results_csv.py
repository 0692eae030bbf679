"""What a run says: the console table and results.csv."""

import sys
from pathlib import Path

from utils.files import atomic_write

TRAIN_LOSSES = ("train/box_loss", "train/obj_loss", "train/cls_loss")
METRICS = ("metrics/precision", "metrics/recall", "metrics/mAP_0.5", "metrics/mAP_0.5:0.95")
VAL_LOSSES = ("val/box_loss", "val/obj_loss", "val/cls_loss")
RESULTS = (*METRICS, *VAL_LOSSES)  # of one validation; evolve.csv begins with them
COLUMNS = ("epoch", *TRAIN_LOSSES, *RESULTS, "x/lr0", "x/lr1", "x/lr2")


class ResultsFile:
    """results.csv: one row per epoch in the columns people know, whole on the disk after each."""

    def __init__(self, path: Path):
        self.path = path
        self.rows = _read_rows(path)

    def write(
        self, epoch: int, train_losses: list[float], metrics: list[float], val_losses: list[float], rates: list[float]
    ) -> None:
        """Add the row of `epoch`, in place of any that a run before an interruption left for it or for later ones.

        A file that cannot be written costs a warning: the next epoch writes all rows again.
        """
        values = [*train_losses, *metrics, *val_losses, *rates]
        cells = [f"{epoch:>20}"] + [f"{value:20.5g}" for value in values]
        self.rows = [row for row in self.rows if int(row[0]) < epoch] + [cells]
        text = "\n".join(",".join(row) for row in [[f"{name:>20}" for name in COLUMNS], *self.rows])
        try:
            with atomic_write(self.path) as file:
                file.write((text + "\n").encode())
        except OSError as error:
            print(f"WARNING {self.path} could not be written: {error.strerror}; training goes on", file=sys.stderr)


def _read_rows(path: Path) -> list[list[str]]:
    """Rows of an earlier part of the run, cells as they stand; none where there is no file. Damaged ones are left out,
    with a line that says how many."""
    if not path.is_file():
        return []
    lines = path.read_bytes().decode("ascii", errors="replace").splitlines()[1:]
    rows = [line.split(",") for line in lines if line.strip()]
    good = [row for row in rows if len(row) == len(COLUMNS) and _is_numbers(row)]
    if len(good) < len(rows):
        print(
            f"WARNING {path}: {len(rows) - len(good)} rows are damaged and left out, {len(good)} are kept",
            file=sys.stderr,
        )
    return good


def _is_numbers(row: list[str]) -> bool:
    try:
        [float(cell) for cell in row]
        return int(row[0]) >= 0
    except ValueError:
        return False
