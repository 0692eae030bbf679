"""CoreML packages (.mlpackage) run by macOS."""

import sys
from pathlib import Path

import torch
from torch import Tensor

from utils.errors import UserError, one_line
from utils.formats import import_extra
from utils.inference.runtime import RuntimeSettings, image_shape


class CoreMLRuntime:
    """Runtime of .mlpackage folders."""

    def __init__(self, path: Path, settings: RuntimeSettings):
        if sys.platform != "darwin":
            raise UserError(f"{path}: CoreML runs on macOS only: give the .pt file, or export with --include onnx")
        tools = import_extra("coremltools", "coreml", str(path))
        try:
            self.model = tools.models.MLModel(str(path))
        except Exception as error:  # of classes that the library does not export
            raise UserError(f"{path}: CoreML cannot load it: {one_line(str(error))}") from error
        description = self.model.get_spec().description
        if len(description.input) != 1:
            raise UserError(f"{path}: takes {len(description.input)} inputs, not one of images")
        self.properties, self.device = dict(self.model.user_defined_metadata), torch.device("cpu")
        self.name = description.input[0].name
        self.input_shape = image_shape(list(description.input[0].type.multiArrayType.shape), path)
        self.outputs = [output.name for output in description.output]
        self.title = f"CoreML, coremltools {tools.__version__}"

    def run(self, images: Tensor) -> list[Tensor]:
        found = self.model.predict({self.name: images.numpy()})
        return [torch.from_numpy(found[name]).float() for name in self.outputs]
