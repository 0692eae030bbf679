"""Store in evolve.csv: no generation is lost or counted twice, and damaged rows are shown."""

import errno
import os
import shutil
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from utils.config import Hyperparameters
from utils.errors import UserError
from utils.evolution.csv_store import RESULTS, CsvStore, append, columns, lock_search, read_individuals, read_table
from utils.evolve import GENES, Generation, Outcome, Search, evolve
from utils.metrics import Fitness

ROOT = Path(__file__).resolve().parents[2]
START = {**Hyperparameters().to_dict(), "anchors": 0.0}
NAMES = list(START)
NAMES_OF_GENES = list(GENES)  # the order of columns in a real evolution


def closeness(hyp, generation=0):
    fitness = 1 - abs(hyp["lr0"] - 0.03) - abs(hyp["mixup"] - 0.4)
    return Outcome(fitness, results=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7), epochs=3)


def keys(records):
    return [record.number for record in records if record.status != "started"]


EXAMPLE = Generation(7, dict(START, lr0=0.0123456789, mixup=1 / 3), 123456789, "child", (1, 2), 0, "pruned",
                     0.123456789, (0.1, 0.2, 1 / 7, 0.4, 0.5, 0.6, 0.7), 12, 34.5, (0.1, 0.12345678),
                     "log: a, b \"c\" d")  # fmt: skip


# ---- evolve.csv


@pytest.mark.parametrize(
    "record",
    [
        EXAMPLE,
        Generation(0, START, 0, "start", status="failed", note="exit status 1: out of memory\nsecond line"),
        Generation(0, START, 0, "start", status="done", fitness=0.0),
        Generation(0, START, 0, "start"),
    ],
    ids=["pruned", "failed", "bare", "started"],
)
def test_a_record_reads_back_as_it_was(tmp_path, record):
    append(tmp_path / "evolve.csv", NAMES, record)
    (read,), messages = read_table(tmp_path / "evolve.csv", NAMES)
    assert messages == []
    assert read == Generation(**{**record.__dict__, "note": " ".join(record.note.split())})


def test_the_known_columns_come_first_and_are_aligned(tmp_path):
    for number in range(3):
        append(tmp_path / "evolve.csv", NAMES, Generation(number, START, 5, "child", (0,), status="done", fitness=0.5))
    head, *rows = (tmp_path / "evolve.csv").read_text().splitlines()
    own = "generation repeat status fitness seed origin parents epochs seconds curve note"
    assert [cell.strip() for cell in head.split(",")] == [*RESULTS, *NAMES, *own.split()]
    assert {len(cell) for line in (head, *rows) for cell in line.split(",")} == {20}


def test_a_table_that_a_spreadsheet_has_saved_is_read(tmp_path):
    """A byte-order mark precedes the first column."""
    file = tmp_path / "evolve.csv"
    append(file, NAMES, EXAMPLE)
    append(file, NAMES, Generation(8, START, 5, "child", status="done", fitness=0.5, results=(0.1,) * 7))
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    append(file, NAMES, Generation(9, START, 5, "child", status="failed"))
    records, messages = read_table(file, NAMES)
    assert [record.number for record in records] == [7, 8, 9] and messages == []
    assert list(read_individuals(file).values()) == [START]


def test_a_search_resumes_from_a_table_with_semicolons_and_decimal_commas(tmp_path):
    file = tmp_path / "evolve.csv"
    evolve(closeness, START, 2, store=CsvStore(tmp_path, NAMES))
    append(file, NAMES, Generation(2, START, 5, "child", status="done", fitness=0.5, results=(0.1,) * 7))
    head, rows = file.read_text().replace(" ", "").split("\n", 1)
    file.write_text(f"{head.replace(',', ';')}\n{rows.replace(',', ';').replace('.', ',')}")
    assert START in read_individuals(file).values() and len(read_individuals(file)) == 3
    store = CsvStore(tmp_path, NAMES)
    assert (keys(store.records()), store.messages) == ([0, 1, 2], [])
    evolve(closeness, START, 4, store=store)
    assert keys(read_table(file, NAMES).records) == [0, 1, 2, 3]
    assert (tmp_path / "evolve_replaced.csv").read_text().count(";") > 100


