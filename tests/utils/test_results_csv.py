"""results.csv has the columns that people parse, and survives damage."""

import csv

import pytest

from utils.results_csv import COLUMNS, ResultsFile


def rows_of(file):
    """Return the cells of all lines, the head included."""
    with open(file, newline="") as stream:
        return [[cell.strip() for cell in row] for row in csv.reader(stream)]


def write(results, epoch, value=0.5):
    """Write the row of an epoch with the same number in all columns."""
    results.write(epoch, [value] * 3, [value] * 4, [value] * 3, [value] * 3)


def test_columns_and_number_format(tmp_path):
    write(ResultsFile(tmp_path / "results.csv"), 0, 1 / 3)
    head, row = (tmp_path / "results.csv").read_text().splitlines()
    assert [cell.strip() for cell in head.split(",")] == list(COLUMNS)
    assert {len(cell) for cell in head.split(",")} == {20} == {len(cell) for cell in row.split(",")}
    assert row.split(",")[1].strip() == "0.33333"


def test_a_resumed_run_replaces_the_epochs_that_it_repeats(tmp_path):
    first = ResultsFile(tmp_path / "results.csv")
    for epoch in range(3):
        write(first, epoch)
    write(ResultsFile(tmp_path / "results.csv"), 1, 0.75)  # resumed from the end of epoch 0
    rows = rows_of(tmp_path / "results.csv")
    assert [row[:2] for row in rows[1:]] == [["0", "0.5"], ["1", "0.75"]]


GOOD = ",".join(f"{value:>20}" for value in [0] + [0.25] * 13).encode()


@pytest.mark.parametrize(
    "damage",
    [
        b"\0" * 500,
        b"\xff\xfe,\x80",
        b"x" * 200_000,
        b'"' + b"1," * 13,
        b",".join([b"1"] * 13),
        b"\xc2\xb2" + b",1" * 13,
        b"2" + b",x" * 13,
    ],
    ids=range(7),
)
def test_damaged_rows_are_skipped_with_a_warning(tmp_path, capsys, damage):
    file = tmp_path / "results.csv"
    file.write_bytes(b"epoch\n" + GOOD + b"\n" + damage + b"\n" + GOOD.replace(b" 0,", b" 2,") + b"\n")
    write(ResultsFile(file), 3)
    assert [row[0] for row in rows_of(file)[1:]] == ["0", "2", "3"] and file.read_bytes().splitlines()[1] == GOOD
    assert "1 damaged rows skipped, 2 kept" in capsys.readouterr().err
