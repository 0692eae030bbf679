"""Observers of a training: on ranks other than 0 they are silent, with the same methods."""

import inspect

import pytest

from utils.training.log import RunLog
from utils.training.observer import Observer, Observers
from utils.training.run_folder import RunFolder


def public(kind: type) -> set[str]:
    return {name for name, _ in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")}


@pytest.mark.parametrize("kind", [RunLog, RunFolder, Observers])
def test_the_silent_observer_has_the_same_methods(kind):
    assert public(kind) == public(Observer)
    for name in public(Observer):
        ours, silent = (inspect.signature(getattr(owner, name)) for owner in (kind, Observer))
        assert ours.parameters == silent.parameters


def test_every_event_reaches_every_observer_in_order():
    seen = []

    class Noting(Observer):
        def __getattribute__(self, name):
            return lambda *args: seen.append((id(self), name, args)) if name in public(Observer) else None

    one, other = Noting(), Noting()
    both, silent = Observers([one, other]), Observers()
    for name in sorted(public(Observer)):
        count = len(inspect.signature(getattr(Observer, name)).parameters) - 1
        args = tuple(range(count))
        getattr(both, name)(*args), getattr(silent, name)(*args)
        assert seen[-2:] == [(id(one), name, args), (id(other), name, args)]
    assert len(seen) == 2 * len(public(Observer))
