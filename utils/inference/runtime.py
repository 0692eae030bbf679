"""Protocol of a runtime: the library that runs an exported file, behind one interface.

Legend: B batch, H W rows and columns.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from utils.errors import UserError
from utils.pixel_format import MAX_CHANNELS

CPU = torch.device("cpu")


@dataclass(frozen=True)
class RuntimeSettings:
    """Choices of the user for the library that runs a file."""

    device: torch.device = CPU
    dnn: bool = False  # read ONNX files with OpenCV
    half: bool = False  # run in 16 bits where the library can
    threads: int = 0  # 0 lets the library choose


class InputShape(tuple[int | None, int | None, int | None]):
    """Batch, height and width of a model's input, each None if it is dynamic. `channels` is None if it is unknown."""

    channels: int | None

    def __new__(cls, sides: Iterable[int | None], channels: int | None = None) -> "InputShape":
        shape = super().__new__(cls, sides)
        shape.channels = channels
        return shape

    @property
    def batch(self) -> int | None:
        return self[0]

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width, None unless both are fixed."""
        _, height, width = self
        return None if height is None or width is None else (height, width)


class Runtime(Protocol):
    """An exported file, loaded. Its constructor takes the path and RuntimeSettings."""

    title: str  # library, version and device, for messages
    properties: dict[str, str]  # metadata of the file, as text
    input_shape: InputShape
    device: torch.device  # of the tensors that `run` takes and returns

    def __init__(self, path: Path, settings: RuntimeSettings) -> None: ...

    def run(self, images: Tensor) -> list[Tensor]:
        """Return the outputs, float32, for images (B, C, H, W) float32 in 0…1 that fit `input_shape`."""
        ...


def image_shape(dims: Sequence[int | None], path: Path) -> InputShape:
    """Return the input shape of dimensions (B, C, H, W), of which None are dynamic. Raises UserError for others."""
    if not are_images(dims):
        raise UserError(f"{path}: takes an input of shape {list(dims)}, not images (batch, channels, height, width)")
    return InputShape((dims[0], dims[2], dims[3]), dims[1])


def are_images(dims: Sequence[int | None]) -> bool:
    """Return True if the dimensions of an input may be those of images (B, C, H, W). None is dynamic."""
    if len(dims) != 4 or dims[1] is None:
        return len(dims) == 4
    return 1 <= dims[1] <= min([MAX_CHANNELS, *(side for side in dims[2:] if side)])
