"""Fitting a model to what it is to be trained on: anchors, image size, frozen layers."""

from collections.abc import Sequence

import numpy as np
import torch

from models.yolo import DetectionModel
from utils import console
from utils.autoanchor import check_anchors
from utils.errors import UserError


def freeze_layers(model: DetectionModel, freeze: Sequence[int]) -> list[int]:
    """Stop gradients of layers 0 … N-1 (one number N) or of exactly the listed ones; returns their numbers."""
    indices = list(range(freeze[0]) if len(freeze) == 1 else freeze)
    for index in indices:
        if not 0 <= index < len(model.model):
            raise UserError(f"--freeze {' '.join(map(str, freeze))}: the model has layers 0 to {len(model.model) - 1}")
    for index in indices:
        model.model[index].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"--freeze {' '.join(map(str, freeze))}: no layer is left to train; freeze fewer")
    if indices:
        print(f"Frozen layers: {', '.join(str(index) for index in indices)}")
    return indices


def round_to_stride(imgsz: int, stride: int) -> int:
    """The image size that the model can take: up to the next multiple of its stride, at least two of them."""
    rounded = max(-(-imgsz // stride) * stride, 2 * stride)
    if rounded != imgsz:
        small = f"is too small for a model of stride {stride}"
        reason = small if imgsz < 2 * stride else f"is not a multiple of the model's stride {stride}"
        print(f"WARNING --imgsz {imgsz} {reason}; using {rounded}")
    return rounded


def fit_model_anchors(model: DetectionModel, sizes: np.ndarray, threshold: float, seed: int) -> bool:
    """AutoAnchor: keep the model's anchors where they recall 98 % of the labels, fit new ones where better.

    Returns whether they were replaced.
    """
    stride = model.stride.cpu().numpy()[:, None, None]
    anchors = model.head.anchors.cpu().numpy() * stride  # (L, A, 2) pixels
    report = check_anchors(anchors, sizes, threshold, np.random.default_rng(seed), strides=model.stride.tolist())
    console.info(report.message)
    if report.warning:
        console.warn(report.warning)
    if report.replaced:
        model.head.anchors.copy_(torch.from_numpy(np.asarray(report.anchors_px / stride, np.float32)))
    return report.replaced
