"""Observers of `evaluate()`: what prints, draws, writes or stops watches it, and it knows none of them."""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType

from torch import Tensor

from utils.detections import Detections
from utils.loading.dataset import Batch
from utils.metrics import Metrics
from utils.user_observers import UserObservers


@dataclass(frozen=True)
class EvaluatedBatch:
    """A batch with its detections, twice: in pixels of the original images and in pixels of the batch."""

    number: int  # 0 is the first
    batch: Batch
    detections: list[Detections]
    rows: list[Tensor]  # per image (n, 6) x1, y1, x2, y2 in pixels of the batch, confidence, class, on the CPU


class EvaluationObserver:
    """Base of observers, whose methods may each be left as they are.

    An exception in a method ends the evaluation. Observers are context managers: `evaluate()` enters them before the
    first batch and leaves them at the end, also after an error.
    """

    images_read: float = math.inf  # number of first batches whose images `on_batch` reads; of others it may have none
    reads_diagnosis = False  # True: the metrics get a diagnosis

    def __enter__(self) -> "EvaluationObserver":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release what the observer holds. `kind`: the error that ended the evaluation, or None."""

    def on_start(self, num_batches: int | None) -> None:
        """Observe the start, before the first batch is read. `num_batches`: None if the loader has no length."""

    def before_batch(self) -> None:
        """Observe that a batch has been read, before the network runs on it."""

    def on_batch(self, evaluated: EvaluatedBatch) -> None:
        """Observe the detections of a batch."""

    def on_end(self, metrics: Metrics) -> None:
        """Observe the metrics of all images."""


class EvaluationObservers(EvaluationObserver):
    """Several observers as one, called in their order."""

    def __init__(self, observers: Sequence[EvaluationObserver]):
        self.observers, self._stack = observers, ExitStack()
        self.images_read = max((observer.images_read for observer in observers), default=0)
        self.reads_diagnosis = any(observer.reads_diagnosis for observer in observers)

    def __enter__(self) -> "EvaluationObservers":
        for observer in self.observers:
            self._stack.enter_context(observer)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def on_start(self, num_batches: int | None) -> None:
        for observer in self.observers:
            observer.on_start(num_batches)

    def before_batch(self) -> None:
        for observer in self.observers:
            observer.before_batch()

    def on_batch(self, evaluated: EvaluatedBatch) -> None:
        for observer in self.observers:
            observer.on_batch(evaluated)

    def on_end(self, metrics: Metrics) -> None:
        for observer in self.observers:
            observer.on_end(metrics)


class StopHook(EvaluationObserver):
    """Call of a function before the first batch is read and before each batch. What it raises ends the evaluation."""

    images_read = 0

    def __init__(self, function: Callable[[], None]):
        self.function = function

    def on_start(self, num_batches: int | None) -> None:
        self.function()

    def before_batch(self) -> None:
        self.function()


class GuardedObservers(EvaluationObserver):
    """Observers of a user's program. One that raises is reported once and dropped, and the evaluation continues."""

    def __init__(self, observers: Iterable[object]):
        self._users = UserObservers(observers)
        self.images_read = math.inf if self._users else 0

    def on_start(self, num_batches: int | None) -> None:
        self._users.call("on_start", num_batches)

    def before_batch(self) -> None:
        self._users.call("before_batch")

    def on_batch(self, evaluated: EvaluatedBatch) -> None:
        self._users.call("on_batch", evaluated)

    def on_end(self, metrics: Metrics) -> None:
        self._users.call("on_end", metrics)
