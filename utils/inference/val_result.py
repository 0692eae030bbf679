"""Result of a validation, for programs that call it, and as the document of `--json`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.image_size import ImageSize
from utils.metrics import Metrics
from utils.output.json_documents import describe_validation


@dataclass(frozen=True)
class ValResult:
    """Result of a validation. It unpacks as `(P, R, mAP50, mAP50-95, box, obj, cls), maps, (ms, ms, ms)`."""

    metrics: Metrics
    save_dir: Path

    def __iter__(self) -> Iterator[tuple[float, ...] | np.ndarray]:
        """Yield the summary, the mAP50-95 of each class (C,), and the milliseconds per image of the three parts."""
        m, speed = self.metrics, self.metrics.speed
        yield (m.precision, m.recall, m.map50, m.map, *m.losses)
        yield m.maps
        yield (speed.preprocess, speed.inference, speed.nms)

    def __getitem__(self, index: int) -> tuple[float, ...] | np.ndarray:
        return tuple(self)[index]


def describe_results(
    found: ValResult | list[Metrics],
    weights: Sequence[Path],
    sizes: Sequence[ImageSize],
    *,
    task: str,
    data: str,
    split: str,
) -> dict[str, object]:
    """Return the document of `--json`: a result for each measurement, with its weights and size.

    found: one result of all weights at the only size, or the metrics of each weights file and size.
    """
    if isinstance(found, ValResult):
        settings, folder, measured = [(list(weights), sizes[0])], str(found.save_dir), [found.metrics]
    else:
        settings, folder, measured = [([file], size) for file in weights for size in sizes], None, found
    results = [
        describe_validation(files, size, metrics, data=data, split=split)
        for (files, size), metrics in zip(settings, measured, strict=True)
    ]
    return {"program": "val", "task": task, "save_dir": folder, "results": results}
