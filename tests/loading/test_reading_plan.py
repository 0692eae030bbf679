"""Reading plan: the number of data workers or helpers as a function of batch, ranks, CPUs and cores."""

import pytest

from utils.loading.reading_plan import ReadingPlan, plan_reading


@pytest.mark.parametrize("batch_size, world_size, workers, cpus, cores, plan", [
    (1, 1, 8, 8, None, ReadingPlan(1)),  # a single image: nothing to read ahead
    (16, 1, 0, 8, None, ReadingPlan(16)),  # --workers 0
    (16, 1, 8, 8, None, ReadingPlan(16, workers=8)),
    (16, 1, 8, 2, None, ReadingPlan(16, workers=2)),  # at most one per CPU
    (16, 1, 8, 0, None, ReadingPlan(16, workers=1)),  # more processes than CPUs: each has one worker
    (4, 1, 8, 8, None, ReadingPlan(4, workers=4)),  # at most one per image
    (16, 4, 8, 8, None, ReadingPlan(4, workers=8)),
    (18, 4, 8, 8, None, ReadingPlan(5, workers=8)),  # a rank has up to ceil(18 / 4) images
    (16, 1, 8, 8, 4, ReadingPlan(16, helpers=3)),  # the main process uses the fourth core
    (16, 1, 2, 8, 4, ReadingPlan(16, helpers=2)),  # at most --workers
    (16, 1, 8, 2, 4, ReadingPlan(16, helpers=2)),  # at most one per CPU
    (16, 1, 0, 8, 4, ReadingPlan(16)),
    (16, 1, 8, 8, 1, ReadingPlan(16)),  # one core, which the main process uses
    (16, 1, 8, 8, 0, ReadingPlan(16)),
    (8, 4, 8, 64, 64, ReadingPlan(2, helpers=1)),  # at most the other images of the rank
    (1, 1, 8, 8, 4, ReadingPlan(1)),
])  # fmt: skip
def test_plan(batch_size, world_size, workers, cpus, cores, plan):
    found = plan_reading(batch_size=batch_size, world_size=world_size, workers=workers, cpus=cpus, cores=cores)
    assert found == plan
