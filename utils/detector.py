"""Protocol of a detection network: the part of its interface that `utils` may use.

`models.yolo.DetectionModel` satisfies it. Legend: B batch, A anchors per level, H W rows and columns, C classes,
L levels, N predictions.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from utils.errors import UserError
from utils.pixel_format import PixelFormat

MOST_LABELS = 1 << 20  # of an image, in a file


@dataclass(frozen=True)
class DetectionAdvice:
    """Settings for detection that the last validation of a training proposes. Weights files keep it."""

    thresholds: Mapping[int, float] = field(default_factory=dict)  # confidence of the best F1 by class number
    most_labels: int = 0  # of an image of the validation split, 0 if unknown
    tile: int = 0  # side of the tiles that it was trained on, 0 without
    tile_overlap: float = 0.0  # share of it that the next one sees too

    def to_dict(self) -> dict[str, Any]:
        """Return the advice as plain types."""
        tiles = {"tile": self.tile, "tile_overlap": self.tile_overlap} if self.tile else {}
        return {"thresholds": dict(self.thresholds), "most_labels": self.most_labels, **tiles}

    def tile_flags(self) -> str:
        """Return the flags of the tiles that the model was trained on, "" without."""
        return f"--tile {self.tile} --tile-overlap {self.tile_overlap:g}" if self.tile else ""

    @classmethod
    def from_dict(cls, values: object, num_classes: int, source: str) -> "DetectionAdvice":
        """Return the advice of `to_dict`, also with class numbers as text. UserError naming `source` if it is damaged.

        None is the advice of a file that holds none.
        """
        if values is None:
            return cls()
        try:
            given = values["thresholds"]  # pyrefly: ignore[bad-index]
            thresholds = {int(key): float(given[key]) for key in given}
            most = values["most_labels"]  # pyrefly: ignore[bad-index]
            tile, overlap = values.get("tile", 0), values.get("tile_overlap", 0.0)  # pyrefly: ignore[missing-attribute]
            within = 0 <= overlap <= 1
        except (TypeError, ValueError, LookupError, OverflowError, AttributeError):
            thresholds, most, tile, overlap, within = {}, 0, 0, 0.0, False
        within = within and all(0 <= key < num_classes and 0 <= value <= 1 for key, value in thresholds.items())
        counts = all(type(count) is int and 0 <= count <= MOST_LABELS for count in (most, tile))
        if not within or not counts:
            raise UserError(f"{source}: its advice for detection is damaged: give an earlier checkpoint of that run")
        return cls(thresholds, most, tile, float(overlap))


NO_ADVICE = DetectionAdvice()


class Head(Protocol):
    """The last layer: one prediction per anchor and cell."""

    num_classes: int
    num_levels: int
    num_anchors: int  # per level

    @property
    def convolutions(self) -> list[nn.Conv2d]:
        """The convolution of each level."""
        ...

    @property
    def anchors(self) -> Tensor:
        """Widths and heights (L, A, 2) in grid cells of their level."""
        ...

    @property
    def stride(self) -> Tensor:
        """Pixels per grid cell (L,), float32."""
        ...


class InferenceModel(Protocol):
    """The part of a network that inference reads: one Detector, several as one (an ensemble), or an exported file."""

    names: dict[int, str]  # class names

    @property
    def advice(self) -> DetectionAdvice: ...

    @property
    def num_classes(self) -> int: ...

    @property
    def pixels(self) -> PixelFormat:
        """Channels and bits of the images that it takes."""
        ...

    @property
    def size_multiple(self) -> int:
        """Pixels that both sides of an input image are multiples of."""
        ...

    @property
    def device(self) -> torch.device:
        """Device of the images that it takes and of what it returns."""
        ...

    @property
    def fixed_shape(self) -> tuple[int, int] | None:
        """Height and width that every input has, None if any multiples of `size_multiple` will do."""
        ...

    @property
    def is_suppressed(self) -> bool:
        """True if overlapping boxes are suppressed already, so that they must not be again."""
        ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return (decoded, raw) in evaluation mode, as a Detector does. An exported file has no raw levels: None."""
        ...


class Detector(Protocol):
    """A detection network, which is also an nn.Module (see `as_module`)."""

    names: dict[int, str]  # class names
    yaml: dict[str, Any]  # the description that the network was built from
    model: nn.Sequential  # layers in the order of the YAML rows; the last one is the head
    training: bool

    @property
    def advice(self) -> DetectionAdvice: ...

    @property
    def stride(self) -> Tensor:
        """Pixels per grid cell (L,), float32."""
        ...

    @property
    def head(self) -> Head: ...

    @property
    def num_classes(self) -> int: ...

    @property
    def pixels(self) -> PixelFormat:
        """Channels and bits of the images that it takes."""
        ...

    @property
    def size_multiple(self) -> int:
        """Pixels that both sides of an input image are multiples of: the largest stride, at least 32."""
        ...

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        ...

    @property
    def fixed_shape(self) -> tuple[int, int] | None:
        """None: a network takes any multiples of `size_multiple`."""
        ...

    @property
    def is_suppressed(self) -> bool:
        """False: a network returns all rows."""
        ...

    def fuse(self) -> "Detector":
        """Fold batch norms into their convolutions in place, for inference. Return the network itself."""
        ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network on images (B, channels, H, W) in 0…1.

        In training mode, return the raw levels: L tensors (B, A, H, W, 5+C) of logits. In evaluation mode, return
        (decoded, raw): decoded is (B, N, 5+C), with cx, cy, w, h in pixels and then probabilities. With
        `augment=True`, decoded holds the rows of all augmented passes and raw is None.
        """
        ...

    # The methods of nn.Module that utils calls.
    def train(self, mode: bool = True) -> "Detector": ...
    def eval(self) -> "Detector": ...
    def float(self) -> "Detector": ...
    def half(self) -> "Detector": ...
    def to(self, *args: Any, **kwargs: Any) -> "Detector": ...
    def modules(self) -> Iterator[nn.Module]: ...
    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]: ...
    def buffers(self, recurse: bool = True) -> Iterator[Tensor]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> Any: ...
    def zero_grad(self, set_to_none: bool = True) -> None: ...


def name_difference(one: Mapping[int, str], other: Mapping[int, str]) -> str:
    """Return the first class whose names differ, as `class 0 is 'ship' and 'cat'`, or "" if all agree.

    Case and spaces do not count. Names that are the numbers of their classes say nothing, and agree with all.
    """
    if any(all(name == str(index) for index, name in names.items()) for names in (one, other)):
        return ""
    for index in sorted(one.keys() & other.keys()):
        if one[index].strip().casefold() != other[index].strip().casefold():
            return f"class {index} is {one[index]!r} and {other[index]!r}"
    return ""


def as_module(model: Detector) -> nn.Module:
    """Return the same object typed as nn.Module, which a Protocol cannot say it is."""
    return cast(nn.Module, model)


def as_detector(module: nn.Module) -> Detector:
    """Return the same object typed as a Detector, which the caller knows it is."""
    return cast(Detector, module)


def device_of(model: Detector | nn.Module) -> torch.device:
    """Return the device of the first parameter. All others are on the same one."""
    return next(model.parameters()).device
