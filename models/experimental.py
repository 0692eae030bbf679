"""Loader of weights under the name that programs for YOLOv5 import."""

from collections.abc import Sequence
from pathlib import Path

import torch

from models.loading import Ensemble, find_weights, load_ensemble
from models.yolo import DetectionModel


def attempt_load(
    weights: str | Path | Sequence[str | Path],
    device: str | torch.device | None = None,
    inplace: bool = True,
    fuse: bool = True,
) -> DetectionModel | Ensemble:
    """Return the model of a .pt file, or of several as an ensemble, in evaluation mode.

    device: the CPU if None. inplace: accepted, and without effect. Raises UserError for files that cannot be read.
    """
    names = [weights] if isinstance(weights, (str, Path)) else weights
    return load_ensemble(find_weights([str(name) for name in names], typed=True), device or "cpu", fuse)
