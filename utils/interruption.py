"""Signals that ask a run to stop: the first is heard at the next step's end, the second stops at once."""

import os
import signal
import time
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
EXIT_CODE = 75  # of a run that was interrupted, saved and can be resumed; a crash has 1


class Interruption:
    """Hears the signals of Ctrl-C, of schedulers and of pre-emption while used as a context.

    `.asked` names the signal, or is empty; `save_due(now)` says when the time between saves is over.
    """

    def __init__(self, save_minutes: float):
        self.asked = ""
        self.save_seconds = save_minutes * 60
        self.saved_at = time.monotonic()
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Interruption":
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, _: FrameType | None) -> None:
        if self.asked:
            os._exit(128 + number)
        self.asked = signal.Signals(number).name

    def save_due(self) -> bool:
        """Whether --save-minutes have passed since the last save."""
        return self.save_seconds > 0 and time.monotonic() - self.saved_at >= self.save_seconds

    def note_save(self) -> None:
        self.saved_at = time.monotonic()
