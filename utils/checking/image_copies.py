"""Findings on images that occur twice, in two splits or in one, and on sequences that two splits share."""

import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from typing import NamedTuple

import numpy as np

from utils.checking.duplicates import Matches, correlate, count_same_boxes, match_images
from utils.checking.findings import Example, Finding, Level, first_examples
from utils.checking.fingerprints import Fingerprints, take_fingerprints
from utils.checking.scan import ScannedData, ScannedSplit
from utils.datasets.sequences import group_by_sequence

CONFIRMED = 0.5  # least share of boxes that nearly equal images share, else a fixed camera saw other objects
MIN_FRAMES = 4  # of a sequence that images of two splits belong to
MIN_ALIKE = 0.8  # median correlation of neighbouring frames
MIN_GAIN = 0.1  # by which it is above that of any two images


class Pair(NamedTuple):
    """An image and the one that it repeats."""

    image: int
    other: int
    same: int  # boxes on both
    boxes: int  # on the one with more


def check_copies(data: ScannedData, *, progress: bool = True) -> Iterator[Finding]:
    """Yield the findings on images that occur twice and on sequences. Decodes every image once."""
    prints = {name: take_fingerprints(split.index.paths, progress=progress) for name, split in data.splits.items()}
    for (first, a), (second, b) in combinations(data.splits.items(), 2):
        matches = match_images(prints[second], prints[first])
        yield from _repetitions(b, a, matches)
        yield from _mirror_images(b, a, match_images(prints[second].mirrored(), prints[first]), matches.partners < 0)
    for name, split in data.splits.items():
        yield from _repetitions(split, split, match_images(prints[name]))
    yield from _sequence_findings(data, prints)


class Wording(NamedTuple):
    """Texts of a finding on repeated images."""

    level: Level
    code: str
    title: str
    advice: str


def _repetitions(split: ScannedSplit, earlier: ScannedSplit, matches: Matches) -> Iterator[Finding]:
    """Yield the findings on images of a split that `earlier`, the same split or another one, has too."""
    copies = [_pair(split, earlier, matches, image) for image in matches.copies]
    alike = [pair for image in matches.alike if _is_confirmed(pair := _pair(split, earlier, matches, image))]
    wordings = WITHIN if split is earlier else _between(split.name, earlier.name)
    for pairs, (level, code, title, advice) in zip((copies, alike), wordings, strict=True):
        if pairs:
            yield Finding(
                level, "splits", code, len(pairs), title, advice, split.name, _examples(split, earlier, pairs),
                {"share": len(pairs) / len(split.index)},
            )  # fmt: skip
    yield from _contradictions(split, earlier, copies)


WITHIN = (
    Wording(
        "warning", "copy", "images are copies of another one",
        "Remove them: they count twice, in training and in figures.",
    ),
    Wording(
        "note", "same-image", "images are nearly the same as another one",
        "Keep one of each pair if the labels of the others cost time: they teach little that is new.",
    ),
)  # fmt: skip


def _between(name: str, earlier: str) -> tuple[Wording, Wording]:
    """Return the texts on copies, and on images that are nearly the same, in two splits."""
    advice = f"Keep them in one of the two: a model that has trained on an image of {name} is measured too well."
    return (
        Wording("error", "copy-in-two-splits", f"images of {name} are also in {earlier}", advice),
        Wording(
            "warning", "same-image-in-two-splits", f"images of {name} are nearly the same as one of {earlier}",
            f"Look at the pairs. {advice}",
        ),
    )  # fmt: skip


def _contradictions(split: ScannedSplit, earlier: ScannedSplit, copies: list[Pair]) -> Iterator[Finding]:
    pairs = [pair for pair in copies if pair.same < pair.boxes]
    if pairs:
        where = "" if split is earlier else f" of {earlier.name}"
        yield Finding(
            "error", "splits", "copies-labelled-differently", len(pairs),
            f"images have other labels than their copy{where}", "Correct the labels, and keep one of the two.",
            split.name, _examples(split, earlier, pairs),
        )  # fmt: skip


def _mirror_images(
    split: ScannedSplit, earlier: ScannedSplit, matches: Matches, is_new: np.ndarray
) -> Iterator[Finding]:
    """Yield the finding on images that are mirror images of one of another split, of those that are `is_new` (N,)."""
    found = (_pair(split, earlier, matches, image, mirrored=True) for image in matches.alike if is_new[image])
    pairs = list(filter(_is_confirmed, found))
    if pairs:
        yield Finding(
            "warning", "splits", "mirror-image-in-two-splits", len(pairs),
            f"images of {split.name} are mirror images of one of {earlier.name}",
            "Look at the pairs. Keep them in one of the two: training mirrors its images, so it has seen those of "
            f"{split.name}, which are measured too well.",
            split.name, _examples(split, earlier, pairs, "mirrored "), {"share": len(pairs) / len(split.index)},
        )  # fmt: skip


