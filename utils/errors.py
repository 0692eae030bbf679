"""The one kind of error that a user's mistake raises, and the edge where it becomes one line."""

import errno
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any


class UserError(ValueError):
    """Something the user gave is wrong: the message is one line that says what, where, and what to type instead."""


MAX_LINE = 1000  # characters of a message: values in it may come from a file
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG)


def one_line(text: str) -> str:
    """`text` without line ends and control characters, and not endless."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text)
    return plain if len(plain) <= MAX_LINE else f"{plain[:MAX_LINE]} ... ({len(plain)} characters)"


def explain(error: BaseException) -> tuple[str, int] | None:
    """The line and the exit code for what users can mend, and for Ctrl-C; None for anything else."""
    if isinstance(error, UserError):
        return f"error: {one_line(str(error))}", 1
    if isinstance(error, OSError) and error.errno in DISK:
        return f"error: {one_line(f'{error.filename}: {error.strerror}')}; choose another folder", 1
    if isinstance(error, KeyboardInterrupt):
        return "\ninterrupted; nothing was lost that had been saved", 130  # as shells have it
    return None


def silence_ctrl_c_during_imports() -> None:
    """Ctrl-C ends the program without a word until `run` begins: imports take seconds, and nothing is lost yet."""
    _swap_ctrl_c_handler(signal.default_int_handler, signal.SIG_DFL)


def run(main: Callable[[], object]) -> None:
    """Run a command line's `main` without tracebacks for what users can mend."""
    try:
        try:
            _swap_ctrl_c_handler(signal.SIG_DFL, signal.default_int_handler)
            main()
        finally:
            if sys.argv[0] in sys.orig_argv and not sys.flags.interactive:  # the program ends: nothing more to say then
                _swap_ctrl_c_handler(signal.default_int_handler, signal.SIG_DFL)
    except (Exception, KeyboardInterrupt) as error:
        explained = explain(error)
        if explained is None:
            raise
        line, code = explained
        print(line, file=sys.stderr)
        sys.exit(code)


def _swap_ctrl_c_handler(before: Any, after: Any) -> None:
    """Only if it is as expected: a program in the background may be deaf to it, and a run may hear it by itself."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is before:
        signal.signal(signal.SIGINT, after)
