"""What a resumed run depends on: data, device, versions; and what differs."""

import hashlib
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import torch

from utils.datasets.label_index import LabelIndex
from utils.distributed import Distributed


def fingerprint(*arrays: np.ndarray) -> str:
    text = hashlib.sha256()
    for array in arrays:
        text.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return text.hexdigest()[:16]


def name_contents(train: LabelIndex, validation: LabelIndex) -> dict[str, str]:
    """Names what is trained and measured on: sizes of the pictures in their order, and their labels. Not the pixels,
    which would all have to be read."""
    return {
        "data": fingerprint(train.shapes, train.labels, train.offsets),
        "polygons": fingerprint(train.points, train.segment_offsets),
        "validation": fingerprint(validation.shapes, validation.labels, validation.offsets),
    }


def surroundings(
    group: Distributed, contents: Mapping[str, str], precision: torch.dtype | None, steps_per_epoch: int
) -> dict[str, Any]:
    """All that the bytes of a run depend on besides its options and its state. precision: that of autocast, if any."""
    device = group.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "processes": group.world_size,
        "device": name,
        "torch": str(torch.__version__),
        **contents,
        "threads": torch.get_num_threads() if device.type == "cpu" else 0,
        "steps_per_epoch": steps_per_epoch,
        "precision": str(precision or torch.float32).removeprefix("torch."),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "opencv": cv2.__version__,
        "numpy": np.__version__,
    }


REASONS = {
    "processes": "the batches are the same, but sums are rounded in another order, batch statistics are of others' "
    "shares",
    "device": "other kernels round otherwise",
    "threads": "sums are rounded in another order; OMP_NUM_THREADS sets it",
    "torch": "another version may round otherwise",
    "data": "other pictures or labels than before: the order of the pictures is another one",
    "polygons": "other outlines than before",
    "validation": "other pictures or labels to measure on: another epoch may be the best",
    "precision": "what --amp auto means here",
    "cpu": "with other instructions sums are rounded in another order",
    "opencv": "another version may decode and resize otherwise",
    "numpy": "another version may draw and round otherwise",
}


def report_differences(before: Any, now: Mapping[str, Any]) -> None:
    """A line for everything around the run that is another than before, and therefore no longer exact.

    What an earlier version of this project did not note is taken to be as it was.
    """
    before = before if isinstance(before, dict) else {}
    for key, reason in REASONS.items():
        if key in before and before[key] != now[key]:
            print(f"resume: {key} {before[key]} -> {now[key]}: no longer exact to the bit ({reason})")
