"""Loaders that hand out the same batches again: for measurements of a loop without the cost of loading."""

from collections.abc import Iterable, Iterator
from itertools import chain, cycle, islice, repeat

from utils.loading.dataset import Batch
from utils.loading.loader import Loader


class RepeatedBatches:
    """The batches of a loader's first epoch or of a list, repeated until there are `count` of them."""

    def __init__(self, batches: Loader | list[Batch], count: int):
        self.batches, self.count = batches, count

    def __len__(self) -> int:
        return self.count

    def set_epoch(self, *_: object, **__: object) -> None:
        pass

    def __iter__(self) -> Iterator[Batch]:
        endless = cycle(self.batches) if isinstance(self.batches, list) else chain.from_iterable(self._epochs())
        return islice(endless, self.count)

    def _epochs(self) -> Iterator[Iterable[Batch]]:
        for batches in repeat(self.batches):
            batches.set_epoch(0)
            yield batches


class BatchesInMemory:
    """The batches of a loader's first epoch, in memory."""

    def __init__(self, loader: Loader):
        loader.set_epoch(0)
        self.batches = list(loader)

    def __len__(self) -> int:
        return len(self.batches)

    def set_epoch(self, *_: object, **__: object) -> None:
        pass

    def __iter__(self) -> Iterator[Batch]:
        yield from self.batches
