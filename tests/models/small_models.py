"""Small networks, images and weights files that can be made again anywhere, for several tests."""

import copy
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.yolo import DetectionModel

P5 = ["yolov5n", "yolov5s", "yolov5m", "yolov5l", "yolov5x"]
HUB = [
    "yolov3",
    "yolov3-spp",
    "yolov3-tiny",
    "yolov5-bifpn",
    "yolov5-fpn",
    "yolov5-p2",
    "yolov5-p34",
    "yolov5-p6",
    "yolov5-p7",
    "yolov5-panet",
    "yolov5n6",
    "yolov5s6",
    "yolov5m6",
    "yolov5l6",
    "yolov5x6",
    "yolov5s-LeakyReLU",
    "yolov5s-ghost",
    "yolov5s-transformer",
]


MODELS = P5 + HUB


FORWARD = [
    "yolov5n",
    "yolov5s",
    "yolov3-tiny",
    "yolov5-bifpn",
    "yolov5-fpn",
    "yolov5-p2",
    "yolov5-p34",
    "yolov5n6",
    "yolov5s-LeakyReLU",
    "yolov5s-ghost",
    "yolov5s-transformer",
]


TINY = {
    "nc": 3,
    "depth_multiple": 0.33,
    "width_multiple": 0.25,
    "anchors": [[10, 13, 16, 30], [30, 61, 62, 45]],
    "backbone": [
        [-1, 1, "Conv", [32, 3, 4]],
        [-1, 1, "Conv", [64, 3, 2]],
        [-1, 3, "C3", [64]],
        [-1, 1, "Conv", [64, 3, 2]],
    ],
    "head": [
        [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
        [[-1, 2], 1, "Concat", [1]],
        [-1, 1, "C3", [64, False]],
        [[6, 3], 1, "Detect", ["nc", "anchors"]],
    ],
}


@torch.no_grad()
def fill(model: nn.Module, seed: int = 0) -> None:
    """Fill in weights that any machine can reproduce: waves whose phase is a checksum of the entry's name."""
    for name, value in model.state_dict().items():
        if not value.is_floating_point() or name.endswith(".anchors"):
            continue
        phase = (zlib.crc32(name.encode()) + seed) % 10007
        wave = torch.sin(0.7391 * torch.arange(value.numel(), dtype=torch.float64) + phase).reshape(value.shape)
        if name.endswith("running_var"):
            wave = 1 + 0.5 * wave
        elif name.endswith("running_mean") or (value.ndim == 1 and not name.endswith("weight")):
            wave = 0.1 * wave
        elif value.ndim == 1:
            wave = 1 + 0.2 * wave
        else:
            wave = wave * math.sqrt(3 / value[0].numel())
        value.copy_(wave)


def image(count: int, side: int, seed: int = 0) -> Tensor:
    """Return images (count, 3, side, side) in 0…1 that are the same on every machine."""
    n, c, y, x = torch.meshgrid(
        *(torch.arange(size, dtype=torch.float64) for size in (count, 3, side, side)), indexing="ij"
    )
    return (0.5 + 0.5 * torch.sin(0.05 * x * (c + 1) + 0.03 * y + n + seed % 97)).float()


def tiny_model(**changes) -> DetectionModel:
    """Return the network of TINY with changed keys, in evaluation mode, with filled weights."""
    model = DetectionModel(copy.deepcopy(TINY) | changes)
    fill(model)
    return model.eval()


def largest_difference(found: Tensor, wanted: np.ndarray) -> float:
    """Return the largest difference, relative to the largest value."""
    assert tuple(found.shape) == wanted.shape
    return float(np.abs(found.numpy() - wanted).max() / np.abs(wanted).max())


def save_pickled(model: nn.Module, path: Path, *, zipped: bool = True, **content) -> Path:
    """Write a checkpoint as YOLOv5 does, with the module itself pickled."""
    torch.save({"epoch": -1, "ema": None, "model": model, **content}, path, _use_new_zipfile_serialization=zipped)
    return path


def require_one_line(error: pytest.ExceptionInfo) -> None:
    assert "\n" not in str(error.value)


RELEASES = ["yolov5n.pt", "yolov5n_v6.0.pt"]


def published_weights(reference: Path) -> Path:
    """Return the folder with the small published weights of two generations, RELEASES. Skip the test without them."""
    for name in RELEASES:
        if not (reference / "weights" / name).is_file():
            pytest.skip(f"{name} is not in {reference / 'weights'}")
    return reference / "weights"
