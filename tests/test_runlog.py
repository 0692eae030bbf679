"""results.csv has the columns people parse; the console table the columns they know."""

import csv

import torch

from utils.runlog import COLUMNS, ResultsFile, header, memory_used, progress_line


def rows_of(file):
    with open(file, newline="") as stream:
        return [[cell.strip() for cell in row] for row in csv.reader(stream)]


def write(results, epoch, value=0.5):
    results.write(epoch, [value] * 3, [value] * 4, [value] * 3, [value] * 3)


def test_columns_and_number_format(tmp_path):
    write(ResultsFile(tmp_path / "results.csv"), 0, 1 / 3)
    head, row = (tmp_path / "results.csv").read_text().splitlines()
    assert [cell.strip() for cell in head.split(",")] == list(COLUMNS)
    assert {len(cell) for cell in head.split(",")} == {20} == {len(cell) for cell in row.split(",")}
    assert row.split(",")[1].strip() == "0.33333"


def test_a_resumed_run_takes_the_place_of_epochs_it_repeats(tmp_path):
    first = ResultsFile(tmp_path / "results.csv")
    for epoch in range(3):
        write(first, epoch)
    write(ResultsFile(tmp_path / "results.csv"), 1, 0.75)  # went on from the end of epoch 0
    rows = rows_of(tmp_path / "results.csv")
    assert [row[:2] for row in rows[1:]] == [["0", "0.5"], ["1", "0.75"]]


def test_console_columns_are_eleven_wide():
    line = progress_line(3, 10, memory_used(torch.device("cpu")), [0.1, 0.02, 0.003], 57, 640)
    assert len(line) == len(header()) == 77
    assert line.split() == ["3/9", "0G", "0.1", "0.02", "0.003", "57", "640"]
