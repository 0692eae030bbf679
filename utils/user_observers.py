"""Observers that a user's program passes in, guarded: none of them ends a training or a validation."""

import traceback
from collections.abc import Iterable

import torch

from utils.console import warn
from utils.errors import UserError


def as_observers(observers: object) -> list[object]:
    """Return the observers that a program passes, one or a list. Raises UserError for a text or a class in it."""
    given = list(observers) if isinstance(observers, (list, tuple)) else [observers]
    for one in given:
        if one is None or isinstance(one, (str, type)):
            raise UserError(f"observers: {one!r} is not an object with methods such as on_epoch")
    return given


class UserObservers:
    """Observers of a program. One that raises is reported once and dropped, and the run continues.

    Each may have any of the methods of an observer. Those that it lacks are skipped.
    """

    def __init__(self, observers: Iterable[object] = ()):
        self._observers = list(observers)

    def __bool__(self) -> bool:
        return bool(self._observers)

    def call(self, event: str, *args: object) -> None:
        """Call the method `event` of each observer. The random numbers of PyTorch are the same as without it."""
        if self._observers:
            devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
            with torch.random.fork_rng(devices):
                self._observers = [one for one in self._observers if _call(one, event, args)]


def _call(observer: object, event: str, args: tuple[object, ...]) -> bool:
    """Call a method if the observer has it. Return False, with a warning, if it raises an exception."""
    method = getattr(observer, event, None)
    try:
        if method is not None:
            method(*args)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        warn(
            f"{type(observer).__name__}.{event} raised {type(error).__name__}: {error} (line {place.lineno} of "
            f"{place.filename}). This observer is dropped, and the run continues."
        )
        return False
    return True
