"""Export a trained model to the formats of other programs: `python export.py --weights best.pt --include onnx`.

Every export is compared with PyTorch on real images, unless `--no-verify` is typed.
"""

from utils.errors import silence_ctrl_c_during_imports

silence_ctrl_c_during_imports(__name__)

import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import torch

from models.loading import find_weights, load_model
from utils import console
from utils.class_values import single_threshold
from utils.cli import Arguments, Flags, detect_command, flag, image_size_flag, parse_flags, read_flags, suggest
from utils.detector import Detector
from utils.device import describe_device, select_device, set_current_device
from utils.download import fetch_typed
from utils.errors import UserError
from utils.errors import run as run_command
from utils.exporting.proof import Proof, ProofFile, prove
from utils.exporting.proof_images import ProofImages, open_proof_images
from utils.exporting.proof_report import proof_table, write_report
from utils.exporting.request import ExportRequest, NmsInside
from utils.exporting.writers import WRITERS, check_request, require_place, write_format
from utils.files import size_on_disk
from utils.formats import FORMATS
from utils.image_size import require_size, round_size
from utils.inference.model_metadata import LAYOUTS
from utils.inference.open_model import open_exported
from utils.inference.runtime import RuntimeSettings
from utils.output.json_documents import to_line
from utils.pixel_format import RGB, PixelFormat
from utils.process_state import unchanged_process

PROGRAM = {"prog": "export.py", "description": "Export a model to other formats."}

DIFFERENT = 3  # exit code if an export differs from PyTorch


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
    imgsz: list[int] = image_size_flag([640, 640], "input")
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
    conf_thres: float = flag(0.25, "lowest confidence, for --nms", type=single_threshold, group="detection")
    json: bool = flag(False, "print the results as a JSON document on stdout, and messages on stderr", group="output")
    no_verify: bool = flag(False, "do not compare the exports with PyTorch", group="output")
    verify_images: int = flag(32, "images of --data to compare them on; 0 takes all", group="output")

    def __post_init__(self) -> None:
        require_size(self.imgsz)
        checks = [
            (1 <= self.batch_size <= 4096, f"--batch-size {self.batch_size}: 1 to 4096"),
            (self.verify_images >= 0, f"--verify-images {self.verify_images}: 0 or more"),
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

    def request(self, size: tuple[int, int], pixels: PixelFormat = RGB) -> ExportRequest:
        """Return the properties that the files will have. size: height and width of the input, of `pixels`."""
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
            pixels=pixels,
        )


def parse_opt(known: bool = False) -> Flags:
    """Return all flags of the command line, for `main`. `known`: ignore words that are no flags."""
    return parse_flags(ExportOptions, **PROGRAM, known=known)


def parse_args(argv: Arguments = None) -> tuple[ExportOptions, frozenset[str]]:
    """Return the options, and the names of those that the user typed."""
    typed = fetch_typed(read_flags(ExportOptions, argv, **PROGRAM))
    return ExportOptions(**typed), frozenset(typed)


class Exports(NamedTuple):
    """Files and folders written, whether one of them differs from PyTorch, and the reports of the comparisons."""

    paths: list[Path]
    differs: bool = False
    reports: Sequence[Path] = ()


