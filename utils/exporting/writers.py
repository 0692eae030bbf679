"""Writers of all formats: one function each, in one table, behind checks and an atomic rename."""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from utils.detector import Detector
from utils.errors import UserError
from utils.exporting.coreml_writer import check_coreml, write_coreml
from utils.exporting.engine_writer import check_engine, write_engine
from utils.exporting.metadata import describe_export
from utils.exporting.ncnn_writer import check_ncnn, write_ncnn
from utils.exporting.onnx_writer import check_onnx, write_onnx
from utils.exporting.openvino_writer import check_openvino, write_openvino
from utils.exporting.request import ExportRequest
from utils.exporting.tflite_writer import check_tflite, write_tflite
from utils.exporting.torchscript_writer import check_torchscript, write_torchscript
from utils.formats import Format
from utils.inference.model_metadata import ModelMetadata
from utils.temporary_files import draft_folder, temporary_path


class Writer(NamedTuple):
    """Functions of a format."""

    check: Callable[[ExportRequest, Detector], None]  # raises UserError for what the format cannot hold
    write: Callable[[Detector, ExportRequest, ModelMetadata, Path], None]  # into a path that does not exist yet


# A new format is one row here and one in utils/formats.py.
WRITERS: dict[str, Writer] = {
    "torchscript": Writer(check_torchscript, write_torchscript),
    "onnx": Writer(check_onnx, write_onnx),
    "engine": Writer(check_engine, write_engine),
    "coreml": Writer(check_coreml, write_coreml),
    "ncnn": Writer(check_ncnn, write_ncnn),
    "tflite": Writer(check_tflite, write_tflite),
    "openvino": Writer(check_openvino, write_openvino),
}
# What exporters, YOLOv5's among them, write into a folder. Such a folder is replaced as a whole.
FOLDER_SUFFIXES = (".xml", ".bin", ".mapping", ".param", ".yaml")
FOLDER_NAMES = ("Data", "Manifest.json", "model_ncnn.py")  # CoreML's, ncnn's
# Formats of YOLOv5 that are not written, and the reason.
NOT_OFFERED = {
    "saved_model": "TensorFlow's formats are not written; --include tflite is for devices, --include onnx for servers",
    "pb": "TensorFlow's formats are not written; --include tflite is for devices, --include onnx for servers",
    "edgetpu": "needs Google's compiler: export with --include tflite --int8, then type edgetpu_compiler best.tflite",
    "tfjs": "TensorFlow's formats are not written; for browsers type --include onnx (docs: onnxruntime-web)",
    "paddle": "not written; for servers type --include onnx",
}


def check_request(formats: Sequence[Format], request: ExportRequest, network: Detector) -> None:
    """Raise UserError, before anything is written, for a format that is not offered or cannot do what is requested."""
    for kind in formats:
        if kind.name not in WRITERS:
            reason = NOT_OFFERED.get(kind.name, "not written by this version")
            raise UserError(f"--include {kind.name}: {reason}. Formats: {', '.join(WRITERS)}")
        WRITERS[kind.name].check(request, network)


def require_place(kind: Format, weights: Path) -> Path:
    """Return the path of the export of a weights file. Raises UserError where something else has its name."""
    path = kind.path_beside(weights)
    if path.is_dir() != kind.is_folder and path.exists():
        raise UserError(f"{path}: is no {kind.title} export: rename or remove it")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{path.parent}: cannot be written. Copy the weights into another folder and export there")
    if kind.is_folder and path.is_dir():
        _require_export(path)
    return path


def write_format(kind: Format, network: Detector, weights: Path, request: ExportRequest) -> Path:
    """Write the export of a weights file beside it, whole or not at all. Return its path.

    An older export of that name is replaced. Raises UserError where something else has the name.
    """
    path = require_place(kind, weights)
    with draft_folder(path) as folder:
        draft = folder / path.name
        WRITERS[kind.name].write(network, request, describe_export(network, weights, request), draft)
        _replace(draft, path)
    return path


def _require_export(folder: Path) -> None:
    """Raise UserError for a file in an older export that no exporter has written: it would be lost."""
    for path in sorted(folder.iterdir()):
        if path.suffix not in FOLDER_SUFFIXES and path.name not in FOLDER_NAMES:
            raise UserError(f"{folder}: would be replaced, but holds {path.name}: move that elsewhere")


def _replace(draft: Path, path: Path) -> None:
    """Rename a draft to its path. A folder that is there is renamed first, as folders cannot be replaced."""
    if not path.is_dir():
        draft.replace(path)
        return
    old = temporary_path(path)
    path.rename(old)
    draft.rename(path)
    shutil.rmtree(old, ignore_errors=True)
