"""Findings on how well the data fits the planned training: anchors, image size, head, and flags that would help."""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from utils.autoanchor import SMALL_PX, anchor_recall, check_anchors
from utils.checking.classes import class_counts
from utils.checking.findings import Example, Finding, first_examples
from utils.checking.scan import ScannedData, ScannedSplit
from utils.datasets.splits import label_sizes
from utils.image_size import describe_size, scale_size, to_shape

MIN_LABELS = 10  # of a class, size or aspect whose recall is reported
GOOD_GROUP_RECALL = 0.95
GENERATIONS = 100  # of new anchors, fewer than in training: the figure is the same within a percent
SIZE_STEP, MAX_IMGSZ, STRIDE = 64, 1536, 32  # pixels
FEW_SMALL = 0.01  # share of labels that may be too small
CELL_PX, MANY_IN_CELLS = 8, 0.2  # the finest level of the usual head has cells of 8 px
TILE_RATIO = 2  # of the image's longer side to --imgsz
AMPLE_PX = 24  # of nearly all objects: half the size would do
PADDING = 0.25  # share of square images that is padding
CLASS_RATIO = 10  # of labels of the commonest class to those of a rare one
SIZE_LIMITS = (0, 16, 32, 96, np.inf)  # px, root of the area at --imgsz
ASPECT_LIMITS = (0, 1 / 4, 1 / 2, 2, 4, np.inf)  # width / height


class PlannedAnchors(NamedTuple):
    """Anchors that a training would start from."""

    sizes_px: np.ndarray  # (L, A, 2)
    strides: np.ndarray  # (L,)
    source: str  # file that they come from
    threshold: float = 4.0  # hyperparameter anchor_t


def check_fit(data: ScannedData, anchors: PlannedAnchors) -> Iterator[Finding]:
    """Yield the findings on the training split and --imgsz. Without labels there is none."""
    split = data.splits.get("train") or next(iter(data.splits.values()))
    if not len(split.index.labels):
        return
    sizes = label_sizes(split.index, data.imgsz)
    yield from _small_labels(data, split, sizes)
    yield from _small_objects(data, split, sizes)
    yield from _ample_size(data, split, sizes)
    yield from _anchors_out_of_reach(data, split, sizes, anchors)
    yield from _padding(data, split)
    yield from _rare_classes(data, split)


# ---- size


def _small_labels(data: ScannedData, split: ScannedSplit, sizes: np.ndarray) -> Iterator[Finding]:
    """Yield the labels below 3 px, and the size at which nearly all are larger."""
    shortest = sizes.min(axis=1)
    small = np.flatnonzero(shortest < SMALL_PX)
    if not len(small):
        return
    share = len(small) / len(sizes)
    small = small[np.argsort(shortest[small], kind="stable")]
    yield Finding(
        "note" if share < FEW_SMALL else "warning", "fit", "under-3-px", len(small),
        f"boxes, {share:.1%}, are less than {SMALL_PX} px wide or high at --imgsz {describe_size(data.imgsz)}",
        _advise_on_small_labels(data, split, shortest), split.name,
        first_examples(split.label_example(int(k), "{:.1f} x {:.1f} px".format(*sizes[k])) for k in small),
        {"share": share},
    )  # fmt: skip


def _advise_on_small_labels(data: ScannedData, split: ScannedSplit, shortest: np.ndarray) -> str:
    if (shortest < SMALL_PX).mean() < FEW_SMALL:
        return "Look at them: a few boxes of this size are mostly slips of the mouse. Remove those."
    enough = _size_with_few(data, split, shortest, SMALL_PX)
    if enough:
        return f"Train with --imgsz {_in_ratio(data, enough)}, at which less than {FEW_SMALL:.0%} are so small."
    shape = to_shape(data.imgsz)
    in_files = shortest * _native_side(data, split) / max(shape)
    if (in_files < SMALL_PX).mean() < FEW_SMALL:
        return (
            f"Train with --tile {min(shape)}, and give it to val.py and detect.py too: tiles keep the pixels of files."
        )
    return "Remove these boxes: they are as small in the image files, so no network sees them."


def _size_with_few(data: ScannedData, split: ScannedSplit, pixels: np.ndarray, limit: float) -> int:
    """Return the least longer side at which 1 % of the labels at most are below `limit`.

    It is 0 if none up to 1536 has so few. Beyond the size of the images, pixels would be interpolated only.
    """
    now = max(to_shape(data.imgsz))
    tried = range(now + SIZE_STEP, min(_native_side(data, split), MAX_IMGSZ) + SIZE_STEP, SIZE_STEP)
    shares = ((longer, float((pixels * (longer / now) < limit).mean())) for longer in tried)
    return next((longer for longer, share in shares if share <= FEW_SMALL), 0)


