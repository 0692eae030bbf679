"""Environment variables. No other file reads or sets them."""

import os

NUM_TRAININGS_ENV = "ANCHORAGE_SIDE_BY_SIDE"  # number of trainings of an evolution that share this machine


def variable(name: str) -> str | None:
    """Return the value of the environment variable `name`, None if it is not set."""
    return os.environ.get(name)


def set_default(name: str, value: str) -> None:
    """Set the environment variable `name` unless the user has set it."""
    os.environ.setdefault(name, value)


def child_environment(**changes: str) -> dict[str, str]:
    """Return this process's variables with `changes`, for a child process."""
    return {**os.environ, **changes}


def processes_on_this_machine() -> int:
    """Return the number of processes that torchrun or an evolution runs on this machine."""
    return int(variable("LOCAL_WORLD_SIZE") or 1) * int(variable(NUM_TRAININGS_ENV) or 1)


def threads_requested() -> bool:
    """Return whether the user has set a number of threads for PyTorch."""
    return bool(variable("OMP_NUM_THREADS") or variable("MKL_NUM_THREADS"))


def plain_twins_requested() -> bool:
    """Return whether ANCHORAGE_PLAIN turns the speed tricks of utils/kernels.py off."""
    return (variable("ANCHORAGE_PLAIN") or "0") != "0"
