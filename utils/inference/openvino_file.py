"""Checks of an OpenVINO model, an .xml file and a .bin file of its weights, before OpenVINO opens them."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from xml.parsers import expat

from utils.cli import shorten
from utils.errors import UserError
from utils.files import open_regular

MAX_XML_BYTES = 1 << 26  # a yolov5x has 1 MiB
MAX_WEIGHTS_BYTES = 1 << 33
MAX_NUMBERS = 1 << 28  # of the input: 1 GiB of float32
REPEATING = {"Loop", "TensorIterator"}
STANDARD = re.compile(r"opset\d{1,2}")
ADVICE = "give the folder that export.py wrote, or export the model again"


def check_openvino(xml: Path) -> None:
    """Raise UserError unless the files hold a network of OpenVINO's own operators whose weights are all there."""
    weights = xml.with_suffix(".bin")
    try:
        with open_regular(weights, MAX_WEIGHTS_BYTES) as file:
            num_bytes = file.seek(0, 2)
    except OSError as error:
        raise UserError(f"{weights}: {error.strerror or error}: it holds the weights of {xml.name}") from error
    reader = _NetReader(xml, num_bytes)
    try:
        with open_regular(xml, MAX_XML_BYTES) as file:
            reader.parser.ParseFile(file)
    except OSError as error:
        raise UserError(f"{xml}: {error.strerror or error}") from error
    except (expat.ExpatError, KeyError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{xml}: not an OpenVINO model, or a damaged one ({error}): {ADVICE}") from error
    if not reader.num_layers:
        raise UserError(f"{xml}: an OpenVINO model without layers: {ADVICE}")


class _NetReader:
    """Handler of the elements of the XML file."""

    def __init__(self, xml: Path, num_bytes: int) -> None:
        self.xml, self.num_bytes = xml, num_bytes
        self.layer: Mapping[str, str] | None = None  # the attributes of the present layer
        self.num_layers = 0
        self.is_net = False
        self.parser = expat.ParserCreate()
        self.parser.StartElementHandler = self.start
        self.parser.StartDoctypeDeclHandler = self.doctype

    def doctype(self, *_: object) -> None:
        raise UserError(f"{self.xml}: has a DOCTYPE, which no OpenVINO model has: {ADVICE}")

    def start(self, name: str, attributes: dict[str, str]) -> None:
        """Check an element."""
        if not self.is_net:
            if name != "net" or attributes.get("version") not in ("10", "11"):
                raise ValueError(f"it begins with {shorten(name)}")
            self.is_net = True
        elif name == "layer":
            self.layer = attributes
            self.num_layers += 1
            self.check_layer(attributes.get("type", ""), attributes.get("version", ""))
        elif name == "data" and self.layer:
            kind = self.layer.get("type")
            if kind == "Const":
                self.check_weights(int(attributes["offset"]), int(attributes["size"]), attributes)
            elif kind == "Parameter":
                self.check_input(attributes.get("shape", ""))

    def check_layer(self, kind: str, version: str) -> None:
        if not STANDARD.fullmatch(version):
            raise UserError(
                f"{self.xml}: needs the custom operator {shorten(version)} {shorten(kind)}: export the model without it"
            )
        if kind in REPEATING:
            raise UserError(f"{self.xml}: has the operator {kind}, which may repeat without end")

    def check_weights(self, offset: int, size: int, attributes: Mapping[str, str]) -> None:
        """Raise UserError if a constant is not inside the .bin file, or of another size than its shape."""
        if min(offset, size) < 0 or offset + size > self.num_bytes:
            raise UserError(f"{self.xml.with_suffix('.bin')}: too short for {self.xml.name}: a damaged or another file")
        bits = re.search(r"\d+", attributes.get("element_type", ""))
        shape = [int(side) for side in attributes.get("shape", "").split(",") if side.strip()]
        if bits and -(-math.prod(shape) * int(bits[0]) // 8) != size:
            raise ValueError(f"a constant {shorten(shape)} of {size} bytes")

    def check_input(self, shape: str) -> None:
        sides = [int(side) for side in shape.split(",") if side.strip().isdigit()]
        if math.prod(sides) > MAX_NUMBERS or not all(sides):
            raise UserError(f"{self.xml}: its input {shorten(shape)} is too large for memory, or empty")
