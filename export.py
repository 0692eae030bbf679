"""Export a trained model to the formats of other programs: `python export.py --weights best.pt --include onnx`.

Every export is compared with PyTorch on real images, unless `--no-verify` is typed.
"""

from utils.errors import silence_ctrl_c_during_imports

silence_ctrl_c_during_imports(__name__)

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from models.loading import find_weights, load_model
from utils import console
from utils.cli import detect_command, flag, read_flags
from utils.detector import Detector
from utils.device import describe_device, select_device, set_current_device
from utils.download import fetch_typed
from utils.errors import UserError
from utils.errors import run as run_command
from utils.exporting.request import ExportRequest, NmsInside
from utils.exporting.writers import check_request, write_format
from utils.formats import FORMATS
from utils.inference.model_metadata import LAYOUTS
from utils.inference.open_model import open_exported
from utils.inference.runtime import RuntimeSettings


@dataclass(frozen=True)
class ExportOptions:
    """Options of `export.py`: one field per flag."""

    weights: list[str] = flag(
        ["yolov5s.pt"], "model files, each exported by itself", type=str, nargs="+", group="model"
    )
    include: list[str] = flag(
        ["torchscript"], f"formats: {', '.join(FORMATS)}", type=str, nargs="+", metavar="FORMAT", group="output"
    )
    data: str = flag("data/coco128.yaml", "data set for the comparison and for the calibration of --int8", group="data")
    imgsz: list[int] = flag(
        [640, 640], "input: side, or h w", type=int, nargs="+", names=["--imgsz", "--img", "--img-size"], group="data"
    )
    batch_size: int = flag(1, "images per call", group="data")
    calibration_images: int = flag(300, "images that --int8 measures value ranges on", group="data")
    device: str = flag("cpu", "cpu, or a GPU number", group="devices")
    layout: str = flag(
        "yolov5", "layout of the output", choices=[name for name in LAYOUTS if name != "nms"], group="output"
    )
    half: bool = flag(False, "weights in float16; input and output stay float32", group="model")
    int8: bool = flag(False, "8-bit weights and activations, calibrated on --data", group="model")
    per_tensor: bool = flag(False, "one scale per tensor instead of per channel for --int8", group="model")
    dynamic: bool = flag(False, "any batch, height and width", group="model")
    simplify: bool = flag(False, "fold constants and shapes of ONNX", group="model")
    opset: int = flag(17, "operator set of ONNX", group="model")
    dynamo: bool = flag(False, "trace ONNX with PyTorch's newer exporter", group="model")
    inplace: bool = flag(False, "accepted, without effect", group="model")
    optimize: bool = flag(False, "optimise TorchScript for mobile", group="model")
    keras: bool = flag(False, "not offered: Keras layers in YOLOv5", group="model")
    mlmodel: bool = flag(False, "not offered: CoreML's old format in YOLOv5", group="model")
    cache: str = flag("", "timing cache of TensorRT", group="model")
    workspace: int = flag(4, "memory of TensorRT in GB", group="devices")
    verbose: bool = flag(False, "print the log of the exporter", group="output")
    nms: bool = flag(False, "suppress overlapping boxes inside: output (B, --topk-all, 6)", group="detection")
    agnostic_nms: bool = flag(False, "NMS across classes, for --nms", group="detection")
    topk_per_class: int = flag(100, "most detections of a class, for --nms", group="detection")
    topk_all: int = flag(100, "most detections of an image, for --nms", group="detection")
    iou_thres: float = flag(0.45, "NMS threshold, for --nms", group="detection")
    conf_thres: float = flag(0.25, "lowest confidence, for --nms", group="detection")
    no_verify: bool = flag(False, "do not compare the exports with PyTorch", group="output")

    def __post_init__(self) -> None:
        typed = " ".join(map(str, self.imgsz))
        checks = [
            (1 <= len(self.imgsz) <= 2 and min(self.imgsz) >= 1, f"--imgsz {typed}: expected one side or height width"),
            (1 <= self.batch_size <= 4096, f"--batch-size {self.batch_size}: 1 to 4096"),
            (self.calibration_images >= 1, f"--calibration-images {self.calibration_images}: at least 1"),
            (self.topk_all >= 1, f"--topk-all {self.topk_all}: at least 1"),
            (self.topk_per_class >= 1, f"--topk-per-class {self.topk_per_class}: at least 1"),
            (0 <= self.conf_thres <= 1, f"--conf-thres {self.conf_thres}: 0 to 1"),
            (0 <= self.iou_thres <= 1, f"--iou-thres {self.iou_thres}: 0 to 1"),
            (not self.keras, "--keras of YOLOv5 is not offered: TensorFlow's formats are not written. Omit it"),
            (not self.mlmodel, "--mlmodel is CoreML's old format, which its tools no longer write: --include coreml"),
            (not (self.half and self.int8), "--half and --int8 exclude each other: omit one"),
            (not (self.nms and self.layout != "yolov5"), f"--nms has a layout of its own: omit --layout {self.layout}"),
        ]
        for holds, message in checks:
            if not holds:
                raise UserError(message)

    def request(self, size: tuple[int, int]) -> ExportRequest:
        """Return the properties that the files will have. size: height and width of the input."""
        inside = NmsInside(self.conf_thres, self.iou_thres, self.topk_per_class, self.topk_all, self.agnostic_nms)
        return ExportRequest(
            size=size,
            batch=self.batch_size,
            layout="nms" if self.nms else self.layout,
            nms=inside if self.nms else None,
            dynamic=self.dynamic,
            half=self.half,
            int8=self.int8,
            opset=self.opset,
            dynamo=self.dynamo,
            simplify=self.simplify,
            optimize=self.optimize,
            verbose=self.verbose,
            per_tensor=self.per_tensor,
            calibration_images=self.calibration_images,
            data=self.data,
            workspace=self.workspace,
            timing_cache=self.cache,
        )


