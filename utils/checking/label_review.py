"""Review of likely label errors: findings, images of the worst, and lists that labelling tools import."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from utils import console
from utils.boxes import xywh_to_xyxy, xyxy_to_xywh
from utils.checking.findings import Example, Finding, first_examples
from utils.checking.label_errors import (
    CLASS,
    KINDS,
    MISSING,
    SHIFTED,
    SPURIOUS,
    USUAL_CONFIDENCE,
    Evidence,
    LabelError,
    compare,
    find_errors,
    image_quality,
    rank_errors,
    usual_of,
)
from utils.checking.scan import ScannedData, ScannedSplit
from utils.datasets.label_index import LabelIndex, merge_indices
from utils.detections import Detections
from utils.errors import UserError
from utils.images.read import read_image
from utils.output.annotation_files import open_annotations
from utils.output.drawing import draw_boxes, save_image

LIKELY = 0.5  # score from which an error is reported
LISTED = 0.2  # score from which it is in the lists
DRAWN = 50  # images of the worst
DRAWN_COLORS = (0, 7)  # classes whose colours the label and the detection get
TOOLS = ("cvat", "labelstudio", "coco")  # FiftyOne reads COCO

TEXTS = {
    MISSING: "objects probably have no box",
    CLASS: "boxes probably have the wrong class",
    SHIFTED: "boxes are probably in the wrong place",
    SPURIOUS: "boxes probably hold no object",
}


@dataclass(frozen=True)
class LabelReview:
    """Likely errors in the labels of a data set, the likeliest first."""

    data: ScannedData
    errors: list[LabelError]
    quality: np.ndarray  # (N,) of each image's labels, 0…1
    recall: float  # share of the labels that the models confirm, 0…1

    @classmethod
    def of(cls, data: ScannedData, detections: Sequence[np.ndarray | None]) -> "LabelReview":
        """Compare the labels of all splits with the detections (m, 6) of their images, in the order of the splits.

        An image of None is not judged.
        """
        index = merged_index(data)
        known = {i: rows for i, rows in enumerate(detections) if rows is not None}
        highest = [rows[:, 5].max(initial=0) for rows in known.values()]
        num_classes = int(max([len(data.spec.names), index.labels[:, 0].max(initial=0) + 1, *(k + 1 for k in highest)]))
        evidence = {
            i: compare(index.boxes(i), rows, shape_of(index, i), num_classes=num_classes, ignored=index.regions(i))
            for i, rows in known.items()
        }
        usual = usual_of(list(evidence.values()), num_classes)
        errors = {i: find_errors(one, usual, i) for i, one in evidence.items()}
        quality = np.ones(len(index))
        for i, own in errors.items():
            quality[i] = image_quality(own)
        ranked = rank_errors([one for own in errors.values() for one in own])
        return cls(data, ranked, quality, _recall(list(evidence.values())))

    def place(self, image: int) -> tuple[ScannedSplit, int]:
        """Return the split of an image, and its number there."""
        for split in self.data.splits.values():
            if image < len(split.index):
                return split, image
            image -= len(split.index)
        raise IndexError(image)

    def path(self, image: int) -> str:
        """Return the file of an image."""
        split, number = self.place(image)
        return split.index.paths[number]

    def shape(self, image: int) -> tuple[int, int]:
        """Return height and width of an image."""
        split, number = self.place(image)
        return shape_of(split.index, number)

    def labels(self, image: int) -> np.ndarray:
        """Return the labels (n, 5) of an image: class, cx, cy, w, h in 0…1."""
        split, number = self.place(image)
        return split.index.boxes(number)

    def name(self, index: int) -> str:
        """Return the name of a class."""
        return self.data.spec.names.get(index, str(index))

    def describe(self, error: LabelError) -> str:
        """Return an error in words, with its score."""
        given, found = (None if one is None else self.name(one) for one in (error.given_class, error.found_class))
        text = {
            MISSING: f"{found} without a box",
            CLASS: f"labelled {given}, looks like {found}",
            SHIFTED: f"{given} lies elsewhere",
            SPURIOUS: f"no {given} here",
        }[error.kind]
        return f"{text} ({error.score:.2f})"

    def findings(self) -> list[Finding]:
        """Return a finding for each kind of error that is likely somewhere."""
        found = []
        for kind in KINDS:
            likely = [error for error in self.errors if error.kind == kind and error.score >= LIKELY]
            if likely:
                examples = first_examples(map(self._example, likely))
                advice = "Look at the images in label_errors/, and correct them in your labelling tool by its lists."
                found.append(
                    Finding(
                        "warning", "label errors", f"label-{kind}", len(likely), TEXTS[kind], advice, examples=examples
                    )
                )
        return found

    def _example(self, error: LabelError) -> Example:
        split, number = self.place(error.image)
        text = self.describe(error)
        boxes = () if error.found_xyxy is None else (self._found_box(error),)
        if error.label is None:
            path = split.index.paths[number]
            return Example(path, detail=text, image=path, boxes=boxes, roles=("suggestion",))
        given = split.label_example(int(split.index.offsets[number]) + error.label, text)
        if error.kind != SHIFTED:  # one box, which the label has
            return given
        return replace(given, boxes=given.boxes + boxes, roles=("label", "suggestion"))

    def _found_box(self, error: LabelError) -> tuple[float, float, float, float, float]:
        height, width = self.shape(error.image)
        x, y, w, h = map(float, xyxy_to_xywh(np.array(error.found_xyxy)) / [width, height, width, height])
        return float(error.found_class or 0), x, y, w, h

    def document(self) -> dict[str, Any]:
        """Return the errors as a document of plain values: label_errors.json, which docs/json.md describes."""
        return {
            "errors": [self._describe_error(error) for error in self.errors if error.score >= LISTED],
            "images": [
                {"image": self.path(i), "split": self.place(i)[0].name, "quality": round(float(self.quality[i]), 4)}
                for i in map(int, np.argsort(self.quality, kind="stable"))
            ],
        }

    def _describe_error(self, error: LabelError) -> dict[str, Any]:
        example, split = self._example(error), self.place(error.image)[0]
        return {
            "kind": error.kind,
            "score": round(error.score, 4),
            "image": self.path(error.image),
            "split": split.name,
            "file": example.file,
            "line": example.line or None,
            "given": _describe_box(error.given_class, error.given_xyxy, self.data.spec.names),
            "found": _describe_box(error.found_class, error.found_xyxy, self.data.spec.names),
            "confidence": round(error.confidence, 4),
            "text": self.describe(error),
        }

    def write_lists(self, folder: Path) -> None:
        """Write the images with likely errors as files that CVAT, Label Studio and FiftyOne import, the worst first.

        The boxes are those of the labels, and one for each likely error. Its class says what is wrong: `missing: cat`.
        """
        by_image: dict[int, list[LabelError]] = {}
        for error in self.errors:
            if error.score >= LISTED:
                by_image.setdefault(error.image, []).append(error)
        names, numbers = dict(self.data.spec.names), {}
        for error in (error for own in by_image.values() for error in own):
            text = f"{error.kind}: {self.name(_class_that_fits(error))}"
            numbers.setdefault(text, len(names) + len(numbers))
        names.update({number: text for text, number in numbers.items()})
        folder.mkdir(parents=True, exist_ok=True)
        paths = [self.path(image) for image in by_image]
        for tool in TOOLS:
            writer = open_annotations(tool, folder, names, paths, model="check.py", confidence=True)
            for image, errors in by_image.items():
                rows = self._labels_and_errors(image, errors, numbers)
                writer.write(self.path(image), f"{image}", Detections(rows, self.shape(image), self.path(image), names))
            writer.close()

    def _labels_and_errors(self, image: int, errors: Sequence[LabelError], numbers: Mapping[str, int]) -> np.ndarray:
        """Return rows (n, 6) of an image's labels, with confidence 1, behind those of its errors."""
        height, width = self.shape(image)
        labels = self.labels(image)
        own = np.ones((len(labels), 6), np.float32)
        own[:, :4], own[:, 5] = xywh_to_xyxy(labels[:, 1:] * np.array([width, height] * 2, np.float32)), labels[:, 0]
        rows = [
            [*_box_to_look_at(error), error.score, numbers[f"{error.kind}: {self.name(_class_that_fits(error))}"]]
            for error in errors
        ]
        return np.concatenate((np.array(rows, np.float32).reshape(-1, 6), own))

    def draw_worst(self, folder: Path) -> None:
        """Write an image for each of the likeliest errors: the label as it is, and what the model finds."""
        for number, error in enumerate([one for one in self.errors if one.score >= LISTED][:DRAWN], 1):
            try:
                image = read_image(self.path(error.image))
            except UserError as problem:
                console.warn(f"{problem}. It is not drawn")
                continue
            given = "" if error.given_class is None else f"label: {self.name(error.given_class)}"
            found = "nothing found" if error.found_class is None else f"model: {self.name(error.found_class)}"
            boxes, texts = [error.given_xyxy, error.found_xyxy], [given, found]
            if error.kind in (CLASS, SPURIOUS):  # one box, which the label has drawn
                boxes, texts = [error.given_xyxy], [f"{given}, {found}"]
            if error.kind == SHIFTED:  # one text: two would cover each other
                texts = [f"{given} (solid), {found} (dashed)", ""]
            # the label's line is solid, that of the model dashed
            shown = [(box, text, k) for k, (box, text) in enumerate(zip(boxes, texts, strict=True)) if box]
            corners = np.array([box for box, _, _ in shown])
            colors = [DRAWN_COLORS[k] for _, _, k in shown]
            folder.mkdir(parents=True, exist_ok=True)
            dashed = [k == 1 for _, _, k in shown]
            drawn = draw_boxes(image, corners, [text for _, text, _ in shown], colors, dashed=dashed)
            save_image(folder / f"{number:03} {error.kind}.jpg", drawn, quality=90)


