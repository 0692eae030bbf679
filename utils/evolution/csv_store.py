"""Store of an evolution in evolve.csv, a table that people, spreadsheets and older programs can read.

Each generation that ends becomes a row, appended under a lock and flushed to disk (fsync). The columns known from
YOLOv5 come first. Generations that started are rows of evolve_started.csv, so that they start again after a power cut.
"""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from utils.console import warn
from utils.errors import UserError
from utils.evolve import ALL_GENES, Generation, Key, MemoryStore, Propose, check_hyp
from utils.files import append_line, atomic_write, read_yaml
from utils.folder_lock import FolderLock, lock_folder
from utils.metrics import Fitness, fitness
from utils.results_csv import METRICS, RESULTS, delimiter, split_table

OWN_COLUMNS = tuple("generation repeat status fitness seed origin parents epochs seconds curve note".split())
STATUSES = ("started", "done", "failed", "pruned")


# ---- rows


def columns(names: Sequence[str]) -> list[str]:
    """Return the header of a table for hyperparameters of these names."""
    return [*RESULTS, *names, *OWN_COLUMNS]


def to_cells(record: Generation, names: Sequence[str]) -> list[str]:
    """Return one cell per column. Numbers take the shortest form that reads back as the same number."""
    results = record.results or (None,) * len(RESULTS)
    hyp = [_format_number(record.hyp[name]) for name in names]
    own = {
        "generation": str(record.number),
        "repeat": str(record.repeat),
        "status": record.status,
        "fitness": _format_number(record.fitness),
        "seed": str(record.seed),
        "origin": record.origin,
        "parents": " ".join(map(str, record.parents)),
        "epochs": str(record.epochs),
        "seconds": f"{record.seconds:.1f}",
        "curve": " ".join(map(_format_number, record.curve)),
        "note": " ".join(record.note.split())[:500],
    }
    return [*map(_format_number, results), *hyp, *(own[name] for name in OWN_COLUMNS)]


def _format_number(value: float | None) -> str:
    if value is None:
        return ""
    short = f"{value:.5g}"
    return short if float(short) == value else repr(float(value))


def from_cells(cells: Sequence[str], names: Sequence[str]) -> Generation:
    """Return the record of a row. Raise ValueError that says what is wrong with it."""
    if len(cells) != len(columns(names)):
        raise ValueError(f"{len(cells)} cells where there should be {len(columns(names))}")
    row = dict(zip(columns(names), (cell.strip() for cell in cells)))
    if row["status"] not in STATUSES:
        raise ValueError(f"status {row['status']!r} is none of {', '.join(STATUSES)}")
    score = _read_number(row, "fitness") if row["fitness"] else None
    if row["status"] not in (("failed", "started") if score is None else ("done", "pruned")):
        raise ValueError(f"a generation that is {row['status']} with fitness {row['fitness']!r}")
    return Generation(
        number=_read_count(row, "generation"),
        repeat=_read_count(row, "repeat"),
        status=row["status"],
        fitness=score,
        hyp={name: _read_number(row, name) for name in names},
        seed=_read_count(row, "seed"),
        origin=row["origin"],
        parents=tuple(int(word) for word in row["parents"].split()),
        results=tuple(float(row[name]) for name in RESULTS) if row[RESULTS[0]] else (),  # a loss may be infinite
        epochs=_read_count(row, "epochs"),
        seconds=_read_number(row, "seconds"),
        curve=tuple(float(word) for word in row["curve"].split()),
        note=row["note"],
    )


def _read_number(row: dict[str, str], key: str) -> float:
    try:
        value = float(row[key])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{key} {row[key]!r} is not a number")
    return value


def _read_count(row: dict[str, str], key: str) -> int:
    if not row[key].isdecimal():
        raise ValueError(f"{key} {row[key]!r} is not a whole number")
    return int(row[key])


# ---- tables


class Table(NamedTuple):
    """Good rows of a table, and a message `file:line: skipped: reason` for each bad one."""

    records: list[Generation]
    messages: list[str]


def read_table(file: Path, names: Sequence[str]) -> Table:
    """Read a table, empty if there is no file. Of two rows for one generation the first counts.

    Raise UserError if the header is that of other hyperparameters.
    """
    records: dict[Key, Generation] = {}
    messages: list[str] = []
    for number, cells in enumerate(split_table(file.read_bytes()) if file.is_file() else [], 1):
        if number == 1:
            _check_header(file, cells, names)
        elif cells:
            try:
                record = from_cells(cells, names)
                check_hyp(record.hyp, f"generation {record.number}")
                if record.key in records:
                    raise ValueError(f"generation {record.number} is there already")
                records[record.key] = record
            except ValueError as error:
                messages.append(f"{file}:{number}: skipped: {error}")
    return Table(list(records.values()), messages)


def _check_header(file: Path, cells: Sequence[str], names: Sequence[str]) -> None:
    found = [cell.strip() for cell in cells]
    if found == columns(names):
        return
    absent = ", ".join(sorted(set(columns(names)) - set(found))) or "nothing"
    foreign = ", ".join(sorted(set(found) - set(columns(names)))) or "nothing"
    raise UserError(
        f"{file}: not the table of this search (without: {absent}; in addition: {foreign}); "
        f"give another --name, or start from its best with --resume_evolve {file}"
    )


