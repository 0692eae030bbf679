"""Exchange of evaluated batches between processes, so that the observers on rank 0 see those of all."""

import operator
from collections.abc import Iterable, Iterator
from dataclasses import replace

from utils.distributed import Distributed
from utils.inference.observer import EvaluatedBatch, EvaluationObserver
from utils.loading.dataset import Batch
from utils.loading.loader import Loader


class BatchExchange:
    """The batches of an evaluation, in the order of one process.

    If the loader deals whole batches to the ranks, rank 0 collects those of all after each step. Otherwise each rank
    has a part of every batch, and rank 0 observes its own part.
    """

    def __init__(self, group: Distributed, loader: Iterable[Batch], watching: EvaluationObserver):
        self.group = group
        self.deals = isinstance(loader, Loader) and loader.deals_batches
        own = operator.length_hint(loader)
        self.num_batches = (sum(group.gather(own)) if self.deals else own) or None  # that rank 0 observes
        self.images_read = group.on_main(lambda: watching.images_read) if self.deals else 0

    def steps(self, batches: Iterable[Batch]) -> Iterator[tuple[int, Batch | None]]:
        """Yield the number of each batch of this rank, and the batch, or None where only other ranks have one left."""
        for step, batch in enumerate(self.group.in_step_padded(batches)):
            yield (step * self.group.world_size + self.group.rank if self.deals else step), batch

    def collect(self, evaluated: EvaluatedBatch | None) -> Iterator[EvaluatedBatch]:
        """Yield what this rank has to observe after a step: on rank 0 the batches of all ranks if they are dealt."""
        mine = [] if evaluated is None else [evaluated]
        if not self.deals:
            yield from mine
            return
        sent = [] if self.group.is_main else [self._to_send(one) for one in mine]
        for part in (mine, *self.group.gather_on_main(sent)):
            yield from part

    def _to_send(self, evaluated: EvaluatedBatch) -> EvaluatedBatch:
        """Return a batch on the CPU, without images if no observer reads them."""
        images = evaluated.batch.images
        read = images.cpu() if evaluated.number < self.images_read else images[:0].cpu()
        return replace(evaluated, batch=evaluated.batch._replace(images=read, color_flips=None))
