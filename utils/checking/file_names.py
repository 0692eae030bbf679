"""Checks of names: of images that clash, of label files that belong to no image, of images without a label file."""

import os
import unicodedata
from collections.abc import Hashable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from utils.checking.findings import Example, Finding, Level, first_examples
from utils.checking.scan import ScannedData, ScannedSplit
from utils.datasets.image_files import label_path, walk_files
from utils.datasets.labels import describe_absent_labels
from utils.datasets.stray_labels import find_stray_labels, resembling
from utils.images.suffixes import UNREAD_SUFFIXES

LEVEL_WITHOUT_LABELS: dict[str, Level] = {"train": "error", "val": "warning", "test": "note"}
MANY_UNLABELLED = 0.1  # share of images without a label file


def check_names(data: ScannedData) -> Iterator[Finding]:
    """Yield the findings on names of images, over all splits together."""
    paths = list(dict.fromkeys(path for split in data.splits.values() for path in split.paths))
    same = _clashes((path, unicodedata.normalize("NFC", path).casefold()) for path in paths)
    if same:
        yield Finding(
            "warning",
            "files",
            "same-but-case",
            len(same),
            "images have names that differ only in letter case or in the form of accents",
            "Windows and macOS keep one of each. Rename them and their label files.",
            examples=first_examples(same),
        )
    names = _clashes((path, os.path.basename(path)) for path in paths)
    if names:
        yield Finding(
            "note",
            "files",
            "same-name",
            len(names),
            "images have a file name that another folder has too",
            "They clash where files are collected into one folder, and results are easily confused.",
            examples=first_examples(names),
        )
    links = [path for path in paths if os.path.islink(path)]
    if links:
        examples = first_examples(Example(path, detail=f"-> {os.readlink(path)}", image=path) for path in links)
        advice = "Copies and archives of the folder may lose them. `cp -L` and `tar -h` follow links."
        yield Finding("note", "files", "link", len(links), "images are links", advice, examples=examples)
    folders = {source for name in data.splits for source in data.spec.sources(name) if source.is_dir()}
    unread = sorted({path for folder in folders for path in walk_files(str(folder), UNREAD_SUFFIXES)})
    if unread:
        examples = first_examples(map(Example, unread))
        suffixes = " ".join(sorted({os.path.splitext(path)[1].lower() for path in unread}))
        text = f"images are of a kind that is not read: {suffixes}"
        advice = "Training ignores them. Convert them to JPEG or PNG under the same names."
        yield Finding("warning", "files", "unread-image", len(unread), text, advice, examples=examples)


def _clashes(keys: Iterable[tuple[str, Hashable]]) -> list[Example]:
    """Return an example for each path whose key an earlier one has."""
    first: dict[Hashable, str] = {}
    clashes = []
    for path, key in keys:
        earlier = first.setdefault(key, path)
        if earlier != path:
            clashes.append(Example(path, detail=f"and {earlier}", image=path))
    return clashes


def check_label_files(data: ScannedData) -> Iterator[Finding]:
    """Yield the findings on label files without an image, and on images without a label file."""
    for split in data.splits.values():
        if not split.annotations:
            yield from _stray_findings(split)
        yield from _unlabelled_findings(split)


def _stray_findings(split: ScannedSplit) -> Iterator[Finding]:
    stray = find_stray_labels(split.paths, whole_folders=all(Path(source).is_dir() for source in split.sources))
    misnamed, orphans = _divide_unused(split, stray.unused)
    checks: tuple[tuple[Level, str, Sequence[tuple[str, str]], str, str], ...] = (
        (
            "error",
            "label-beside-image",
            [(file, "") for file in stray.beside],
            "label files lie beside their images and are not read",
            "Move them to the folder `labels`, which has the same place as the folder `images`.",
        ),
        (
            "error",
            "misnamed-label",
            misnamed,
            "label files are named nearly like an image without labels, and are not read",
            "Give each the name of its image with .txt for the suffix. Letter case counts, and the form of accents.",
        ),
        (
            "warning",
            "orphan-label",
            orphans,
            "label files belong to no image",
            "Remove them, or bring their images back.",
        ),
        (
            "warning",
            "shared-label",
            stray.shared,
            "label files are used for several images each",
            "Rename images that are not the same.",
        ),
        (
            "warning",
            "no-label-folder",
            [(folder, f"images: {count}") for folder, count in stray.absent],
            "folders of labels do not exist, and their images count as backgrounds",
            "If they are, make the folders. Else correct the names: labels/ has the place of images/.",
        ),
    )
    for level, check, places, text, advice in checks:
        if places:
            examples = first_examples(Example(file, detail=detail) for file, detail in places)
            yield Finding(level, "files", check, len(places), text, advice, split.name, examples)


def _divide_unused(split: ScannedSplit, unused: Sequence[str]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return the unused label files that are named nearly like an image without labels, with its name, and others."""
    if not unused:
        return [], []
    without = (path for path in split.paths if not os.path.exists(label_path(path)))
    images = {resembling(os.path.basename(path)): path for path in without}
    nearly = {file: images.get(resembling(os.path.basename(file)), "") for file in unused}
    misnamed = [(file, f"for {os.path.basename(path)}?") for file, path in nearly.items() if path]
    return misnamed, [(file, "") for file, path in nearly.items() if not path]


def _unlabelled_findings(split: ScannedSplit) -> Iterator[Finding]:
    """Yield a finding on images without a label file, or on a split without any label."""
    index = split.index
    if not len(index.labels):
        level = LEVEL_WITHOUT_LABELS[split.name]
        advice = "The annotations hold no object." if split.annotations else describe_absent_labels(index) + "."
        yield Finding(level, "labels", "no-labels", len(index), "images, and not one label", advice, split.name)
        return
    if split.annotations:
        return
    empty = np.flatnonzero(np.diff(index.offsets) == 0)
    absent: list[int] = [i for i in empty.tolist() if not os.path.exists(label_path(index.paths[i]))]
    if absent:
        many = len(absent) > MANY_UNLABELLED * len(index)
        yield Finding(
            "warning" if many else "note",
            "files",
            "no-label-file",
            len(absent),
            "images have no label file, and count as backgrounds",
            "If objects are in them, label them. Else add empty label files, which say that it is meant.",
            split.name,
            first_examples(split.image_example(i, label_path(index.paths[i])) for i in absent),
            {"share": len(absent) / len(index)},
        )
