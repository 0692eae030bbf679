"""results.csv: one row per epoch of a training. Tables that spreadsheets have saved can be read too."""

import codecs
import csv
import re
from collections.abc import Sequence
from pathlib import Path

from utils import console
from utils.files import atomic_write
from utils.pending_files import PendingFiles

TRAIN_LOSSES = ("train/box_loss", "train/obj_loss", "train/cls_loss")
METRICS = ("metrics/precision", "metrics/recall", "metrics/mAP_0.5", "metrics/mAP_0.5:0.95")
VAL_LOSSES = ("val/box_loss", "val/obj_loss", "val/cls_loss")
LEARNING_RATES = ("x/lr0", "x/lr1", "x/lr2")  # of biases, weights and norms
RESULTS = (*METRICS, *VAL_LOSSES)  # of one validation; evolve.csv begins with them
DECIMAL_COMMA = re.compile(r"^(\s*[-+]?\d+),(\d+(?:[eE][-+]?\d+)?\s*)$")
COLUMNS = ("epoch", *TRAIN_LOSSES, *RESULTS, *LEARNING_RATES)


class ResultsFile:
    """A results.csv that is complete on the disk after each epoch."""

    def __init__(self, path: Path, pending: PendingFiles | None = None):
        self.path, self.pending = path, PendingFiles() if pending is None else pending
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

        If the file cannot be written it is `pending`. The next epoch writes all rows again.
        """
        values = [*train_losses, *metrics, *val_losses, *learning_rates]
        cells = [f"{epoch:>20}"] + [f"{value:20.5g}" for value in values]
        self.rows = [row for row in self.rows if int(row[0]) < epoch] + [cells]
        self.pending.write(self.path, self._write_rows)

    def _write_rows(self, path: Path) -> None:
        text = "\n".join(",".join(row) for row in [[f"{name:>20}" for name in COLUMNS], *self.rows])
        with atomic_write(path) as file:
            file.write((text + "\n").encode())


def _read_rows(path: Path) -> list[list[str]]:
    """Return the rows of an earlier part of the run as cells, none without a file.

    Skip damaged rows, with a warning that counts them. A file that is not in our own form is kept under another name.
    """
    if not path.is_file():
        return []
    data = path.read_bytes()
    rows = [row for row in split_table(data)[1:] if row]
    good = [row for row in rows if len(row) == len(COLUMNS) and _is_numbers(row)]
    if len(good) < len(rows) or delimiter(data) != ",":
        damage = f"{len(rows) - len(good)} damaged rows skipped, " if len(good) < len(rows) else ""
        console.warn(f"{path}: {damage}{len(good)} kept. The file as it was is {_keep_copy(path, data)}.")
    return [[f"{int(row[0]):>20}", *(f"{float(cell):20.5g}" for cell in row[1:])] for row in good]


def _keep_copy(path: Path, data: bytes) -> Path:
    """Write `data` beside `path` under the first free name, unless it is there already. Return that name."""
    number, copy = 1, path.with_name(f"{path.stem}_replaced{path.suffix}")
    while copy.exists() and copy.read_bytes() != data:
        number += 1
        copy = path.with_name(f"{path.stem}_replaced{number}{path.suffix}")
    if not copy.exists():
        with atomic_write(copy) as file:
            file.write(data)
    return copy


def _is_numbers(row: list[str]) -> bool:
    """Return True if the first cell is an epoch and all others are numbers."""
    try:
        [float(cell) for cell in row]
        return int(row[0]) >= 0
    except ValueError:
        return False


# ---- tables of others


def split_table(data: bytes) -> list[list[str]]:
    """Return the cells of each line of a table, none for an empty line.

    A spreadsheet may have saved it: with semicolons or tabs, decimal commas, quotes, in UTF-16.
    """
    separator = delimiter(data)
    return [
        [DECIMAL_COMMA.sub(r"\1.\2", cell) for cell in _split_line(line, separator)]
        for line in _decode(data).splitlines()
    ]


def delimiter(data: bytes) -> str:
    """Return what separates the cells of a table: a comma, semicolon or tab."""
    head = next(iter(_decode(data).splitlines()), "")
    return max(",;\t", key=head.count)


def _split_line(line: str, separator: str) -> list[str]:
    if not line.strip():
        return []
    try:
        return next(csv.reader([line], delimiter=separator, skipinitialspace=True))
    except csv.Error:  # damaged
        return [line]


def _decode(data: bytes) -> str:
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    return data.decode(encoding, errors="replace")
