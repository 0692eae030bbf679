"""One label file: one object per line, read row by row.

`class cx cy w h` is a box, in fractions of the image's sides. `class x1 y1 x2 y2 x3 y3 …` is a polygon; its bounding
box is the object's box. In a data set with keypoints `class cx cy w h` is followed by them; they are not read.
"""

import math
from itertools import starmap
from typing import NamedTuple, NoReturn

MAX_ROW = 1 << 20  # bytes; split into numbers, a row takes thirty times its size in memory
MIN_SIDE = 1e-12  # of a box; a smaller one is about 0 as float32
ONE = 1 + 2**-24  # values up to this are at most 1.0 as float32
SLACK = 1e-4  # values that leave 0...1 by less are rounding errors, and are clipped


class ParsedLabels(NamedTuple):
    """Valid rows of a label file, and the reasons why others were skipped."""

    boxes: list[tuple[float, ...]]  # class, cx, cy, w, h in 0…1
    polygons: list[tuple[float, ...]]  # x1, y1, x2, y2, … of a polygon row, empty for a box row
    problems: list[tuple[int, str]]  # line number, why that row was skipped


def parse_labels(data: bytes, keypoint_values: int = 0) -> ParsedLabels:
    """Parse the bytes of a label file row by row. Skip and report invalid rows, keep the others.

    Numbers are ASCII and finite. The class is a whole number, 0 or more. Centre and size of the box (of a polygon's
    bounding box too) are within 0…1, and the size is above 0. Rows equal to an earlier row in every number are skipped.
    With `keypoint_values`, a row is a box, or a box and that number of values; there are no polygons.
    """
    boxes = _parse_boxes_only(data)
    if boxes is not None:
        return ParsedLabels(boxes, [()] * len(boxes), [])
    parsed, seen = ParsedLabels([], [], []), set()
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        if len(line) > MAX_ROW:
            parsed.problems.append((number, f"a row of {len(line)} bytes"))
            continue
        tokens = line.split()
        if not tokens:
            continue
        try:
            values = _parse_numbers(tokens, keypoint_values)
            is_box = len(values) == 5 or keypoint_values > 0
            box, polygon = (values[:5], ()) if is_box else (_bounding_box(values), values[1:])
            if not _is_valid(*box):
                box = _clip_rounding(box)
            if not _is_valid(*box):
                _raise_invalid(box)
        except ValueError as error:
            parsed.problems.append((number, str(error)))
            continue
        if values in seen:
            parsed.problems.append((number, "repeats an earlier row"))
            continue
        seen.add(values)
        parsed.boxes.append(box)
        parsed.polygons.append(polygon)
    return parsed


def _parse_boxes_only(data: bytes) -> list[tuple[float, ...]] | None:
    """Return the boxes of an ordinary file: only valid box rows, none twice. Return None for any other file."""
    rows = [line.split() for line in data.splitlines()] if len(data) <= MAX_ROW and b"_" not in data else [[]]
    if set(map(len, rows)) - {5}:
        return None
    try:
        boxes = [tuple(map(float, row)) for row in rows]
    except ValueError:
        return None
    return boxes if len(set(boxes)) == len(boxes) and all(starmap(_is_valid, boxes)) else None


def _parse_numbers(tokens: list[bytes], keypoint_values: int) -> tuple[float, ...]:
    count = len(tokens)
    is_polygon = count >= 7 and count % 2 == 1
    if count != 5 and not (count == 5 + keypoint_values if keypoint_values else is_polygon):
        if b"," in b"".join(tokens):
            raise ValueError("numbers must be separated by spaces, not by commas")
        if keypoint_values:
            raise ValueError(f"{count} numbers in the row: with kpt_shape it has 5 or {5 + keypoint_values}")
        raise ValueError(
            f"{count} numbers in the row: a box has 5 (class x y w h), "
            "a polygon an odd count of 7 or more (class x1 y1 x2 y2 x3 y3)"
            + "; remove a confidence behind the box"
            * (count == 6)
        )
    try:
        values = tuple(map(float, tokens))  # float() of bytes takes ASCII only
    except ValueError:
        values = (math.nan,)
    if not math.isfinite(sum(values)) or b"_" in b"".join(tokens):  # the sum of large numbers may be infinite too
        bad = next((token for token in tokens if b"_" in token or not _is_finite(token)), None)
        if bad is not None:
            raise ValueError(f"{bad[:20].decode('ascii', 'backslashreplace')!r} is not a finite number")
    return values


def _is_finite(token: bytes) -> bool:
    try:
        return math.isfinite(float(token))
    except ValueError:
        return False


def _bounding_box(values: tuple[float, ...]) -> tuple[float, ...]:
    """Return class, cx, cy, w, h for a polygon row."""
    xs, ys = values[1::2], values[2::2]
    left, right, top, bottom = min(xs), max(xs), min(ys), max(ys)
    return values[0], (left + right) / 2, (top + bottom) / 2, right - left, bottom - top


def _is_valid(class_id: float, x: float, y: float, w: float, h: float) -> bool:
    return (
        class_id >= 0
        and class_id.is_integer()
        and 0 <= x <= ONE
        and 0 <= y <= ONE
        and MIN_SIDE <= w <= ONE
        and MIN_SIDE <= h <= ONE
    )


def _clip_rounding(box: tuple[float, ...]) -> tuple[float, ...]:
    """Return the box with values that are off 0…1 by a rounding error moved to 0 or 1."""
    return box[0], *(min(max(v, 0.0), 1.0) if -SLACK <= v <= 1 + SLACK else v for v in box[1:])


def _raise_invalid(box: tuple[float, ...]) -> NoReturn:
    """Raise a ValueError that says why a box is invalid."""
    class_id, x, y, w, h = box
    if class_id < 0 or not class_id.is_integer():
        last = "; the class is the first number, not the last" if h.is_integer() and not class_id.is_integer() else ""
        raise ValueError(f"class {class_id:g} is not a whole number of at least 0{last}")
    if min(x, y, w, h) < 0 or max(x, y, w, h) > ONE:
        text = " ".join(f"{value:.9g}" for value in (x, y, w, h))
        problem = f"x y w h = {text} is not within 0...1"
        if max(x, y) > 1 and w > x and h > y:
            raise ValueError(
                f"{problem}: these may be corners (x1 y1 x2 y2) in pixels. Write centre and size of the box, and "
                "divide pixels by the image's size"
            )
        raise ValueError(f"{problem}: divide pixels by the image's size")
    raise ValueError("the box has no area")
