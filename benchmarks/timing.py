"""Timing of two ways to do the same thing, in alternation in one process, and the table that every script prints.

A script makes Rows and hands them to `print_rows`: a Markdown table, which run_all.py gathers into RESULTS.md.
"""

import gc
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch


class Timing(NamedTuple):
    """Seconds of the two sides. The two values of a pair were measured one right after the other."""

    baseline: list[float]
    ours: list[float]

    @property
    def ratios(self) -> list[float]:
        """Speed-up of ours over the baseline, pair by pair."""
        return [slow / fast for slow, fast in zip(self.baseline, self.ours, strict=True)]


class Row(NamedTuple):
    part: str
    baseline: str
    ours: str
    ratio: str
    at_least: str


def seconds(function: Callable[[], Any], *, times: int = 1) -> float:
    """Return the time of `times` calls in seconds. Collect garbage first."""
    gc.collect()
    start = time.perf_counter()
    for _ in range(times):
        function()
    return time.perf_counter() - start


def compare(
    baseline: Callable[[], Any],
    ours: Callable[[], Any],
    *,
    pairs: int = 7,
    times: tuple[int, int] = (1, 1),
    warm_up: int = 1,
) -> Timing:
    """Time both sides in alternation, each going first in every other pair. `times` calls make one measurement."""
    for _ in range(warm_up):
        baseline(), ours()
    timing = Timing([], [])
    for pair in range(pairs):
        sides = [(baseline, timing.baseline, times[0]), (ours, timing.ours, times[1])]
        for function, found, count in sides[:: 1 if pair % 2 == 0 else -1]:
            found.append(seconds(function, times=count) / count)
    return timing


class InOwnProcess:
    """The function that `make(*args)` returns, called in a process of its own with its own settings and memory."""

    def __init__(self, make: Callable[..., Callable[[], Any]], *args: Any):
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, make, args), daemon=True)
        self.process.start()

    def __call__(self) -> None:
        self.connection.send(True)
        self.connection.recv()

    def close(self) -> None:
        self.connection.send(False)
        self.process.join()


def _serve(connection: Any, make: Callable[..., Callable[[], Any]], args: tuple) -> None:
    function = make(*args)
    while connection.recv():
        function()
        connection.send(True)


def format_spread(values: Sequence[float]) -> str:
    """Format the median and the range of the middle half."""
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return f"{_number(statistics.median(values))} ({_number(low)} to {_number(high)})"


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def row(part: str, timing: Timing, *, at_least: str, unit: str = "ms") -> Row:
    """Format a table row of two sides in `unit` (s, ms or us)."""
    scale = {"s": 1.0, "ms": 1e3, "us": 1e6}[unit]
    sides = [f"{format_spread([value * scale for value in side])} {unit}" for side in timing]
    return Row(part, *sides, format_spread(timing.ratios), at_least)


def print_rows(rows: Sequence[Row], *notes: str) -> None:
    print("| part | baseline: median (middle half) | ours | ratio | at least |\n| --- | --- | --- | --- | --- |")
    for values in rows:
        print(f"| {' | '.join(values)} |")
    print(*("", *notes), sep="\n", flush=True)


def machine() -> str:
    """Describe the CPU, the GPU if there is one, and the installed versions."""
    try:
        names = [
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ]
    except OSError:
        names = [platform.processor()]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{names[0]}, {len(names)} cores, {gpu}; Python {platform.python_version()}, torch {torch.__version__}, "
        f"NumPy {np.__version__}, OpenCV {cv2.__version__}"
    )
