"""The plan of how one process loads its batches: by data workers, by helpers, or by itself."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ReadingPlan:
    """Numbers of the processes that read images, and the number of images that they share.

    Data workers read ahead while the model runs. Helpers build each batch together with the main process, between two
    steps. A plan has one of the two kinds, or none.
    """

    images_per_rank: int  # at most, in a batch
    workers: int = 0
    helpers: int = 0


def plan_reading(*, batch_size: int, world_size: int, workers: int, cpus: int, cores: int | None = None) -> ReadingPlan:
    """Return the plan of a rank. `world_size` ranks share a batch of `batch_size` images.

    workers: the number that the user allows. cpus: the CPUs that this rank may use. cores: the number of cores for
    loading between steps, or None if the model leaves cores free for data workers.
    """
    images_per_rank = -(-batch_size // world_size)
    allowed = min(max(1, cpus), batch_size if batch_size > 1 else 0, workers)
    if cores is None:
        return ReadingPlan(images_per_rank, workers=allowed)
    return ReadingPlan(images_per_rank, helpers=max(0, min(allowed, cores - 1, images_per_rank - 1)))
