"""Folders of OpenVINO (.xml, .bin) run by OpenVINO."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from utils.errors import UserError, one_line
from utils.formats import import_extra
from utils.inference.metadata_file import find_model_file, read_metadata_file
from utils.inference.openvino_file import check_openvino
from utils.inference.runtime import RuntimeSettings, image_shape

if TYPE_CHECKING:
    from openvino import ConstOutput, Core, Model


class OpenVINORuntime:
    """Runtime of OpenVINO's folders. It computes in float32, with `half` in 16 bits where the processor can."""

    def __init__(self, path: Path, settings: RuntimeSettings):
        ov = import_extra("openvino", "openvino", str(path))
        file = find_model_file(path, ".xml")
        check_openvino(file)
        self.properties, self.device = read_metadata_file(file.parent), torch.device("cpu")
        core = ov.Core()
        core.set_property({"ENABLE_MMAP": False})  # the file may be replaced while it is used
        self.precision = choose_precision(core) if settings.half else "f32"
        config = {"INFERENCE_PRECISION_HINT": self.precision, "PERFORMANCE_HINT": "LATENCY"}
        if settings.threads:
            config["INFERENCE_NUM_THREADS"] = str(settings.threads)
        try:
            model = core.read_model(str(file))
            dims = [side.get_length() if side.is_static else None for side in _images(model, path).partial_shape]
            self.input_shape = image_shape(dims, path)
            self.compiled = core.compile_model(model, "CPU", config)
        except RuntimeError as error:
            raise UserError(f"{path}: OpenVINO cannot load it: {one_line(str(error))}") from error
        self.title = f"OpenVINO {ov.__version__.split('-')[0]} (CPU, {PRECISIONS[self.precision]})"

    def run(self, images: Tensor) -> list[Tensor]:
        outputs = self.compiled([images.contiguous().numpy()])
        return [torch.from_numpy(np.array(outputs[output])).float() for output in self.compiled.outputs]


PRECISIONS = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}  # names of OpenVINO, and of PyTorch


def choose_precision(core: "Core") -> str:
    """Return the fastest floating-point type of this CPU: bfloat16 where it has instructions for it, else float32."""
    return "bf16" if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"


def _images(model: "Model", path: Path) -> "ConstOutput":
    if len(model.inputs) != 1 or model.inputs[0].partial_shape.rank.is_dynamic:
        raise UserError(f"{path}: takes {len(model.inputs)} inputs, not one of images (batch, channels, height, width)")
    return model.inputs[0]
