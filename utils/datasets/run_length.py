"""Run-length masks of COCO annotations (https://cocodataset.org/#format-data): counts of pixels outside and inside.

Runs go down the columns, the first one outside. `counts` is a list, or text with 5 bits a character.
"""

from collections.abc import Mapping

import cv2
import numpy as np

from utils.cli import shorten
from utils.errors import UserError

MAX_PIXELS = 2**28
MAX_BITS = 60  # of a number in compressed counts


def mask_box(segmentation: Mapping) -> tuple[float, float, float, float]:
    """Return the box (x1, y1, x2, y2) around the pixels of a mask, in pixels. Raises UserError for an empty one."""
    mask = decode_mask(segmentation)
    xs, ys = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    if not len(xs):
        raise UserError("the mask is empty")
    return float(xs[0]), float(ys[0]), float(xs[-1] + 1), float(ys[-1] + 1)


def mask_outlines(segmentation: Mapping) -> list[list[tuple[float, float]]]:
    """Return the outer outlines of a mask, of three points or more, through the centres of its border pixels."""
    contours, _ = cv2.findContours(decode_mask(segmentation), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    parts = [np.asarray(contour, np.float64).reshape(-1, 2) + 0.5 for contour in contours if len(contour) > 2]
    return [list(zip(*part.T.tolist(), strict=True)) for part in parts]


def decode_mask(segmentation: Mapping) -> np.ndarray:
    """Return the mask (H, W) uint8 of 0 and 1. Raises UserError if the counts do not fill its size."""
    size, counts = segmentation.get("size"), segmentation.get("counts")
    sides = size if isinstance(size, list) else []
    if len(sides) != 2 or not all(type(side) is int and 0 < side <= MAX_PIXELS for side in sides):
        raise UserError(f"run-length mask: size {shorten(size)}: expected [height, width]")
    runs = decode_counts(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(type(run) is int and 0 <= run <= MAX_PIXELS for run in runs):
        raise UserError(
            f"run-length mask: counts {shorten(counts)}: expected a list of numbers from 0 to {MAX_PIXELS}, or text"
        )
    height, width = sides
    if sum(runs) != height * width or height * width > MAX_PIXELS:
        raise UserError(f"run-length mask: {sum(runs)} pixels in its counts, but its size is {height} x {width}")
    values = np.arange(len(runs), dtype=np.uint8) % 2
    return np.repeat(values, runs).reshape(width, height).T.copy()


def decode_counts(text: str) -> list[int]:
    """Return the run lengths of compressed counts.

    A number has 5 bits a character, the lowest first, each with 48 added; bit 5 marks that more follow. The highest bit
    is the sign. From the fourth number on it is the difference to the last but one run.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64:
            raise UserError(f"run-length mask: {character!r} is no character of compressed counts")
        value |= (code & 31) << shift
        shift += 5
        if shift > MAX_BITS:
            raise UserError("run-length mask: the compressed counts hold a number that is too large")
        if code & 32:
            continue
        value -= (code >> 4 & 1) << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise UserError("run-length mask: the compressed counts end within a number")
    return runs
