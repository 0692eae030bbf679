"""Writer of ONNX: one file with its weights inside, in the operator set that was requested."""

import io
import logging
import tempfile
import warnings
from collections.abc import Generator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from utils.detector import Detector
from utils.errors import UserError, one_line
from utils.exporting.calibration import choose_images
from utils.exporting.network import ExportNetwork, output_names
from utils.exporting.onnx_int8 import quantize_onnx
from utils.exporting.onnx_nms import append_nms
from utils.exporting.request import ExportRequest
from utils.files import atomic_write
from utils.formats import import_extra
from utils.inference.model_metadata import ModelMetadata

if TYPE_CHECKING:
    from onnx import ModelProto

OPSETS = range(12, 21)  # that PyTorch's exporter by tracing writes
FIRST_DYNAMO_OPSET = 17
INPUT_AXES = {0: "batch", 2: "height", 3: "width"}  # that --dynamic frees
MAX_BYTES = 2**31 - 1  # of a protobuf message: more needs a second file


def check_onnx(request: ExportRequest, network: Detector) -> None:
    """Raise UserError if the packages are absent, or the operator set is one that cannot be written."""
    onnx = import_extra("onnx", "export", "--include onnx")
    if request.dynamo or request.simplify:
        import_extra("onnxscript", "export", "--dynamo" if request.dynamo else "--simplify")
    known = range(FIRST_DYNAMO_OPSET, onnx.defs.onnx_opset_version() + 1) if request.dynamo else OPSETS
    if request.opset not in known:
        other = "; --dynamo writes later ones" if not request.dynamo and request.opset > known[-1] else ""
        raise UserError(f"--opset {request.opset}: {known[0]} to {known[-1]} can be written{other}")
    if request.int8:
        import_extra("onnxruntime", "export", "--int8")
        choose_images(request, "--int8")


def write_onnx(network: Detector, request: ExportRequest, metadata: ModelMetadata, path: Path) -> None:
    """Write the network into the file `path`. Raises UserError if it cannot be written as requested."""
    model = build_onnx(network, request)
    for key, value in metadata.to_properties().items():
        model.metadata_props.add(key=key, value=value)
    model.producer_name, model.producer_version = "anchorage", metadata.version
    if model.ByteSize() > MAX_BYTES:
        raise UserError("--include onnx: larger than 2 GiB, which needs a second file: export a smaller model")
    import_extra("onnx.checker", "export", "--include onnx").check_model(model)
    with atomic_write(path) as file:
        file.write(model.SerializeToString())


def build_onnx(network: Detector, request: ExportRequest) -> "ModelProto":
    """Return the ONNX model of a network, without metadata. Others convert it further."""
    module = ExportNetwork(network, request).eval()
    images = torch.zeros(request.input_shape, device=network.device)
    outputs = output_names(network, request)
    export = _export_by_dynamo if request.dynamo else _export_by_tracing
    try:
        with torch.inference_mode(), silence(request.verbose):
            model = export(module, images, request, outputs)
    except (RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"--include onnx: PyTorch cannot export this model: {one_line(str(error))}") from error
    found = {entry.domain: entry.version for entry in model.opset_import}
    if found.get("", 0) != request.opset:
        other = "omit --dynamo" if request.dynamo else "try --dynamo"
        raise UserError(
            f"--opset {request.opset}: this model gives {found.get('', 0)}: type --opset {found.get('')} or {other}"
        )
    if request.simplify:
        model = _simplify(model)
    if request.int8:
        model = quantize_onnx(model, choose_images(request, "--int8"), per_tensor=request.per_tensor)
    if request.nms:
        model = append_nms(model, request.nms, network.num_classes)
    if request.dynamic:
        _name_axes(model, request, width=network.num_classes + (4 if request.layout == "yolov8" else 5))
    return model


def _export_by_tracing(
    module: ExportNetwork, images: torch.Tensor, request: ExportRequest, outputs: list[str]
) -> "ModelProto":
    onnx = import_extra("onnx", "export", "--include onnx")
    axes = {name: _output_axes(request) for name in outputs} | {"images": INPUT_AXES} if request.dynamic else None
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder, "traced.onnx"))
        torch.onnx.export(
            module,
            (images,),
            file,
            dynamo=False,
            opset_version=request.opset,
            input_names=["images"],
            output_names=outputs,
            dynamic_axes=axes,
            verbose=request.verbose,
        )
        return onnx.load_model(file)


def _export_by_dynamo(
    module: ExportNetwork, images: torch.Tensor, request: ExportRequest, outputs: list[str]
) -> "ModelProto":
    shapes = (dict.fromkeys(INPUT_AXES, torch.export.Dim.DYNAMIC),) if request.dynamic else None
    program = torch.onnx.export(
        module,
        (images,),
        dynamo=True,
        opset_version=request.opset,
        input_names=["images"],
        output_names=outputs,
        dynamic_shapes=shapes,
        verbose=request.verbose,
    )
    assert program is not None
    return program.model_proto


def _output_axes(request: ExportRequest) -> dict[int, str]:
    """Return the dynamic axes of an output."""
    if request.layout == "raw":
        return {0: "batch", 2: "rows", 3: "columns"}
    return {0: "batch", 2 if request.layout == "yolov8" else 1: "anchors"}


def _name_axes(model: "ModelProto", request: ExportRequest, *, width: int) -> None:
    """Name the dynamic axes, which the exporter by torch.export numbers, and fix the size of the last one.

    The tracing exporter loses the size of an output of rows, which is `width`.
    """
    ports = [(port, INPUT_AXES) for port in model.graph.input]
    ports += [(port, _output_axes(request)) for port in model.graph.output]
    for port, axes in ports:
        for axis, name in axes.items():
            dim = port.type.tensor_type.shape.dim[axis]
            if not dim.HasField("dim_value"):
                dim.dim_param = name
    for port in model.graph.output:
        dims = port.type.tensor_type.shape.dim
        for axis in range(1, len(dims)):
            if axis not in _output_axes(request) and not dims[axis].HasField("dim_value"):
                dims[axis].dim_value = width


def _simplify(model: "ModelProto") -> "ModelProto":
    """Fold constants and shapes."""
    optimizer = import_extra("onnxscript.optimizer", "export", "--simplify")
    return optimizer.optimize(model)


@contextmanager
def silence(verbose: bool) -> Generator[None]:
    """Drop warnings and log lines of PyTorch's exporters, which are about their own code, unless `verbose`."""
    if verbose:
        with nullcontext():
            yield
        return
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
