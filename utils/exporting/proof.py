"""Proof of an export: what each written file detects, compared with the PyTorch model on real images."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from utils.detector import InferenceModel
from utils.errors import UserError, one_line
from utils.exporting.detection_pairs import Pairing, PairRule, pair_detections, sum_pairings
from utils.exporting.latency import BATCH_SIZES, Latency, measure_latency
from utils.exporting.observation import PLAIN, Observation, RawDifference, Suppression, observe, raw_difference
from utils.exporting.operators import Operators, read_operators
from utils.exporting.proof_images import ProofImages
from utils.exporting.request import ExportRequest
from utils.formats import RuntimeAbsent, format_of
from utils.inference.nms_settings import NmsSettings

BEST_CLASS_LAYOUTS = ("deepstream", "nms")  # which hold one class of each box


@dataclass(frozen=True)
class Tolerance:
    """Limits within which a file of some precision agrees with the float32 model."""

    rule: PairRule
    matched: float  # least share of detections with a partner
    map_loss: float  # most that mAP50-95, and mAP50, may fall
    map_gain: float  # most that they may rise
    box: float = math.inf  # largest difference of a raw output, in pixels
    score: float = math.inf


HALF = Tolerance(PairRule(iou=0.9, confidence=0.05), matched=0.97, map_loss=0.005, map_gain=0.005)
TOLERANCES = {
    "float32": Tolerance(
        PairRule(iou=0.99, confidence=0.01), matched=0.995, map_loss=0.001, map_gain=0.001, box=1.0, score=0.01
    ),
    "float16": HALF,
    "bfloat16": HALF,
    "int8": Tolerance(PairRule(iou=0.5, confidence=0.25), matched=0.8, map_loss=0.02, map_gain=math.inf),
}


@dataclass(frozen=True)
class ProofFile:
    """An exported file or folder, and what a comparison must know of it."""

    path: Path
    format: str  # as in --include
    precision: str = "float32"  # a key of TOLERANCES
    layout: str = "yolov5"
    inside: Suppression | None = None  # the one inside the file

    @classmethod
    def from_request(cls, path: Path, request: ExportRequest) -> "ProofFile":
        """Return the file that a request has written."""
        kind, nms = format_of(path), request.nms
        assert kind, f"{path}: no export"
        inside = None
        if nms:
            settings = NmsSettings(nms.conf_thres, nms.iou_thres, nms.total, agnostic=nms.agnostic)
            inside = Suppression(settings, settings, nms.per_class)
        precision = "int8" if request.int8 else "float16" if request.half else "float32"
        return cls(path, kind.name, precision, request.layout, inside)

    @property
    def best_class(self) -> bool:
        """True if the file holds one class of each box."""
        return self.layout in BEST_CLASS_LAYOUTS

    @property
    def suppression(self) -> Suppression:
        """Suppressions that find the same in the file's output and in the PyTorch model's."""
        if self.inside:
            return self.inside
        return PLAIN._replace(val=replace(PLAIN.val, multi_label=False)) if self.best_class else PLAIN


@dataclass(frozen=True)
class FileProof:
    """Comparison of one file with the PyTorch model."""

    file: ProofFile
    reference: Observation  # of the PyTorch model, by the file's suppression
    observation: Observation | None = None  # None if the file could not be run
    raw: RawDifference | None = None
    pairing: Pairing = field(default_factory=Pairing)
    latencies: Sequence[Latency] = ()
    operators: Operators | None = None  # None for a format whose files do not list them
    differences: Sequence[str] = ()  # what is outside tolerance
    unproved: str = ""  # reason why nothing was compared, or nothing that could differ

    @property
    def verdict(self) -> str:
        return "differs" if self.differences else "not proved" if self.unproved else "agrees"


@dataclass(frozen=True)
class Proof:
    """Comparison of all files with the PyTorch model on the same images."""

    images: ProofImages
    reference: Observation
    reference_latencies: Sequence[Latency]
    files: Sequence[FileProof]

    @property
    def differs(self) -> bool:
        """True if a file is outside its tolerance."""
        return any(one.differences for one in self.files)


def prove(
    reference: InferenceModel,
    files: Sequence[ProofFile],
    images: ProofImages,
    open_file: Callable[[Path], InferenceModel],
    *,
    speed: bool = True,
) -> Proof:
    """Compare each file with the PyTorch model, one after the other, and with `speed` measure how fast they are.

    open_file: loads a file. It raises RuntimeAbsent if nothing here can run it.
    """
    suppressions = list(dict.fromkeys([PLAIN, *(file.suppression for file in files)]))
    expected = observe(reference, images, suppressions, progress="Proof: PyTorch")
    originals = images.originals(max(BATCH_SIZES)) if speed else []
    latencies = measure_latency(reference, originals, images.shape, PLAIN.detect, progress="Speed: PyTorch")
    proofs = [prove_file(file, expected[file.suppression], images, open_file, originals) for file in files]
    return Proof(images, expected[PLAIN], latencies, proofs)


def prove_file(
    file: ProofFile,
    expected: Observation,
    images: ProofImages,
    open_file: Callable[[Path], InferenceModel],
    originals: Sequence[np.ndarray] = (),
) -> FileProof:
    """Compare one file with what the PyTorch model gave. A file that cannot be run differs.

    originals: images (H, W, C) to measure the speed on, none to measure none.
    """
    try:
        model = open_file(file.path)
        found = observe(model, images, [file.suppression], progress=f"Proof: {file.path.name}")[file.suppression]
        detect, name = file.suppression.detect, file.path.name
        latencies = measure_latency(model, originals, images.shape, detect, progress=f"Speed: {name}")
        operators = read_operators(file.path)
    except RuntimeAbsent as error:
        return FileProof(file, expected, unproved=str(error))
    except Exception as error:  # of any runtime: that the file cannot be run is the finding
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        return FileProof(file, expected, differences=[f"cannot be run: {kind}{one_line(str(error))}"])
    return replace(compare(file, expected, found, images), latencies=latencies, operators=operators)


def compare(file: ProofFile, expected: Observation, found: Observation, images: ProofImages) -> FileProof:
    """Compare two observations within the tolerance of the file's precision."""
    tolerance = TOLERANCES[file.precision]
    raw = None if file.inside else raw_difference(expected.outputs, found.outputs, best_class=file.best_class)
    threshold = file.suppression.detect.conf_thres
    assert isinstance(threshold, float), "proofs have one for all classes"
    paired = [
        pair_detections(one, other, tolerance.rule, threshold)
        for one, other in zip(expected.rows, found.rows, strict=True)
    ]
    pairing = sum_pairings(one.counts for one in paired)
    differences = list(_compare_metrics(expected, found, tolerance))
    if not file.inside:
        differences[:0] = _compare_outputs(raw, tolerance)
    if pairing.share is not None and pairing.share < tolerance.matched:
        first = next(k for k, one in enumerate(paired) if len(one.lost) or len(one.added))
        rows = [("only PyTorch", expected.rows[first][paired[first].lost])]
        rows.append(("only the file", found.rows[first][paired[first].added]))
        example = "; ".join(_describe_first(who, part, images) for who, part in rows if len(part))
        differences.insert(
            0,
            f"{pairing.share:.1%} of the detections have a partner, {tolerance.matched:.1%} must "
            f"(in {Path(images.index.paths[first]).name} finds {example})",
        )
    unproved = ""
    if pairing.share is None and not differences and not _has_other_evidence(raw, expected, tolerance):
        unproved = "the model finds nothing in these images. --data gives others"
    return FileProof(file, expected, found, raw, pairing, differences=differences, unproved=unproved)


