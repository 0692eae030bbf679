"""Report of a proof: the table that export.py prints, and the JSON file beside the weights (docs/export.md)."""

import json
import math
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import torch

from utils.cli import detect_command
from utils.exporting.latency import BATCH_SIZES, Latency
from utils.exporting.observation import RawDifference
from utils.exporting.operators import Operators
from utils.exporting.proof import TOLERANCES, FileProof, Proof, Tolerance
from utils.files import atomic_write, size_on_disk
from utils.inference.speed import PARTS
from utils.machine import usable_cores
from utils.metrics import Metrics

SCHEMA = 1  # of the JSON file
COLUMNS = ("MB", "boxes px", "scores", "matched", "mAP50", "mAP50-95", "pre ms", "net ms", "NMS ms", "img/s x1", "x16")


class Row(NamedTuple):
    """Figures of a model in the table."""

    name: str
    size: int  # bytes
    raw: RawDifference | None
    matched: str
    metrics: Metrics | None
    latencies: Sequence[Latency]
    verdict: str

    def cells(self) -> Iterator[str]:
        """Yield the text of each of the COLUMNS, - for what was not measured."""
        yield f"{self.size / 1e6:.1f}"
        yield from (f"{value:.2g}" for value in self.raw) if self.raw else "--"
        yield self.matched or "-"
        yield from (f"{value:.4f}" for value in (self.metrics.map50, self.metrics.map)) if self.metrics else "--"
        single = next((one for one in self.latencies if one.batch_size == 1), None)
        yield from (f"{getattr(single, part):.1f}" for part in PARTS) if single else "---"
        for size in BATCH_SIZES:
            one = next((one for one in self.latencies if one.batch_size == size), None)
            yield f"{one.images_per_second(one.total):.1f}" if one else "-"


def proof_table(proof: Proof, weights: Path) -> Iterator[str]:
    """Yield the lines of the report: a table, what differs, and the line to run each file."""
    rows = [Row(weights.name, size_on_disk(weights), None, "", proof.reference.metrics, proof.reference_latencies, "")]
    rows += [_row(one) for one in proof.files]
    width = max(len(row.name) for row in rows)
    height, breadth = proof.images.shape
    yield f"Compared with PyTorch on {proof.images.description}, {height}x{breadth}; ms and images/s on this machine:"
    yield " " * width + "".join(f"{title:>10}" for title in COLUMNS)
    for row in rows:
        yield (f"{row.name:<{width}}" + "".join(f"{cell:>10}" for cell in row.cells()) + f"  {row.verdict}").rstrip()
    yield from _remarks(proof)
    for one in proof.files:
        if one.operators:
            yield f"{one.file.path.name}: {describe_operators(one.operators)}"
    for one in proof.files:
        if one.observation:
            yield f"Run it: {run_command(one, proof)}"


def describe_operators(operators: Operators) -> str:
    """Return the version of the operator set and the number of each operator, such as `opset 17: Conv 60, Mul 57`."""
    counts = ", ".join(f"{name} {count}" for name, count in operators.counts.items())
    return f"opset {operators.opset.removeprefix('opset')}: {counts}" if operators.opset else f"operators: {counts}"


def run_command(one: FileProof, proof: Proof) -> str:
    """Return the line that runs a file."""
    return detect_command([one.file.path], proof.images.shape)


def _row(one: FileProof) -> Row:
    metrics = one.observation.metrics if one.observation else None
    matched = (
        f"{one.pairing.share:.2%} of {one.pairing.reference}"
        if one.pairing.share is not None
        else "none"
        if one.observation
        else ""
    )
    return Row(one.file.path.name, size_on_disk(one.file.path), one.raw, matched, metrics, one.latencies, one.verdict)


def _remarks(proof: Proof) -> Iterator[str]:
    """Yield what is outside tolerance, what could not be proved, and what is worth knowing."""
    if proof.reference.metrics is None:
        yield "These images have no labels of the model's classes, so there is no mAP. --data gives others"
    for one in proof.files:
        name = one.file.path.name
        yield from (f"{name}: {text}" for text in one.differences)
        if one.unproved:
            yield f"{name}: not proved: {one.unproved}"
        elif one.observation and one.pairing.share is None:
            yield f"{name}: the model finds nothing in these images: only raw outputs are compared. --data gives others"
        if one.reference.metrics and one.reference is not proof.reference:
            figures = f"mAP50 {one.reference.metrics.map50:.4f}, mAP50-95 {one.reference.metrics.map:.4f}"
            yield f"{name}: PyTorch with the suppression of this file has {figures}"
        yield from _remarks_on_speed(one, proof)


