"""The limit of memory around code that trusts a file."""

import resource
import sys

import numpy as np
import pytest

from utils.inference import memory_limit
from utils.inference.memory_limit import limited_memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the data of a process")


def test_allocations_beyond_what_is_available_fail(monkeypatch):
    monkeypatch.setattr(memory_limit, "available_memory", lambda: 64 << 20)
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with limited_memory():
        assert len(np.zeros(1 << 20, np.uint8)) == 1 << 20
        with pytest.raises(MemoryError):
            np.zeros(1 << 30, np.uint8)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    assert len(np.zeros(1 << 30, np.uint8)) == 1 << 30  # pages of zeros that are not touched take no memory


def test_the_limit_ends_with_an_error_too(monkeypatch):
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with pytest.raises(ZeroDivisionError), limited_memory():
        print(1 / (resource.getrlimit(resource.RLIMIT_DATA) == before))
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_a_tighter_limit_of_the_user_stays(monkeypatch):
    monkeypatch.setattr(memory_limit, "available_memory", lambda: 1 << 50)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (123 << 30, resource.RLIM_INFINITY))
    seen = []
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: seen.append(limits))
    with limited_memory():
        pass
    assert seen == [(123 << 30, resource.RLIM_INFINITY)] * 2


def test_a_system_without_the_file(monkeypatch, tmp_path):
    monkeypatch.setattr(memory_limit, "STATUS", tmp_path / "absent")
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with limited_memory():
        assert resource.getrlimit(resource.RLIMIT_DATA) == before
