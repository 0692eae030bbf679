"""Agreement of every format and layout of export.py with PyTorch, for models with all kinds of heads.

    python benchmarks/export_matrix.py --weights yolov5n.pt --data coco128.yaml
    python benchmarks/export_matrix.py --models p2 ghost --formats onnx openvino --variants yolov5 dynamic

A model is weights of --weights, or one of MODELS with random weights. Its head is scaled so that it finds some objects
in each image. docs/export.md has the table.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import yaml

from benchmarks.timing import machine
from models.loading import load_model
from models.yolo import DetectionModel
from utils.errors import UserError
from utils.exporting.proof import FileProof, ProofFile, prove
from utils.exporting.proof_images import ProofImages, open_proof_images
from utils.exporting.request import ExportRequest, NmsInside
from utils.exporting.writers import WRITERS, check_request, write_format
from utils.formats import FORMATS
from utils.inference.exported_model import ExportedModel
from utils.inference.open_model import open_exported
from utils.inference.preprocess import to_network_input
from utils.inference.runtime import RuntimeSettings

ROOT = Path(__file__).resolve().parents[1]
SMALL = {"width_multiple": 0.25, "depth_multiple": 0.33}
# The YAML's own are fitted to the data before a training.
P2_ANCHORS = [[5, 6, 8, 14, 15, 11], [10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119], [116, 90, 156, 198, 373, 326]]
# Name -> YAML and the entries that differ there.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "yolov5s": ("yolov5s.yaml", {}),
    "p2": ("hub/yolov5-p2.yaml", {**SMALL, "anchors": P2_ANCHORS}),
    "p6": ("hub/yolov5n6.yaml", {}),
    "one class": ("yolov5n.yaml", {"nc": 1}),
    "365 classes": ("yolov5n.yaml", {"nc": 365}),
    "LeakyReLU": ("hub/yolov5s-LeakyReLU.yaml", SMALL),
    "ghost": ("hub/yolov5s-ghost.yaml", SMALL),
    "transformer": ("hub/yolov5s-transformer.yaml", SMALL),
}
INSIDE = NmsInside(0.25, 0.45, 100, 300, False)
VARIANTS = {
    "yolov5": {},
    "yolov8": {"layout": "yolov8"},
    "raw": {"layout": "raw"},
    "deepstream": {"layout": "deepstream"},
    "nms": {"layout": "nms", "nms": INSIDE},
    "not square": {"shares": (0.6, 1.0)},  # of --imgsz
    "batch 16": {"batch": 16},
    "dynamic": {"dynamic": True},
    "half": {"half": True},
}


class Row(NamedTuple):
    """Result of one file."""

    model: str
    format: str
    variant: str
    proof: FileProof | None
    refused: str = ""  # reason why it was not written

    def cells(self) -> list[str]:
        """Return the cells of the row of the table."""
        head = [self.model, self.format, self.variant]
        if self.proof is None:
            return [*head, "refused", "", "", self.refused]
        raw, pairing = self.proof.raw, self.proof.pairing
        before, after = (one.metrics if one else None for one in (self.proof.reference, self.proof.observation))
        change = f"{after.map - before.map:+.4f}" if before and after else ""
        matched = f"{pairing.share:.2%} of {pairing.reference}" if pairing.share is not None else "nothing found"
        outputs = f"{raw.box:.1g} px, {raw.score:.1g}" if raw else ""
        return [*head, matched, change, outputs, self.proof.verdict + "".join(f"; {d}" for d in self.proof.differences)]


def random_model(name: str, images: torch.Tensor) -> DetectionModel:
    """Return a model with random weights that finds some objects of several classes in images (B, 3, H, W) in 0...1."""
    file, changes = MODELS[name]
    torch.manual_seed(0)
    description = yaml.safe_load((ROOT / "models" / file).read_text()) | changes
    return spread_head(DetectionModel(description).eval(), images).fuse()


@torch.no_grad()
def spread_head(model: DetectionModel, images: torch.Tensor, share: float = 0.005) -> DetectionModel:
    """Scale the outputs of the head to the spread of a trained one, by those for `images`.

    share: of the predictions that are objects.
    """
    raw = model(images)[1]  # (B, A, H, W, 5+C) a level
    quantiles = torch.full((5 + model.num_classes,), 1 - 0.5 / model.num_classes)
    quantiles[:4], quantiles[4] = 0.5, 1 - share
    spread = torch.full_like(quantiles, 2.5)
    spread[:4] = 0.7
    for convolution, level in zip(model.head.convolutions, raw, strict=True):
        A = model.head.num_anchors
        values = level.permute(1, 4, 0, 2, 3).flatten(2).flatten(0, 1)  # (A (5+C), B H W)
        limits = zip(values, quantiles.repeat(A), strict=True)
        zero = torch.stack([row.quantile(quantile) for row, quantile in limits])
        factor = spread.repeat(A) / values.std(1).clamp_min(1e-6)
        convolution.weight *= factor[:, None, None, None]
        convolution.bias.copy_((convolution.bias - zero) * factor)
    return model


def make_request(variant: str, shape: tuple[int, int], multiple: int) -> ExportRequest:
    """Return the request of a variant of an export for inputs of `shape` (height, width)."""
    settings: dict[str, Any] = dict(VARIANTS[variant])
    shares = settings.pop("shares", (1.0, 1.0))
    height, width = (-(-int(share * side) // multiple) * multiple for share, side in zip(shares, shape, strict=True))
    return replace(ExportRequest((height, width)), **settings)


def write_all(
    model: DetectionModel, name: str, formats: Sequence[str], requests: dict[str, ExportRequest], folder: Path
) -> Iterator[tuple[str, str, ProofFile | str]]:
    """Write the files. Yield format, variant, and the file or the reason why it is refused."""
    for variant, request in requests.items():
        weights = folder / variant.replace(" ", "_") / f"{name.replace(' ', '_')}.pt"
        weights.parent.mkdir(exist_ok=True)
        for kind in formats:
            try:
                check_request([FORMATS[kind]], request, model)
                path = write_format(FORMATS[kind], model, weights, request)
                yield kind, variant, ProofFile.from_request(path, request)
            except UserError as error:
                yield kind, variant, str(error)


def prove_model(
    model: DetectionModel,
    name: str,
    images: ProofImages,
    *,
    formats: Sequence[str],
    variants: Sequence[str],
    folder: Path,
) -> list[Row]:
    """Export a model to all formats and variants, and compare each with it."""
    requests = {variant: make_request(variant, images.shape, model.size_multiple) for variant in variants}
    files, rows = {}, []
    for kind, variant, file in write_all(model, name, formats, requests, folder):
        if isinstance(file, str):
            rows.append(Row(name, kind, variant, None, file))
        else:
            files[file] = kind, variant
    for shape in {requests[variant].size for _, variant in files.values()}:
        some = [file for file, (_, variant) in files.items() if requests[variant].size == shape]
        proof = prove(model, some, replace(images, shape=shape), open_on_cpu, speed=False)
        rows += [Row(name, *files[one.file], one) for one in proof.files]
    return sorted(rows, key=lambda row: (formats.index(row.format), variants.index(row.variant)))


def open_on_cpu(path: Path) -> ExportedModel:
    return open_exported(path, RuntimeSettings())


def sample_images(data: str, shape: tuple[int, int]) -> torch.Tensor:
    """Return four images of a data set as input (4, 3, *shape)."""
    images = open_proof_images(data, typed=False, names={}, shape=shape, count=4)
    return to_network_input(next(images.batches()).images, torch.device("cpu"))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", nargs="*", default=[])
    parser.add_argument("--models", nargs="*", default=[], choices=list(MODELS))
    parser.add_argument("--formats", nargs="+", default=list(WRITERS))
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS))
    parser.add_argument("--data", default="data/shapes.yaml")
    parser.add_argument("--imgsz", type=int, nargs="+", default=[640], help="side, or height width")
    parser.add_argument("--images", type=int, default=0, help="0 takes all")
    options = parser.parse_args(argv)
    shape = options.imgsz[0], options.imgsz[-1]
    print(f"{machine()}; {options.data}, {shape[0]}x{shape[1]} pixels\n")
    print("| model | format | variant | detections matched | mAP50-95 | raw outputs | verdict |")
    print("|---|---|---|---|---|---|---|")
    for name in [*options.weights, *options.models]:
        is_random = name in MODELS
        model = random_model(name, sample_images(options.data, shape)) if is_random else load_model(name)
        images = open_proof_images(options.data, typed=False, names=model.names, shape=shape, count=options.images)
        with tempfile.TemporaryDirectory() as folder:
            rows = prove_model(
                model, Path(name).stem, images, formats=options.formats, variants=options.variants, folder=Path(folder)
            )
        for row in rows:
            print("| " + " | ".join(row.cells()) + " |", flush=True)


if __name__ == "__main__":
    main()
