"""Comparison of models of any format on one split: size of the file, mAP and milliseconds an image."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from utils.files import atomic_write, size_on_disk
from utils.inference.speed import PARTS
from utils.metrics import Metrics

SCHEMA = 1  # of the JSON file
COLUMNS = ("MB", "input", "mAP50", "mAP50-95", "pre ms", "net ms", "NMS ms", "ms/img")


class ComparedModel(NamedTuple):
    """Figures of a model, or the reason why it has none."""

    path: str
    shape: tuple[int, int] = (0, 0)  # height, width of the largest input
    metrics: Metrics | None = None
    reason: str = ""

    @property
    def milliseconds(self) -> list[float]:
        """Milliseconds an image in each of the PARTS, and in all."""
        assert self.metrics
        parts = [getattr(self.metrics.speed, part) for part in PARTS]
        return [*parts, sum(parts)]

    def cells(self) -> Iterator[str]:
        """Yield the text of each of the COLUMNS."""
        assert self.metrics
        yield f"{size_on_disk(Path(self.path)) / 1e6:.1f}"
        yield "x".join(map(str, self.shape))
        yield from (f"{value:.4f}" for value in (self.metrics.map50, self.metrics.map))
        yield from (f"{value:.1f}" for value in self.milliseconds)


def comparison_table(models: Sequence[ComparedModel]) -> Iterator[str]:
    """Yield a line for each model below a line of titles."""
    width = max(len(model.path) for model in models)
    yield " " * width + "".join(f"{title:>10}" for title in COLUMNS)
    for model in models:
        cells = "".join(f"{cell:>10}" for cell in model.cells()) if model.metrics else f"  not measured: {model.reason}"
        yield f"{model.path:<{width}}{cells}"


def write_comparison(file: Path, models: Sequence[ComparedModel], settings: dict[str, Any]) -> None:
    """Write the comparison as JSON (docs/export.md), atomically. settings: data, split and batch size."""
    content = {"schema": SCHEMA, **settings, "models": [_model_content(model) for model in models]}
    with atomic_write(file) as stream:
        stream.write(json.dumps(content, indent=2, allow_nan=False).encode() + b"\n")


def _model_content(model: ComparedModel) -> dict[str, Any]:
    if model.metrics is None:
        return {"file": model.path, "reason": model.reason}
    return {
        "file": model.path,
        "bytes": size_on_disk(Path(model.path)),
        "shape": list(model.shape),
        "map50": model.metrics.map50,
        "map": model.metrics.map,
        "milliseconds": dict(zip((*PARTS, "total"), model.milliseconds, strict=True)),
    }
