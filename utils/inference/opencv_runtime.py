"""ONNX files run by OpenCV's DNN module (`--dnn`)."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import cv2
import torch
from torch import Tensor

from utils.errors import UserError, one_line
from utils.inference.onnx_file import read_onnx
from utils.inference.runtime import RuntimeSettings

LACKING_OPERATORS = {"NonMaxSuppression", "OneHot"}  # OpenCV 5.0 crashes on them


class OpenCVRuntime:
    """Runtime of .onnx files that needs no other package than OpenCV."""

    def __init__(self, path: Path, settings: RuntimeSettings):
        outline = read_onnx(path)
        self.properties, self.device = outline.properties, torch.device("cpu")
        self.input_shape = outline.input_shape
        self.outputs = [output.name for output in outline.outputs]
        if lacking := outline.operators.keys() & LACKING_OPERATORS:
            raise UserError(f"{path}: OpenCV lacks the operator {min(lacking)}: omit --dnn, or export without --nms")
        if None in self.input_shape:
            raise UserError(f"{path}: OpenCV reads static shapes only: export without --dynamic, or omit --dnn")
        try:
            with silent_opencv():
                self.net = cv2.dnn.readNetFromONNX(str(path))
        except cv2.error as error:
            raise UserError(f"{path}: OpenCV {cv2.__version__} cannot load it: {one_line(error.err)}") from error
        self.title = f"OpenCV DNN {cv2.__version__} (cpu)"

    def run(self, images: Tensor) -> list[Tensor]:
        self.net.setInput(images.numpy())
        return [torch.from_numpy(output) for output in self.net.forward(self.outputs)]


@contextmanager
def silent_opencv() -> Generator[None]:
    """Drop the log lines that OpenCV prints beside its errors."""
    before = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(before)
