"""JSON documents of `--json`, for other programs. docs/json.md describes every field.

All values are plain: numbers are rounded to what they mean, and none is NaN or infinite.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.addresses import remove_credentials
from utils.detections import Detections
from utils.diagnosis import Diagnosis, GroupResult
from utils.image_size import ImageSize, to_option
from utils.images.frames import Frame
from utils.metrics import Metrics, Speed

WORST_IMAGES = 20  # listed


def to_line(document: Mapping[str, Any]) -> str:
    """Return a document as one line of ASCII."""
    return json.dumps(document, allow_nan=False)


def describe_frame(frame: Frame, found: Detections, names: Mapping[int, str]) -> dict[str, Any]:
    """Return the line of detect.py for an image or a frame, highest confidence first."""
    height, width = found.shape
    tracks = [0] * len(found) if found.track_ids is None else found.track_ids.tolist()
    objects = [
        {
            "class": int(row[5]),
            "name": str(names[int(row[5])]),
            "confidence": _number(row[4], 6),
            "xyxy": [_number(value, 2) for value in row[:4]],
            "track": track or None,
        }
        for row, track in zip(found.rows, tracks, strict=True)
    ]
    return {
        "source": remove_credentials(frame.path),
        "kind": frame.kind,
        "frame": frame.number,
        "seconds": _number(frame.time, 3),
        "utc": frame.utc,
        "width": width,
        "height": height,
        "detections": objects,
        "milliseconds": _describe_speed(found.speed),
    }


def describe_validation(
    weights: Sequence[Path], imgsz: ImageSize, metrics: Metrics, *, data: str, split: str
) -> dict[str, Any]:
    """Return one result of val.py: the metrics of all classes together and of each class that has labels."""
    per_class, thresholds = metrics.per_class, metrics.thresholds
    classes = [
        {
            "class": int(index),
            "name": str(metrics.names.get(int(index), index)),
            "labels": int(metrics.label_counts[k]),
            "precision": _number(per_class.p[k]),
            "recall": _number(per_class.r[k]),
            "f1": _number(per_class.f1[k]),
            "map50": _number(per_class.ap[k, 0]),
            "map": _number(per_class.ap[k].mean()),
            "confidence": thresholds.get(int(index)),
        }
        for k, index in enumerate(per_class.classes)
    ]
    return {
        "weights": [str(file) for file in weights],
        "data": remove_credentials(data),
        "split": split,
        "imgsz": to_option(imgsz),
        "images": metrics.images,
        "labels": metrics.instances,
        "precision": _number(metrics.precision),
        "recall": _number(metrics.recall),
        "map50": _number(metrics.map50),
        "map": _number(metrics.map),
        "confidence": _number(metrics.best_confidence),
        "classes": classes,
        **_describe_diagnosis(metrics.diagnosis),
        "milliseconds": _describe_speed(metrics.speed),
    }


def _describe_diagnosis(found: Diagnosis | None) -> dict[str, Any]:
    """Return AP by object size and level, errors and worst images. Return nothing without a diagnosis."""
    if found is None:
        return {}

    def describe(groups: Sequence[GroupResult]) -> list[dict[str, Any]]:
        return [
            {"name": name, "labels": labels, "map50": _number(map50), "map": _number(mean)}
            for name, labels, map50, mean in groups
        ]

    errors = [
        {"kind": kind, "count": count, "confident": confident, "cost": _number(cost)}
        for kind, count, confident, cost in (*found.errors, found.false_positives, found.false_negatives)
    ]
    worst = [image._asdict() for image in found.worst_images(WORST_IMAGES)]
    sizes, levels = describe(found.sizes), describe(found.levels)
    return {"sizes": sizes, "levels": levels, "errors": errors, "worst_images": worst}


def _describe_speed(speed: Speed) -> dict[str, float | None]:
    return {
        "preprocess": _number(speed.preprocess, 3),
        "inference": _number(speed.inference, 3),
        "nms": _number(speed.nms, 3),
    }


def _number(value: float, digits: int = 6) -> float | None:
    """Return a rounded number of Python's, None for NaN and infinity, which JSON lacks."""
    return round(float(value), digits) if math.isfinite(value) else None