def merged_index(data: ScannedData) -> LabelIndex:
    """Return the images and labels of all splits, one split after the other."""
    return merge_indices([split.index for split in data.splits.values()])


def shape_of(index: LabelIndex, image: int) -> tuple[int, int]:
    """Return height and width of an image."""
    height, width = index.shapes[image].tolist()
    return height, width


def _class_that_fits(error: LabelError) -> int:
    index = error.given_class if error.found_class is None else error.found_class
    assert index is not None
    return index


def _box_to_look_at(error: LabelError) -> tuple[float, float, float, float]:
    box = error.given_xyxy if error.found_xyxy is None else error.found_xyxy
    assert box is not None
    return box


def _describe_box(
    index: int | None, box: tuple[float, float, float, float] | None, names: Mapping[int, str]
) -> dict[str, Any] | None:
    if index is None or box is None:
        return None
    return {"class": index, "name": names.get(index, str(index)), "xyxy": [round(value, 2) for value in box]}


def _recall(evidence: Sequence[Evidence]) -> float:
    """Return the share of labels where the usual confidence is reached for their class, 1.0 without any label."""
    confirmed = [one.class_confidence[np.arange(len(one.classes)), one.classes] for one in evidence]
    return float((np.concatenate(confirmed) >= USUAL_CONFIDENCE).mean()) if any(map(len, confirmed)) else 1.0
