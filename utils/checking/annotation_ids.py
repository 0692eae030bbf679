"""Ids of the annotations of a COCO file, which the index of labels does not hold: a few examples name them."""

import os
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.datasets.coco import group_objects, parse_id, read_coco
from utils.datasets.remarks import Remarks
from utils.errors import UserError

MAX_BYTES = 1 << 28  # of a JSON that is read again
TOLERANCE_PX = 1.0


class _Entry(NamedTuple):
    """One annotation."""

    where: str  # such as `annotation 12`
    name: str  # of its class
    xyxy_px: np.ndarray  # (4,)


class AnnotationIds:
    """Annotations of a COCO file by image. It is read at the first question."""

    def __init__(self, file: Path):
        self._file = file

    def find(self, path: str, name: str, xyxy_px: np.ndarray, shape: Sequence[int]) -> str:
        """Return `annotation ID` for the box (4,) of a class in an image (height, width), or "" if it is not found."""
        limits, best, found = np.array(shape)[[1, 0, 1, 0]], TOLERANCE_PX, ""
        for entry in self._by_name.get(os.path.basename(path), []):
            distance = np.abs(np.clip(entry.xyxy_px, 0, limits) - xyxy_px).max()
            if entry.name == name and distance < best:
                best, found = distance, entry.where
        return found

    @cached_property
    def _by_name(self) -> dict[str, list[_Entry]]:
        """Annotations by the file name of their image."""
        by_name = defaultdict(list)
        try:
            if self._file.stat().st_size > MAX_BYTES:
                return {}
            data = read_coco(self._file, Remarks())
            objects = group_objects(self._file, data, Remarks(), crowds=False)
        except (OSError, UserError):  # it was changed since it was scanned
            return {}
        names = {parse_id(entry["id"]): str(entry.get("name")) for entry in data["categories"]}
        for image in data["images"]:
            file = os.path.basename(str(image.get("file_name")).replace("\\", "/"))
            for one in objects.get(parse_id(image.get("id")) or 0, []):
                by_name[file].append(_Entry(one.where, names[one.category], np.array(one.xyxy_px)))
        return dict(by_name)