def test_the_same_search_resumes(tmp_path):
    evolve(closeness, START, 5, store=CsvStore(tmp_path, NAMES))
    calls = []
    result = evolve(
        lambda hyp, generation: calls.append(generation) or closeness(hyp), START, 9, store=CsvStore(tmp_path, NAMES)
    )
    assert calls == [5, 6, 7, 8] and keys(result.records) == list(range(9))
    whole = evolve(closeness, START, 9)
    assert [record.hyp for record in whole.records] == [record.hyp for record in result.records]


def test_an_abandoned_generation_starts_again_unchanged(tmp_path):
    store = CsvStore(tmp_path, NAMES)
    search = Search(START)
    wanted = [(number, 0) for number in range(4)]
    first, second = store.claim(wanted, search.propose), store.claim(wanted, search.propose)
    store.finish(Generation(**{**second.__dict__, "status": "done", "fitness": 0.5}))  # then a power cut
    again = CsvStore(tmp_path, NAMES)
    assert again.claim(wanted, search.propose) == first
    assert again.claim(wanted, search.propose).number == 2
    assert [record.number for record in again.records()] == [0, 1, 2]


def test_a_finished_row_is_on_disk_before_the_next_generation_starts(tmp_path):
    store = CsvStore(tmp_path, NAMES)
    seen = []
    evolve(lambda hyp, generation: seen.append(len(read_table(store.file, NAMES)[0])) or 0.5, START, 4, store=store)
    assert seen == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "damage, reason",
    [
        (lambda row: row[:100], "cells where there should be"),  # cut off by a power cut
        (lambda row: row.replace("done", "doen"), "status 'doen' is none of"),
        (lambda row: row.replace("      0.01,", "      abc,", 1), "lr0 'abc' is not a number"),
        (lambda row: row.replace("      0.01,", "      5000,", 1), "lr0: 5000.0 is outside the bounds"),
        (lambda row: row.replace("      0.01,", "       nan,", 1), "lr0 'nan' is not a number"),
        (lambda row: row.replace("done", "failed"), "a generation that is failed with fitness '0.5'"),
        (lambda row: "\x00\x17\xff" + row, "skipped"),
        (lambda row: row + "\n" + row, "generation 1 is there already"),
    ],
    ids=["cut", "status", "text", "bounds", "nan", "fitness", "bytes", "twice"],
)
def test_damaged_rows_are_shown_and_the_good_ones_kept(tmp_path, damage, reason):
    file = tmp_path / "evolve.csv"
    for number in range(3):
        append(file, NAMES, Generation(number, START, 0, "child", status="done", fitness=0.5))
    lines = file.read_text().splitlines()
    lines[2] = damage(lines[2])
    file.write_text("\n".join(lines) + "\n")
    store = CsvStore(tmp_path, NAMES)
    assert len(store.messages) == 1 and reason in store.messages[0] and store.messages[0].startswith(f"{file}:")
    assert {0, 2} <= set(keys(store.records()))
    before = file.read_text()
    evolve(closeness, START, 4, store=store)
    assert file.read_text().startswith(before)  # rows that the user may want to repair stay in the file
    again = CsvStore(tmp_path, NAMES)
    assert keys(again.records()) == [0, 1, 2, 3] and len(again.messages) == 1


def test_a_row_cut_off_at_the_end_costs_no_other_row(tmp_path):
    file = tmp_path / "evolve.csv"
    append(file, NAMES, Generation(0, START, 0, "start", status="done", fitness=0.5))
    with open(file, "a") as stream:
        stream.write("                 0.1,     ")  # killed in the middle of a write
    append(file, NAMES, Generation(1, START, 0, "child", status="done", fitness=0.6))
    records, messages = read_table(file, NAMES)
    assert keys(records) == [0, 1] and len(messages) == 1


# ---- a table that changes, or cannot be written, during a search


def read_older_copy(file):
    return "\n".join(file.read_text().splitlines()[:2]) + "\n"


