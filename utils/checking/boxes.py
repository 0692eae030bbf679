"""Checks of boxes one by one: outside the image, tiny, giant, at the border.

Legend: M labels of a split.
"""

from collections.abc import Callable, Iterator

import numpy as np

from utils.checking.findings import Finding, Level, first_examples
from utils.checking.scan import ScannedData, ScannedSplit
from utils.datasets.labels import look_like_corners
from utils.datasets.splits import label_sizes
from utils.image_size import ImageSize, describe_size

SPECK = 1.5  # pixels of the image; a smaller box is a click, and no object far away
LEVELS = {"P3": 8, "P4": 16, "P5": 32}  # stride of each level of the head
FEW_TINY = 0.05  # share of tiny boxes that is only worth a note
GIANT = 0.95  # share of the image
BORDER = 0.5  # pixels of the image; boxes that end nearer to its border touch it
OUTSIDE = 1.0  # pixels by which a box leaves the image; less is rounding
OFTEN = 0.2  # share of boxes at the border that is worth a note
SLIVER, SLIVER_ASPECT = 4.0, 5.0  # pixels of the image that a sliver is thick at most; its length by that


def check_boxes(data: ScannedData) -> Iterator[Finding]:
    """Yield the findings on boxes that are probably drawn or converted wrongly, or hard to learn."""
    for split in data.splits.values():
        if len(split.index.labels):
            yield from _corner_findings(split)
            yield from _outside_findings(split)
            yield from _size_findings(split, data.imgsz)
            yield from _border_findings(split)


def _corner_findings(split: ScannedSplit) -> Iterator[Finding]:
    if look_like_corners(split.index.labels):
        yield Finding(
            "error",
            "labels",
            "corners",
            len(split.index.labels),
            "rows look like corners (class x1 y1 x2 y2)",
            "They are read as class, centre x, centre y, width, height. Convert them if so.",
            split.name,
            first_examples(split.label_example(j) for j in range(len(split.index.labels))),
        )


def image_sides(split: ScannedSplit) -> np.ndarray:
    """Return the width and height (M, 2) in pixels of the image of each label."""
    return split.index.shapes[split.image_ids][:, ::-1].astype(np.float64)


def edges(split: ScannedSplit) -> np.ndarray:
    """Return the distances (M, 4) in pixels of each box from its image's border: left, top, right, bottom.

    They are below 0 outside.
    """
    sides, boxes = image_sides(split), split.index.labels[:, 1:].astype(np.float64)
    center, half = boxes[:, :2] * sides, boxes[:, 2:] * sides / 2
    return np.concatenate([center - half, sides - center - half], 1)


def _outside_findings(split: ScannedSplit) -> Iterator[Finding]:
    excess = -edges(split).min(1)
    yield from label_finding(
        split,
        excess,
        excess > OUTSIDE,
        lambda j: f"by {excess[j]:.0f} px",
        ("warning", "leaves-image", "boxes leave their image"),
        "Clip them to the image. If many do, the boxes may belong to a larger copy of it, or to another image.",
    )


def _size_findings(split: ScannedSplit, imgsz: ImageSize) -> Iterator[Finding]:
    sizes, boxes = label_sizes(split.index, imgsz), split.index.labels
    stored = (boxes[:, 3:] * image_sides(split)).max(1)
    yield from label_finding(
        split,
        -stored,
        np.less(stored, SPECK),
        lambda j: f"{stored[j]:.1f} px",
        ("warning", "speck", f"boxes are specks of less than {SPECK:g} px"),
        "An accidental click of the labelling tool leaves them. Remove them.",
    )
    longer, (finest, stride) = sizes.max(1), next(iter(LEVELS.items()))
    tiny = np.less(longer, stride)
    yield from label_finding(
        split,
        -longer,
        tiny,
        lambda j: f"{sizes[j, 0]:.1f} x {sizes[j, 1]:.1f} px",
        (
            "warning" if tiny.mean() > FEW_TINY else "note",
            "tiny-box",
            f"boxes are smaller than a cell of the finest level ({finest}, {stride} px) at --imgsz "
            f"{describe_size(imgsz)}",
        ),
        "They are hardly learnt. Use a larger --imgsz, or cut the images into tiles; remove what no one could see.",
        {f"below {level} ({cell} px)": int((longer < cell).sum()) for level, cell in LEVELS.items()},
    )
    area = boxes[:, 3] * boxes[:, 4]
    yield from label_finding(
        split,
        area,
        area > GIANT,
        lambda j: f"{100 * area[j]:.0f} %",
        ("note", "giant-box", f"boxes cover more than {100 * GIANT:.0f} % of their image"),
        "Look whether they are meant: a default box of a labelling tool, or labels of a classification, look so.",
    )


def _border_findings(split: ScannedSplit) -> Iterator[Finding]:
    distances = edges(split)
    touches = np.abs(distances) <= BORDER  # (M, 4)
    any_side = np.logical_or.reduce(touches, 1)
    sizes = split.index.labels[:, 3:] * image_sides(split)
    across = np.stack([sizes[:, 0], sizes[:, 1]] * 2, 1)  # (M, 4) thickness at each border
    thickness = np.where(touches, across, np.inf).min(1)
    sliver = np.logical_and(thickness < SLIVER, sizes.max(1) > SLIVER_ASPECT * thickness)
    yield from label_finding(
        split,
        -thickness,
        sliver,
        lambda j: f"{sizes[j, 0]:.1f} x {sizes[j, 1]:.1f} px",
        ("warning", "border-sliver", f"boxes are slivers at the border, less than {SLIVER:g} px thick"),
        "Little of the object is left in the image, as after cutting it into tiles. Remove them.",
    )
    if any_side.mean() >= OFTEN:
        yield from label_finding(
            split,
            touches.sum(1),
            any_side,
            lambda j: f"{touches[j].sum()} sides",
            ("note", "border-box", "boxes touch the border of their image"),
            "Objects are cut off there, or boxes were clipped: look whether they still surround what is visible.",
            {"share": float(any_side.mean())},
        )


def label_finding(
    split: ScannedSplit,
    order: np.ndarray,
    chosen: np.ndarray,
    detail: Callable[[int], str],
    title: tuple[Level, str, str],
    advice: str,
    figures: dict[str, float | str] | None = None,
) -> Iterator[Finding]:
    """Yield a finding on the labels that are `chosen` (M,) bool, if there are any.

    Its examples have the highest `order` (M,) first. `title` is level, name of the check and text.
    """
    labels = np.flatnonzero(chosen)
    if len(labels):
        level, check, text = title
        ranked = labels[np.argsort(-order[labels], kind="stable")]
        examples = first_examples(split.label_example(int(j), detail(int(j))) for j in ranked)
        yield Finding(level, "labels", check, len(labels), text, advice, split.name, examples, figures or {})
