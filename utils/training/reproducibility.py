"""Environment of a run, on which its bytes depend besides options and state: data, device, versions."""

import hashlib
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import torch

from utils.console import info
from utils.datasets.label_index import LabelIndex
from utils.distributed import Distributed


def fingerprint(*arrays: np.ndarray) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of the arrays' bytes."""
    text = hashlib.sha256()
    for array in arrays:
        text.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return text.hexdigest()[:16]


def dataset_fingerprints(train: LabelIndex, validation: LabelIndex) -> dict[str, str]:
    """Return fingerprints of both splits: image sizes in their order, and labels.

    Pixels are not included, since every image would have to be read.
    """
    return {
        "data": fingerprint(train.shapes, train.labels, train.offsets),
        "polygons": fingerprint(train.points, train.segment_offsets),
        "validation": fingerprint(validation.shapes, validation.labels, validation.offsets),
    }


def environment_fingerprint(
    group: Distributed, fingerprints: Mapping[str, str], precision: torch.dtype | None, steps_per_epoch: int
) -> dict[str, Any]:
    """Return all that the bytes of a run depend on besides its options and its state.

    `precision` is the type of autocast, None for float32.
    """
    device = group.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "processes": group.world_size,
        "device": name,
        "torch": str(torch.__version__),
        **fingerprints,
        "threads": torch.get_num_threads() if device.type == "cpu" else 0,
        "steps_per_epoch": steps_per_epoch,
        "precision": str(precision or torch.float32).removeprefix("torch."),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "opencv": cv2.__version__,
        "numpy": np.__version__,
    }


REASONS = {
    "processes": "same batches, but sums round in another order, and batch statistics are of other parts of a batch",
    "device": "other kernels round differently",
    "threads": "sums round in another order; --threads sets it",
    "torch": "another version may round differently",
    "data": "other images or labels than before, so another order of images",
    "polygons": "other outlines than before",
    "validation": "other images or labels to validate on, so another epoch may be the best",
    "precision": "what --amp auto means here",
    "cpu": "sums round in another order with other instructions",
    "opencv": "another version may decode and resize differently",
    "numpy": "another version may draw and round differently",
}


def report_differences(before: Any, now: Mapping[str, Any]) -> None:
    """Print a line for everything in the environment that has changed and makes the run inexact.

    A key that an earlier version of this project did not record counts as unchanged.
    """
    before = before if isinstance(before, dict) else {}
    for key, reason in REASONS.items():
        if key in before and before[key] != now[key]:
            info(f"resume: {key} {before[key]} -> {now[key]}: no longer exact to the bit ({reason})")
