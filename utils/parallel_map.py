"""Much work at once: chunks of it in processes or threads."""

import gc
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.pool import ThreadPool
from typing import TypeVar

import cv2

from utils.errors import UserError
from utils.timing import now_without_cpu_wait

MAX_WORKERS = 8  # that compute
MAX_WAITING = 16  # in all, where they mostly wait for a disk
BRIEF = 1e-3  # seconds of work that tell nothing of how much of it is waiting
A, B = TypeVar("A"), TypeVar("B")


def parallel_map(function: Callable[[A], B], chunks: Sequence[A], *, cpu_bound: bool) -> Iterator[B]:
    """`function` of each chunk, in their order; what it raises is raised here.

    Threads of Python code wait for each other, so `cpu_bound` work is given to processes. They are forked, which takes
    milliseconds where a fresh Python would take seconds to import. The first chunk is done here and shows how many are
    of use: where it waits most of its time (for a slow disk, or one behind a network), more than there are cores.
    """
    if not chunks:
        return
    start, busy = now_without_cpu_wait(), time.process_time()
    first = function(chunks[0])
    waits = (now_without_cpu_wait() - start) / max(time.process_time() - busy, BRIEF)
    yield first
    rest, cores = chunks[1:], min(MAX_WORKERS, os.cpu_count() or 1)
    workers = min(max(cores, math.ceil(cores * waits - 0.5)), MAX_WAITING, len(rest))
    if cpu_bound and workers > 1 and can_fork():
        yield from _in_processes(function, rest, workers)
    elif rest:
        with ThreadPool(workers) as pool:
            yield from pool.imap(function, rest)


def can_fork() -> bool:
    """Whether this process may fork others to work for it; only Linux can be relied on for that."""
    return sys.platform == "linux" and not multiprocessing.current_process().daemon


@contextmanager
def deferred_ctrl_c() -> Iterator[None]:
    """Within, Ctrl-C waits: Python drops a KeyboardInterrupt that comes amid a fork, and with it the locks that it was
    about to release, for which other threads then wait for ever. A process that is forked within does not hear it."""
    in_main = threading.current_thread() is threading.main_thread()
    if not can_fork() or not in_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    came = []
    signal.signal(signal.SIGINT, lambda *_: came.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if came:
            raise KeyboardInterrupt


def init_worker(*deaf_to: str) -> None:
    """Settings of a process that works for the one that it was forked from, for it to call; signals by name."""
    cv2.setNumThreads(0)  # one process, one core; and threads are not forked
    gc.freeze()  # what is there already is the main process's: to look through it would copy its pages
    for name in deaf_to:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _in_processes(function: Callable[[A], B], chunks: Sequence[A], workers: int) -> Iterator[B]:
    """Each process, this one included, takes every workers-th chunk. Where this one is killed, the others find nobody
    who reads their results, and end."""
    context = multiprocessing.get_context("fork")
    readers, processes = [], []
    try:
        for k in range(1, workers):
            reader, writer = context.Pipe(duplex=False)
            readers.append(reader)
            processes.append(
                context.Process(target=_work, args=(function, chunks[k::workers], reader, writer), daemon=True)
            )
            with deferred_ctrl_c():
                processes[-1].start()
            writer.close()  # the process's own is the only one: its end shows here
        for number, chunk in enumerate(chunks):
            if number % workers == 0:
                yield function(chunk)
                continue
            try:
                result, error = readers[number % workers - 1].recv()
            except EOFError:
                raise UserError(
                    f"one of {workers} processes that share the work was killed, most often for want of memory"
                ) from None
            if error is not None:
                raise error
            yield result
    except BaseException:
        for process in processes:
            if process.pid is not None:  # the last one may not have begun
                process.kill()
                process.join()
        raise
    finally:  # Those that are through end by themselves, which takes several ms. They are collected when the next
        # process is started (data workers, helpers), or at the end.
        for reader in readers:
            reader.close()


def _work(function: Callable[[A], B], chunks: Sequence[A], reader: Connection, writer: Connection) -> None:
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
