"""evolve.csv: the state of an evolution as a table that people, spreadsheets and older programs read.

A row per finished generation, appended under a lock and flushed to the disk; the columns people know come first. What
was started stands in evolve_started.csv in the same form, so that it is started again after a power cut.
"""

import csv
import io
import math
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from utils.errors import UserError
from utils.evolve import GENES, Generation, Key, MemoryStore, Propose, check_hyp
from utils.files import atomic_write, read_yaml
from utils.metrics import fitness

try:
    import fcntl
except ImportError:  # not a POSIX system: nobody is kept out, one process at a time is up to the user
    fcntl = None

RESULTS = ("metrics/precision", "metrics/recall", "metrics/mAP_0.5", "metrics/mAP_0.5:0.95",
           "val/box_loss", "val/obj_loss", "val/cls_loss")  # fmt: skip
OWN_COLUMNS = (
    "generation",
    "repeat",
    "status",
    "fitness",
    "seed",
    "origin",
    "parents",
    "epochs",
    "seconds",
    "curve",
    "note",
)
STATUSES = ("started", "done", "failed", "pruned")


def columns(names: Sequence[str]) -> list[str]:
    """The header of a table for hyperparameters of these names."""
    return [*RESULTS, *names, *OWN_COLUMNS]


def to_cells(record: Generation, names: Sequence[str]) -> list[str]:
    """One cell per column; numbers in the shortest form that reads back as the same number."""
    results = record.results or (None,) * len(RESULTS)
    own = [str(record.number), str(record.repeat), record.status, _shown(record.fitness), str(record.seed),
           record.origin, " ".join(map(str, record.parents)), str(record.epochs), f"{record.seconds:.1f}",
           " ".join(map(_shown, record.curve)), " ".join(record.note.split())[:500]]  # fmt: skip
    return [*map(_shown, results), *(_shown(record.hyp[name]) for name in names), *own]


def _shown(value: float | None) -> str:
    if value is None:
        return ""
    short = f"{value:.5g}"
    return short if float(short) == value else repr(float(value))


def from_cells(cells: Sequence[str], names: Sequence[str]) -> Generation:
    """The record in a row. ValueError says what is wrong with it."""
    if len(cells) != len(columns(names)):
        raise ValueError(f"{len(cells)} cells where there should be {len(columns(names))}")
    row = dict(zip(columns(names), (cell.strip() for cell in cells)))
    if row["status"] not in STATUSES:
        raise ValueError(f"status {row['status']!r} is none of {', '.join(STATUSES)}")
    score = _number(row, "fitness") if row["fitness"] else None
    if row["status"] not in (("failed", "started") if score is None else ("done", "pruned")):
        raise ValueError(f"a generation that is {row['status']} with fitness {row['fitness']!r}")
    results = tuple(float(row[name]) for name in RESULTS) if row[RESULTS[0]] else ()  # a loss may be infinite
    return Generation(
        number=_count(row, "generation"), repeat=_count(row, "repeat"), status=row["status"], fitness=score,
        hyp={name: _number(row, name) for name in names}, seed=_count(row, "seed"), origin=row["origin"],
        parents=tuple(int(word) for word in row["parents"].split()), results=results, epochs=_count(row, "epochs"),
        seconds=_number(row, "seconds"), curve=tuple(float(word) for word in row["curve"].split()), note=row["note"],
    )  # fmt: skip


def _number(row: dict[str, str], key: str) -> float:
    try:
        value = float(row[key])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{key} {row[key]!r} is not a number")
    return value


def _count(row: dict[str, str], key: str) -> int:
    if not row[key].isdecimal():
        raise ValueError(f"{key} {row[key]!r} is not a whole number")
    return int(row[key])


