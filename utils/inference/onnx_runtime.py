"""ONNX files run by ONNX Runtime."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from utils.errors import UserError, one_line
from utils.formats import import_extra
from utils.inference.onnx_file import read_onnx
from utils.inference.runtime import RuntimeSettings

ERRORS_ONLY = 3  # level of ONNX Runtime's log


class OnnxRuntime:
    """Runtime of .onnx files."""

    def __init__(self, path: Path, settings: RuntimeSettings):
        outline = read_onnx(path)
        ort = import_extra("onnxruntime", "export", str(path))
        options = ort.SessionOptions()
        options.log_severity_level = ERRORS_ONLY
        if settings.threads:
            options.intra_op_num_threads = settings.threads
        try:
            self.session = ort.InferenceSession(str(path), options, providers=choose_providers(ort, settings.device))
        except Exception as error:  # of classes that the library does not export
            raise UserError(
                f"{path}: ONNX Runtime {ort.__version__} cannot load it (opset {outline.opset}): {one_line(str(error))}"
            ) from error
        self.title = f"ONNX Runtime {ort.__version__} ({self.session.get_providers()[0]})"
        self.properties, self.input_shape = outline.properties, outline.input_shape
        self.device = torch.device("cpu")
        entry = self.session.get_inputs()[0]
        self.name, self.dtype = entry.name, np.float16 if "float16" in entry.type else np.float32

    def run(self, images: Tensor) -> list[Tensor]:
        outputs = self.session.run(None, {self.name: images.numpy().astype(self.dtype, copy=False)})
        return [torch.from_numpy(output).float() for output in outputs]


def choose_providers(ort: object, device: torch.device) -> list:
    """Return the execution providers for a device, the CPU last. Raise UserError for a GPU without one."""
    available = ort.get_available_providers()  # type: ignore[attr-defined]
    if device.type == "cuda":
        if "CUDAExecutionProvider" not in available:
            raise UserError("ONNX Runtime has no GPU support here: pip install onnxruntime-gpu, or use --device cpu")
        return [("CUDAExecutionProvider", {"device_id": device.index or 0}), "CPUExecutionProvider"]
    return ["CPUExecutionProvider"]