def _has_other_evidence(raw: RawDifference | None, expected: Observation, tolerance: Tolerance) -> bool:
    """Return whether raw outputs within limits, or an mAP above 0, were compared: enough without detections."""
    return (raw is not None and math.isfinite(tolerance.box)) or bool(expected.metrics and expected.metrics.map50)


def _describe_first(who: str, rows: Tensor, images: ProofImages) -> str:
    """Return the class, confidence and box of the first row (n, 6)."""
    *corners, confidence, cls = rows[0].tolist()
    box = " ".join(f"{value:.0f}" for value in corners)
    return f"{who} {images.names.get(int(cls), int(cls))} {confidence:.2f} at {box}"


def _compare_outputs(raw: RawDifference | None, tolerance: Tolerance) -> Iterator[str]:
    """Yield what is outside the tolerance of raw outputs."""
    if raw is None:
        yield "the output has another shape"
        return
    for name, value, limit in (("boxes", raw.box, tolerance.box), ("scores", raw.score, tolerance.score)):
        if not math.isfinite(value):
            yield f"the {name} of the output are not finite"
        elif value > limit:
            yield f"the {name} of the output differ by up to {value:.3g}, {limit:g} at most may"


def _compare_metrics(expected: Observation, found: Observation, tolerance: Tolerance) -> Iterator[str]:
    """Yield the metrics that are outside tolerance."""
    if expected.metrics is None or found.metrics is None:
        return
    for name, attribute in (("mAP50", "map50"), ("mAP50-95", "map")):
        before, after = getattr(expected.metrics, attribute), getattr(found.metrics, attribute)
        if not -tolerance.map_loss <= after - before <= tolerance.map_gain:
            yield f"{name} {after:.4f}, PyTorch {before:.4f}: {tolerance.map_loss:g} less at most"
