"""Files with the detections of a validation run: label files, and COCO results with the figures of COCO's own rule."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from utils.boxes import xyxy_to_xywh
from utils.cli import suggest
from utils.coco_eval import GroundTruth, evaluate_coco
from utils.errors import UserError
from utils.files import atomic_write
from utils.metrics import Metrics

MAX_NAME = 80  # characters of a name with folders in it: a file's may have 255 bytes

# Called for each picture: its path, detections (n, 6) xyxy in its own pixels, confidence, class, and its height, width.
Writer = Callable[[str, Tensor, tuple[int, int]], None]


class TextWriter:
    """FOLDER/<picture>.txt: a line `class x y w h [confidence]` for each detection, in 0...1, the surest first.

    Files of an earlier run for the same pictures are removed at the start; a picture without detections has none.
    """

    def __init__(self, folder: Path, paths: Sequence[str], *, confidence: bool):
        folder.mkdir(parents=True, exist_ok=True)
        self.files = {path: folder / f"{name}.txt" for path, name in unique_names(paths).items()}
        self.confidence, self.written = confidence, 0
        for file in self.files.values():
            file.unlink(missing_ok=True)

    def __call__(self, path: str, detections: Tensor, shape: tuple[int, int]) -> None:
        if len(detections) == 0:
            return
        height, width = shape
        boxes = xyxy_to_xywh(detections[:, :4].double()) / torch.tensor([width, height, width, height])
        lines = [
            " ".join(f"{value:g}" for value in (cls, *box, *([confidence] if self.confidence else [])))
            for box, (confidence, cls) in zip(boxes.tolist(), detections[:, 4:].tolist())
        ]
        with atomic_write(self.files[str(Path(path))], sync=False) as file:
            file.write(("\n".join(lines) + "\n").encode())
        self.written += 1


def unique_names(paths: Sequence[str]) -> dict[str, str]:
    """A file name without suffix for each path: its stem or, where several share it, as many of its folders as tell
    them apart, the stem and the suffix, as in exp2_weights_best_pt."""
    names: dict[str, str] = {}
    alike: dict[str, list[str]] = {}  # strings, which take less than Paths: they may be a million
    for path in map(Path, paths):
        names[str(path)] = path.stem
    for path, stem in names.items():
        alike.setdefault(stem, []).append(path)
    taken = {stem for stem, group in alike.items() if len(group) == 1}
    for group in alike.values():
        for path, name in zip(group, _told_apart(group)) if len(group) > 1 else ():
            while name in taken:
                name += "_"
            taken.add(name)
            names[path] = name
    return names


def _told_apart(paths: Sequence[str]) -> list[str]:
    """Names made of the last folders of each path, of as few as make them different, its stem and its suffix; of the
    last folder alone where they would get too long."""
    parts = [Path(path).parts for path in paths]
    files = [f"{Path(path).stem}_{Path(path).suffix[1:]}" for path in paths]

    def names(depth: int) -> list[str]:
        return [
            "_".join((*(part for part in above[-1 - depth : -1] if os.sep not in part), file))
            for above, file in zip(parts, files)
        ]

    for depth in range(1, max(map(len, parts))):
        found = names(depth)
        if max(map(len, found)) > MAX_NAME:
            break
        if len(set(found)) == len(found):
            return found
    return names(1)


# Of COCO's 80 classes: the benchmark once had 91, and left some without pictures.
COCO_IDS = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]


class CocoWriter:
    """A COCO results file, with the image and category ids of `annotations`, a COCO ground truth file.

    Without annotations image ids are the pictures' stems (numbers where they are numbers) and category ids the class
    numbers, or those of the 80 classes of `coco`. Raises UserError when the annotations cannot be read, or lack a class
    or a picture.
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
        self.rows, self.seen = [], []

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
            return int(file.stem) if file.stem.isdigit() else file.stem
        found = self.images.get(file.name, self.images.get(file.stem))
        if found is None:
            raise UserError(f"{self.annotations}: no image {file.name}: give this split's file, --annotations FILE")
        return found

    def __call__(self, path: str, detections: Tensor, shape: tuple[int, int]) -> None:
        image = self._image_id(path)
        self.seen.append(image)
        for x1, y1, x2, y2, confidence, cls in detections.tolist():
            box = [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)]
            self.rows.append(
                {
                    "image_id": image,
                    "category_id": self.categories[int(cls)],
                    "bbox": box,
                    "score": round(confidence, 5),
                }
            )

    def finish(self, file: Path, metrics: Metrics) -> None:
        """Write the file, and print COCO's figures of the pictures seen, the first two beside ours."""
        with atomic_write(file) as stream:
            stream.write(json.dumps(self.rows).encode())
        print(f"{len(self.rows)} detections saved to {file}")
        if self.annotations is None:
            print("--save-json: no annotations to compare with; give them with --annotations FILE")
        elif self.truth.get("annotations"):
            figures = evaluate_coco(self.labels, self.rows, images=self.seen, by_category=not self.single_cls)
            print(*figures.lines(), sep="\n")
            print(
                f"mAP50 {metrics.map50:.4f}, mAP50-95 {metrics.map:.4f} by our rule; "
                f"{figures.ap50:.4f}, {figures.ap:.4f} by COCO's"
            )


def read_annotations(file: Path) -> dict:
    """The content of a COCO ground truth file; UserError where it is not one."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        complete = content["images"] and content["categories"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: not a COCO annotations file ({type(error).__name__}: {error})") from error
    if not complete:
        raise UserError(f"{file}: a COCO annotations file without images or categories")
    return content
