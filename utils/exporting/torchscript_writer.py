"""Writer of TorchScript: an archive with a traced network and its metadata as JSON."""

import json
import warnings
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from utils.detector import Detector
from utils.errors import UserError, one_line
from utils.exporting.network import ExportNetwork
from utils.exporting.request import ExportRequest
from utils.exporting.suppression import Suppression
from utils.inference.model_metadata import ModelMetadata
from utils.inference.torchscript_runtime import CONFIG


def check_torchscript(request: ExportRequest, network: Detector) -> None:
    """Raise UserError for what TorchScript cannot hold."""
    if request.int8:
        raise UserError("--int8 is not offered for TorchScript: use --include openvino or onnx, or omit --int8")
    if request.optimize and (network.device.type != "cpu" or request.half):
        raise UserError("--optimize is for float32 on mobile CPUs: use --device cpu, and omit --half")
    if request.optimize and not has_xnnpack():
        raise UserError("--optimize needs XNNPACK, which this build of PyTorch lacks: omit it, or use another build")


def has_xnnpack() -> bool:
    """Return whether this build of PyTorch has the library that `optimize_for_mobile` needs."""
    from torch.backends import xnnpack

    return bool(xnnpack.enabled)  # type: ignore


class _Traced(nn.Module):
    """An export network, followed by the suppression if the layout has one."""

    def __init__(self, network: Detector, request: ExportRequest):
        super().__init__()
        self.network = ExportNetwork(network, request)
        self.nms = Suppression(request.nms, network.num_classes) if request.nms else None

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        rows = self.network(images)
        return rows if self.nms is None else self.nms(rows)


def write_torchscript(network: Detector, request: ExportRequest, metadata: ModelMetadata, path: Path) -> None:
    """Write the network into the file `path`. It takes images of the requested shape, or of any if dynamic."""
    module = _Traced(network, request).eval()
    images = torch.zeros(request.input_shape, device=network.device)
    config: dict[str, Any] = {**metadata.to_properties(), "shape": list(request.input_shape)}
    config |= {"stride": metadata.stride, "names": metadata.names, "dynamic": metadata.dynamic}  # JSON, not text
    extra = {CONFIG: json.dumps(config)}
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about shapes read in Python, which are constants where static
            traced = cast(torch.jit.ScriptModule, torch.jit.trace(module, images, strict=False, check_trace=False))
            if request.optimize:
                from torch.utils.mobile_optimizer import optimize_for_mobile

                optimize_for_mobile(traced)._save_for_lite_interpreter(str(path), _extra_files=extra)
            else:
                traced.save(str(path), _extra_files=extra)
    except (RuntimeError, ImportError) as error:
        raise UserError(f"--include torchscript: PyTorch cannot export this model: {one_line(str(error))}") from error
