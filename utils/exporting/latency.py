"""Latency of inference: preprocessing, network and suppression apart, at batch sizes 1 and 16."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from utils import console
from utils.detector import InferenceModel
from utils.images.conversion import to_network_order
from utils.images.letterbox import letterbox
from utils.inference.evaluate import evaluation_mode
from utils.inference.nms_settings import NmsSettings
from utils.inference.preprocess import to_network_input
from utils.inference.speed import PARTS
from utils.timing import Stopwatch, now

BATCH_SIZES = (1, 16)
MIN_RUNS, MAX_RUNS = 3, 30
BUDGET = 1.5  # seconds that runs are repeated for, beyond MIN_RUNS
LIMIT = 20.0  # seconds that MIN_RUNS may take


class Latency(NamedTuple):
    """Median milliseconds of a batch in each part."""

    batch_size: int
    preprocess: float
    inference: float
    nms: float
    runs: int

    @property
    def total(self) -> float:
        """Sum of the three parts in milliseconds."""
        return self.preprocess + self.inference + self.nms

    def images_per_second(self, milliseconds: float) -> float:
        """Return the throughput of a part, or of all, that takes this time for a batch."""
        return 1000 * self.batch_size / max(milliseconds, 1e-6)


@torch.inference_mode()
def measure_latency(
    model: InferenceModel, images: Sequence[np.ndarray], shape: tuple[int, int], nms: NmsSettings, *, progress: str = ""
) -> list[Latency]:
    """Return the latencies at BATCH_SIZES, except those that would take too long.

    images: (H, W, C) in the pixel format of the model, as many as the largest batch has, or none to measure nothing.
    shape: height and width of the input. progress: text of a bar, "" for none.
    """
    found: list[Latency] = []
    nms = nms.fit(model)
    with evaluation_mode(model):
        sizes = BATCH_SIZES if images else ()
        for size in console.progress_bar(sizes, desc=progress, leave=False, disable=not progress):
            if found and found[-1].total * size * MIN_RUNS > 1000 * LIMIT:
                break
            found.append(_measure(model, images[:size], shape, nms))
    return found


def _measure(model: InferenceModel, images: Sequence[np.ndarray], shape: tuple[int, int], nms: NmsSettings) -> Latency:
    """Return the median times of one batch size, after a run that warms up."""
    _run_once(model, images, shape, nms, Stopwatch(model.device))
    runs: list[list[float]] = []
    start = now()
    while len(runs) < MIN_RUNS or (len(runs) < MAX_RUNS and now() - start < BUDGET):
        watch = Stopwatch(model.device)
        _run_once(model, images, shape, nms, watch)
        runs.append([1000 * watch.seconds[part] for part in PARTS])
    return Latency(len(images), *map(statistics.median, zip(*runs, strict=True)), runs=len(runs))


def _run_once(
    model: InferenceModel, images: Sequence[np.ndarray], shape: tuple[int, int], nms: NmsSettings, watch: Stopwatch
) -> None:
    """Run preprocessing, network and suppression on a batch."""
    with watch("preprocess"):
        fitted = (letterbox(image, shape, auto=False)[0] for image in images)
        boxed = np.stack([to_network_order(image) for image in fitted])  # (B, H, W, C)
        batch = to_network_input(torch.from_numpy(boxed).permute(0, 3, 1, 2), model.device)  # (B, C, H, W)
    with watch("inference"):
        decoded = model(batch)[0]  # (B, N, 5+C)
    with watch("nms"):
        nms.apply(decoded)
