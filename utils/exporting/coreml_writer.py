"""Writer of CoreML: an .mlpackage for macOS and iOS, converted from a traced network by coremltools.

It can be written on Linux too, and run on a Mac only.
"""

from pathlib import Path
from typing import cast

import torch

from utils.detector import Detector
from utils.errors import UserError, one_line
from utils.exporting.network import ExportNetwork, output_names
from utils.exporting.onnx_writer import silence
from utils.exporting.request import ExportRequest
from utils.formats import import_extra
from utils.inference.model_metadata import ModelMetadata


def check_coreml(request: ExportRequest, network: Detector) -> None:
    """Raise UserError if coremltools is absent, or for what is not written."""
    with silence(request.verbose):  # on Linux it prints that it cannot run what it writes
        import_extra("coremltools", "coreml", "--include coreml")
    for is_on, word in ((request.dynamic, "--dynamic"), (request.int8, "--int8"), (request.nms is not None, "--nms")):
        if is_on:
            raise UserError(f"--include coreml: {word} is not offered for CoreML: omit it")


def write_coreml(network: Detector, request: ExportRequest, metadata: ModelMetadata, path: Path) -> None:
    """Write the network as the package `path`, a folder. Raises UserError if coremltools cannot convert it."""
    with silence(request.verbose):
        ct = import_extra("coremltools", "coreml", "--include coreml")
        images = torch.zeros(request.input_shape, device=network.device)
        precision = ct.precision.FLOAT16 if request.half else ct.precision.FLOAT32
        # The converter lowers the precision itself, so the network stays float32.
        module = ExportNetwork(network, request.in_float32()).eval()
        try:
            with torch.no_grad():
                traced = torch.jit.trace(module, images, strict=False, check_trace=False)
            model = ct.convert(
                cast(torch.jit.ScriptModule, traced),
                inputs=[ct.TensorType(name="images", shape=tuple(images.shape))],
                outputs=[ct.TensorType(name=name) for name in output_names(network, request)],
                convert_to="mlprogram",
                compute_precision=precision,
                skip_model_load=True,
            )
        except (RuntimeError, ValueError, TypeError, KeyError) as error:
            reason = one_line(str(error))
            raise UserError(f"--include coreml: coremltools {ct.__version__} cannot convert this: {reason}") from error
        model.user_defined_metadata.update(metadata.to_properties())
        path.mkdir()
        package = path / "package.mlpackage"  # coremltools insists on the suffix
        model.save(str(package))
        for part in list(package.iterdir()):
            part.rename(path / part.name)
        package.rmdir()
