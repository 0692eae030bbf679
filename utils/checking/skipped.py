"""Findings on what the scan skips: images that cannot be used, rows of label files that are refused."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from utils.checking.findings import Example, Finding, Level, first_examples
from utils.checking.scan import ScannedData, ScannedSplit
from utils.datasets.image_files import label_path
from utils.datasets.label_index import LabelIndex
from utils.datasets.labels import look_like_corners, look_like_keypoints

SKIPPED_IMAGE = re.compile(r"(.+?): image skipped: (.+)", re.DOTALL)
SKIPPED_ROW = re.compile(r"(.+?\.\w+):(\d+): (.+)", re.DOTALL)
REMARK = re.compile(r"(.+?): ((?:skipped|corrected): (\d+) .+)", re.DOTALL)
MORE_ROWS = re.compile(r"(.+): (\d+) more rows skipped")


class Kind(NamedTuple):
    """A kind of skipped image or row, recognised by the reason that the scan gives."""

    reason: str  # pattern
    check: str
    text: str
    advice: str
    level: Level = "error"


IMAGE_KINDS = (
    Kind("the file is empty", "empty-image", "image files are empty", "Copy or download them again."),
    Kind("truncated", "truncated-image", "images are truncated", "Copy or download them again."),
    Kind("less than", "tiny-image", "images are too small to be used", "Remove them, they are probably icons."),
    Kind("more than", "huge-image", "images are too large to be decoded", "Cut them into tiles."),
    Kind("GIF", "gif-image", "images are GIF files, whatever their suffix", "Convert them to PNG or JPEG."),
    Kind("progressive", "slow-image", "progressive JPEGs take too long to decode", "Save them again."),
    Kind(
        "its label file", "unreadable-label", "label files cannot be read", "Correct their permissions, or copy them."
    ),
    Kind(
        "not an image|cannot be decoded",
        "undecodable-image",
        "files are no images, or damaged ones",
        "Open them: pages saved in place of an image and other formats occur. Replace or remove them.",
    ),
    Kind(
        "",
        "unreadable-image",
        "image files cannot be read",
        "Correct links, lists and permissions, or remove the entries.",
    ),
)
ROW_KINDS = (
    Kind("repeats", "repeated-row", "rows repeat an earlier one", "Remove them; training takes each once.", "warning"),
    Kind(
        "may be corners",
        "corners",
        "rows look like corners in pixels",
        "Write class, centre x, centre y, width and height, divided by the image's size.",
    ),
    Kind(
        "not within 0...1",
        "out-of-range",
        "boxes are out of range",
        "Divide pixels by the image's width and height. Training skips these rows.",
    ),
    Kind("no area", "zero-area", "boxes have no area", "Draw them again, or remove the rows. Training skips them."),
    Kind(
        "not a whole number",
        "not-a-class",
        "rows begin with no class id",
        "Begin each row with the class, a whole number from 0. Training skips these rows.",
    ),
    Kind("", "malformed-row", "rows are neither a box nor a polygon", "Correct the rows. Training skips them."),
)


# What a reader of COCO or VOC files skipped or corrected: it counts, and names a few.
REMARK_KINDS = (
    Kind(
        "repeat",
        "repeated-object",
        "objects repeat an earlier one",
        "Remove them; training takes each once.",
        "warning",
    ),
    Kind(
        "^skipped: .*(categories that only|--keep-crowds)",
        "skipped-entry",
        "entries are skipped, as is usual",
        "Nothing is to be done.",
        "note",
    ),
    Kind("^skipped", "skipped-object", "annotations or images are skipped", "Correct the entries that are named."),
    Kind("", "corrected-object", "annotations are corrected", "Look at the entries that are named.", "warning"),
)


@dataclass
class _Group:
    """Places of one kind in one split."""

    count: int = 0
    places: list[tuple[str, int, str]] = field(default_factory=list)  # file, line, reason


def check_skipped(data: ScannedData) -> Iterator[Finding]:
    """Yield the findings on splits without a usable image, and on images and rows that training skips."""
    for name, reason in data.unusable.items():
        level: Level = "warning" if name == "test" else "error"
        effect = "Training does not need it, `val.py --task test` does." if name == "test" else "Training cannot start."
        advice = f"{effect} Correct the entry of the YAML, or the files."
        yield Finding(level, "files", "unusable-split", 1, f"split cannot be read: {reason}", advice, name)
    for split in data.splits.values():
        yield from skipped_findings(split)


def skipped_findings(split: ScannedSplit) -> Iterator[Finding]:
    """Yield the findings on the images and rows of a split that training skips."""
    groups = group_messages(split.index.messages)
    if not groups:
        return
    images = {label_path(path): path for path in split.index.paths}
    for kinds, theme in ((IMAGE_KINDS, "files"), (ROW_KINDS, "labels"), (REMARK_KINDS, "labels")):
        for kind in kinds:
            group = groups.get(kind)
            if group:
                examples = (Example(*place, image=images.get(place[0], "")) for place in group.places)
                yield Finding(
                    kind.level, theme, kind.check, group.count, kind.text, kind.advice, split.name,
                    first_examples(examples),
                )  # fmt: skip


def count_errors(index: LabelIndex) -> dict[str, int]:
    """Return the number of errors that an index shows, by the name of their check. No file is read."""
    groups = group_messages(index.messages)
    counts = {kind.check: group.count for kind, group in groups.items() if kind.level == "error"}
    for check, probable in (("corners", look_like_corners(index.labels)), ("keypoints", look_like_keypoints(index))):
        if probable:
            counts[check] = counts.get(check, 0) + len(index.labels)
    return counts


def group_messages(messages: Iterable[str]) -> dict[Kind, _Group]:
    """Return the places of each kind. Rows that a message only counts go to the last kind of their file."""
    groups: dict[Kind, _Group] = defaultdict(_Group)
    last = ROW_KINDS[-1]
    for message in messages:
        more = MORE_ROWS.fullmatch(message)
        if more:
            groups[last].count += int(more[2])
            continue
        image, row, remark = (form.fullmatch(message) for form in (SKIPPED_IMAGE, SKIPPED_ROW, REMARK))
        count = 1
        if remark:
            kind, place, count = _kind_of(remark[2], REMARK_KINDS), (remark[1], 0, remark[2]), int(remark[3])
        elif image:
            kind, place = _kind_of(image[2], IMAGE_KINDS), (image[1], 0, image[2])
        elif row:
            kind, place = _kind_of(row[3], ROW_KINDS), (row[1], int(row[2]), row[3])
            last = kind
        else:
            file, _, reason = message.partition(": ")
            kind, place = _kind_of(reason, ROW_KINDS), (file, 0, reason)
        groups[kind].count += count
        groups[kind].places.append(place)
    return groups


def _kind_of(reason: str, kinds: tuple[Kind, ...]) -> Kind:
    return next(kind for kind in kinds if re.search(kind.reason, reason))
