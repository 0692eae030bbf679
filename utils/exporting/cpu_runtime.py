"""Conversion of a loaded network for a faster runtime on the CPU (`--runtime`). It leaves no file behind."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from utils import console
from utils.cli import flag
from utils.detector import Detector, InferenceModel
from utils.errors import UserError
from utils.exporting.request import ExportRequest
from utils.exporting.writers import check_request, write_format
from utils.formats import FORMATS, package_version
from utils.inference.open_model import open_exported
from utils.inference.runtime import RuntimeSettings
from utils.timing import now

RUNTIMES = ("pytorch", "auto", "openvino", "onnx")  # values of --runtime
# Formats by the speed of their runtimes (benchmarks/runtimes.py), the fastest first, and the packages of each.
PACKAGES = {"openvino": ("openvino", "onnx"), "onnx": ("onnxruntime", "onnx")}
TRACED_CELLS = 10  # sides of the traced image in cells of the coarsest level; the converted network takes any size


def runtime_flag() -> str:
    """Return the field of the flag `--runtime`, as `flag` does."""
    return flag("pytorch", "library that runs .pt files on a CPU; auto: the fastest", choices=RUNTIMES, group="model")


def convert_after(
    load: Callable[[Sequence[Path]], InferenceModel], runtime: str, *, augment: bool
) -> Callable[[Sequence[Path]], InferenceModel]:
    """Return a loader of .pt files that hands what `load` returns to `convert_for_cpu`."""
    return lambda files: convert_for_cpu(load(files), files, runtime, augment=augment)


def convert_for_cpu(
    model: InferenceModel, files: Sequence[Path], runtime: str, *, augment: bool = False
) -> InferenceModel:
    """Return the model of the weights `files` in the runtime that the user named, and print which one runs.

    `auto` chooses the fastest that is installed, in 16 bits where the CPU computes in them. It stays with PyTorch where
    no other can run the model. Others are float32, and raise UserError instead.
    """
    if runtime == "pytorch":
        return model
    reason = _reason_for_pytorch(model, files, augment=augment)
    installed = [name for name, packages in PACKAGES.items() if all(map(package_version, packages))]
    if not reason and runtime == "auto" and not installed:
        reason = 'neither OpenVINO nor ONNX Runtime is installed: pip install ".[openvino]"'
    if not reason:
        kind = installed[0] if runtime == "auto" else runtime
        try:
            return _convert(cast(Detector, model), files[0], kind, half=runtime == "auto")
        except UserError as error:
            if runtime != "auto":
                raise UserError(str(error).replace("--include", "--runtime")) from error
            reason = str(error)
    console.warn(f"--runtime {runtime} runs PyTorch in float32: {reason}")
    return model


def _reason_for_pytorch(model: InferenceModel, files: Sequence[Path], *, augment: bool) -> str:
    """Return why only PyTorch can run this, or "" if others can."""
    if model.device.type != "cpu":
        return f"other runtimes are for the CPU, and the model is on {model.device}"
    if len(files) > 1:
        return "an ensemble has several networks"
    return "--augment runs three sizes" if augment else ""


def _convert(network: Detector, weights: Path, kind: str, *, half: bool) -> InferenceModel:
    start, side = now(), TRACED_CELLS * network.size_multiple
    request = ExportRequest((side, side), dynamic=True, pixels=network.pixels)
    check_request([FORMATS[kind]], request, network)
    with tempfile.TemporaryDirectory() as folder:
        path = write_format(FORMATS[kind], network, Path(folder, weights.name), request)
        model = open_exported(path, RuntimeSettings(half=half))
    model.path = weights
    console.info(f"--runtime: {weights.name} runs in {model.runtime.title}, converted in {now() - start:.0f} s")
    return model
