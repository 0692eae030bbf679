"""Writer of TensorFlow Lite's format by litert-torch, which needs no TensorFlow.

The input is (1, H, W, C), as programs for it expect. Metadata is a JSON file in an archive behind the model, where
programs for TensorFlow Lite look for such files.
"""

import io
import json
import zipfile
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from utils import console
from utils.detector import Detector
from utils.environment import set_default
from utils.errors import UserError, one_line
from utils.exporting.calibration import CalibrationImages, choose_images
from utils.exporting.network import ExportNetwork
from utils.exporting.quiet import quiet_libraries
from utils.exporting.request import ExportRequest
from utils.formats import import_extra
from utils.inference.model_metadata import ModelMetadata
from utils.inference.tflite_runtime import METADATA

PURPOSE = "--include tflite"
SIGNATURE, INPUT = "serving_default", "args_0"  # names that litert-torch gives
# Names of operators in the layers, without the last convolutions, whose outputs are decoded.
LAYERS = r".*ExportNetwork_network/[^/]*_layers/(?!.*LevelOutputs).*"


def check_tflite(request: ExportRequest, network: Detector) -> None:
    """Raise UserError if a package is absent, or for what the format cannot hold."""
    _import_litert("litert_torch")
    refused = [
        (request.dynamic, "--dynamic", "the format has fixed shapes: omit --dynamic and give --imgsz"),
        (request.half, "--half", "devices convert the weights themselves: omit --half, or use --int8"),
        (request.nms is not None, "--nms", "the format has no operator for it: omit --nms"),
        (request.per_tensor, "--per-tensor", "weights are quantised per channel: omit it"),
    ]
    for applies, word, advice in refused:
        if applies:
            raise UserError(f"{PURPOSE} {word}: {advice}")
    if request.int8:
        _import_litert("ai_edge_quantizer")
        choose_images(request, "--int8")


def write_tflite(network: Detector, request: ExportRequest, metadata: ModelMetadata, path: Path) -> None:
    """Write the network into the file `path`."""
    litert = _import_litert("litert_torch")
    module = _ChannelsLast(ExportNetwork(network, request)).eval()
    images = torch.zeros(request.batch, *request.size, request.pixels.channels)
    try:
        with torch.no_grad(), quiet_libraries():
            litert.convert(module, (images,)).export(str(path))
    except (RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"{PURPOSE}: litert-torch cannot convert this model: {one_line(str(error))}") from error
    if request.int8:
        _quantize(path, choose_images(request, "--int8"))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(METADATA, json.dumps(metadata.to_properties()))


class _ChannelsLast(nn.Module):
    """Export network on the CPU that takes images (B, H, W, channels).

    All its weights are contiguous: litert-torch recognises constants by their address, and copies of others may share
    one. Then it mixes up weights without an error.
    """

    def __init__(self, network: ExportNetwork):
        super().__init__()
        self.network = network.cpu()
        for tensor in (*self.network.parameters(), *self.network.buffers()):
            tensor.data = tensor.data.contiguous()

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.network(images.permute(0, 3, 1, 2))


class _Samples:
    """Calibration inputs, which ai-edge-quantizer iterates over several times."""

    def __init__(self, images: CalibrationImages):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        for batch in self.images:
            yield {INPUT: np.ascontiguousarray(batch.transpose(0, 2, 3, 1))}


def _quantize(path: Path, images: CalibrationImages) -> None:
    """Give the model in `path` 8-bit layers, except for the last convolutions, whose outputs are decoded."""
    package, recipes = _import_litert("ai_edge_quantizer"), _import_litert("ai_edge_quantizer.recipe")
    rules = [rule | {"regex": LAYERS} for rule in recipes.static_wi8_ai8()]
    console.info(f"Calibrating on {len(images.paths)} images")
    with quiet_libraries(), redirect_stderr(io.StringIO()):  # its progress bars are about operators
        quantizer = package.quantizer.Quantizer(str(path))
        quantizer.load_quantization_recipe(rules)
        found = quantizer.calibrate({SIGNATURE: _Samples(images)})
        quantizer.quantize(found).export_model(str(path), overwrite=True)


def _import_litert(module: str) -> Any:
    set_default("TF_CPP_MIN_LOG_LEVEL", "3")  # its C++ part logs every step
    with quiet_libraries():
        return import_extra(module, "tflite", PURPOSE)