def _native_side(data: ScannedData, split: ScannedSplit) -> int:
    """Return the longer side of the size, in the ratio of --imgsz, into which half of the images fit unchanged."""
    shape = to_shape(data.imgsz)
    return int(np.median((split.index.shapes * max(shape) / shape).max(axis=1)))


def _in_ratio(data: ScannedData, longer: int) -> str:
    """Return the words after --imgsz in its ratio, with this longer side."""
    return describe_size(scale_size(data.imgsz, longer, STRIDE))


def _small_objects(data: ScannedData, split: ScannedSplit, sizes: np.ndarray) -> Iterator[Finding]:
    """Yield what helps where many objects are smaller than the cells of the finest level."""
    roots = np.sqrt(sizes.prod(axis=1))
    share, native, now = float((roots < CELL_PX).mean()), _native_side(data, split), max(to_shape(data.imgsz))
    if share < MANY_IN_CELLS:
        return
    ways = ["a head with finer cells (--cfg yolov5-p2.yaml)"]
    larger = min(native, MAX_IMGSZ) // SIZE_STEP * SIZE_STEP
    if larger >= 1.25 * now:
        rest = float((roots * larger / now < CELL_PX).mean())
        ways.insert(0, f"--imgsz {_in_ratio(data, larger)}, at which {rest:.0%} are so small")
    if native >= TILE_RATIO * now:
        tile = min(to_shape(data.imgsz))
        ways.append(f"--tile {tile} for train.py, val.py and detect.py, which look at parts of the images too")
    yield Finding(
        "note", "fit", "small-objects", int((roots < CELL_PX).sum()),
        f"objects, {share:.0%}, are smaller than the finest cells of {CELL_PX} px at --imgsz "
        f"{describe_size(data.imgsz)}",
        f"Try {', or '.join(ways)}.", split.name,
        first_examples(split.label_example(int(k)) for k in np.argsort(roots, kind="stable")[:20]),
        {"share": share, "image_px": native},
    )  # fmt: skip


def _ample_size(data: ScannedData, split: ScannedSplit, sizes: np.ndarray) -> Iterator[Finding]:
    """Yield a smaller size if nearly all objects are large at it."""
    now = max(to_shape(data.imgsz))
    half = now // 2 // SIZE_STEP * SIZE_STEP
    least = float(np.quantile(np.sqrt(sizes.prod(axis=1)), 0.02))
    if half >= 128 and least * half / now >= AMPLE_PX:
        yield Finding(
            "note", "fit", "large-objects", len(sizes),
            f"objects are large: 98 % measure {least:.0f} px or more at --imgsz {describe_size(data.imgsz)}",
            f"Try --imgsz {_in_ratio(data, half)}: {least * half / now:.0f} px are left, and a step takes a quarter of "
            "the time.",
            split.name, figures={"least_px": least, "imgsz": half},
        )  # fmt: skip


# ---- anchors


def _anchors_out_of_reach(
    data: ScannedData, split: ScannedSplit, sizes: np.ndarray, anchors: PlannedAnchors
) -> Iterator[Finding]:
    """Yield the classes, sizes and aspects that the anchors of the training reach badly.

    Training fits new anchors where those of the model reach too few labels. The figures are for the ones it would use.
    """
    rng = np.random.default_rng(0)
    report = check_anchors(
        anchors.sizes_px, sizes, anchors.threshold, rng, strides=anchors.strides, generations=GENERATIONS
    )
    groups = _groups_of_labels(data, split, sizes)
    recalls = {
        name: anchor_recall(report.anchors_px, sizes[chosen], anchors.threshold).recall
        for name, chosen in groups.items()
        if chosen.sum() >= MIN_LABELS
    }
    bad = {name: recall for name, recall in recalls.items() if recall < GOOD_GROUP_RECALL}
    if not bad:
        return
    reached = anchor_recall(report.anchors_px, sizes, anchors.threshold).recall
    named = ", ".join(f"{recall:.0%} of {name}" for name, recall in sorted(bad.items(), key=lambda item: item[1]))
    yield Finding(
        "warning" if reached < GOOD_GROUP_RECALL else "note", "fit", "anchors", len(bad),
        f"groups of boxes are badly reached by {_whose(anchors, is_new=report.replaced)}: {named}",
        f"Objects out of reach are not learned. Raise anchor_t ({anchors.threshold:g}) in the --hyp file, or --imgsz "
        "if they are small; look at the boxes if their shape is unusual.", split.name,
        first_examples(_unreached(split, sizes, report.anchors_px, anchors.threshold)),
        {"anchors": anchors.source, "recall": reached}
        | {f"recall of {name}": recall for name, recall in recalls.items()},
    )  # fmt: skip


