"""Opening of a model of any format: PyTorch weights, or an exported file with the runtime that its suffix shows."""

from collections.abc import Callable, Sequence
from pathlib import Path

from utils import console
from utils.detector import InferenceModel
from utils.errors import UserError
from utils.formats import FORMATS, RuntimeAbsent, format_of
from utils.inference.coreml_runtime import CoreMLRuntime
from utils.inference.engine_runtime import EngineRuntime
from utils.inference.exported_model import ExportedModel
from utils.inference.memory_limit import limited_memory
from utils.inference.ncnn_runtime import NcnnRuntime
from utils.inference.onnx_runtime import OnnxRuntime
from utils.inference.opencv_runtime import OpenCVRuntime
from utils.inference.openvino_runtime import OpenVINORuntime
from utils.inference.runtime import Runtime, RuntimeSettings
from utils.inference.tflite_runtime import TfliteRuntime
from utils.inference.torchscript_runtime import TorchScriptRuntime

# Runtime of each format that can be run here, by the format's name. A new runtime is one row.
RUNTIMES: dict[str, type[Runtime]] = {
    "torchscript": TorchScriptRuntime,
    "onnx": OnnxRuntime,
    "engine": EngineRuntime,
    "coreml": CoreMLRuntime,
    "ncnn": NcnnRuntime,
    "tflite": TfliteRuntime,
    "openvino": OpenVINORuntime,
}


def open_model(
    files: Sequence[Path], settings: RuntimeSettings, *, load_networks: Callable[[Sequence[Path]], InferenceModel]
) -> InferenceModel:
    """Return the model of the files: of several .pt files an ensemble, of an exported file its ExportedModel.

    load_networks: loader of .pt files, which the program hands in. Raises UserError, in one line, for files that cannot
    be run together or not at all.
    """
    exported = [file for file in files if format_of(file)]
    if not exported:
        if settings.dnn:
            raise UserError(f"--dnn reads ONNX files, and {files[0]} is none: omit it, or export the model first")
        return load_networks(files)
    if len(files) > 1:
        raise UserError(
            f"{exported[0]}: exported models form no ensemble. To measure them side by side type "
            f"python val.py --task compare --weights {' '.join(map(str, files))}"
        )
    return open_exported(files[0], settings)


def open_exported(path: Path, settings: RuntimeSettings) -> ExportedModel:
    """Return the model of an exported file or folder."""
    kind = format_of(path)
    if kind is None or kind.name not in RUNTIMES:
        title = kind.title if kind else f"{path.suffix} files"
        raise RuntimeAbsent(
            f"{path}: {title} is not run here: give a {', '.join(FORMATS[name].title for name in RUNTIMES)}"
            " export or the .pt file"
        )
    if settings.dnn and kind.name != "onnx":
        raise UserError(f"--dnn reads ONNX files, and {path} is none: omit it")
    with limited_memory():  # what a file allocates is known only when it runs
        runtime = OpenCVRuntime(path, settings) if settings.dnn else RUNTIMES[kind.name](path, settings)
        model = ExportedModel(path, runtime)
    console.info(f"{path.name}: {runtime.title}")
    return model
