"""Signals that stop a run: the first takes effect after the current step, a second one at once."""

import os
import signal
import threading
import time
from types import FrameType

from utils.errors import SignalAction

# Ctrl-C, schedulers, a terminal that closed, a limit of processor time, a window that closed. No system has all.
NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP", "SIGXCPU", "SIGBREAK")
SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))
EXIT_CODE = 75  # of a run that was stopped, saved and can be resumed; a crash has 1
LAUNCHER_SECONDS = 3.0  # time within which a launcher repeats a signal that its processes have received themselves


class Interrupted(Exception):
    """A signal stopped the run, and its state can be saved as it is."""


class SignalHandler:
    """Handler of the signals of Ctrl-C, schedulers and pre-emption while used as a context in the main thread.

    In another thread it handles none, because Python delivers signals to the main thread only.

    `signal_name` is the name of the first signal, "" before. A second signal ends the process at once, but not
    within `echo_seconds` of the first. Launchers repeat signals, sometimes when the context is already left.
    """

    def __init__(self, echo_seconds: float = 0.0):
        self.signal_name = ""
        self.received_at = time.monotonic()
        self.echo_seconds = echo_seconds
        self._exited = False
        self._previous: dict[int, SignalAction] = {}

    def __enter__(self) -> "SignalHandler":
        for number in SIGNALS if threading.current_thread() is threading.main_thread() else ():
            if not (number == getattr(signal, "SIGHUP", None) and signal.getsignal(number) is signal.SIG_IGN):  # nohup
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        self._exited = True
        # After a signal or an error, a launcher's signal must not cut short what is printed and written at the end.
        if not self.echo_seconds or not (self.signal_name or error_type):
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            if handler is not None:  # None: installed by C code, and Python cannot set it again
                signal.signal(number, handler)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        """Record the first signal only. An exception raised here could leave a data worker with half an answer."""
        if not self.signal_name:
            self.signal_name, self.received_at = signal.Signals(number).name, time.monotonic()
            return
        if time.monotonic() - self.received_at < self.echo_seconds:
            return
        if not self._exited:
            os._exit(128 + number)
        self._restore()
        signal.raise_signal(number)

    def raise_if_signalled(self) -> None:
        """Raise Interrupted if a signal has come. Called between the parts of long work that changes no state."""
        if self.signal_name:
            raise Interrupted(self.signal_name)
