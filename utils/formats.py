"""Table of the formats of exported models: names, suffixes, and the packages that write and run them."""

import importlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from utils.errors import UserError


class Format(NamedTuple):
    """A format of exported models."""

    name: str  # word of --include
    suffix: str  # at the end of the name of a file or folder
    title: str

    @property
    def is_folder(self) -> bool:
        return "." not in self.suffix or self.suffix == ".mlpackage"

    def path_beside(self, weights: Path) -> Path:
        """Return the path of the export of a weights file: best.pt -> best.onnx, best_openvino_model."""
        return weights.with_name(weights.stem + self.suffix)


FORMATS = {
    entry.name: entry
    for entry in (
        Format("torchscript", ".torchscript", "TorchScript"),
        Format("onnx", ".onnx", "ONNX"),
        Format("openvino", "_openvino_model", "OpenVINO"),
        Format("engine", ".engine", "TensorRT"),
        Format("coreml", ".mlpackage", "CoreML"),
        Format("saved_model", "_saved_model", "TensorFlow SavedModel"),
        Format("pb", ".pb", "TensorFlow GraphDef"),
        Format("tflite", ".tflite", "TensorFlow Lite"),
        Format("edgetpu", "_edgetpu.tflite", "Edge TPU"),
        Format("tfjs", "_web_model", "TensorFlow.js"),
        Format("paddle", "_paddle_model", "PaddlePaddle"),
        Format("ncnn", "_ncnn_model", "ncnn"),
    )
}
# Files inside a folder, which people name instead of the folder.
INNER_SUFFIXES = {".xml": "openvino", ".param": "ncnn"}


def format_of(path: str | Path) -> Format | None:
    """Return the format that the end of the name shows, None for anything else, such as .pt files."""
    name = Path(path).name.lower()
    inner = INNER_SUFFIXES.get(Path(name).suffix)
    longest_first = sorted(FORMATS.values(), key=lambda entry: -len(entry.suffix))
    return FORMATS[inner] if inner else next((entry for entry in longest_first if name.endswith(entry.suffix)), None)


class RuntimeAbsent(UserError):
    """Error of a package or machine that is absent here. It says nothing about any file."""


def import_extra(module: str, extra: str, purpose: str) -> ModuleType:
    """Return an optional package. Raise UserError with the command that installs it if it is absent.

    `extra` is its group in pyproject.toml, `purpose` the beginning of the message, such as `--include onnx`.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if error.name is not None and error.name.split(".")[0] != module.split(".")[0]:
            problem = f"{purpose}: the package {module} lacks {error.name}"
            raise RuntimeAbsent(f"{problem}: pip install {error.name}") from error
        raise RuntimeAbsent(
            f'{purpose} needs the package {module}: pip install ".[{extra}]" in the folder of this project'
        ) from error


def package_version(package: str) -> str:
    """Return the version of an installed package, "" if it is absent."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
