"""Helpers that make a part of each batch together with the process that asks for it, and rest while the model computes.

Forked processes where that is safe (Linux), else threads: these wait for each other wherever Python itself is at work,
which is most of the time with small pictures out of memory.
"""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
from multiprocessing.connection import Connection
from multiprocessing.util import Finalize
from typing import Any

import numpy as np

from utils.errors import UserError
from utils.loading.image_cache import SharedBytes
from utils.parallel_map import can_fork, deferred_ctrl_c, init_worker

BuildSample = Callable[
    [Any, int, np.ndarray], Any
]  # of a key, place in its batch: fills (3, H, W) uint8; returns the rest
STOPPING = ("SIGINT", "SIGTERM", "SIGUSR1")  # for the main process, which may need its workers for one more step


def start_helpers(
    count: int, make: BuildSample, prepare: Callable[[Any], None], items: int, room: int
) -> "HelperProcesses | HelperThreads | None":
    """`count` helpers. prepare: what one of them does with the key of the next batch, for which nobody waits. items,
    room: how many pictures a batch has at most, and how many bytes they take."""
    if not count:
        return None
    if can_fork():
        with suppress(OSError):  # no more processes or memory for one
            return HelperProcesses(count, make, prepare, items, room)
    return HelperThreads(count, prepare)


class HelperThreads:
    kind = "threads"

    def __init__(self, count: int, prepare: Callable[[Any], None]) -> None:
        self.count, self.prepare = count, prepare
        self.pool = ThreadPoolExecutor(count, thread_name_prefix="helper")

    def __call__(self, make: BuildSample, key: Any, planes: np.ndarray) -> list[Any]:
        """Fill planes (B, 3, H, W); returns what `make` returns for each of them. Each thread takes every n-th; what
        one raises is raised, and then none begins another."""
        failed = []

        def part(share: range) -> list[Any]:
            try:
                return [make(key, k, planes[k]) for k in share if not failed]
            except BaseException as error:
                failed.append(error)
                raise

        own, *others = (range(k, len(planes), self.count + 1) for k in range(self.count + 1))
        waiting = [self.pool.submit(part, share) for share in others]
        parts = [part(own), *(one.result() for one in waiting)]
        return [parts[k % len(parts)][k // len(parts)] for k in range(len(planes))]

    def expect(self, key: Any) -> None:
        self.pool.submit(self.prepare, key)

    def close(self) -> None:
        self.pool.shutdown()


class HelperProcesses:
    """Each has a place in shared memory for its pictures, and all see there which of a batch are begun. They end with
    this object, and with this process."""

    kind = "processes"

    def __init__(self, count: int, make: BuildSample, prepare: Callable[[Any], None], items: int, room: int) -> None:
        context = multiprocessing.get_context("fork")
        self.count, self.asked, self.crew, self.begun = count, 0, [], SharedBytes(items).array
        with deferred_ctrl_c():
            for k in range(count):
                here, there = context.Pipe()
                place = SharedBytes(room).array
                arguments = make, prepare, here, there, k + 1, count + 1, place, self.begun
                process = context.Process(target=_help, args=arguments, daemon=True)
                process.start()
                there.close()  # the process's own is the only one: its end shows here
                self.crew.append((process, here, place))
            self.close = Finalize(self, _end, (self.crew,), exitpriority=10)  # before multiprocessing waits for them

    def __call__(self, make: BuildSample, key: Any, planes: np.ndarray) -> list[Any]:
        """Fill planes (B, 3, H, W); returns what `make` returns for each of them; what a process raises is raised."""
        self.asked += 1
        begun, made = self.begun[: len(planes)], {}
        begun[:] = 0
        for _, pipe, _ in self.crew:
            self._tell(pipe, (self.asked, key, len(planes)))
        for k in claim_items(begun, 0, self.count + 1):
            made[k] = make(key, k, planes[k])
        for _, pipe, place in self.crew:
            theirs, error = self._answer(pipe)
            if error is not None:
                raise error
            for (k, result), picture in zip(theirs, view_images(place, len(theirs), planes.shape[2:])):
                planes[k], made[k] = picture, result
        for k in set(range(len(planes))) - set(made):  # who was late with an earlier batch has taken it for one of that
            made[k] = make(key, k, planes[k])
        return [made[k] for k in range(len(planes))]

    def expect(self, key: Any) -> None:
        self._tell(self.crew[0][1], (0, key, None))

    def _tell(self, pipe: Connection, message: tuple) -> None:
        try:
            pipe.send(message)
        except OSError:
            raise self._killed() from None

    def _answer(self, pipe: Connection) -> tuple[list[Any] | None, Exception | None]:
        """What a process has made of the present batch: answers to earlier ones that an error or a signal has left
        unread are passed over."""
        number = 0
        while number != self.asked:
            try:
                number, made, error = pipe.recv()
            except (EOFError, OSError):
                raise self._killed() from None
        return made, error

    def _killed(self) -> UserError:
        return UserError(
            f"one of {self.count + 1} processes that read pictures was killed, most often for want of "
            "memory: use --workers 0, or leave --cache out"
        )


def _help(
    make: BuildSample,
    prepare: Callable[[Any], None],
    here: Connection,
    there: Connection,
    first: int,
    step: int,
    place: np.ndarray,
    begun: np.ndarray,
) -> None:
    """A helping process, until its pipe is closed."""
    init_worker(*STOPPING)
    here.close()
    while True:
        try:
            number, key, items = there.recv()
        except (EOFError, OSError):
            return
        try:
            if items is None:
                prepare(key)
                continue
            mine = zip(claim_items(begun[:items], first, step), view_images(place, items, key.shape))
            answer = number, [(k, make(key, k, picture)) for k, picture in mine], None
        except Exception as error:
            answer = number, None, error
        try:
            there.send(answer)
        except OSError:
            return


def _end(crew: Sequence[tuple[multiprocessing.Process, Connection, np.ndarray]]) -> None:
    for process, pipe, _ in crew:
        pipe.close()
        process.kill()  # it has nothing to lose
        process.join()


def claim_items(begun: np.ndarray, first: int, step: int) -> Iterator[int]:
    """The items that one of several is to make, marked as begun: its own share, every step-th, then what others have
    left, from the end. Should two begin the same one at once, both make the same of it."""
    for k in chain(range(first, len(begun), step), reversed(range(len(begun)))):
        if not begun[k]:
            begun[k] = 1
            yield k


def view_images(place: np.ndarray, count: int, shape: Sequence[int]) -> np.ndarray:
    """(count, 3, H, W) uint8 at the beginning of a block of bytes."""
    return place[: count * 3 * shape[0] * shape[1]].reshape(count, 3, *shape)
