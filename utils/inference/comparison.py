"""Comparison of models of any format on one split: size of the file, mAP and milliseconds an image."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from utils import console
from utils.errors import UserError, explain, one_line
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


def compare_models(names: Sequence[str], measure: Callable[[str], ComparedModel]) -> list[ComparedModel]:
    """Measure each model by itself. One that fails, by any error of its runtime, has the reason."""
    models = []
    for name in names:
        try:
            models.append(measure(name))
        except Exception as error:
            explained = explain(error)
            reason = explained[0].removeprefix("error: ") if explained else f"{type(error).__name__}: {error}"
            models.append(ComparedModel(name, reason=one_line(reason).removeprefix(f"{name}: ")))
    return models


def require_measured(models: Sequence[ComparedModel]) -> list[Metrics]:
    """Return the metrics of the models that have some. Raise UserError if none has."""
    found = [model.metrics for model in models if model.metrics]
    if not found:
        raise UserError(f"none of the models could be measured; {models[0].path}: {models[0].reason}")
    return found


def comparison_table(models: Sequence[ComparedModel]) -> Iterator[str]:
    """Yield a line for each model below a line of titles."""
    width = max(len(model.path) for model in models)
    yield " " * width + "".join(f"{title:>10}" for title in COLUMNS)
    for model in models:
        cells = "".join(f"{cell:>10}" for cell in model.cells()) if model.metrics else f"  not measured: {model.reason}"
        yield f"{model.path:<{width}}{cells}"


def report_comparison(file: Path, models: Sequence[ComparedModel], settings: dict[str, Any]) -> dict[str, Any]:
    """Print the table, and write the comparison as JSON (docs/export.md), atomically. Return its content.

    settings: data, split and batch size.
    """
    content = {"schema": SCHEMA, **settings, "models": [_model_content(model) for model in models]}
    with atomic_write(file) as stream:
        stream.write(json.dumps(content, indent=2, allow_nan=False).encode() + b"\n")
    console.result(*comparison_table(models), f"Results saved to {file}")
    return content


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
