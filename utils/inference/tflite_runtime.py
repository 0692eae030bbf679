"""TensorFlow Lite files run by LiteRT on the CPU."""

import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.errors import UserError, one_line
from utils.files import open_regular
from utils.formats import import_extra, package_version
from utils.inference.runtime import RuntimeSettings, image_shape
from utils.inference.trial_run import require_trial_run

METADATA = "metadata.json"  # in the archive behind the model
MAX_BYTES = 1 << 24  # of it
MAX_MODEL_BYTES = 1 << 31  # an offset in the format has 31 bits
IDENTIFIER = b"TFL3"


class TfliteRuntime:
    """Runtime of .tflite files. Quantised inputs and outputs are converted."""

    def __init__(self, path: Path, settings: RuntimeSettings):
        check_tflite(path)
        self.properties, self.device = read_archive(path), torch.device("cpu")
        litert = import_extra("ai_edge_litert.interpreter", "tflite", str(path))
        require_trial_run(path, "LiteRT", settings.threads)
        try:
            self.interpreter = litert.Interpreter(model_path=str(path), num_threads=settings.threads or None)
            self.interpreter.allocate_tensors()
        except (ValueError, RuntimeError, OSError) as error:
            raise UserError(f"{path}: LiteRT cannot load it: {one_line(str(error))}") from error
        inputs = self.interpreter.get_input_details()
        if len(inputs) != 1 or len(inputs[0]["shape"]) != 4:
            raise UserError(f"{path}: takes {len(inputs)} inputs, not one of images (batch, height, width, channels)")
        self.input = inputs[0]
        self.outputs = sorted(self.interpreter.get_output_details(), key=lambda output: output["name"])
        dims = [int(side) for side in self.input["shape"]]
        self.channels_last = dims[3] < dims[1]
        self.input_shape = image_shape([dims[0], dims[3], *dims[1:3]] if self.channels_last else dims, path)
        precision = "8 bits" if self.properties.get("int8") == "true" else "float32"
        self.title = f"LiteRT {package_version('ai-edge-litert')} (CPU, {precision})"

    def run(self, images: Tensor) -> list[Tensor]:
        batch = images.permute(0, 2, 3, 1) if self.channels_last else images
        self.interpreter.set_tensor(self.input["index"], _quantize(batch.contiguous().numpy(), self.input))
        self.interpreter.invoke()
        found = [_dequantize(self.interpreter.get_tensor(output["index"]), output) for output in self.outputs]
        return [torch.from_numpy(np.array(one)) for one in found]


def _quantize(values: np.ndarray, details: dict[str, Any]) -> np.ndarray:
    """Return values in the type of a tensor, which may have a scale and a zero point."""
    scale, zero = details["quantization"]
    if not scale:
        return values.astype(details["dtype"], copy=False)
    limits = np.iinfo(details["dtype"])
    return np.clip(np.rint(values / scale + zero), limits.min, limits.max).astype(details["dtype"])


def _dequantize(values: np.ndarray, details: dict[str, Any]) -> np.ndarray:
    scale, zero = details["quantization"]
    return (values.astype(np.float32) - zero) * scale if scale else values.astype(np.float32)


def check_tflite(path: Path) -> None:
    """Raise UserError unless a file begins as a model does. LiteRT itself verifies all its offsets."""
    try:
        with open_regular(path, MAX_MODEL_BYTES) as file:
            size, _ = file.seek(0, 2), file.seek(0)
            start = file.read(8)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    if start[4:] != IDENTIFIER or int.from_bytes(start[:4], "little") > size - 4:
        raise UserError(f"{path}: not a TensorFlow Lite model, or a damaged one: export it again")


def read_archive(path: Path) -> dict[str, str]:
    """Return the properties in the archive behind a model. Empty if there are none."""
    try:
        with zipfile.ZipFile(path) as archive:
            info = archive.getinfo(METADATA)
            if info.file_size > MAX_BYTES:
                raise UserError(f"{path}: {METADATA} in it has {info.file_size:,} bytes, more than metadata needs")
            content = json.loads(archive.read(info))
        return {str(key): str(value) for key, value in content.items()}
    except (KeyError, zipfile.BadZipFile):
        return {}
    except (ValueError, AttributeError, OSError, EOFError, RuntimeError, zlib.error) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: its {METADATA} cannot be read: {one_line(str(error))}") from error