@pytest.mark.parametrize(
    "edit",
    [
        lambda file: file.unlink(),
        lambda file: file.write_text(""),
        lambda file: file.write_text(read_older_copy(file)),  # an editor that saves what it had read
        lambda file: file.write_text(file.read_text()[:-30]),
        lambda file: file.write_text(file.read_text().replace(",", ";")),  # a spreadsheet
        lambda file: file.write_text("\n"),
        lambda file: shutil.rmtree(file.parent, ignore_errors=True),
    ],
    ids=["deleted", "emptied", "older copy", "cut off", "other separators", "blank line", "with its folder"],
)
@pytest.mark.parametrize("at", [2, 5])
def test_a_table_taken_away_during_a_search_is_written_again(tmp_path, capsys, edit, at):
    store = CsvStore(tmp_path, NAMES)

    def objective(hyp, generation):
        if generation == at:
            edit(store.file)
            before.append(store.file.read_text() if store.file.is_file() else "")
            edit(store.started_file)
        return closeness(hyp)

    before = []
    found = evolve(objective, START, 6, store=store)
    store.close()
    rows, messages = read_table(store.file, NAMES)
    assert sorted(row.number for row in rows) == list(range(6)) and len(messages) <= 1
    assert sorted(rows, key=lambda row: row.number) == [
        Generation(**{**record.__dict__, "seconds": round(record.seconds, 1)}) for record in found.records
    ]
    assert keys(CsvStore(tmp_path, NAMES).records()) == list(range(6))
    aside = tmp_path / "evolve_replaced.csv"
    if aside.exists():  # whatever it was, it is somebody's
        assert aside.read_text() == before[0] and ": it is" in capsys.readouterr().err


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_costs_no_row_once_there_is_room(tmp_path, monkeypatch, capsys):
    store = CsvStore(tmp_path, NAMES)

    def objective(hyp, generation):
        if generation == 2:
            monkeypatch.setattr("os.fsync", full_disk)
        if generation == 4:
            monkeypatch.undo()
        return closeness(hyp)

    evolve(objective, START, 6, store=store)
    store.close()
    for file in (store.file, store.started_file):
        rows, messages = read_table(file, NAMES)
        assert [row.number for row in rows] == list(range(6)) and messages == []
    assert f"WARNING: {store.file} could not be written: No space left" in capsys.readouterr().err


def test_a_table_that_cannot_be_written_at_the_end_is_an_error(tmp_path, monkeypatch):
    store = CsvStore(tmp_path, NAMES)
    evolve(closeness, START, 2, store=store)
    before = store.file.read_text()
    monkeypatch.setattr("os.fsync", full_disk)
    evolve(closeness, START, 3, store=store)
    with pytest.raises(UserError, match="evolve.csv could not be written: No space left on device; make room"):
        store.close()
    assert store.file.read_text() == before  # no incomplete row either


def test_a_table_of_other_hyperparameters_is_refused(tmp_path):
    append(tmp_path / "evolve.csv", NAMES, Generation(0, START, 0, "start", status="done", fitness=0.5))
    with pytest.raises(UserError, match=r"evolve.csv: not the table .* \(without: nothing; in addition: anchors\)"):
        CsvStore(tmp_path, [name for name in NAMES if name != "anchors"])
    (tmp_path / "evolve.csv").write_text("a, b\n1, 2\n")
    with pytest.raises(UserError, match="give another --name"):
        CsvStore(tmp_path, NAMES)


def test_a_second_process_in_the_folder_is_refused(tmp_path):
    with closing(lock_search(tmp_path)):
        script = (
            f"from pathlib import Path\nfrom utils.evolution.csv_store import lock_search\n"
            f"lock_search(Path({str(tmp_path)!r})); print('in')"
        )
        other = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
        assert "in\n" not in other.stdout and f"is being evolved by process {os.getpid()} on" in other.stderr
    with closing(lock_search(tmp_path)):  # free again
        pass


# ---- tables of an earlier version

KEPT = ROOT / "tests" / "kept"  # evolve.csv and evolve_started.csv of a real evolution, written before this version


def test_tables_of_an_earlier_version_are_read():
    records, messages = read_table(KEPT / "evolve.csv", NAMES_OF_GENES)
    assert messages == [] and [record.key for record in records] == [(0, 0), (1, 0)]
    start, child = records
    assert (start.status, start.origin, start.parents, start.epochs, start.seconds) == ("done", "start", (), 2, 4.8)
    assert (start.seed, start.fitness) == (821328062, 0.001203)
    assert start.results == (0.0048548, 0.33333, 0.0056153, 0.00071316, 0.075015, 0.0057679, 0.018119)
    assert start.hyp == {name: START[name] for name in NAMES_OF_GENES}
    assert (child.status, child.origin, child.parents, child.seed) == ("done", "child", (0,), 1817441348)
    changed = {name: value for name, value in child.hyp.items() if value != start.hyp[name]}
    assert changed == {"warmup_momentum": 0.70243, "cls": 0.2, "obj_pw": 1.0923, "scale": 0.61861}


