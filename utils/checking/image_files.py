"""Checks of image files that training can use: formats, depths and sizes that bring surprises."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.checking.findings import Example, Finding, Level, first_examples
from utils.checking.scan import ScannedData, ScannedSplit
from utils.console import progress_bar
from utils.datasets.image_files import map_chunks
from utils.image_size import ImageSize, describe_size, to_shape
from utils.images.traits import SUFFIXES, Traits, read_traits
from utils.pixel_format import PixelFormat

CHUNK = 256  # files read by one process at a time
MUCH_LARGER, MUCH_SMALLER = 4, 4  # times --imgsz
MAX_ASPECT = 4  # longer side by shorter side


class TraitCheck(NamedTuple):
    """A kind of image file, recognised by its traits and its suffix."""

    check: str
    applies: Callable[[Traits, str], bool]
    detail: Callable[[Traits], str]
    text: str
    advice: str
    level: Level


TRAIT_CHECKS = (
    TraitCheck(
        "wrong-suffix",
        lambda traits, suffix: traits.kind in SUFFIXES and suffix not in SUFFIXES[traits.kind] and traits.kind != "GIF",
        lambda traits: traits.kind,
        "images are of another format than their suffix says",
        "Rename them. Training reads them by their content, other programs may not.",
        "warning",
    ),
    TraitCheck(
        "exif-turned",
        lambda traits, suffix: traits.turned,
        lambda traits: "",
        "images are turned or mirrored by their Exif orientation",
        "Training turns them as image viewers do. Look at their boxes: some labelling tools ignore the orientation.",
        "warning",
    ),
    TraitCheck(
        "animated",
        lambda traits, suffix: traits.frames > 1,
        lambda traits: "",
        "images have several frames or pages",
        "Only the first one is read. Save the others as images of their own.",
        "warning",
    ),
    TraitCheck(
        "cmyk",
        lambda traits, suffix: traits.cmyk,
        lambda traits: traits.kind,
        "images are in CMYK",
        "They are converted, and programs differ in the colours. Save them in RGB.",
        "note",
    ),
    TraitCheck(
        "deep",
        lambda traits, suffix: traits.bits > 8,
        lambda traits: f"{traits.bits} bits",
        "images have more than 8 bits per channel",
        "They are read as 8 bits. `bit_depth: 16` in the data set YAML trains on their whole range.",
        "note",
    ),
    TraitCheck(
        "alpha",
        lambda traits, suffix: traits.alpha,
        lambda traits: "",
        "images have an alpha channel",
        "It is ignored, so the model sees what it hides. Flatten the images if that matters.",
        "note",
    ),
)


def check_images(data: ScannedData) -> Iterator[Finding]:
    """Yield the findings on formats and sizes of the images."""
    for split in data.splits.values():
        expected = expected_traits(split.index.pixels)
        for finding in trait_findings(split.name, split.paths, read_all_traits(split)):
            if finding.check not in expected:
                yield finding
        yield from size_findings(split, data.imgsz)


def expected_traits(pixels: PixelFormat) -> set[str]:
    """Return the checks that say nothing about images of a pixel format that the data set YAML states."""
    return ({"deep"} if pixels.bit_depth > 8 else set()) | (
        {"alpha", "animated", "cmyk"} if pixels.channels > 3 else set()
    )


def read_all_traits(split: ScannedSplit) -> list[Traits]:
    """Return the traits of each image of a split, usable or not."""
    found: list[Traits] = []
    with progress_bar(total=len(split.paths), desc=f"{split.name}: Reading headers", leave=False) as bar:
        for part in map_chunks(_read_chunk, split.paths, size=CHUNK):
            found += part
            bar.update(len(part))
    return found


def _read_chunk(paths: list[str]) -> list[Traits]:
    return list(map(read_traits, paths))


def trait_findings(split: str, paths: Sequence[str], traits: Sequence[Traits]) -> Iterator[Finding]:
    """Yield a finding for each kind of TRAIT_CHECKS that occurs."""
    usual = {one for one in set(traits) if one == Traits(one.kind, one.channels)}
    special = [(path, one) for path, one in zip(paths, traits, strict=True) if one not in usual]
    others = [(path, one) for path, one in zip(paths, traits, strict=True) if one in usual]
    for check in TRAIT_CHECKS:
        candidates = special + others if check.check == "wrong-suffix" else special
        found = [(path, one) for path, one in candidates if check.applies(one, Path(path).suffix.lower())]
        if found:
            examples = first_examples(Example(path, detail=check.detail(one), image=path) for path, one in found)
            yield Finding(check.level, "files", check.check, len(found), check.text, check.advice, split, examples)


def size_findings(split: ScannedSplit, imgsz: ImageSize) -> Iterator[Finding]:
    """Yield the findings on images that are large or small for a training at `imgsz`, or long and thin."""
    shorter, longer = np.sort(split.index.shapes, axis=1).T
    aspect, typed = longer / shorter, describe_size(imgsz)
    checks = (
        (
            "large-image",
            (split.index.shapes / to_shape(imgsz)).max(axis=1),
            MUCH_LARGER,
            f"images are more than {MUCH_LARGER} times as large as --imgsz {typed}",
            "Reading them takes most of the time: save smaller copies, or cut them into tiles if objects are small.",
        ),
        (
            "small-image",
            (to_shape(imgsz) / split.index.shapes).min(axis=1),
            MUCH_SMALLER,
            f"images are enlarged more than {MUCH_SMALLER} times for --imgsz {typed}",
            "A smaller --imgsz trains faster and loses nothing, unless others are larger.",
        ),
        (
            "odd-aspect",
            aspect,
            MAX_ASPECT,
            f"images are more than {MAX_ASPECT} times as long as wide",
            "Most of the network's input is padding. Crop them or cut them into tiles, or train with --rect.",
        ),
    )
    for check, value, limit, text, advice in checks:
        found = np.flatnonzero(value > limit)
        order = found[np.argsort(-value[found], kind="stable")]
        if len(order):
            examples = first_examples(split.image_example(int(i), _size_text(split, int(i))) for i in order)
            yield Finding("note", "files", check, len(order), text, advice, split.name, examples)


def _size_text(split: ScannedSplit, image: int) -> str:
    height, width = split.index.shapes[image]
    return f"{width}x{height}"