def export_weights(options: ExportOptions, weights: Path, device: torch.device, *, data_typed: bool) -> Exports:
    """Write all formats of one weights file, and compare them with it."""
    network: Detector = load_model(weights, device)
    request = options.request(round_size(options.imgsz, network.size_multiple), network.pixels)
    formats = [FORMATS[name] for name in options.include]
    check_request(formats, request, network)
    for kind in formats:  # all of them before the first one is written
        require_place(kind, weights)
    if request.nms and network.advice.most_labels > request.nms.total:
        most = network.advice.most_labels
        console.warn(f"--topk-all {request.nms.total}: {weights.name} was validated on an image with {most} labels")
    images, report = None, weights.with_name(f"{weights.stem}_export.json")
    if not options.no_verify:  # before anything is written: a mistake in --data is cheap to find
        if report.is_dir():
            raise UserError(f"{report}: is a folder where the report belongs: rename or remove it")
        images = open_proof_images(
            options.data,
            typed=data_typed,
            names=network.names,
            shape=request.size,
            count=options.verify_images,
            pixels=network.pixels,
        )
    written = []
    for kind in dict.fromkeys(formats):
        path = write_format(kind, network, weights, request)
        console.result(f"{kind.title}: {path}")
        written.append(path)
    if images is None:
        console.result(*(f"Run it: {detect_command([path], request.size)}" for path in written))
        return Exports(written)
    files = [ProofFile.from_request(path, request) for path in written]
    return Exports(written, verify(network, weights, files, images, report).differs, [report])


def verify(network: Detector, weights: Path, files: Sequence[ProofFile], images: ProofImages, report: Path) -> Proof:
    """Compare the exports of a weights file with its network. Print the table and write it as JSON into `report`."""
    settings = RuntimeSettings(network.device)
    proof = prove(network, files, images, lambda path: open_exported(path, settings))
    write_report(report, proof, weights)
    console.result(*proof_table(proof, weights), f"Report: {report}")
    return proof


def run_export(options: ExportOptions, typed: frozenset[str] = frozenset({"weights"})) -> Exports:
    """Export as the options say. The files and folders are in the order of --weights and --include."""
    for name in options.include:
        if name not in FORMATS:
            hint = "; put spaces between formats" if "," in name else suggest(name, WRITERS)
            raise UserError(f"--include {name}: no such format: give some of {', '.join(WRITERS)}{hint}")
    if options.inplace:
        console.warn("--inplace changes nothing: exports are decoded by a function of their own. Omit it")
    for name in sorted(typed & {"opset", "dynamo", "simplify"}):
        if "onnx" not in options.include:
            console.warn(f"--{name} is ignored: only --include onnx has it")
    device = set_current_device(select_device(options.device)[0])
    files = find_weights(options.weights, typed="weights" in typed)
    console.info(f"export: {describe_device(device)}, torch {torch.__version__}, {', '.join(map(str, files))}")
    parts = [export_weights(options, file, device, data_typed="data" in typed) for file in files]
    return Exports(
        [path for part in parts for path in part.paths],
        any(part.differs for part in parts),
        [path for part in parts for path in part.reports],
    )


def describe_exports(options: ExportOptions, exports: Exports) -> dict[str, Any]:
    """Return the document of `--json`: the files, and the reports of the comparisons with PyTorch."""
    files = [
        {"format": name, "file": str(path), "bytes": size_on_disk(path)}
        for name, path in zip(cycle(dict.fromkeys(options.include)), exports.paths)
    ]
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in exports.reports]
    verdicts = [report["agrees"] for report in reports]
    return {
        "program": "export",
        "agrees": False if exports.differs else None if None in verdicts or not verdicts else True,
        "files": files,
        "reports": reports,
    }


def run(**flags: Any) -> list[Path]:
    """Export with flags as keywords (`weights="best.pt", include=["onnx"]`), from a program.

    Return the files and folders written. Raises UserError, also for mistakes in the keywords.
    """
    with unchanged_process():
        return run_export(*parse_args(flags)).paths


def main(argv: Arguments = None) -> list[Path]:
    """Export as the command line `argv` says. Return the files and folders written.

    Raises SystemExit with code 3 if one of them differs from PyTorch.
    """
    options, typed = parse_args(argv)
    with redirect_stdout(sys.stderr) if options.json else nullcontext():  # exporters print, too
        exports = run_export(options, typed)
    if options.json:
        console.data(to_line(describe_exports(options, exports)))
    if exports.differs:
        raise SystemExit(DIFFERENT)
    return exports.paths


if __name__ == "__main__":
    run_command(main, closes_files=True)
