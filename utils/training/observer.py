"""Observers of a training: printing, drawing and writing watch the loop, which knows none of them."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from utils.loading.dataset import Batch
from utils.metrics import Metrics
from utils.schedule import Rates
from utils.training.run import Run
from utils.user_observers import UserObservers


class StepReport(NamedTuple):
    """Result of one batch."""

    step: int  # number of the batch in its epoch
    batch: Batch
    means: Tensor  # (3,) mean box, obj and cls loss of the epoch so far; reading them forces a sync
    size: int  # pixels; width of the network's input


class EpochReport(NamedTuple):
    """Result of one epoch."""

    epoch: int
    losses: list[float]  # mean box, obj and cls loss
    metrics: Metrics | None  # of the last validation
    rates: Rates  # of the last batch


class CheckpointReport(NamedTuple):
    """A checkpoint that is on the disk."""

    file: Path  # last.pt, best.pt or epoch<k>.pt
    epoch: int  # number of finished epochs in it


class Observer:
    """Watcher of a training that does nothing. A subclass overrides the methods that it needs.

    It is called on rank 0 only, and must leave `run` as it is.
    """

    def on_start(self, run: Run) -> None:
        """Handle the start, before anything is saved."""

    def on_epoch_start(self, run: Run) -> None:
        """Handle the start of an epoch, or of the rest of one."""

    def on_batch(self, run: Run, report: StepReport) -> None:
        """Handle a batch: its gradients are there, the optimizer has not stepped."""

    def on_epoch(self, run: Run, report: EpochReport) -> None:
        """Handle the end of an epoch and its validation, before it is saved."""

    def on_checkpoint(self, run: Run, report: CheckpointReport) -> None:
        """Handle a checkpoint that a background thread has written: at the next save, or at the end of the run."""

    def on_trained(self, run: Run) -> None:
        """Handle the end of the last epoch, when everything is saved."""

    def on_end(self, run: Run) -> None:
        """Handle the end of the run, after the final validation."""

    def close(self) -> None:
        """Release the terminal. The loop has ended, maybe by an exception."""


class Observers(Observer):
    """Several observers as one, called in order: ours, whose exceptions end the run, then the user's.

    On ranks other than 0 there are none.
    """

    def __init__(self, observers: Sequence[Observer] = (), users: Iterable[object] = ()):
        self.observers, self._users = observers, UserObservers(users)

    def _call(self, event: str, *args: object) -> None:
        for observer in self.observers:
            getattr(observer, event)(*args)
        self._users.call(event, *args)

    def on_start(self, run: Run) -> None:
        self._call("on_start", run)

    def on_epoch_start(self, run: Run) -> None:
        self._call("on_epoch_start", run)

    def on_batch(self, run: Run, report: StepReport) -> None:
        self._call("on_batch", run, report)

    def on_epoch(self, run: Run, report: EpochReport) -> None:
        self._call("on_epoch", run, report)

    def on_checkpoint(self, run: Run, report: CheckpointReport) -> None:
        self._call("on_checkpoint", run, report)

    def on_trained(self, run: Run) -> None:
        self._call("on_trained", run)

    def on_end(self, run: Run) -> None:
        self._call("on_end", run)

    def close(self) -> None:
        self._call("close")
