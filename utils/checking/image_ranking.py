"""Ranking of unlabelled images: which to label next, by uncertainty and by what differs most.

The score of an image is the entropy of its detections times the distance of its features from the nearest other image.
Others are those that are labelled or ranked before it: k-center greedy (arXiv 1708.00489), weighted by uncertainty.

Legend: N images, K labelled images, F features, m detections.
"""

import math
import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from utils.checking.image_detections import detect_images
from utils.checking.scan import ScannedData
from utils.datasets.image_files import label_path
from utils.detector import Detector
from utils.errors import UserError
from utils.files import atomic_write
from utils.inference.predictor import Predictor

MOST_UNCERTAIN = 10  # detections of an image that count
LEAST_UNCERTAINTY = 0.05  # of an image without detections, which may still differ from all others
MAX_LABELLED = 2000  # labelled images, evenly spaced, that the others are compared with
USEFUL_CONFIDENCE = 0.25  # of the detections that are counted
MAX_GREEDY = 2000  # images that are ranked one by one; those behind them follow by uncertainty


class RankedImage(NamedTuple):
    """One image of a ranking."""

    image: int  # its number
    uncertainty: float  # 0…1
    distance: float  # 0…2 to the nearest image that is labelled or ranked before it


def uncertainty(confidence: np.ndarray) -> float:
    """Return 0…1 for the confidences (m,) of an image: the mean entropy in bits of the most uncertain detections.

    Where fewer than MOST_UNCERTAIN are found, the others count as 0, so that more doubtful objects score higher.
    """
    p = np.clip(confidence.astype(np.float64), 1e-9, 1 - 1e-9)
    entropy = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    return float(np.sort(entropy)[::-1][:MOST_UNCERTAIN].sum() / MOST_UNCERTAIN)


def rank_images(uncertainties: np.ndarray, features: np.ndarray, labelled: np.ndarray) -> list[RankedImage]:
    """Return all images, the one to label first at the front.

    uncertainties: (N,) in 0…1. features: (N, F). labelled: (K, F), features of the labelled images, may be empty.
    """
    features, labelled = _normalised(features), _normalised(labelled)
    weights = LEAST_UNCERTAINTY + (1 - LEAST_UNCERTAINTY) * uncertainties
    nearest = np.full(len(features), 2.0)  # the largest distance of two unit vectors
    for center in labelled:
        nearest = np.minimum(nearest, _distances(features, center))
    left, ranked = np.ones(len(features), bool), []
    for _ in range(min(len(features), MAX_GREEDY)):
        i = int(np.where(left, weights * nearest, -1).argmax())
        left[i] = False
        ranked.append(RankedImage(i, float(uncertainties[i]), float(nearest[i])))
        nearest = np.minimum(nearest, _distances(features, features[i]))
    others = np.flatnonzero(left)
    others = others[np.argsort(-uncertainties[others], kind="stable")]
    return ranked + [RankedImage(int(i), float(uncertainties[i]), float(nearest[i])) for i in others]


def _normalised(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def _distances(features: np.ndarray, center: np.ndarray) -> np.ndarray:
    """Return the distances (N,) of unit vectors (N, F) to one of them (F,)."""
    return np.sqrt(np.maximum(2 - 2 * (features @ center), 0))


@dataclass(frozen=True)
class Ranking:
    """Images in the order in which to label them."""

    paths: list[str]
    ranked: list[RankedImage]  # one for each path
    counts: list[int]  # of detections of USEFUL_CONFIDENCE or more, one for each path

    def document(self) -> dict[str, Any]:
        """Return the ranking as plain values, which docs/json.md describes."""
        return {
            "images": [
                {
                    "image": path,
                    "uncertainty": round(one.uncertainty, 4),
                    "distance": round(one.distance, 4),
                    "detections": count,
                }
                for path, one, count in zip(self.paths, self.ranked, self.counts, strict=True)
            ]
        }

    def write(self, folder: Path) -> None:
        """Write to_label.txt, a list of the images that detect.py takes as its source."""
        with atomic_write(folder / "to_label.txt") as stream:
            stream.write("".join(f"{Path(path).absolute()}\n" for path in self.paths).encode(errors="surrogateescape"))


def rank_by_model(predictor: Predictor, network: Detector, paths: Sequence[str], labelled: Sequence[str]) -> Ranking:
    """Return the ranking of images by a model. Images that cannot be read are missing in it.

    network: that of the predictor. labelled: images that the ranked ones are to differ from.
    """
    every = max(1, math.ceil(len(labelled) / MAX_LABELLED))
    with recorded_features(network) as known:
        detect_images(predictor, labelled[::every], "Features of labelled images") if labelled else []
    with recorded_features(network) as features:
        found = detect_images(predictor, paths, "Features of images to rank")
    readable = [(path, rows) for path, rows in zip(paths, found, strict=True) if rows is not None]
    if not readable:
        raise UserError(f"--rank images: none of the {len(paths)} images can be read")
    scores = np.array([uncertainty(rows[:, 4]) for _, rows in readable])
    ranked = rank_images(scores, np.stack(features), np.array(known).reshape(len(known), len(features[0])))
    return Ranking(
        [readable[one.image][0] for one in ranked],
        ranked,
        [int((readable[one.image][1][:, 4] >= USEFUL_CONFIDENCE).sum()) for one in ranked],
    )


def divide_by_labels(data: ScannedData) -> tuple[list[str], list[str]]:
    """Return the images with labels, or with an empty label file, and those without."""
    labelled, unlabelled = [], []
    for split in data.splits.values():
        for i, path in enumerate(split.index.paths):
            known = len(split.index.boxes(i)) or os.path.exists(label_path(path))
            (labelled if known else unlabelled).append(path)
    return labelled, unlabelled


@contextmanager
def recorded_features(model: Detector) -> Generator[list[np.ndarray]]:
    """Collect the features (F,) of each image that the model sees: the inputs of its head, averaged over the image."""
    found: list[np.ndarray] = []

    def record(_: Any, inputs: tuple[Any, ...]) -> None:
        levels: list[Tensor] = list(inputs[0])
        pooled = torch.cat([level.float().mean((2, 3)) for level in levels], 1)  # (B, F)
        found.extend(pooled.cpu().numpy())

    hook = cast(nn.Module, model.head).register_forward_pre_hook(record)
    try:
        yield found
    finally:
        hook.remove()