def parse_args(argv: Sequence[str] | None = None) -> tuple[ExportOptions, frozenset[str]]:
    """Return the options, and the names of those that the user typed."""
    typed = fetch_typed(
        read_flags(ExportOptions, argv, prog="export.py", description="Export a model to other formats.")
    )
    return ExportOptions(**typed), frozenset(typed)


def input_size(imgsz: Sequence[int], multiple: int) -> tuple[int, int]:
    """Return height and width of --imgsz, rounded up to multiples of the model's stride."""
    height, width = (-(-side // multiple) * multiple for side in (imgsz[0], imgsz[-1]))
    if (height, width) != (imgsz[0], imgsz[-1]):
        console.warn(f"--imgsz rounded up to {height} {width}: multiples of the model's stride {multiple}")
    return height, width


def export_weights(options: ExportOptions, weights: Path, device: torch.device) -> list[Path]:
    """Write all formats of one weights file. Return the files and folders."""
    network: Detector = load_model(weights, device)
    request = options.request(input_size(options.imgsz, network.size_multiple))
    formats = [FORMATS[name] for name in options.include]
    check_request(formats, request, network)
    written = []
    for kind in formats:
        path = write_format(kind, network, weights, request)
        console.result(f"{kind.title}: {path}")
        written.append(path)
    if not options.no_verify:
        verify(network, written, request)
    for path in written:
        console.result(f"Run it: {detect_command([path], request.size)}")
    return written


def verify(network: Detector, written: Sequence[Path], request: ExportRequest) -> None:
    """Run each export that has a runtime here, and print its largest difference from the network.

    The seam of the proof: it has the network, the files and the request, and may raise or exit.
    """
    images = torch.rand(request.batch, 3, *request.size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = network(images.to(network.device))[0].cpu()
    for path in written:
        model = open_exported(path, RuntimeSettings(network.device))
        rows = model(images.to(model.device))[0].cpu()
        if rows.shape == expected.shape:
            console.result(f"{path}: largest difference from PyTorch {float((rows - expected).abs().max()):.2g}")


def run_export(options: ExportOptions, typed: frozenset[str] = frozenset({"weights"})) -> list[Path]:
    """Export as the options say. Return the files and folders, in the order of --weights and --include."""
    for name in options.include:
        if name not in FORMATS:
            raise UserError(f"--include {name}: no such format: give some of {', '.join(FORMATS)}")
    device = set_current_device(select_device(options.device)[0])
    files = find_weights(options.weights, typed="weights" in typed)
    console.info(f"export: {describe_device(device)}, torch {torch.__version__}, {', '.join(map(str, files))}")
    return [path for file in files for path in export_weights(options, file, device)]


def main(argv: Sequence[str] | None = None) -> list[Path]:
    """Export as the command line `argv` says. Return the files and folders written."""
    return run_export(*parse_args(argv))


if __name__ == "__main__":
    run_command(main, closes_files=True)
