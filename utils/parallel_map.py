"""Map a function over chunks in parallel processes or threads."""

import gc
import math
import multiprocessing
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import cv2

from utils import machine
from utils.errors import UserError
from utils.timing import now_without_cpu_wait

MAX_WORKERS = 8  # that compute
MAX_WAITING = 16  # in all, if they mostly wait for a disk
MIN_BUSY = 1e-3  # seconds of CPU time; less does not show how much of the work is waiting
A = TypeVar("A")
B = TypeVar("B")
_main_module_lock = threading.Lock()


def parallel_map(function: Callable[[A], B], chunks: Sequence[A], *, cpu_bound: bool) -> Iterator[B]:
    """Yield `function(chunk)` for each chunk in order. What it raises is raised here.

    Threads of Python code serialise on the GIL, so `cpu_bound` work goes to processes. They are forked, which takes
    milliseconds; a new Python takes seconds to import. The first chunk is done here and sets the number of workers.
    There are more of them than cores if it mostly waits, for a slow disk or a network.
    """
    if not chunks:
        return
    start, cpu_start = now_without_cpu_wait(), time.process_time()
    first = function(chunks[0])
    ratio = (now_without_cpu_wait() - start) / max(time.process_time() - cpu_start, MIN_BUSY)
    yield first
    rest, cores = chunks[1:], min(MAX_WORKERS, machine.usable_cores())
    workers = min(max(cores, math.ceil(cores * ratio - 0.5)), MAX_WAITING, len(rest))
    if cpu_bound and workers > 1 and can_fork():
        yield from _map_in_processes(function, rest, workers)
    elif rest:
        with ThreadPoolExecutor(workers) as pool:  # that of multiprocessing needs /dev/shm
            yield from pool.map(function, rest)


def can_fork() -> bool:
    """Return True if this process may fork workers. Forking is reliable on Linux only."""
    return sys.platform == "linux" and not multiprocessing.current_process().daemon


@contextmanager
def deferred_ctrl_c() -> Generator[None]:
    """Defer Ctrl-C while forking. The forked process ignores it.

    CPython discards a KeyboardInterrupt raised in its fork hooks and leaves their locks held, which deadlocks other
    threads.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not can_fork() or not in_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    received: list[bool] = []
    signal.signal(signal.SIGINT, lambda *_: received.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if received:
            raise KeyboardInterrupt


@contextmanager
def hidden_main_module() -> Generator[None]:
    """Hide the main module from processes that start in the meantime.

    A spawned process runs the caller's program again, up to its call of a training, unless that is guarded by
    `if __name__`. Ours need nothing of it.
    """
    main = vars(sys.modules["__main__"])
    with _main_module_lock:
        hidden = {name: main.pop(name) for name in ("__file__", "__spec__") if name in main}
        main["__spec__"] = None
        try:
            yield
        finally:
            main.update(hidden)


def init_worker(*ignore_signals: str) -> None:
    """Set up a forked worker process, which calls this itself. ignore_signals: names; absent ones are skipped."""
    cv2.setNumThreads(0)  # one process per core, and OpenCV's threads do not survive a fork
    gc.freeze()  # never collect the main process's objects: that would copy its memory pages
    for name in ignore_signals:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _map_in_processes(function: Callable[[A], B], chunks: Sequence[A], workers: int) -> Iterator[B]:
    """Yield the results in order. Each process, this one included, takes every workers-th chunk.

    If this process is killed, the pipes of the others close and they end.
    """
    context = multiprocessing.get_context("fork")
    readers: list[Connection] = []
    processes: list[Any] = []
    try:
        for k in range(1, workers):
            reader, writer = context.Pipe(duplex=False)
            readers.append(reader)
            processes.append(
                context.Process(target=_work, args=(function, chunks[k::workers], reader, writer), daemon=True)
            )
            with deferred_ctrl_c():
                processes[-1].start()
            writer.close()  # now only the worker can write: its end closes the pipe
        for number, chunk in enumerate(chunks):
            if number % workers == 0:
                yield function(chunk)
            else:
                yield _receive(readers[number % workers - 1], workers)
    except BaseException:
        for process in processes:
            if process.pid is not None:  # the last one may not have started
                process.kill()
                process.join()
        raise
    finally:  # Finished workers end by themselves, which takes several ms. They are joined when the next process is
        # started (data workers, helpers), or at the end.
        for reader in readers:
            reader.close()


def _receive(reader: Connection, workers: int) -> Any:
    """Return a worker's next result, or raise what its function raised."""
    try:
        result, error = reader.recv()
    except EOFError:
        raise UserError(
            f"one of {workers} worker processes was killed, probably out of memory: free some, and start again"
        ) from None
    if error is not None:
        raise error
    return result


def _work(function: Callable[[A], B], chunks: Sequence[A], reader: Connection, writer: Connection) -> None:
    """Send the result of each chunk, or its error, until the main process is gone."""
    init_worker("SIGINT")  # Ctrl-C is for the main process, which ends this one
    reader.close()
    for chunk in chunks:
        try:
            result = function(chunk), None
        except Exception as error:
            result = None, error
        try:
            writer.send(result)
        except BrokenPipeError:
            return
