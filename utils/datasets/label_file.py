"""One label file: an object a line, read row by row.

`class x y w h` is a box: centre and size as fractions of the picture. `class x1 y1 x2 y2 x3 y3 …` is a polygon, whose
hull is the box.
"""

import math
from itertools import starmap
from typing import NamedTuple, NoReturn

MAX_ROW = 1 << 20  # bytes: split into numbers a row takes thirty times its size
SMALLEST = 1e-12  # of a side: a smaller one is 0 as a float32, or close
ONE = 1 + 2**-24  # whatever is not above this is at most 1.0 as a float32


class ParsedLabels(NamedTuple):
    boxes: list[tuple[float, ...]]  # class, x, y, w, h
    polygons: list[tuple[float, ...]]  # x1, y1, x2, y2, … for a polygon row, empty for a box row
    problems: list[tuple[int, str]]  # line number, why that row was left out


def parse_labels(data: bytes) -> ParsedLabels:
    """Read a label file's bytes row by row; a row that does not hold is left out and reported, the others stay.

    Numbers are ASCII and finite, the class a whole number of at least 0, the centre and size of the box (of a polygon's
    hull too) within 0…1 and the size above 0. Rows that repeat an earlier one in every number are left out.
    """
    boxes = _plain_boxes(data)
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
            values = _parse_numbers(tokens)
            box, polygon = (values, ()) if len(values) == 5 else (_hull(values), values[1:])
            if not _is_good(*box):
                _complain(box)
        except ValueError as error:
            parsed.problems.append((number, str(error)))
            continue
        if values in seen:
            parsed.problems.append((number, "the same row stands above: this one is left out"))
            continue
        seen.add(values)
        parsed.boxes.append(box)
        parsed.polygons.append(polygon)
    return parsed


def _plain_boxes(data: bytes) -> list[tuple[float, ...]] | None:
    """The boxes of a file as most are: every row a good box, none twice. None for any other."""
    rows = [line.split() for line in data.splitlines()] if len(data) <= MAX_ROW and b"_" not in data else [[]]
    if set(map(len, rows)) - {5}:
        return None
    try:
        boxes = [tuple(map(float, row)) for row in rows]
    except ValueError:
        return None
    return boxes if len(set(boxes)) == len(boxes) and all(starmap(_is_good, boxes)) else None


def _parse_numbers(tokens: list[bytes]) -> tuple[float, ...]:
    if len(tokens) != 5 and (len(tokens) < 7 or len(tokens) % 2 == 0):
        if b"," in b"".join(tokens):
            raise ValueError("numbers are divided by blanks, not by commas")
        raise ValueError(
            f"{len(tokens)} numbers in the row: a box has 5 (class x y w h), "
            "a polygon an odd count of 7 or more (class x1 y1 x2 y2 x3 y3)"
        )
    try:
        values = tuple(map(float, tokens))  # of bytes: takes ASCII only
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


def _hull(values: tuple[float, ...]) -> tuple[float, ...]:
    xs, ys = values[1::2], values[2::2]
    left, right, top, bottom = min(xs), max(xs), min(ys), max(ys)
    return values[0], (left + right) / 2, (top + bottom) / 2, right - left, bottom - top


def _is_good(kind: float, x: float, y: float, w: float, h: float) -> bool:
    return (
        kind >= 0
        and kind.is_integer()
        and 0 <= x <= ONE
        and 0 <= y <= ONE
        and SMALLEST <= w <= ONE
        and SMALLEST <= h <= ONE
    )


def _complain(box: tuple[float, ...]) -> NoReturn:
    """ValueError that says why a box is not good."""
    kind, x, y, w, h = box
    if kind < 0 or not kind.is_integer():
        raise ValueError(f"class {kind:g} is not a whole number of at least 0")
    if min(x, y, w, h) < 0 or max(x, y, w, h) > ONE:
        raise ValueError(f"x y w h = {x:g} {y:g} {w:g} {h:g} is not within 0...1: divide pixels by the picture's size")
    raise ValueError("the box has no area")
