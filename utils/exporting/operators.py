"""Operators of exported files, for reports: what a runtime must know to run them."""

import warnings
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch


class Operators(NamedTuple):
    """Operators of a file and the version of the set that they are from."""

    opset: str  # "" where a format has no version
    counts: dict[str, int]  # by name, most frequent first


def read_operators(path: Path) -> Operators | None:
    """Return the operators of an exported file or folder, None for a format whose files do not list them."""
    if path.suffix == ".onnx":
        return _read_onnx(path)
    if path.suffix == ".torchscript":
        return _read_torchscript(path)
    if path.is_dir() and (file := next(path.glob("*.xml"), None)):
        return _read_openvino(file)
    if path.is_dir() and (file := next(path.glob("*.param"), None)):
        return _read_ncnn(file)
    return None


def _count(names: Iterable[str], opset: str = "") -> Operators:
    return Operators(opset, dict(Counter(names).most_common()))


def _read_onnx(path: Path) -> Operators:
    import onnx  # an extra

    model = onnx.load(path, load_external_data=False)
    names = (f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in model.graph.node)
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), "")
    return _count(names, str(opset))


def _read_torchscript(path: Path) -> Operators:
    """Return the operators without the constants and accesses to attributes of which half a graph consists."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PyTorch's tracer is on its way out
        graph = torch.jit.load(str(path), map_location="cpu").inlined_graph
    return _count(node.kind() for node in graph.nodes() if not node.kind().startswith("prim::"))


def _read_openvino(file: Path) -> Operators:
    """Return the operators of the .xml file, which lists the version of the set for each."""
    layers = [layer.attrib for layer in ElementTree.parse(file).iter("layer")]
    versions = {layer["version"] for layer in layers if layer.get("version", "").startswith("opset")}
    newest = max(versions, key=lambda version: int(version.removeprefix("opset")), default="")
    names = (layer["type"] for layer in layers if layer["type"] not in ("Parameter", "Result", "Const"))
    return _count(names, newest)


def _read_ncnn(file: Path) -> Operators:
    """Return the layers of the .param file: a row each below a number and two counts, its type first."""
    rows = [line.split() for line in file.read_text().splitlines()[2:]]
    return _count(row[0] for row in rows if row and row[0] != "Input")
