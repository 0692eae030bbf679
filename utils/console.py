"""Messages, warnings, errors and progress bars: the only place that writes to the terminal.

Messages go to stdout; warnings, errors and bars go to stderr. Of several ranks only rank 0 writes, except errors and
warnings about a rank's own data (`as_rank`). `--quiet` leaves warnings, errors and the last lines (`begin_program`).
With `--json` stdout holds `data` alone.
"""

import atexit
import errno
import io
import multiprocessing
import os
import re
import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from typing import Any, TextIO

from tqdm import tqdm

UNPRINTABLE = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass
class _Settings:
    """Settings of this process."""

    quiet: bool = False
    data_only: bool = False  # on stdout
    inner: bool = False  # the program that runs is a part of another one
    rank: int = 0
    warned: set[str] = field(default_factory=set)  # warnings printed so far
    full: list[TextIO] = field(default_factory=list)  # streams on a disk that was full


_settings = _Settings()


def begin_program(*, quiet: bool = False, data_only: bool = False) -> None:
    """Start the output of a program, in which each warning appears once.

    With `quiet` only warnings, errors and results are written. With `data_only` all but `data` goes to stderr.
    """
    if not _settings.inner:
        _settings.quiet, _settings.data_only = quiet, data_only
    _settings.warned.clear()


@contextmanager
def inner_program() -> Generator[None]:
    """Keep these settings while a program runs as a part of this one."""
    before, _settings.inner = _settings.inner, True
    try:
        yield
    finally:
        _settings.inner = before


@contextmanager
def as_rank(rank: int) -> Generator[None]:
    """Let this process write as one of a group.

    On ranks other than 0 only errors appear, and warnings for `all_ranks`, with `[rank N]` in front. Output of other
    libraries on those ranks is treated alike: stdout is dropped, stderr has the prefix.
    """
    before, _settings.rank = _settings.rank, rank
    try:
        if rank == 0:
            yield
            return
        with redirect_stdout(_NullStream()), redirect_stderr(_PrefixedStream(sys.stderr, f"[rank {rank}] ")):
            yield
    finally:
        _settings.rank = before


def info(*lines: str) -> None:
    """Print lines on stdout, unless `--quiet` was typed."""
    if not _settings.quiet:
        result(*lines)


def result(*lines: str) -> None:
    """Print lines on stdout, also with `--quiet`: final metrics, where results are, what to type next."""
    if _settings.rank == 0:
        _print(sys.stderr if _settings.data_only else sys.stdout, *lines)


def data(line: str) -> None:
    """Write a line for another program on stdout. Unlike a message it has to arrive, and raises OSError otherwise."""
    if sys.stdout is None:
        raise BrokenPipeError(errno.EPIPE, "standard output is closed; redirect it to a file", "--json")
    try:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_output(sys.stdout)
        raise BrokenPipeError(errno.EPIPE, "the program that reads the results has ended", "--json") from None


def warn(text: str, *, all_ranks: bool = False, repeat: bool = False) -> None:
    """Print `WARNING: text` on stderr, once per text and program.

    `text` says what happened, then what to type. `all_ranks`: print it on every rank, because each sees other data.
    `repeat`: print it every time, and remember nothing.
    """
    if (all_ranks or _settings.rank == 0) and text not in _settings.warned:
        if not repeat:
            _settings.warned.add(text)
        _print(sys.stderr, f"WARNING: {text}")


def error(*lines: str) -> None:
    """Print lines on stderr, on every rank and also with `--quiet`."""
    _print(sys.stderr, *lines)


def _print(stream: TextIO | None, *lines: str) -> None:
    """Print lines above the bars that are drawn. Without lines or a stream (closed by the shell) do nothing."""
    if stream is None or not lines:
        return
    # A child process (data worker, helper) must not take tqdm's lock: if it is killed then, the bars would stop.
    shares_bars = shows_bars() and multiprocessing.parent_process() is None
    with tqdm.external_write_mode(file=stream) if shares_bars else nullcontext():
        _write(stream, "\n".join(map(_printable_line, lines)) + "\n")


def _printable_line(text: str) -> str:
    """Return `text` as one printable line. Line ends at its beginning are ours and stay: names have none there."""
    line = text.lstrip("\n")
    return text[: len(text) - len(line)] + printable(line)