def test_a_search_of_an_earlier_version_resumes_with_the_same_proposals(tmp_path):
    """The kept generations were proposed with seed 0: this version proposes the same ones."""
    for name in ("evolve.csv", "evolve_started.csv"):
        shutil.copy(KEPT / name, tmp_path / name)
    records, _ = read_table(KEPT / "evolve.csv", NAMES_OF_GENES)
    started, messages = read_table(KEPT / "evolve_started.csv", NAMES_OF_GENES)
    assert messages == [] and {record.status for record in started} == {"started"}
    search = Search(records[0].hyp, seed=0)
    for before, record, plan in zip(([], records[:1]), records, started, strict=True):
        proposed = search.propose(record.key, before)
        assert (proposed.hyp, proposed.seed, proposed.origin) == (record.hyp, record.seed, record.origin)
        assert proposed == plan
    calls = []
    result = evolve(
        lambda hyp, generation: calls.append(generation) or closeness(hyp),
        records[0].hyp,
        4,
        store=CsvStore(tmp_path, NAMES_OF_GENES),
    )
    assert calls == [2, 3] and result.records[:2] == records


# ---- individuals of --resume_evolve


def test_individuals_of_a_population_file(tmp_path):
    (tmp_path / "p.yaml").write_text("gen3number0: {lr0: 0.02}\ngen3number1: {lr0: 0.03}\n")
    assert list(read_individuals(tmp_path / "p.yaml").values()) == [{"lr0": 0.02}, {"lr0": 0.03}]


def test_individuals_are_the_best_rows_of_a_table(tmp_path):
    for number, score in enumerate((0.1, 0.5, 0.3)):
        hyp, results = dict(START, lr0=0.01 * (number + 1)), (0, 0, score, score, 0, 0, 0)
        append(
            tmp_path / "evolve.csv",
            NAMES,
            Generation(number, hyp, 0, "child", status="done", fitness=score, results=results),
        )
    append(tmp_path / "evolve.csv", NAMES, Generation(3, START, 0, "child", status="failed"))
    assert [values["lr0"] for values in read_individuals(tmp_path / "evolve.csv").values()] == [0.02, 0.03, 0.01]


def test_the_best_rows_of_a_table_are_so_by_the_fitness_of_the_search(tmp_path):
    for number, (map50, map95) in enumerate(((0.9, 0.1), (0.5, 0.4))):
        results = (0, 0, map50, map95, 0, 0, 0)
        record = Generation(number, dict(START, lr0=0.01 * (number + 1)), 0, "child", status="done", fitness=0.1)
        append(tmp_path / "evolve.csv", NAMES, replace(record, results=results))
    for text, expected in (("0.1,0.9", [0.02, 0.01]), ("map50", [0.01, 0.02])):
        found = read_individuals(tmp_path / "evolve.csv", measure=Fitness.parse(text)).values()
        assert [values["lr0"] for values in found] == expected


def test_individuals_of_a_table_by_another_program(tmp_path):
    """Read seven results, then hyperparameters, without our own columns."""
    rows = ["0.5, 0.5, 0.2, 0.1, 1, 1, 1, 0.02, 0.1", "0.5, 0.5, 0.3, 0.2, 1, 1, 1, 0.03, 0.2", "broken"]
    (tmp_path / "evolve.csv").write_text("\n".join([", ".join(columns(["lr0", "mixup"])[:9]), *rows]))
    found = list(read_individuals(tmp_path / "evolve.csv").values())
    assert found == [{"lr0": 0.03, "mixup": 0.2}, {"lr0": 0.02, "mixup": 0.1}]


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("absent.yaml", None, "--resume_evolve .*absent.yaml: no such file"),
        ("p.yaml", "lr0: 0.1\n", "p.yaml: lr0: expected hyperparameters `key: value`, found 0.1"),
        ("e.csv", "a, b\n1, 2\n", "--resume_evolve .*e.csv: no row with metrics and hyperparameters"),
        ("e.csv", "", "no row with metrics"),
    ],
)
def test_a_bad_file_of_individuals_is_named(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_individuals(tmp_path / name)
