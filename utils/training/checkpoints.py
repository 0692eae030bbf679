"""Checkpoints of a run: last, best and periodic files."""

import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from utils.checkpoint import inference_checkpoint, is_finite, snapshot, try_write_checkpoint


class CheckpointWriter:
    """Writes snapshots in a thread of its own, one after the other, so that training does not wait for the disk.

    A file that cannot be written (disk full, read-only folder) costs one warning: what was there before stays.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._waiting: list[Future] = []
        self._for_use: dict[Path, tuple[dict[str, Any], Future]] = {}
        self.unwritten: dict[Path, dict[str, Any]] = {}  # weights for use that still have to be; known after `wait`
        self._held: dict[Path, dict[str, Any]] = {}  # of `unwritten` those that were never tried
        self.failed = False  # whether anything handed over last could not be written; known after `wait`

    def submit(self, content: dict[str, Any], *, full: list[Path], stripped: list[Path]) -> None:
        """Write the weights of `content` for use to the files `stripped`, then the whole of it to `full`, in order.

        Weights for use that could not be written before are tried again: no later epoch may be as good. Non-finite
        weights are never written. At most one earlier snapshot is kept waiting in memory.
        """
        self.wait()
        if not is_finite(content):
            print("WARNING not saved: the weights hold NaN or infinity; the checkpoints before stay", file=sys.stderr)
            self.failed = True
            return
        self._held = {}
        for path in stripped:
            self.unwritten[path] = inference_checkpoint(content)
        for path, weights in self.unwritten.items():
            self._for_use[path] = weights, self._thread.submit(try_write_checkpoint, path, weights, "weights")
        self._waiting = [self._thread.submit(try_write_checkpoint, path, content, "train") for path in full]

    def hold(self, content: dict[str, Any], stripped: list[Path]) -> None:
        """Weights for use that the next submission is to write."""
        self.wait()
        if is_finite(content):
            self._held = dict.fromkeys(stripped, snapshot(inference_checkpoint(content)))
            self.unwritten |= self._held

    def wait(self) -> None:
        """Until everything handed over is on the disk, or has `failed`."""
        if self._waiting or self._for_use:
            written = all([task.result() for task in self._waiting])
            self.unwritten = {path: weights for path, (weights, task) in self._for_use.items() if not task.result()}
            self.failed = not written or bool(self.unwritten)
        self._waiting, self._for_use = [], {}

    def close(self) -> None:
        self.wait()
        for path, weights in self._held.items():  # the run has ended otherwise than by a save
            try_write_checkpoint(path, weights, "weights")
        self._thread.shutdown()