def printable(text: str) -> str:
    """Return `text` with escapes in place of letters that a terminal obeys or cannot show.

    These are control characters, also line ends, marks that turn the direction of text, and bytes that are no UTF-8.
    """
    return UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _write(stream: TextIO, text: str) -> None:
    """Write and flush text. A stream that is full, gone or closed never ends a program: the text is dropped.

    Letters that the stream's encoding lacks are written as escapes.
    """
    try:
        try:
            stream.write(text)
        except UnicodeEncodeError:
            encoding = stream.encoding or "ascii"
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            if stream not in _settings.full:  # there may be room again, until the program ends
                _settings.full.append(stream)
                atexit.register(_discard_output, stream)
        else:
            _discard_output(stream)


def _discard_output(stream: TextIO) -> None:
    """Send the output of a stream to nowhere. Otherwise Python fails at exit when it flushes what is buffered."""
    with suppress(OSError, ValueError):
        stream.flush()
        return
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def shows_bars() -> bool:
    """Return True if progress bars are drawn: on rank 0, in a terminal, without `--quiet`."""
    return _settings.rank == 0 and not _settings.quiet and _is_terminal(sys.stderr)


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and not stream.closed and stream.isatty()


def progress_bar(iterable: Iterable | None = None, *, disable: bool = False, **settings: Any) -> "ProgressBar":
    """Return a progress bar on stderr, or one that prints a line on stdout when it is full if none can be drawn.

    `settings` go to tqdm: desc, total, initial, unit (image), unit_scale, bar_format, leave. With `disable`
    nothing is written; with `leave=False` no line is.
    """
    return ProgressBar(iterable, disable=disable, **settings)


class ProgressBar(tqdm):
    """A tqdm bar on stderr. Where none can be drawn, its last description becomes a line of the log."""

    def __init__(
        self, iterable: Iterable | None = None, *, disable: bool = False, leave: bool = True, **settings: Any
    ) -> None:
        drawn = shows_bars() and not disable
        super().__init__(
            iterable, file=sys.stderr, disable=not drawn, leave=leave, mininterval=0.5, dynamic_ncols=True, **settings
        )
        self._needs_line = not drawn and not disable and leave
        if not drawn:  # what tqdm does not keep of a disabled bar
            self.desc, self.unit = settings.get("desc") or "", settings.get("unit")

    def __iter__(self) -> Iterator[Any]:
        """Yield the entries of the iterable, and close the bar after the last one."""
        if not self.disable:
            yield from super().__iter__()
            return
        for entry in self.iterable:
            yield entry
            self.n += 1
        self.close()

    def update(self, n: float | None = 1) -> bool | None:
        """Count `n` more entries. Return True if the bar was drawn again."""
        if self.disable:
            self.n += n or 0
        return super().update(n)

    def close(self) -> None:
        """Leave the bar as it is, or print its line if it is full."""
        super().close()
        if self._needs_line and (self.total is None or self.n >= self.total):
            self._needs_line = False
            text = self.desc.removesuffix(": ") + (f": {self._count()}" if self.unit else "")
            if text:
                info(text)

    def _count(self) -> str:
        """Return the number of entries with their unit."""
        if self.unit == "B":
            return f"{tqdm.format_sizeof(self.n)}B"
        return f"{self.n} {self.unit}{'' if self.n == 1 else 's'}"

    def __del__(self) -> None:
        """Print no line for a bar that was dropped before it was closed."""
        self._needs_line = False
        super().__del__()


class _NullStream(io.TextIOBase):
    """A text stream that drops everything."""

    def write(self, text: str) -> int:
        return len(text)


class _PrefixedStream(io.TextIOBase):
    """A text stream that passes whole lines on to another one, each with a prefix."""

    def __init__(self, stream: TextIO, prefix: str):
        self._stream, self._prefix, self._unfinished = stream, prefix, ""

    def write(self, text: str) -> int:
        *lines, self._unfinished = (self._unfinished + text).split("\n")
        self._stream.write("".join(f"{self._prefix}{line}\n" for line in lines))
        return len(text)

    def flush(self) -> None:
        self._stream.flush()
