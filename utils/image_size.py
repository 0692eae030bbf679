"""Image sizes as `--imgsz` gives them: one side of a square, or height and width."""

from collections.abc import Sequence

from utils import console
from utils.errors import UserError

ImageSize = int | Sequence[int]  # one side, or one or two of height and width


def to_shape(size: ImageSize) -> tuple[int, int]:
    """Return height and width."""
    sides = (size,) if isinstance(size, int) else size
    return sides[0], sides[-1]


def to_sides(size: ImageSize) -> list[int]:
    """Return the words of `--imgsz`: one number for a square, else height and width."""
    shape = to_shape(size)
    return list(shape)[: len(set(shape))]


def to_option(size: ImageSize) -> int | list[int]:
    """Return the value of `--imgsz` as files hold it: a number for a square, else a list of height and width."""
    sides = to_sides(size)
    return sides[0] if len(sides) == 1 else sides


def describe_size(size: ImageSize) -> str:
    """Return the size as one types it after `--imgsz`."""
    return " ".join(map(str, to_sides(size)))


def scale_size(size: ImageSize, longer: int, stride: int) -> tuple[int, int]:
    """Return height and width in the ratio of `size`, the longer one `longer`, both rounded up to whole strides."""
    shape = to_shape(size)
    height, width = (-(-side * longer // (max(shape) * stride)) * stride for side in shape)
    return height, width


def require_size(size: ImageSize) -> None:
    """Raise UserError unless `size` is one side, or height and width, of at least a pixel."""
    sides = [size] if isinstance(size, int) else list(size)
    if not 1 <= len(sides) <= 2 or min(sides) < 1:
        typed = " ".join(map(str, sides))
        raise UserError(
            f"--imgsz {typed}: expected one side or height and width in pixels, as in --imgsz 640 or --imgsz 384 640"
        )


def round_size(size: ImageSize, stride: int, *, least: int = 1) -> tuple[int, int]:
    """Return height and width rounded up to multiples of a model's stride, with a warning if they change.

    Each is at least `least` strides.
    """
    shape = to_shape(size)
    height, width = (max(-(-side // stride), least) * stride for side in shape)
    if (height, width) != shape:
        reason = "is not a multiple" if len(to_sides(size)) == 1 else "are not multiples"
        reason = f"{reason} of the model's stride {stride}"
        if min(shape) <= (least - 1) * stride:
            reason = f"is too small for a model of stride {stride}"
        console.warn(f"--imgsz {describe_size(size)} {reason}; using {describe_size((height, width))}")
    return height, width
