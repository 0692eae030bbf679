"""ONNX files run by OpenCV's DNN module (`--dnn`)."""

from pathlib import Path

import cv2
import torch
from torch import Tensor

from utils.errors import UserError, one_line
from utils.inference.onnx_header import read_onnx_header
from utils.inference.onnx_runtime import image_shape
from utils.inference.runtime import RuntimeSettings


class OpenCVRuntime:
    """Runtime of .onnx files that needs no other package than OpenCV."""

    def __init__(self, path: Path, settings: RuntimeSettings):
        header = read_onnx_header(path)
        self.properties, self.device = header.properties, torch.device("cpu")
        self.input_shape = image_shape(header.inputs[0].dims, path)
        self.outputs = [output.name for output in header.outputs]
        if None in self.input_shape:
            raise UserError(f"{path}: OpenCV reads static shapes only: export without --dynamic, or omit --dnn")
        try:
            self.net = cv2.dnn.readNetFromONNX(str(path))
        except cv2.error as error:
            raise UserError(f"{path}: OpenCV {cv2.__version__} cannot load it: {one_line(error.err)}") from error
        self.title = f"OpenCV DNN {cv2.__version__} (cpu)"

    def run(self, images: Tensor) -> list[Tensor]:
        self.net.setInput(images.numpy())
        return [torch.from_numpy(output) for output in self.net.forward(self.outputs)]
