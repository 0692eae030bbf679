"""Speed of an 8-bit model beside that of the float model that it was made from."""

import statistics
from collections.abc import Callable, Mapping

from utils import console
from utils.timing import now

ROUNDS = 7


def report_int8_speed(title: str, runs: Mapping[str, Callable[[], object]]) -> None:
    """Time the models in alternation, and print the milliseconds of each and whether INT8 is the fastest.

    runs: one pass of each model by its precision, `int8` among them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()  # the first pass prepares kernels
    for _ in range(ROUNDS):
        for name, run in runs.items():
            start = now()
            run()
            seconds[name].append(now() - start)
    console.result(describe_int8_speed(title, {name: 1000 * statistics.median(each) for name, each in seconds.items()}))


def describe_int8_speed(title: str, milliseconds: Mapping[str, float]) -> str:
    """Return the line that is printed. milliseconds: of a batch, by precision."""
    times = ", ".join(f"{name} {value:.1f} ms" for name, value in milliseconds.items())
    faster = [name for name, value in milliseconds.items() if name != "int8" and value <= milliseconds["int8"]]
    verdict = f"INT8 is not faster than {' and '.join(faster)} on this machine" if faster else "INT8 is the fastest"
    return f"{title}, network alone: {times} a batch. {verdict}"
