"""What a person reads in the terminal: the only place that prints, warns and draws progress bars.

Messages go to stdout; warnings, errors and progress bars go to stderr. Only rank 0 of a group of processes writes
(`set_rank`); `--quiet` (`set_quiet`) leaves warnings, errors and the last lines.
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")


@dataclass
class _Settings:
    """Settings of this process; `warned` holds the warnings that were printed already."""

    quiet: bool = False
    rank: int = 0
    warned: set[str] = field(default_factory=set)


_settings = _Settings()


def set_quiet(quiet: bool) -> None:
    """Print only warnings, errors and results from here on, or everything again."""
    _settings.quiet = quiet


def set_rank(rank: int) -> None:
    """Let only rank 0 write messages, warnings and progress bars."""
    _settings.rank = rank


def forget_warnings() -> None:
    """Print each warning again, as at the start of a program."""
    _settings.warned.clear()


def info(*lines: str) -> None:
    """Print lines on stdout, unless `--quiet` was given."""
    if not _settings.quiet:
        result(*lines)


def result(*lines: str) -> None:
    """Print lines on stdout, also with `--quiet`: final metrics, where results are, what to type next."""
    if _settings.rank == 0:
        print(*lines, sep="\n", flush=True)


def warn(text: str) -> None:
    """Print `WARNING: text` on stderr, once per text.

    `text` says what happened, then what to type.
    """
    if _settings.rank == 0 and text not in _settings.warned:
        _settings.warned.add(text)
        _write_line(f"WARNING: {text}")


def error(text: str) -> None:
    """Print `text` on stderr, on every rank and also with `--quiet`."""
    print(text, file=sys.stderr, flush=True)


def _write_line(text: str) -> None:
    """Print a line on stderr, above any progress bars that are drawn there."""
    tqdm.write(text, file=sys.stderr)


def shows_bars() -> bool:
    """Return True if progress bars are drawn: on rank 0, in a terminal, without `--quiet`."""
    return _settings.rank == 0 and not _settings.quiet and sys.stderr.isatty()


def progress_bar(iterable: Iterable[T] | None = None, *, disable: bool = False, **settings: Any) -> "tqdm[T]":
    """Return a tqdm bar on stderr; it draws nothing where `shows_bars()` is False.

    `settings` go to tqdm: desc, total, initial, unit, unit_scale, bar_format, leave.
    """
    hidden = disable or not shows_bars()
    return tqdm(iterable, file=sys.stderr, disable=hidden, mininterval=0.5, **settings)
