"""Static 8-bit quantisation of ONNX models by ONNX Runtime, which leaves the decoding in float32."""

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from utils import console
from utils.exporting.calibration import CalibrationImages
from utils.exporting.int8_speed import report_int8_speed
from utils.exporting.quiet import quiet_libraries
from utils.formats import import_extra

if TYPE_CHECKING:
    from onnx import ModelProto

PACKAGE = "onnxruntime.quantization"


class _CalibrationReader:
    """Reader that ONNX Runtime calls for one batch after the other. It ends with None."""

    def __init__(self, images: CalibrationImages, bar: console.ProgressBar):
        self.batches: Iterator[np.ndarray] = iter(images)
        self.bar = bar

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        self.bar.update()
        return None if batch is None else {"images": batch}


def quantize_onnx(model: "ModelProto", images: CalibrationImages, *, per_tensor: bool) -> "ModelProto":
    """Return the model with 8-bit convolutions, except for the last ones, whose outputs are decoded.

    Weights have a scale per output channel, or one per tensor.
    """
    onnx = import_extra("onnx", "export", "--int8")
    with tempfile.TemporaryDirectory() as folder:
        source, target = (str(Path(folder, name)) for name in ("float.onnx", "int8.onnx"))
        onnx.save_model(model, source)
        with console.progress_bar(desc="Calibrating", total=len(images), leave=False) as bar, quiet_libraries():
            _quantize(source, target, _CalibrationReader(images, bar), per_tensor=per_tensor)
        quantized = onnx.load_model(target)
        batch = next(iter(images))
        sessions = {"float32": _open(source), "int8": _open(target)}
        runs = {name: partial(session.run, None, {"images": batch}) for name, session in sessions.items()}
        report_int8_speed("ONNX Runtime", runs)
    quantized.graph.name = model.graph.name
    return quantized


def _quantize(source: str, target: str, reader: _CalibrationReader, *, per_tensor: bool) -> None:
    """Write the model in the file `source`, with 8-bit convolutions, into the file `target`."""
    onnx, ort = (import_extra(name, "export", "--int8") for name in ("onnx", PACKAGE))
    prepared = f"{source}.prepared"
    import_extra(f"{PACKAGE}.shape_inference", "export", "--int8").quant_pre_process(
        source, prepared, skip_symbolic_shape=True
    )
    ort.quantize_static(
        prepared,
        target,
        reader,
        quant_format=ort.QuantFormat.QDQ,
        op_types_to_quantize=["Conv"],
        per_channel=not per_tensor,
        activation_type=ort.QuantType.QInt8,
        weight_type=ort.QuantType.QInt8,
        nodes_to_exclude=last_convolutions(onnx.load_model(prepared)),
        calibrate_method=ort.CalibrationMethod.MinMax,
    )


def _open(path: str) -> Any:
    """Return a session on the CPU."""
    ort = import_extra("onnxruntime", "export", "--int8")
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"])


def last_convolutions(model: "ModelProto") -> list[str]:
    """Return the names of the convolutions that no other follows on the way to the outputs."""
    makers = {output: node for node in model.graph.node for output in node.output}
    waiting, seen, found = [output.name for output in model.graph.output], set(), []
    while waiting:
        name = waiting.pop()
        node = makers.get(name)
        if node is None or name in seen:
            continue
        seen.add(name)
        if node.op_type == "Conv":
            found.append(node.name)
        else:
            waiting += node.input
    return found