def format_line(cells: Iterable[str]) -> str:
    """Return a line with cells of 20 characters, so that columns are aligned in a terminal too."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerow([f"{cell:>20}" for cell in cells])
    return stream.getvalue()


def write_table(file: Path, names: Sequence[str], records: Iterable[Generation]) -> None:
    """Replace `file` with a table of the records."""
    text = format_line(columns(names)) + "".join(format_line(to_cells(record, names)) for record in records)
    with atomic_write(file) as stream:
        stream.write(text.encode())


def append(file: Path, names: Sequence[str], *records: Generation) -> None:
    """Add rows. They are on disk on return. A line that a power cut left incomplete stays and damages no other.

    A write that fails, as on a full disk, leaves the file as it was.
    """
    if not file.is_file() or not file.stat().st_size:
        write_table(file, names, [])  # its directory entry is on disk too
    append_line(file, "".join(format_line(to_cells(record, names)) for record in records))


def complete_table(file: Path, names: Sequence[str], records: Iterable[Generation]) -> None:
    """Add those of `records` that the file lacks: new ones, and all that it has lost to an editor or a full disk.

    A file that is not this table any more is kept under another name.
    """
    try:
        present = {record.key for record in read_table(file, names).records}
        if file.is_file() and delimiter(file.read_bytes()) != ",":
            move_aside(file, "was saved by another program")
            present = set()
    except UserError:
        move_aside(file, "was replaced by something else")
        present = set()
    missing = [record for record in records if record.key not in present]
    if missing:
        append(file, names, *missing)


def move_aside(file: Path, reason: str) -> None:
    """Rename a table that would be overwritten to the first free name, and say why."""
    number, free = 1, file.with_name(f"{file.stem}_replaced{file.suffix}")
    while free.exists():
        number += 1
        free = file.with_name(f"{file.stem}_replaced{number}{file.suffix}")
    file.rename(free)
    warn(f"{file} {reason}: it is {free} now, and the table is written again.")


def lock_search(folder: Path) -> FolderLock:
    """Keep other processes out of `folder` until the lock is closed. Raise UserError if one holds it."""
    return lock_folder(
        folder / ".evolve.lock",
        lambda holder: (
            f"{folder} is being evolved by {holder}: wait, give another --name, or work on one search together with "
            "--evolve-storage"
        ),
    )


class CsvStore(MemoryStore):
    """Store in two tables of `folder`. `messages` names the damaged rows that were skipped.

    The tables follow the memory: rows that could not be written, or that were deleted meanwhile, are written later.
    """

    def __init__(self, folder: Path, names: Sequence[str], name: str = "evolve"):
        self.file, self.started_file, self.names = folder / f"{name}.csv", folder / f"{name}_started.csv", list(names)
        ended, self.messages = read_table(self.file, self.names)
        started, _ = read_table(self.started_file, self.names)
        self.started = {record.key: record for record in started}
        kept = {record.key: record for record in ended if record.status != "started"}
        super().__init__(kept, [record for record in started if record.key not in kept])

    def claim(self, wanted: Sequence[Key], propose: Propose) -> Generation | None:
        started = super().claim(wanted, propose)
        if started:
            self.started[started.key] = started
            self._save(self.started_file, self.started.values())
        return started

    def finish(self, generation: Generation) -> bool:
        kept = super().finish(generation)
        self._save(self.file, self._ended())
        return kept

    def close(self) -> None:
        """Write what could not be written before. Raise UserError if that fails again."""
        self._save(self.started_file, self.started.values())
        if error := self._save(self.file, self._ended()):
            raise UserError(
                f"{self.file} could not be written: {error.strerror}; make room, then type the same command: "
                "generations without a row run again"
            )

    def _ended(self) -> list[Generation]:
        return [record for record in self.records() if record.status != "started"]

    def _save(self, file: Path, records: Iterable[Generation]) -> OSError | None:
        """Bring a table up to date. If that fails, warn: the search continues, and the next call tries again."""
        try:
            if not file.parent.exists():
                file.parent.mkdir(parents=True)
                warn(f"{file.parent} was removed: it is made again, with the rows of all generations.")
            complete_table(file, self.names, records)
        except OSError as error:
            warn(f"{file} could not be written: {error.strerror}. The search continues and tries again.")
            return error
        return None


# ---- individuals of --resume_evolve


def read_individuals(file: Path, limit: int = 50, measure: Fitness = fitness) -> dict[str, dict[str, float]]:
    """Read sets of hyperparameters by name, from a population YAML or from the best rows of an evolve.csv.

    A population YAML holds {name: {key: value}}.
    """
    if not file.is_file():
        raise UserError(f"--resume_evolve {file}: no such file; expected an evolve_population.yaml or an evolve.csv")
    if file.suffix.lower() == ".csv":
        return _read_best_rows(file, 6, measure)
    found = {f"{file}: {name}": values for name, values in read_yaml(file).items()}
    for name, values in found.items():
        if not isinstance(values, dict):
            raise UserError(f"{name}: expected hyperparameters `key: value`, found {values!r}")
    return dict(list(found.items())[:limit])


def _read_best_rows(file: Path, count: int, measure: Fitness) -> dict[str, dict[str, float]]:
    """Read the hyperparameters of the best rows of a table, by this program or by YOLOv5."""
    lines = split_table(file.read_bytes())
    header = [cell.strip() for cell in lines[0]] if lines else []
    rows = []
    for number, cells in enumerate(lines[1:], 2):
        try:
            row = dict(zip(header, [cell.strip() for cell in cells], strict=True))
            if row.get("status", "done") == "done":
                score = measure(*(float(row[name]) for name in METRICS))
                rows.append((score, number, {name: float(row[name]) for name in ALL_GENES if row.get(name)}))
        except (ValueError, KeyError) as error:
            warn(f"{file}:{number}: skipped: {error}")
    if not rows:
        raise UserError(f"--resume_evolve {file}: no row with metrics and hyperparameters")
    ranked = sorted(rows, key=lambda row: (-row[0], row[1]))[:count]
    return {f"{file}:{number}": values for _, number, values in ranked}
