"""Protocol of a runtime: the library that runs an exported file, behind one interface.

Legend: B batch, H W rows and columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from utils.errors import UserError

CPU = torch.device("cpu")


@dataclass(frozen=True)
class RuntimeSettings:
    """Choices of the user for the library that runs a file."""

    device: torch.device = CPU
    dnn: bool = False  # read ONNX files with OpenCV
    half: bool = False  # run in 16 bits where the library can
    threads: int = 0  # 0 lets the library choose


class InputShape(tuple[int | None, int | None, int | None]):
    """Batch, height and width of a model's input, each None if it is dynamic."""

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
        """Return the outputs, float32, for images (B, 3, H, W) float32 RGB in 0…1 that fit `input_shape`."""
        ...


def image_shape(dims: Sequence[int | None], path: Path) -> InputShape:
    """Return the input shape of dimensions (B, 3, H, W), of which None are dynamic. Raises UserError for others."""
    if len(dims) != 4 or dims[1] not in (3, None):
        raise UserError(f"{path}: takes an input of shape {list(dims)}, not images (batch, 3, height, width)")
    return InputShape((dims[0], dims[2], dims[3]))
