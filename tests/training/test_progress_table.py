"""The console table of a training has the columns that people know."""

import torch

from utils.training.progress_table import header, memory_used, progress_line


def test_console_columns_are_eleven_wide():
    line = progress_line(3, 10, memory_used(torch.device("cpu")), [0.1, 0.02, 0.003], 57, 640)
    assert len(line) == len(header()) == 77
    assert line.split() == ["3/9", "0G", "0.1", "0.02", "0.003", "57", "640"]
