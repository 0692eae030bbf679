"""Writer of OpenVINO's format: a folder with the graph (.xml), the weights (.bin) and metadata.

OpenVINO's telemetry stays off: its converter, which reports, is not called, and NNCF's is turned off.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from utils import console
from utils.detector import Detector
from utils.environment import set_default
from utils.errors import UserError, one_line
from utils.exporting.calibration import CalibrationImages, choose_images
from utils.exporting.int8_speed import report_int8_speed
from utils.exporting.onnx_writer import build_onnx
from utils.exporting.quiet import quiet_libraries
from utils.exporting.request import ExportRequest
from utils.formats import FORMATS, import_extra
from utils.inference.metadata_file import write_metadata_file
from utils.inference.model_metadata import ModelMetadata
from utils.inference.openvino_runtime import PRECISIONS, choose_precision

if TYPE_CHECKING:
    from openvino import Model

PURPOSE = "--include openvino"
OPSET = 17  # of the ONNX graph in between
CONVOLUTIONS = ("Convolution", "GroupConvolution")


def check_openvino(request: ExportRequest, network: Detector) -> None:
    """Raise UserError if a package is absent, or the images to calibrate on."""
    import_extra("openvino", "openvino", PURPOSE)
    import_extra("onnx", "openvino", PURPOSE)
    if request.int8:
        _import_nncf()
        choose_images(request, "--int8")


def write_openvino(network: Detector, request: ExportRequest, metadata: ModelMetadata, path: Path) -> None:
    """Write the network into the new folder `path`, whose name ends with the format's suffix."""
    ov = import_extra("openvino", "openvino", PURPOSE)
    model = convert_to_openvino(network, request)
    if request.int8:
        plain, model = model, _quantize(model, choose_images(request, "--int8"), per_tensor=request.per_tensor)
        _report_speed(plain, model, request)
    path.mkdir()
    stem = path.name.removesuffix(FORMATS["openvino"].suffix)
    ov.save_model(model, str(path / f"{stem}.xml"), compress_to_fp16=request.half)
    write_metadata_file(path, metadata)


def convert_to_openvino(network: Detector, request: ExportRequest) -> "Model":
    """Return the float32 network as a model of OpenVINO. Its input is `images`, its outputs are `output0`, …"""
    ov = import_extra("openvino", "openvino", PURPOSE)
    plain = replace(request, half=False, int8=False, dynamo=False, simplify=False, opset=OPSET)
    graph = build_onnx(network, plain).SerializeToString()
    try:
        return ov.Core().read_model(model=graph, weights=b"")
    except RuntimeError as error:
        raise UserError(f"{PURPOSE}: OpenVINO cannot convert this model: {one_line(str(error))}") from error


def _import_nncf() -> ModuleType:
    set_default("NNCF_CI", "1")  # NNCF reports its use to its makers unless this is set before it is imported
    with quiet_libraries():
        return import_extra("nncf", "openvino", f"{PURPOSE} --int8")


def _quantize(model: "Model", images: CalibrationImages, *, per_tensor: bool) -> "Model":
    """Return the model with 8-bit convolutions, except for the last ones, whose outputs are decoded."""
    nncf = _import_nncf()
    nncf.set_log_level("ERROR")
    if per_tensor:
        console.warn("--per-tensor is ignored: OpenVINO quantises weights per channel")
    kept = decoding_operators(model)
    with quiet_libraries(), console.progress_bar(desc="Calibrating", total=len(images), leave=False) as bar:

        def as_input(image: object) -> object:
            bar.update()
            return image

        return nncf.quantize(
            model,
            nncf.Dataset(images, as_input),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(images),
            ignored_scope=nncf.IgnoredScope(names=kept),
        )


def _report_speed(plain: "Model", quantized: "Model", request: ExportRequest) -> None:
    """Print the speed of the 8-bit model and of the float one in each precision of this CPU."""
    core = import_extra("openvino", "openvino", PURPOSE).Core()
    images = np.zeros(request.input_shape, np.float32)
    chosen = choose_precision(core)
    models = {PRECISIONS[name]: (plain, name) for name in dict.fromkeys(("f32", chosen))} | {"int8": (quantized, "f32")}
    compiled = {
        name: core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"})
        for name, (model, hint) in models.items()
    }
    report_int8_speed("OpenVINO", {name: partial(each, [images]) for name, each in compiled.items()})


def decoding_operators(model: "Model") -> list[str]:
    """Return the names of the last convolutions and of all operators behind them.

    One tensor holds pixels and probabilities there, which no 8-bit scale fits.
    """
    waiting, seen = [result.input_value(0).get_node() for result in model.get_results()], {}
    while waiting:
        node = waiting.pop()
        name = node.get_friendly_name()
        if name in seen or node.get_type_name() == "Constant":
            continue
        seen[name] = node
        if node.get_type_name() not in CONVOLUTIONS:
            waiting += [node.input_value(i).get_node() for i in range(node.get_input_size())]
    return [name for name, node in seen.items() if node.get_type_name() not in ("Parameter", "ShapeOf")]
