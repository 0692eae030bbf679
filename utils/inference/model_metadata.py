"""Metadata of an exported model: facts that a program needs to feed the model and to read what it returns."""

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from utils.cli import shorten
from utils.detector import NO_ADVICE, DetectionAdvice
from utils.errors import UserError
from utils.pixel_format import MAX_BITS, MAX_CHANNELS, MIN_BITS, RGB, PixelFormat

LAYOUTS = ("yolov5", "yolov8", "raw", "deepstream", "nms")
LETTERBOX_RULE = "fit into height x width at equal aspect, pad both sides alike with 114, an odd pixel right or bottom"
MAX_CHARACTERS = 1 << 22  # of a property: the names of 100,000 classes
MAX_CLASSES = 100_000
MAX_NAME = 1000  # characters
# Errors of a parser, and of values of other types, too long, too deep or not finite.
READ_ERRORS = (
    ValueError, TypeError, SyntaxError, LookupError, AttributeError, OverflowError, RecursionError, MemoryError,
)  # fmt: skip


@dataclass(frozen=True)
class ModelMetadata:
    """Facts about an exported model. A file of another program may lack most of them."""

    names: Mapping[int, str]  # class names, empty if the file has none
    stride: int = 32  # pixels that both sides of the input are multiples of
    layout: str = "yolov5"  # of the output, one of LAYOUTS
    imgsz: tuple[int, int] | None = None  # height, width of the input, of a dynamic one those for which it was made
    batch: int = 1
    dynamic: bool = False
    half: bool = False  # weights in float16
    int8: bool = False
    strides: tuple[int, ...] = ()  # of each level
    anchors: tuple[tuple[float, ...], ...] = ()  # per level w, h, w, h, ... in pixels
    nms: Mapping[str, float] | None = None  # settings of the suppression inside, None if there is none
    description: str = ""
    version: str = ""  # of this program
    date: str = ""
    license: str = ""
    pixels: PixelFormat = RGB
    advice: DetectionAdvice = NO_ADVICE

    def to_properties(self) -> dict[str, str]:
        """Return the metadata as text by key, as it is written into files."""
        return {
            "description": self.description,
            "author": "Anchorage",
            "version": self.version,
            "date": self.date,
            "license": self.license,
            "task": "detect",
            "stride": str(self.stride),
            "names": str(dict(self.names)),
            "batch": str(self.batch),
            "imgsz": json.dumps(self.imgsz),
            "dynamic": json.dumps(self.dynamic),
            "half": json.dumps(self.half),
            "int8": json.dumps(self.int8),
            "layout": self.layout,
            "channels": "RGB" if self.pixels.channels == 3 else str(self.pixels.channels),
            **({} if self.pixels.bit_depth == 8 else {"bit_depth": str(self.pixels.bit_depth)}),
            "range": "0...1",
            "letterbox": LETTERBOX_RULE,
            "strides": json.dumps(self.strides),
            "anchors": json.dumps(self.anchors),
            **({"nms": json.dumps(self.nms)} if self.nms else {}),
            **({"advice": json.dumps(self.advice.to_dict())} if self.advice != NO_ADVICE else {}),
        }

    @classmethod
    def from_properties(cls, properties: Mapping[str, str], source: str) -> "ModelMetadata":
        """Read the text of `to_properties`, or of YOLOv5, which writes stride and names only.

        Raises UserError naming `source` and the key for damaged text, and for a model of another task.
        """
        task = properties.get("task", "detect")
        if task != "detect":
            raise UserError(f"{source}: a model for the task {shorten(task)}: only models that detect are run")
        read = _Reader(properties, source)
        names = read.value("names", {}, _as_names)
        layout = properties.get("layout", "yolov5")
        if layout not in LAYOUTS:
            raise UserError(f"{source}: metadata: layout: {shorten(layout)} is none of {', '.join(LAYOUTS)}")
        return cls(
            names=names,
            stride=read.value("stride", 32, _as_stride),
            layout=layout,
            imgsz=read.value("imgsz", None, _as_size),
            batch=read.value("batch", 1, _as_count),
            dynamic=read.value("dynamic", False, bool),
            half=read.value("half", False, bool),
            int8=read.value("int8", False, bool),
            strides=read.value("strides", (), lambda found: tuple(map(_as_count, found))),
            anchors=read.value("anchors", (), _as_anchors),
            nms=read.value("nms", None, dict),
            pixels=PixelFormat(
                3 if properties.get("channels") == "RGB" else read.value("channels", 3, _as_channels),
                read.value("bit_depth", 8, _as_bits),
            ),
            advice=DetectionAdvice.from_dict(read.value("advice", None, dict), MAX_CLASSES, source),
            **{key: properties.get(key, "") for key in ("description", "version", "date", "license")},
        )


class _Reader:
    """Reader of properties that are the text of a Python or JSON value. Nothing in them is executed."""

    def __init__(self, properties: Mapping[str, str], source: str):
        self.properties, self.source = properties, source

    def value(self, key: str, default: Any, convert: Any) -> Any:
        """Return the converted value of `key`, `default` if it is absent."""
        text = self.properties.get(key)
        if text is None:
            return default
        try:
            if len(text) > MAX_CHARACTERS:
                raise ValueError("too long")
            return convert(_parse(text))
        except READ_ERRORS as error:
            raise UserError(f"{self.source}: metadata: {key}: {shorten(text)} cannot be read") from error


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return ast.literal_eval(text)


def _as_names(found: Any) -> dict[int, str]:
    named = dict(enumerate(found)) if isinstance(found, list) else {int(key): found[key] for key in found}
    if sorted(named) != list(range(len(named))) or not 1 <= len(named) <= MAX_CLASSES:
        raise ValueError("not numbered from 0")
    return {number: str(named[number])[:MAX_NAME] for number in sorted(named)}


def _as_stride(found: Any) -> int:
    stride = max(found) if isinstance(found, list) else found
    if not 1 <= stride <= 1024:
        raise ValueError("out of range")
    return int(stride)


def _as_count(found: Any) -> int:
    if isinstance(found, bool) or not 1 <= found <= 1 << 16:
        raise ValueError("out of range")
    return int(found)


def _as_channels(found: Any) -> int:
    if type(found) is not int or not 1 <= found <= MAX_CHANNELS:
        raise ValueError("out of range")
    return found


def _as_bits(found: Any) -> int:
    if type(found) is not int or not MIN_BITS <= found <= MAX_BITS:
        raise ValueError("out of range")
    return found


def _as_size(found: Any) -> tuple[int, int] | None:
    if found is None:
        return None
    sides = [found] if isinstance(found, int) else list(found)
    return _as_count(sides[0]), _as_count(sides[-1])


def _as_anchors(found: Any) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(side) for side in level) for level in found)
