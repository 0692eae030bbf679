"""Detections of many images, with a progress bar."""

from collections.abc import Sequence

import numpy as np

from utils import console
from utils.errors import UserError
from utils.images.read import read_image
from utils.inference.nms_settings import NmsSettings
from utils.inference.predictor import Predictor

BATCH = 8  # images
# Also what the model doubts, and every class that it considers for a box.
JUDGE_NMS = NmsSettings(conf_thres=0.01, iou_thres=0.6, max_det=300, multi_label=True)


def detect_images(predictor: Predictor, paths: Sequence[str], title: str) -> list[np.ndarray | None]:
    """Return the detections of each image: (n, 6) x1, y1, x2, y2 in pixels, confidence, class.

    None for an image that cannot be read, with a warning.
    """
    results: list[np.ndarray | None] = []
    with console.progress_bar(total=len(paths), desc=title) as bar:
        for start in range(0, len(paths), BATCH):
            part = paths[start : start + BATCH]
            images = {path: image for path in part if (image := _read(path, predictor)) is not None}
            found = predictor(list(images.values()), list(images)) if images else []
            rows = {path: one.rows for path, one in zip(images, found, strict=True)}
            results += [rows.get(path) for path in part]
            bar.update(len(part))
    return results


def _read(path: str, predictor: Predictor) -> np.ndarray | None:
    try:
        return read_image(path, predictor.model.pixels)
    except UserError as error:
        console.warn(f"{error}. It is skipped")
        return None
