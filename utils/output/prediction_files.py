"""Files with the detections of a validation run: label files, and COCO results with the figures of COCO's own rule."""

import itertools
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
from utils.detections import Detections, stem_id
from utils.errors import UserError
from utils.files import atomic_write
from utils.metrics import Metrics
from utils.output.result_names import RenamedTable, unique_names

# Category ids of the 80 classes. The benchmark once had 91 categories, and some of them have no images.
COCO_IDS = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]


class DetectionWriter(Protocol):
    """Writer of the detections of one image after another."""

    def write(self, detections: Detections) -> None: ...


class TextWriter:
    """Label files FOLDER/<image>.txt with a line `class x y w h [confidence]` per detection.

    Coordinates are in 0…1, and the highest confidence is first. Files of an earlier run for the same images are
    removed at the start. An image without detections has no file. Images of one stem get longer names, which
    FOLDER/renamed.csv lists.
    """

    def __init__(self, folder: Path, paths: Sequence[str], *, confidence: bool):
        folder.mkdir(parents=True, exist_ok=True)
        names, renamed = unique_names(paths), RenamedTable(folder)
        for path, name in names.items():
            if name != Path(path).stem:
                renamed.add(name, path)
        self.files = {path: folder / f"{name}.txt" for path, name in names.items()}
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


class CocoWriter:
    """COCO results file, with the image and category ids of `annotations`, a COCO ground truth file.

    Without annotations an image id is the stem of its path, as a number if it is one. Images that would share an id
    get their path below the folder of all `paths`. A category id is the class number or, if `coco`, one of COCO_IDS.
    Raises UserError if the annotations cannot be read or lack a class.
    """

    def __init__(
        self,
        annotations: Path | None,
        names: Mapping[int, str],
        paths: Sequence[str] = (),
        *,
        single_cls: bool,
        coco: bool = False,
    ):
        self.annotations, self.single_cls = annotations, single_cls
        self.truth = read_annotations(annotations) if annotations else {}
        self.labels = GroundTruth.read(self.truth, str(annotations)) if annotations else None
        if annotations:
            self.categories = self._match_categories(names)
        else:
            self.categories = dict(enumerate(COCO_IDS)) if coco else {i: i for i in names}
        self.images = self._images_by_name()
        self.own_ids = {} if annotations else ids_of_shared_stems(paths)
        self.rows: list[dict[str, Any]] = []
        self.seen: list[int | str] = []  # image ids
        self.path_by_id: dict[int | str, str] = {}

    def _match_categories(self, names: Mapping[int, str]) -> dict[int, int]:
        ids = {entry["name"]: entry["id"] for entry in self.truth["categories"]}
        if self.single_cls:
            return {0: next(iter(ids.values()))}
        for name in names.values():
            if name not in ids:
                raise UserError(f"{self.annotations}: no category {name!r}{suggest(name, ids)}")
        return {i: ids[name] for i, name in names.items()}

    def _images_by_name(self) -> dict[str, list[tuple[tuple[str, ...], int | str]]]:
        """Return the parts of the path and the id of the annotated images, by file name and by stem."""
        found: dict[str, list[tuple[tuple[str, ...], int | str]]] = {}
        for entry in self.truth.get("images", ()):
            file = Path(entry["file_name"])
            for name in {file.name, file.stem}:
                found.setdefault(name, []).append((file.parts, entry["id"]))
        return found

    def _image_id(self, path: str) -> int | str:
        """Return the id of the annotated image whose name agrees with the end of `path` in most folders."""
        file = Path(path)
        if self.annotations is None:
            return self.own_ids.get(path, stem_id(file))
        found = self.images.get(file.name) or self.images.get(file.stem)
        if not found:
            raise UserError(
                f"{self.annotations}: no image {file.name}. Give the file of this split: --annotations FILE"
            )
        folders = [(common_end(parts[:-1], file.parts[:-1]), i) for parts, i in found]
        most = max(number for number, _ in folders)
        best = {i for number, i in folders if number == most}
        if len(best) > 1:
            raise UserError(
                f"{self.annotations}: {len(best)} images are called {file.name}, none with the folders of {path}. "
                "Give their folders in file_name"
            )
        return best.pop()

    def write(self, detections: Detections) -> None:
        """Keep the detections of one image. Raise UserError if the annotations lack it."""
        image = self._image_id(detections.path)
        other = self.path_by_id.setdefault(image, detections.path)
        if other != detections.path:
            raise UserError(f"{self.annotations}: one entry for {other} and {detections.path}. Give each its own")
        self.seen.append(image)
        self.rows += detections.to_coco(image, self.categories)

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


def ids_of_shared_stems(paths: Sequence[str]) -> dict[str, str]:
    """Return the path below the common folder, as image id, for images that would share one. Warn if there are any."""
    groups: dict[int | str, list[str]] = {}
    for path in dict.fromkeys(paths):
        groups.setdefault(stem_id(Path(path)), []).append(path)
    shared = [group for group in groups.values() if len(group) > 1]
    if not shared:
        return {}
    root = Path(os.path.commonpath([os.path.dirname(path) for path in paths]))
    ids = {path: Path(path).relative_to(root).as_posix() for group in shared for path in group}
    first, second, *_ = ids.values()
    console.warn(
        f"{len(ids)} images share an image_id ({first}, {second}, ...). Theirs is the path in the results file. "
        "Give the ids: --annotations FILE"
    )
    return ids


def common_end(one: Sequence[str], other: Sequence[str]) -> int:
    """Return the number of equal parts at the ends of two paths."""
    pairs = zip(reversed(one), reversed(other), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


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
