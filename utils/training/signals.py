"""Signals that ask a run to stop: the first is heard at the next step's end, the second stops at once."""

import os
import signal
import time
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
EXIT_CODE = 75  # of a run that was interrupted, saved and can be resumed; a crash has 1
LAUNCHER_SECONDS = 3.0  # within which a launcher passes on a signal that its processes have heard themselves


class Interrupted(Exception):
    """A signal asked the run to stop, and its state can be saved as it is."""


class SignalHandler:
    """Hears the signals of Ctrl-C, of schedulers and of pre-emption while used as a context.

    `.signal_name` names the signal, or is empty; `save_due()` says when the time between saves is over. A signal that comes
    after the first stops the process at once, unless it comes within `echo_seconds`: launchers repeat signals, and may
    do so only when the work here is left already.
    """

    def __init__(self, save_minutes: float, echo_seconds: float = 0.0):
        self.signal_name = ""
        self.save_seconds = save_minutes * 60
        self.saved_at = self.asked_at = time.monotonic()
        self.echo_seconds = echo_seconds
        self._over = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "SignalHandler":
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._over = True
        if not self.echo_seconds or not (self.signal_name or kind):
            self._put_back()  # else what is said and written on the way out could be cut short by a launcher's signal

    def _put_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self.signal_name:
            if time.monotonic() - self.asked_at < self.echo_seconds:
                return
            if not self._over:
                os._exit(128 + number)
            self._put_back()
            signal.raise_signal(number)
            return
        # Noted only: raised from here, in the midst of whatever runs, it could leave a data worker half answered.
        self.signal_name, self.asked_at = signal.Signals(number).name, time.monotonic()

    def raise_if_signalled(self) -> None:
        """Raise Interrupted if a signal has come: between the parts of work that takes long and changes no state."""
        if self.signal_name:
            raise Interrupted(self.signal_name)

    def save_due(self) -> bool:
        """Whether --save-minutes have passed since the last save."""
        return self.save_seconds > 0 and time.monotonic() - self.saved_at >= self.save_seconds

    def mark_saved(self) -> None:
        self.saved_at = time.monotonic()
