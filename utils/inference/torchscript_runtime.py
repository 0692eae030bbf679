"""TorchScript files run by PyTorch."""

import json
import warnings
from pathlib import Path

import torch
from torch import Tensor

from utils.errors import UserError, one_line
from utils.inference.runtime import InputShape, RuntimeSettings
from utils.inference.torchscript_file import read_torchscript

CONFIG = "config.txt"  # extra file in the archive, with JSON
MAX_SIDE = 1 << 16


class TorchScriptRuntime:
    """Runtime of .torchscript files."""

    def __init__(self, path: Path, settings: RuntimeSettings):
        self.device = settings.device
        checked, extra = read_torchscript(path), {CONFIG: ""}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the loader is deprecated, its files are not
                self.module = torch.jit.load(checked, map_location=settings.device, _extra_files=extra).eval()
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{path}: PyTorch cannot load it as TorchScript: {one_line(str(error))}") from error
        self.title = f"TorchScript, PyTorch {torch.__version__} ({settings.device.type})"
        self.properties, self.input_shape = read_config(extra[CONFIG], path)
        dtype = next((part.dtype for part in self.module.parameters()), torch.float32)
        # A file of YOLOv5 with weights in float16 takes images in float16 too. Ours converts them itself.
        self.dtype = dtype if "layout" not in self.properties else torch.float32

    @torch.inference_mode()
    def run(self, images: Tensor) -> list[Tensor]:
        outputs = self.module(images.to(self.dtype))
        found = [outputs] if isinstance(outputs, Tensor) else outputs
        return [output.float() for output in found if isinstance(output, Tensor)]


def read_config(text: str | bytes, path: Path) -> tuple[dict[str, str], InputShape]:
    """Return the properties as text and the shape of the input of a config.txt.

    A file without one may have been traced at any shape, so its shape is unknown.
    """
    if not text:
        return {}, InputShape((None, None, None))
    try:
        content = json.loads(text)
        properties = {
            str(key): value if isinstance(value, str) else json.dumps(value) for key, value in content.items()
        }
        batch, channels, height, width = content["shape"]
        if not all(isinstance(side, int) and 1 <= side <= MAX_SIDE for side in (batch, channels, height, width)):
            raise ValueError("no shape of images")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: {CONFIG} in it cannot be read ({one_line(str(error))})") from error
    sides = (None, None, None) if content.get("dynamic") is True else (batch, height, width)
    return properties, InputShape(sides, channels)
