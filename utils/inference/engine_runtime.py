"""TensorRT engines run on an NVIDIA GPU."""

import json
from pathlib import Path

import torch
from torch import Tensor

from utils.errors import UserError, one_line
from utils.formats import import_extra
from utils.inference.runtime import InputShape, RuntimeSettings, image_shape

MAX_HEADER = 1 << 24  # bytes


class EngineRuntime:
    """Runtime of .engine files, which run only on the GPU and the version of TensorRT that they were built on."""

    def __init__(self, path: Path, settings: RuntimeSettings):
        if settings.device.type != "cuda":
            raise UserError(f"{path}: a TensorRT engine needs an NVIDIA GPU: type --device 0 on a machine that has it")
        trt = import_extra("tensorrt", "engine", str(path))
        self.properties, content = read_engine(path)
        self.path, self.device = path, settings.device
        engine = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(content)
        if engine is None:
            raise UserError(f"{path}: built for another GPU or another TensorRT than {trt.__version__}: export it here")
        self.context, self.engine = engine.create_execution_context(), engine
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        self.inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self.outputs = [name for name in names if name not in self.inputs]
        if len(self.inputs) != 1:
            raise UserError(f"{path}: takes {len(self.inputs)} inputs, not one of images")
        dims = [side if side > 0 else None for side in engine.get_tensor_shape(self.inputs[0])]
        self.input_shape: InputShape = image_shape(dims, path)
        self.title = f"TensorRT {trt.__version__} ({settings.device})"

    def run(self, images: Tensor) -> list[Tensor]:
        images = images.contiguous()
        if not self.context.set_input_shape(self.inputs[0], tuple(images.shape)):
            raise UserError(f"{self.path}: takes no images of shape {tuple(images.shape)}: export it with --dynamic")
        self.context.set_tensor_address(self.inputs[0], images.data_ptr())
        found = [images.new_empty(tuple(self.context.get_tensor_shape(name))) for name in self.outputs]
        for name, output in zip(self.outputs, found, strict=True):
            self.context.set_tensor_address(name, output.data_ptr())
        stream = torch.cuda.current_stream(self.device)
        if not self.context.execute_async_v3(stream.cuda_stream):
            raise UserError(f"{self.path}: TensorRT cannot run it, maybe out of GPU memory: use a smaller --batch-size")
        stream.synchronize()
        return found


def read_engine(path: Path) -> tuple[dict[str, str], bytes]:
    """Return the metadata of an .engine file, and the engine behind it. Raises UserError for a damaged file."""
    content = path.read_bytes()
    length = int.from_bytes(content[:4], "little")
    if not 0 < length <= min(MAX_HEADER, len(content) - 4):
        raise UserError(f"{path}: no engine with metadata in front: export it with this program")
    try:
        found = json.loads(content[4 : 4 + length])
        return {str(key): str(value) for key, value in found.items()}, content[4 + length :]
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path}: its metadata cannot be read: {one_line(str(error))}") from error