def _pair(split: ScannedSplit, earlier: ScannedSplit, matches: Matches, image: int, *, mirrored: bool = False) -> Pair:
    other = int(matches.partners[image])
    return Pair(int(image), other, *count_same_boxes(split, image, earlier, other, mirrored=mirrored))


def _is_confirmed(pair: Pair) -> bool:
    """Return whether the labels agree that two images show the same: a small object does not change a gray copy."""
    return pair.same >= CONFIRMED * pair.boxes


def _examples(split: ScannedSplit, earlier: ScannedSplit, pairs: list[Pair], how: str = "") -> tuple[Example, ...]:
    def describe(pair: Pair) -> Example:
        other = earlier.index.paths[pair.other]
        boxes = f", same boxes: {pair.same} of {pair.boxes}" if pair.boxes else ""
        detail = f"{how}as {os.path.basename(other)}{boxes}"
        return replace(split.image_example(pair.image, detail, with_boxes=True), beside=other)

    return first_examples(map(describe, pairs))


# ---- sequences


class SharedSequence(NamedTuple):
    """A sequence of which two splits or more have frames."""

    name: str  # such as `clip/frame_*`
    counts: dict[str, int]  # frames by split
    change: tuple[int, int]  # neighbouring frames in different splits: the later one first

    def __str__(self) -> str:
        return f"{self.name}: " + " and ".join(f"{count} of {split}" for split, count in self.counts.items())


def _sequence_findings(data: ScannedData, prints: dict[str, Fingerprints]) -> Iterator[Finding]:
    paths = [path for split in data.splits.values() for path in split.index.paths]
    copies = np.concatenate([prints[name].copies for name in data.splits])
    shared = sorted(_shared_sequences(data, paths, copies), key=lambda sequence: -sum(sequence.counts.values()))
    if shared:
        named = ", ".join(sequence.name for sequence in shared[:3]) + (" ..." if len(shared) > 3 else "")
        yield Finding(
            "warning", "splits", "sequence-in-two-splits", len(shared),
            f"sequences of images are divided between splits: {named}",
            "Keep a sequence in one split: neighbouring frames are nearly the same image, which flatters the figures.",
            examples=first_examples(_sequence_example(sequence, paths) for sequence in shared),
            figures={"images": sum(sum(sequence.counts.values()) for sequence in shared)},
        )  # fmt: skip


def _sequence_example(sequence: SharedSequence, paths: list[str]) -> Example:
    path, beside = (paths[row] for row in sequence.change)
    return Example(path, detail=str(sequence), image=path, beside=beside)


def _shared_sequences(data: ScannedData, paths: list[str], copies: np.ndarray) -> Iterator[SharedSequence]:
    """Yield the sequences that splits share: the names show them, and neighbouring frames look alike.

    `copies` (N, P) are the gray copies of the images at `paths`, split by split.
    """
    names = list(data.splits)
    split_of = np.repeat(np.arange(len(names)), [len(split.index) for split in data.splits.values()])
    found = group_by_sequence(paths)
    order = np.lexsort((found.numbers, found.groups))
    for rows in np.split(order, np.flatnonzero(np.diff(found.groups[order])) + 1):
        if len(rows) < MIN_FRAMES:
            continue
        present, counts = np.unique(split_of[rows], return_counts=True)
        if len(present) < 2 or not _look_like_frames(copies[rows]):
            continue
        change = int(np.flatnonzero(np.diff(split_of[rows]))[0])
        yield SharedSequence(
            name=found.names[found.groups[rows[0]]].lstrip("/"),
            counts={names[k]: int(count) for k, count in zip(present, counts, strict=True)},
            change=(int(rows[change + 1]), int(rows[change])),
        )


def _look_like_frames(copies: np.ndarray) -> bool:
    """Return whether neighbours are alike, and more so than images that are far apart."""
    neighbours = np.median(correlate(copies[1:], copies[:-1]))
    apart = np.median(correlate(copies, np.roll(copies, len(copies) // 2, axis=0)))
    return bool(neighbours >= MIN_ALIKE and neighbours >= apart + MIN_GAIN)
