"""UserError, and the edge of a program where an error becomes one line."""

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType


class UserError(ValueError):
    """Error in what the user gave. Its message is one line that says what is wrong, where, and what to type."""


class UnreadableData(UserError):
    """Data that was there when a run began and is gone, damaged or changed. What the run did before it is valid."""


class Stopped(UserError):
    """End of a run that a program called, by a signal or by unreadable data. The message says how to resume."""


class Terminated(BaseException):
    """SIGTERM or SIGHUP, raised in the main thread so that files are closed. Its argument is the signal's number."""


TERMINATION = ("SIGTERM", "SIGHUP", "SIGBREAK")  # names: Windows lacks the second, others the third
MAX_LINE = 1000  # characters of a message, which may quote a value from a file
# What a machine or its limits can run out of -> what to type.
SHORTAGES = {
    errno.EMFILE: "too many open files; raise their limit (ulimit -n 4096), or use --workers 0",
    errno.ENFILE: "too many open files on this machine; close other programs, or use --workers 0",
    errno.EAGAIN: "too many processes or threads; raise their limit (ulimit -u), or use --workers 0",
    errno.ENOMEM: "too little memory; free some, raise its limit (ulimit -v), or use a smaller --batch-size",
}
# In messages of libraries, also of the loader of shared libraries.
WORDS_OF_SHORTAGES = {
    "allocate memory": errno.ENOMEM,
    "not enough memory": errno.ENOMEM,
    "Insufficient memory": errno.ENOMEM,
    "could not create a primitive": errno.ENOMEM,
    "failed to map segment": errno.ENOMEM,
    "can't start new thread": errno.EAGAIN,
    "Too many open files": errno.EMFILE,
}
NO_TEMPORARY_FOLDER = "No usable temporary directory"
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG)
GONE_ERRORS = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)

# What signal.getsignal returns; signal.Handlers is SIG_DFL or SIG_IGN.
SignalAction = Callable[[int, FrameType | None], object] | int | None


def one_line(text: str) -> str:
    """Return `text` without line ends and control characters, cut at MAX_LINE."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text)
    return plain if len(plain) <= MAX_LINE else f"{plain[:MAX_LINE]} ... ({len(plain)} characters)"


def find_shortage(error: BaseException) -> str | None:
    """Return the entry of SHORTAGES for an error that means it, None for others."""
    if isinstance(error, OSError):
        return SHORTAGES.get(error.errno or 0)
    if isinstance(error, MemoryError):
        return SHORTAGES[errno.ENOMEM]
    return next((SHORTAGES[number] for words, number in WORDS_OF_SHORTAGES.items() if words in str(error)), None)


def explain(error: BaseException) -> tuple[str, int] | None:
    """Return the line and the exit code for Ctrl-C and for errors that users can fix, None for other errors."""
    if isinstance(error, UserError):
        return f"error: {one_line(str(error))}", 1
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        file, advice = (f"{error.filename}: ", "; choose another folder") if error.filename else ("", "")
        return f"error: {one_line(file + str(error.strerror))}{advice}", 1
    if isinstance(error, BrokenPipeError) and error.filename:  # of console.data
        return f"error: {error.filename}: {error.strerror}", 1
    if isinstance(error, OSError) and error.errno in GONE_ERRORS and error.filename:
        return f"error: {one_line(f'{error.filename}: {error.strerror}')}; was its folder removed meanwhile?", 1
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG and error.filename:
        return f"error: {one_line(str(error.filename))}: {error.strerror}; give a shorter one", 1
    if isinstance(error, OSError) and NO_TEMPORARY_FOLDER in str(error):
        return "error: no folder for temporary files can be written to; set TMPDIR to one", 1
    if shortage := find_shortage(error):
        return f"error: {shortage} ({one_line(str(error))})", 1
    if isinstance(error, Terminated):
        number = error.args[0]
        return f"\nStopped by {signal.Signals(number).name}. Files written so far are complete.", 128 + number
    if isinstance(error, KeyboardInterrupt):
        return "\nInterrupted. Saved checkpoints are intact.", 130  # 128 + SIGINT, as shells report it
    return None


def silence_ctrl_c_during_imports(name: str) -> None:
    """Exit silently on Ctrl-C during the imports, which take seconds. `run` ends this.

    An error there that `explain` knows is one line too. `name` is the `__name__` of a program, which does so only when
    it runs, not when it is imported.
    """
    if name == "__main__":
        _swap_ctrl_c_handler(signal.default_int_handler, signal.SIG_DFL)
        sys.excepthook = _print_explained


def _print_explained(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the line of an error that ends the program, its traceback if there is no line."""
    explained = explain(error)
    if explained is None:
        sys.__excepthook__(kind, error, trace)
        return
    from utils import console

    console.error(explained[0])


def run(main: Callable[[], object], *, closes_files: bool = False) -> None:
    """Call the `main` of a program. If it raises an error that the user can fix, print one line and exit.

    closes_files: SIGTERM raises Terminated in `main`, as Ctrl-C raises KeyboardInterrupt.
    """
    try:
        try:
            _swap_ctrl_c_handler(signal.SIG_DFL, signal.default_int_handler)
            if closes_files:
                _raise_terminated()
            main()
        finally:
            if sys.argv[0] in sys.orig_argv and not sys.flags.interactive:  # the process ends now: exit silently again
                _swap_ctrl_c_handler(signal.default_int_handler, signal.SIG_DFL)
    except (Exception, KeyboardInterrupt, Terminated) as error:
        explained = explain(error)
        if explained is None:
            raise
        from utils import console  # late: programs import this file before all others, to silence Ctrl-C

        line, code = explained
        console.error(line)
        sys.exit(code)


def _raise_terminated() -> None:
    """Let the first signal of TERMINATION raise Terminated. Others are ignored then, so that files get closed.

    Signals that are ignored at the start, as under nohup, stay ignored. Forked children end as before.
    """
    process = os.getpid()
    numbers = [getattr(signal, name) for name in TERMINATION if hasattr(signal, name)]
    numbers = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]

    def end(number: int, _: FrameType | None) -> None:
        mine = os.getpid() == process
        for each in numbers:
            signal.signal(each, signal.SIG_IGN if mine else signal.SIG_DFL)
        if mine:
            raise Terminated(number)
        signal.raise_signal(number)

    if threading.current_thread() is threading.main_thread():
        for number in numbers:
            signal.signal(number, end)


def _swap_ctrl_c_handler(expected: SignalAction, new: SignalAction) -> None:
    """Swap the SIGINT handler if it is the expected one.

    Background jobs ignore SIGINT, and training installs a handler of its own. Python sets handlers in the main thread
    only.
    """
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is expected:
        signal.signal(signal.SIGINT, new)
