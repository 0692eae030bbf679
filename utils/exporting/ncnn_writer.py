"""Writer of ncnn's format: a folder with the graph (.param), the weights (.bin) and metadata.

The converter is pnnx, a program that reads TorchScript. It runs in a process of its own.
"""

import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

from utils.detector import Detector
from utils.errors import UserError, one_line
from utils.exporting.request import ExportRequest
from utils.exporting.torchscript_writer import write_torchscript
from utils.formats import import_extra
from utils.inference.metadata_file import write_metadata_file
from utils.inference.model_metadata import ModelMetadata

PURPOSE = "--include ncnn"
STEM = "model.ncnn"  # of both files; programs for ncnn expect these names
TIMEOUT = 1800.0  # seconds


def check_ncnn(request: ExportRequest, network: Detector) -> None:
    """Raise UserError if a package is absent, or for what ncnn cannot hold."""
    import_extra("pnnx", "ncnn", PURPOSE)
    refused = [
        (request.int8, "--int8", "use --include openvino, onnx or tflite for it, or omit --int8"),
        (request.dynamic, "--dynamic", "its decoding has constants of one size: omit --dynamic and give --imgsz"),
        (request.batch != 1, f"--batch-size {request.batch}", "ncnn runs one image a call: omit --batch-size"),
        (request.nms is not None, "--nms", "ncnn has no operator for it: omit --nms"),
    ]
    for applies, word, advice in refused:
        if applies:
            raise UserError(f"{PURPOSE} {word}: {advice}")


def write_ncnn(network: Detector, request: ExportRequest, metadata: ModelMetadata, path: Path) -> None:
    """Write the network into the new folder `path`. With `half` its weights are stored in float16."""
    program = import_extra("pnnx", "ncnn", PURPOSE).EXEC_PATH
    with tempfile.TemporaryDirectory() as folder:
        traced = Path(folder, "model.pt")
        write_torchscript(network, replace(request, half=False, optimize=False), metadata, traced)
        shape = ",".join(map(str, (1, *request.input_shape[1:])))
        words = [program, str(traced), f"inputshape=[{shape}]f32", f"fp16={int(request.half)}"]
        try:
            done = subprocess.run(words, cwd=folder, capture_output=True, text=True, errors="replace", timeout=TIMEOUT)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UserError(f"{PURPOSE}: pnnx cannot be run: {one_line(str(error))}") from error
        graph, weights = Path(folder, f"{STEM}.param"), Path(folder, f"{STEM}.bin")
        if done.returncode or not graph.is_file() or not weights.is_file():
            lines = (done.stderr or done.stdout).strip().splitlines() or [f"it ended with code {done.returncode}"]
            raise UserError(f"{PURPOSE}: pnnx cannot convert this model: {one_line(lines[-1])}")
        _require_known_operators(graph)
        path.mkdir()
        for file in (graph, weights):
            (path / file.name).write_bytes(file.read_bytes())
    write_metadata_file(path, metadata)


def _require_known_operators(graph: Path) -> None:
    """Raise UserError for operators that pnnx has left as they are in PyTorch: ncnn does not know them."""
    kinds = {line.split()[0] for line in graph.read_text().splitlines()[2:] if line.strip()}
    foreign = sorted(kind for kind in kinds if "." in kind or "::" in kind)
    if foreign:
        raise UserError(f"{PURPOSE}: ncnn has no operator for {', '.join(foreign[:3])} of this model")
