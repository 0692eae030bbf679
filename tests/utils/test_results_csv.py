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
    assert damage in (tmp_path / "results_replaced.csv").read_bytes()  # nothing is thrown away


@pytest.mark.parametrize(
    "cell, save",
    [
        (lambda text: text.replace(".", ","), lambda text: text.replace("|", ";").encode()),
        (lambda text: text.replace(".", ","), lambda text: text.replace("|", "\t").encode("utf-16")),
        (lambda text: text, lambda text: text.replace("|", ";").replace("\n", "\r\n").encode("utf-8-sig")),
    ],
    ids=["semicolons", "UTF-16", "points"],
)
def test_a_table_that_a_spreadsheet_has_saved_is_read_and_kept(tmp_path, capsys, cell, save):
    file = tmp_path / "results.csv"
    results = ResultsFile(file)
    for epoch, value in enumerate([1 / 3, 1e-7, 2000.0]):
        write(results, epoch, value)
    before = file.read_text()
    lines = [[cell(word.strip()) for word in line.split(",")] for line in before.splitlines()]
    file.write_bytes(save("\n".join("|".join(words) for words in lines) + "\n"))
    saved = file.read_bytes()
    for _ in range(2):  # as if killed before the next epoch's end
        results = ResultsFile(file)
    write(results, 3)
    assert file.read_text().startswith(before) and len(rows_of(file)) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.csv", "results_replaced.csv"]
    assert (tmp_path / "results_replaced.csv").read_bytes() == saved
    assert f"{file}: 3 kept. The file as it was is {tmp_path}/results_replaced.csv" in capsys.readouterr().err
