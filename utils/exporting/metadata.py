"""Metadata of an export, from the network and the request."""

import time
from dataclasses import asdict
from pathlib import Path

from utils.detector import Detector
from utils.exporting.request import ExportRequest
from utils.files import ROOT
from utils.formats import package_version
from utils.inference.model_metadata import ModelMetadata

LICENSE = "that of the weights; Anchorage, which wrote this file, is Apache-2.0"


def describe_export(network: Detector, weights: Path, request: ExportRequest) -> ModelMetadata:
    """Return the metadata of the export of a network."""
    head = network.head
    pixels = head.anchors.detach().cpu() * head.stride.detach().cpu().reshape(-1, 1, 1)  # (L, A, 2)
    return ModelMetadata(
        names=network.names,
        stride=network.size_multiple,
        layout=request.layout,
        imgsz=request.size,
        batch=request.batch,
        dynamic=request.dynamic,
        half=request.half,
        int8=request.int8,
        strides=tuple(int(stride) for stride in head.stride.tolist()),
        anchors=tuple(tuple(round(side, 4) for side in level) for level in pixels.flatten(1).tolist()),
        nms=asdict(request.nms) if request.nms else None,
        description=f"Anchorage detector {weights.stem}",
        version=program_version(),
        date=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        license=LICENSE,
        pixels=network.pixels,
        advice=network.advice,
    )


def program_version() -> str:
    """Return the version in pyproject.toml, that of the installed package where the file is absent."""
    file = ROOT / "pyproject.toml"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    found = next((line.partition("=")[2].strip(' "') for line in lines if line.startswith("version =")), "")
    return found or package_version("anchorage")