def _whose(anchors: PlannedAnchors, *, is_new: bool) -> str:
    """Return which anchors a training would use, in words."""
    return f"new anchors in place of those of {anchors.source}" if is_new else f"the anchors of {anchors.source}"


def _unreached(split: ScannedSplit, sizes: np.ndarray, anchors_px: np.ndarray, threshold: float) -> Iterator[Example]:
    """Yield the labels out of reach, those of the longest shape first."""
    ratios = np.full(len(sizes), np.inf)
    for anchor in anchors_px.reshape(-1, 2):
        side_ratios = sizes / anchor
        np.minimum(ratios, np.maximum(side_ratios, 1 / np.maximum(side_ratios, 1e-9)).max(axis=1), out=ratios)
    order = np.argsort(-ratios, kind="stable")
    for label in order[: int((ratios >= threshold).sum())]:
        yield split.label_example(int(label), "{:.0f} x {:.0f} px".format(*sizes[label]))


def _groups_of_labels(data: ScannedData, split: ScannedSplit, sizes: np.ndarray) -> dict[str, np.ndarray]:
    """Return which labels (M,) belong to each class, size and aspect."""
    ids, roots = split.index.labels[:, 0], np.sqrt(sizes.prod(axis=1))
    aspects = sizes[:, 0] / np.maximum(sizes[:, 1], 1e-6)
    groups = {name: ids == index for index, name in data.spec.names.items()}
    for values, limits, kind in ((roots, SIZE_LIMITS, "size"), (aspects, ASPECT_LIMITS, "width / height")):
        for low, high in pairwise(limits):
            words = f"{low:g} to {high:g}" if np.isfinite(high) else f"{low:g} and more"
            groups[f"boxes of {kind} {words}"] = (values >= low) & (values < high)
    return groups


# ---- flags


def _padding(data: ScannedData, split: ScannedSplit) -> Iterator[Finding]:
    """Yield the share of padding where the images are far from the planned shape and alike."""
    height, width = to_shape(data.imgsz)
    aspects = split.index.shapes[:, 0] / split.index.shapes[:, 1]
    filled = np.minimum(aspects * width / height, height / width / aspects)
    flat = float((aspects <= height / width).mean())
    share = 1 - float(filled.mean())
    if share >= PADDING and max(flat, 1 - flat) >= 0.9:
        planned = "a square" if height == width else f"{height} x {width} px"
        yield Finding(
            "note", "fit", "padding", len(split.index), f"images fill {1 - share:.0%} of {planned}",
            f"--imgsz {_shape_of_images(aspects, max(height, width))} has less padding, with the same objects and with "
            f"mosaic. --rect saves up to {share:.0%} of a step, but trains without mosaic, which costs accuracy on "
            "small data sets. val.py and detect.py pad to rectangles anyway.", split.name, figures={"padding": share},
        )  # fmt: skip


def _shape_of_images(aspects: np.ndarray, longer: int) -> str:
    """Return the words after --imgsz for images of these aspects (N,), height / width, in the median."""
    usual = float(np.median(aspects))
    sides = [max(round(longer * part), 1) for part in (min(usual, 1), min(1 / usual, 1))]
    return describe_size(scale_size(sides, longer, STRIDE))


def _rare_classes(data: ScannedData, split: ScannedSplit) -> Iterator[Finding]:
    """Yield the classes with far fewer labels than the commonest."""
    ids, counts = split.index.labels[:, 0], class_counts(split)
    rare = np.flatnonzero((counts > 0) & (counts * CLASS_RATIO <= counts.max()))
    if not len(rare):
        return
    rare = rare[np.argsort(counts[rare], kind="stable")]
    most = data.spec.names[int(counts.argmax())]
    named = ", ".join(f"{data.spec.names[int(index)]} {counts[index]}" for index in rare[:5])
    named += " ..." if len(rare) > 5 else ""
    yield Finding(
        "note", "fit", "unequal-classes", len(rare),
        f"classes have less than a tenth of the {counts.max()} labels of {most}: {named}",
        "Label more of them. --class-balance shows their images more often, which helps if they share few images with "
        f"{most}, and --class-weights auto gives them more weight in the loss.", split.name,
        first_examples(split.label_example(int(np.flatnonzero(ids == index)[0])) for index in rare),
        {data.spec.names[int(index)]: int(counts[index]) for index in rare[:20]},
    )  # fmt: skip