def as_line(cells: Iterable[str]) -> str:
    """Cells of 20 characters, so that the columns stand under each other in a terminal too."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerow([f"{cell:>20}" for cell in cells])
    return stream.getvalue()


def read_table(file: Path, names: Sequence[str]) -> tuple[list[Generation], list[str]]:
    """The good rows of a table, and a message `file:line: reason` for each bad one.

    Of two rows on one generation the first counts. UserError where the header is that of other hyperparameters.
    """
    records: dict[Key, Generation] = {}
    messages: list[str] = []
    if not file.is_file():
        return [], []
    lines = file.read_text(encoding="utf-8-sig", errors="replace").splitlines()  # spreadsheets add a mark
    for number, line in enumerate(lines, 1):
        if number == 1:
            _check_header(file, line, names)
        elif line.strip():
            try:
                record = from_cells(next(csv.reader([line], skipinitialspace=True)), names)
                check_hyp(record.hyp, f"generation {record.number}")
                if record.key in records:
                    raise ValueError(f"generation {record.number} stands there already")
                records[record.key] = record
            except (ValueError, csv.Error) as error:
                messages.append(f"{file}:{number}: left out: {error}")
    return list(records.values()), messages


def _check_header(file: Path, line: str, names: Sequence[str]) -> None:
    found = [cell.strip() for cell in line.split(",")]
    if found == columns(names):
        return
    absent = ", ".join(sorted(set(columns(names)) - set(found))) or "nothing"
    foreign = ", ".join(sorted(set(found) - set(columns(names)))) or "nothing"
    raise UserError(
        f"{file}: not the table of this search (without: {absent}; in addition: {foreign}); "
        f"give another --name, or start from its best with --resume_evolve {file}"
    )


def write_table(file: Path, names: Sequence[str], records: Iterable[Generation]) -> None:
    """Write a whole table in place of `file`."""
    text = as_line(columns(names)) + "".join(as_line(to_cells(record, names)) for record in records)
    with atomic_write(file) as stream:
        stream.write(text.encode())


def append(file: Path, names: Sequence[str], record: Generation) -> None:
    """Add a row, on the disk when this returns. A line that a power cut left unfinished stays and costs no other."""
    if not file.is_file() or not file.stat().st_size:
        write_table(file, names, [])  # its folder's entry is on the disk too
    with open(file, "ab+") as stream, _locked(stream):
        stream.seek(-1, os.SEEK_END)
        text = as_line(to_cells(record, names))
        text = text if stream.read(1) == b"\n" else "\n" + text
        stream.write(text.encode())  # one write at the end of the file
        stream.flush()
        os.fsync(stream.fileno())


@contextmanager
def _locked(stream: BinaryIO) -> Iterator[None]:
    if fcntl:
        fcntl.flock(stream, fcntl.LOCK_EX)  # closing the file lets go
    yield


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keep every other process out of `folder` while this one lives, however it ends. UserError where one is in it."""
    file = folder / ".evolve.lock"
    with open(file, "a+", encoding="utf-8") as stream:
        if fcntl:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                stream.seek(0)
                who = stream.read().strip() or "another process"
                raise UserError(
                    f"{folder} is being evolved by {who}: wait, give another --name, "
                    "or work on one search together with --evolve-storage"
                ) from error
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {socket.gethostname()}")
        stream.flush()
        yield


class CsvStore(MemoryStore):
    """The generations in two tables of `folder`; `messages` says which damaged rows were left out."""

    def __init__(self, folder: Path, names: Sequence[str], name: str = "evolve"):
        self.file, self.started_file, self.names = folder / f"{name}.csv", folder / f"{name}_started.csv", list(names)
        finished, self.messages = read_table(self.file, self.names)
        started, _ = read_table(self.started_file, self.names)
        kept = {record.key: record for record in finished if record.status != "started"}
        super().__init__(kept, [record for record in started if record.key not in kept])

    def claim(self, wanted: Sequence[Key], propose: Propose) -> Generation | None:
        before = len(self.left)
        started = super().claim(wanted, propose)
        if started and len(self.left) == before:  # not one that is in the file already
            append(self.started_file, self.names, started)
        return started

    def finish(self, generation: Generation) -> bool:
        append(self.file, self.names, generation)
        return super().finish(generation)


def read_individuals(file: Path, limit: int = 50) -> dict[str, dict[str, float]]:
    """Sets of hyperparameters by name: of a population YAML {name: {key: value}}, or the best rows of an evolve.csv."""
    if not file.is_file():
        raise UserError(f"--resume_evolve {file}: no such file; expected an evolve_population.yaml or an evolve.csv")
    if file.suffix.lower() == ".csv":
        return _best_rows(file, 6)
    found = {f"{file}: {name}": values for name, values in read_yaml(file).items()}
    for name, values in found.items():
        if not isinstance(values, dict):
            raise UserError(f"{name}: expected hyperparameters `key: value`, found {values!r}")
    return dict(list(found.items())[:limit])


def _best_rows(file: Path, count: int) -> dict[str, dict[str, float]]:
    """The hyperparameters in the best rows of a table, by this program or one like it."""
    lines = file.read_text(encoding="utf-8-sig", errors="replace").splitlines()  # spreadsheets add a mark
    header = [cell.strip() for cell in lines[0].split(",")] if lines else []
    rows = []
    for number, line in enumerate(lines[1:], 2):
        try:
            cells = next(csv.reader([line], skipinitialspace=True), [])
            row = dict(zip(header, [cell.strip() for cell in cells], strict=True))
            if row.get("status", "done") == "done":
                score = fitness(*(float(row[name]) for name in RESULTS[:4]))
                rows.append((score, number, {name: float(row[name]) for name in GENES if row.get(name)}))
        except (ValueError, KeyError, csv.Error) as error:
            print(f"{file}:{number}: left out: {error}")
    if not rows:
        raise UserError(f"--resume_evolve {file}: no row with metrics and hyperparameters")
    ranked = sorted(rows, key=lambda row: (-row[0], row[1]))[:count]
    return {f"{file}:{number}": values for _, number, values in ranked}
