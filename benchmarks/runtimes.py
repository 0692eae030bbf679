"""Time of every runtime on the CPU, against PyTorch in float32: one image of 640 x 640 pixels through yolov5n.

    python benchmarks/runtimes.py
    python benchmarks/runtimes.py --weights yolov5n.pt --imgsz 320

Without weights the network has random ones, which take the same time. Runtimes whose packages are absent are named
below the table. Files in 8 bits are calibrated on a few images of the built-in data set.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.timing import Row, compare, print_rows, row
from models.loading import load_model
from models.yolo import DetectionModel
from utils.datasets.locate import BUILT_IN, locate_dataset
from utils.errors import UserError
from utils.exporting.request import ExportRequest
from utils.exporting.writers import check_request, write_format
from utils.formats import FORMATS
from utils.inference.open_model import open_exported
from utils.inference.runtime import RuntimeSettings

CALIBRATION_IMAGES = 16  # the time does not depend on them
# Part of the table -> format, 8 bits, 16 bits where the runtime can, and the least ratio that is expected.
PARTS = {
    "TorchScript": ("torchscript", False, False, "-"),
    "ONNX Runtime, float32": ("onnx", False, False, "1"),
    "ONNX Runtime, 8 bits": ("onnx", True, False, "-"),
    "OpenVINO, float32": ("openvino", False, False, "1"),
    "OpenVINO, 16 bits": ("openvino", False, True, "2"),
    "OpenVINO, 8 bits": ("openvino", True, False, "-"),
    "ncnn, float32": ("ncnn", False, False, "-"),
    "ncnn, 16 bits": ("ncnn", False, True, "-"),
    "LiteRT, float32": ("tflite", False, False, "-"),
    "LiteRT, 8 bits": ("tflite", True, False, "-"),
}


def eager(network: DetectionModel, images: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    with torch.inference_mode(), torch.autocast("cpu", dtype, enabled=dtype is not None):
        return network(images)[0]


def measure(network: DetectionModel, images: torch.Tensor, part: str, folder: Path) -> tuple[Row, str]:
    """Return the row of a part, and a note with its largest differences. Raises UserError if it cannot run here."""
    name, int8, half, at_least = PARTS[part]
    request = ExportRequest(tuple(images.shape[2:]))
    request = replace(request, int8=int8, data=str(BUILT_IN), calibration_images=CALIBRATION_IMAGES)
    check_request([FORMATS[name]], request, network)
    path = write_format(FORMATS[name], network, folder / "network.pt", request)
    model = open_exported(path, RuntimeSettings(half=half, threads=torch.get_num_threads()))
    rows, expected = model(images)[0], eager(network, images)
    pixels, score = (float((rows - expected).abs()[..., part].max()) for part in (slice(0, 4), slice(4, None)))
    timing = compare(partial(eager, network, images), partial(model, images), times=(1, 3))
    note = f"{part}: {model.runtime.title}; largest differences {pixels:.2g} pixels, {score:.2g} in scores."
    return row(part, timing, at_least=at_least), note


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default="", help="weights file; random weights without it")
    parser.add_argument("--imgsz", type=int, default=640)
    options = parser.parse_args()
    torch.manual_seed(0)
    network = load_model(options.weights) if options.weights else DetectionModel("yolov5n").eval().fuse()
    images = torch.rand(1, 3, options.imgsz, options.imgsz)
    baseline: Callable[[], torch.Tensor] = partial(eager, network, images)
    half = partial(eager, network, images, torch.bfloat16)
    rows, notes = [row("PyTorch, bfloat16", compare(baseline, half, times=(1, 1)), at_least="-")], []
    locate_dataset(str(BUILT_IN))
    for part in PARTS:
        with tempfile.TemporaryDirectory() as folder:
            try:
                found, note = measure(network, images, part, Path(folder))
            except UserError as error:
                notes.append(f"{part}: not measured: {error}.")
            else:
                rows.append(found)
                notes.append(note)
    print_rows(rows, *notes)


if __name__ == "__main__":
    main()
