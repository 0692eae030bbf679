"""Files with the detections of a validation run: label files, and COCO results with the figures of COCO's own rule."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from utils import console
from utils.boxes import xyxy_to_xywh
from utils.cli import suggest
from utils.coco_eval import GroundTruth, evaluate_coco
from utils.detections import Detections
from utils.errors import UserError
from utils.files import atomic_write
from utils.metrics import Metrics

MAX_NAME = 80  # characters of a name with folders in it; a file name may have 255 bytes
# Category ids of the 80 classes. The benchmark once had 91 categories, and some of them have no images.
COCO_IDS = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]


class DetectionWriter(Protocol):
    """Writer of the detections of one image after another."""

    def write(self, detections: Detections) -> None: ...


class TextWriter:
    """Label files FOLDER/<image>.txt with a line `class x y w h [confidence]` per detection.

    Coordinates are in 0…1, and the highest confidence is first. Files of an earlier run for the same images are
    removed at the start. An image without detections has no file.
    """

    def __init__(self, folder: Path, paths: Sequence[str], *, confidence: bool):
        folder.mkdir(parents=True, exist_ok=True)
        self.files = {path: folder / f"{name}.txt" for path, name in unique_names(paths).items()}
        self.confidence, self.num_files = confidence, 0
        for file in self.files.values():
            file.unlink(missing_ok=True)

    def write(self, detections: Detections) -> None:
        """Write the file of one image, which must be one of `paths`."""
        if len(detections) == 0:
            return
        height, width = detections.shape
        boxes = xyxy_to_xywh(detections.boxes_xyxy.astype(np.float64)) / np.array([width, height, width, height])
        lines = []
        for box, (confidence, cls) in zip(boxes, detections.rows[:, 4:], strict=True):
            values = (cls, *box, *([confidence] if self.confidence else []))
            lines.append(" ".join(f"{value:g}" for value in values) + "\n")
        with atomic_write(self.files[str(Path(detections.path))], sync=False) as file:
            file.write("".join(lines).encode())
        self.num_files += 1


def unique_names(paths: Sequence[str]) -> dict[str, str]:
    """Return a file name without suffix for each path.

    It is the stem. If several paths share a stem, their names also have the last folders and the suffix, as in
    exp2_weights_best_pt: as few folders as make the names different.
    """
    names: dict[str, str] = {}
    by_stem: dict[str, list[str]] = {}  # strings, which take less memory than Paths: there may be a million
    for path in map(Path, paths):
        names[str(path)] = path.stem
    for path, stem in names.items():
        by_stem.setdefault(stem, []).append(path)
    taken = {stem for stem, group in by_stem.items() if len(group) == 1}
    for group in by_stem.values():
        for path, name in zip(group, _disambiguate(group), strict=True) if len(group) > 1 else ():
            while name in taken:
                name += "_"
            taken.add(name)
            names[path] = name
    return names


def _disambiguate(paths: Sequence[str]) -> list[str]:
    """Return names of paths that share a stem: folders, stem and suffix, joined by `_`.

    The number of folders is the lowest that makes the names different, or 1 if longer names exceed MAX_NAME.
    """
    parts = [Path(path).parts for path in paths]
    files = [f"{Path(path).stem}_{Path(path).suffix[1:]}" for path in paths]

    def names(depth: int) -> list[str]:
        return [
            "_".join((*(part for part in folders[-1 - depth : -1] if os.sep not in part), file))
            for folders, file in zip(parts, files, strict=True)
        ]

    for depth in range(1, max(map(len, parts))):
        found = names(depth)
        if max(map(len, found)) > MAX_NAME:
            break
        if len(set(found)) == len(found):
            return found
    return names(1)


class CocoWriter:
    """COCO results file, with the image and category ids of `annotations`, a COCO ground truth file.

    Without annotations an image id is the stem of its path, as a number if it is one. A category id is the class
    number or, if `coco`, one of COCO_IDS. Raises UserError if the annotations cannot be read or lack a class.
    """

    def __init__(self, annotations: Path | None, names: Mapping[int, str], *, single_cls: bool, coco: bool = False):
        self.annotations, self.single_cls = annotations, single_cls
        self.truth = read_annotations(annotations) if annotations else {}
        self.labels = GroundTruth.read(self.truth, str(annotations)) if annotations else None
        if annotations:
            self.categories = self._match_categories(names)
        else:
            self.categories = dict(enumerate(COCO_IDS)) if coco else {i: i for i in names}
        images = {Path(entry["file_name"]): entry["id"] for entry in self.truth.get("images", ())}
        self.images = {file.stem: i for file, i in images.items()} | {file.name: i for file, i in images.items()}
        self.rows: list[dict[str, Any]] = []
        self.seen: list[int | str] = []  # image ids

    def _match_categories(self, names: Mapping[int, str]) -> dict[int, int]:
        ids = {entry["name"]: entry["id"] for entry in self.truth["categories"]}
        if self.single_cls:
            return {0: next(iter(ids.values()))}
        for name in names.values():
            if name not in ids:
                raise UserError(f"{self.annotations}: no category {name!r}{suggest(name, ids)}")
        return {i: ids[name] for i, name in names.items()}

    def _image_id(self, path: str) -> int | str:
        file = Path(path)
        if self.annotations is None:
            return int(file.stem) if file.stem.isascii() and file.stem.isdecimal() else file.stem
        found = self.images.get(file.name, self.images.get(file.stem))
        if found is None:
            raise UserError(
                f"{self.annotations}: no image {file.name}. Give the file of this split: --annotations FILE"
            )
        return found

    def write(self, detections: Detections) -> None:
        """Keep the detections of one image. Raise UserError if the annotations lack it."""
        image = self._image_id(detections.path)
        self.seen.append(image)
        for x1, y1, x2, y2, confidence, cls in detections.rows.tolist():
            box = [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)]
            category, score = self.categories[int(cls)], round(confidence, 5)
            self.rows.append({"image_id": image, "category_id": category, "bbox": box, "score": score})

    def finish(self, file: Path, metrics: Metrics) -> None:
        """Write the file, and print COCO's figures of the images seen, the first two beside ours."""
        with atomic_write(file) as stream:
            stream.write(json.dumps(self.rows).encode())
        console.result(f"{len(self.rows)} detections saved to {file}")
        if self.labels is None:
            console.result("--save-json: no annotations to compare with. Give them: --annotations FILE")
        elif self.truth.get("annotations"):
            figures = evaluate_coco(self.labels, self.rows, images=self.seen, by_category=not self.single_cls)
            console.result(
                *figures.lines(),
                f"mAP50 {metrics.map50:.4f}, mAP50-95 {metrics.map:.4f} by our rule; "
                f"{figures.ap50:.4f}, {figures.ap:.4f} by COCO's",
            )


def read_annotations(file: Path) -> dict[str, Any]:
    """Return the content of a COCO ground truth file. Raise UserError if it is not one."""
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: not a COCO annotations file ({type(error).__name__}: {error})") from error
    for key, text in (("images", "file_name"), ("categories", "name")):
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not entries:
            raise UserError(f"{file}: not a COCO annotations file: no list of {key}")
        for number, entry in enumerate(entries):
            if not isinstance(entry, dict) or not isinstance(entry.get(text), str):
                raise UserError(f"{file}: not a COCO annotations file: {key}[{number}] has no {text!r} that is text")
    return content
