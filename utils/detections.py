"""Detections of one image: the result of every program and format that finds objects."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from utils.errors import UserError
from utils.metrics import Speed


@dataclass(frozen=True)
class Detections:
    """Objects found in one image, highest confidence first. An image without objects has no rows."""

    rows: np.ndarray  # (n, 6) float32: x1, y1, x2, y2 in pixels of the image, confidence, class
    shape: tuple[int, int]  # height, width of the image
    path: str = ""
    names: Mapping[int, str] = field(default_factory=dict)  # class names
    input_shape: tuple[int, int] = (0, 0)  # height, width of the network's input
    speed: Speed = field(default_factory=Speed)  # an equal share of its batch's times
    track_ids: np.ndarray | None = None  # (n,) int64: the object's number in its video, 0 if none; None: not tracked

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def boxes_xyxy(self) -> np.ndarray:
        """Left, top, right and bottom (n, 4) in pixels of the image."""
        return self.rows[:, :4]

    @property
    def confidence(self) -> np.ndarray:
        """Confidences (n,) in 0…1."""
        return self.rows[:, 4]

    @property
    def classes(self) -> np.ndarray:
        """Class numbers (n,) int64."""
        return self.rows[:, 5].astype(np.int64)

    def rounded(self) -> "Detections":
        """Return the same detections with boxes in whole pixels."""
        return replace(self, rows=np.concatenate((self.rows[:, :4].round(), self.rows[:, 4:]), axis=1))

    def name(self, index: int) -> str:
        """Return the name of a class, or its number if it has no name."""
        return self.names.get(index, str(index))

    def to_records(self) -> list[dict[str, Any]]:
        """Return a dict per object: xmin, ymin, xmax, ymax in pixels, confidence, class (number), name.

        With tracks also track, the id of the object or None.
        """
        keys = ("xmin", "ymin", "xmax", "ymax", "confidence")
        records = [
            {**dict(zip(keys, row[:5], strict=True)), "class": int(row[5]), "name": self.name(int(row[5]))}
            for row in self.rows.tolist()
        ]
        if self.track_ids is None:
            return records
        return [{**record, "track": track or None} for record, track in zip(records, self.track_ids.tolist())]

    def to_coco(
        self, image_id: int | str | None = None, category_ids: Mapping[int, int] | None = None
    ) -> list[dict[str, Any]]:
        """Return the objects as entries of a COCO results file.

        image_id: by default the stem of the path, as a number if it is one. category_ids: COCO's number of each class,
        by default the class number itself.
        """
        image_id = stem_id(Path(self.path)) if image_id is None else image_id
        return [
            {
                "image_id": image_id,
                "category_id": category_ids[int(cls)] if category_ids else int(cls),
                "bbox": [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)],
                "score": round(confidence, 5),
            }
            for x1, y1, x2, y2, confidence, cls in self.rows.tolist()
        ]

    def to_supervision(self) -> Any:
        """Return the objects as supervision's Detections. Raises UserError if that package is absent."""
        supervision = import_optional("supervision", "to_supervision()")
        return supervision.Detections(
            xyxy=self.boxes_xyxy,
            confidence=self.confidence,
            class_id=self.classes,
            tracker_id=self.track_ids,
            data={"class_name": np.array([self.name(index) for index in self.classes.tolist()], dtype=str)},
        )


def stem_id(file: Path) -> int | str:
    """Return the image id that the COCO server and other tools expect: the stem, as a number if it is one."""
    return int(file.stem) if file.stem.isascii() and file.stem.isdecimal() else file.stem


def import_optional(package: str, purpose: str) -> ModuleType:
    """Return a package that is no requirement. Raises UserError that says how to install it if it is absent."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise UserError(f"{purpose} needs the package {error.name}: type pip install {error.name}") from error