def _remarks_on_speed(one: FileProof, proof: Proof) -> Iterator[str]:
    """Yield a line for an INT8 file that is not faster than a float one of its format, or than PyTorch."""
    if one.file.precision != "int8" or not one.latencies:
        return
    others = {"PyTorch": proof.reference_latencies}
    others |= {
        other.file.path.name: other.latencies
        for other in proof.files
        if other.file.format == one.file.format and other.file.precision != "int8"
    }
    faster = [name for name, rows in others.items() if rows and rows[0].inference <= one.latencies[0].inference]
    if faster:
        yield f"{one.file.path.name}: INT8 is not faster here than {' and '.join(faster)}"


# ---- JSON


def write_report(file: Path, proof: Proof, weights: Path) -> None:
    """Write the proof as JSON, atomically."""
    with atomic_write(file) as stream:
        stream.write(json.dumps(report_content(proof, weights), indent=2, allow_nan=False).encode() + b"\n")


def report_content(proof: Proof, weights: Path) -> dict[str, Any]:
    """Return the content of the JSON file: numbers, text, lists and dicts. What was not measured is None."""
    return {
        "schema": SCHEMA,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "weights": str(weights),
        "images": {
            "description": proof.images.description,
            "number": len(proof.images.index),
            "shape": list(proof.images.shape),
            "labels": proof.images.has_labels,
        },
        "machine": {"cores": usable_cores(), "torch": torch.__version__, "torch_threads": torch.get_num_threads()},
        "reference": {
            "bytes": size_on_disk(weights),
            "metrics": _metrics_content(proof.reference.metrics),
            "latency": [_latency_content(one) for one in proof.reference_latencies],
        },
        "agrees": False if proof.differs else None if any(one.unproved for one in proof.files) else True,
        "files": [_file_content(one, proof) for one in proof.files],
    }


def _file_content(one: FileProof, proof: Proof) -> dict[str, Any]:
    operators = one.operators
    return {
        "file": str(one.file.path),
        "format": one.file.format,
        "layout": one.file.layout,
        "precision": one.file.precision,
        "bytes": size_on_disk(one.file.path),
        "verdict": one.verdict,
        "differences": list(one.differences),
        "not_proved": one.unproved or None,
        "raw": {name: _finite(value) for name, value in one.raw._asdict().items()} if one.raw else None,
        "detections": {**one.pairing._asdict(), "share": one.pairing.share} if one.observation else None,
        "metrics": _metrics_content(one.observation.metrics) if one.observation else None,
        "reference_metrics": _metrics_content(one.reference.metrics),
        "tolerance": _tolerance_content(TOLERANCES[one.file.precision]),
        "latency": [_latency_content(latency) for latency in one.latencies],
        "opset": operators.opset if operators else None,
        "operators": operators.counts if operators else None,
        "run": run_command(one, proof),
    }


def _metrics_content(metrics: Metrics | None) -> dict[str, float] | None:
    return {"map50": metrics.map50, "map": metrics.map} if metrics else None


def _tolerance_content(tolerance: Tolerance) -> dict[str, float | None]:
    return {
        "iou": tolerance.rule.iou,
        "confidence": tolerance.rule.confidence,
        "matched": tolerance.matched,
        "map_loss": tolerance.map_loss,
        "map_gain": _finite(tolerance.map_gain),
        "box": _finite(tolerance.box),
        "score": _finite(tolerance.score),
    }


def _latency_content(latency: Latency) -> dict[str, Any]:
    parts = {part: getattr(latency, part) for part in PARTS} | {"total": latency.total}
    return {
        "batch_size": latency.batch_size,
        "runs": latency.runs,
        "milliseconds": parts,
        "images_per_second": {part: latency.images_per_second(value) for part, value in parts.items()},
    }


def _finite(value: float) -> float | None:
    """Return None for what JSON has no number for."""
    return value if math.isfinite(value) else None
