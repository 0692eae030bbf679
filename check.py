"""Find what is wrong with a data set: `python check.py --data my.yaml`.

Files of the user are only read. Exit code 3 says that there are errors in the data. With `--weights` or `--cross`
models judge the labels. `--rank images` says which images to label next instead.
"""

from utils.errors import silence_ctrl_c_during_imports

silence_ctrl_c_during_imports(__name__)

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.loading import Ensemble, find_weights, load_ensemble, load_model
from models.yolo import DetectionModel
from utils import console
from utils.checking.box_pairs import check_box_pairs
from utils.checking.boxes import check_boxes
from utils.checking.classes import check_classes
from utils.checking.console_table import findings_table, summary
from utils.checking.document import describe_check
from utils.checking.file_names import check_label_files, check_names
from utils.checking.findings import Finding, by_level
from utils.checking.fit import PlannedAnchors, check_fit
from utils.checking.folds import Folds, cross_validate
from utils.checking.image_copies import check_copies
from utils.checking.image_detections import JUDGE_NMS, detect_images
from utils.checking.image_files import check_images
from utils.checking.image_ranking import divide_by_labels, rank_by_model
from utils.checking.label_review import LabelReview, merged_index
from utils.checking.page import write_check_page
from utils.checking.polygons import check_polygons
from utils.checking.scan import Check, ScannedData, scan_dataset
from utils.checking.skipped import check_skipped
from utils.checking.split_balance import check_balance
from utils.cli import Arguments, Flags, detect_command, flag, image_size_flag, parse_flags, read_flags
from utils.datasets.division import Division
from utils.datasets.image_files import find_images
from utils.datasets.locate import locate_dataset
from utils.detector import InferenceModel, name_difference
from utils.device import select_device, set_current_device
from utils.download import fetch_typed
from utils.errors import Stopped, UserError
from utils.errors import run as run_command
from utils.files import atomic_write, increment_path, require_writable
from utils.formats import format_of
from utils.image_size import ImageSize, describe_size, require_size
from utils.inference.input_shape import input_shape
from utils.inference.open_model import open_model
from utils.inference.predictor import Predictor
from utils.inference.runtime import RuntimeSettings
from utils.output.json_documents import to_line
from utils.process_state import unchanged_process
from utils.training.result import TrainResult
from utils.training.resume import run_folder_of
from utils.training.signals import EXIT_CODE

PROGRAM = {"prog": "check.py", "description": "Find what is wrong with a data set."}
POOR_MAP50 = 0.4  # of a judge that is trained here
POOR_RECALL = 0.4  # of a judge that is given
FOLD_BATCH = 8  # small, for many steps in few epochs
DEFAULT_DATA = "data/shapes.yaml"
DEFAULT_CFG = "yolov5s.yaml"  # of a training
ERRORS = 3  # exit code if the data has errors

# All checks, in the order of their findings.
CHECKS: tuple[Check, ...] = (
    check_skipped,
    check_images,
    check_names,
    check_label_files,
    check_boxes,
    check_box_pairs,
    check_classes,
    check_polygons,
    check_copies,
    check_balance,
)


@dataclass(frozen=True)
class CheckOptions:
    """Options of `check.py`: one field per flag."""

    data: str = flag(DEFAULT_DATA, "data set YAML, or a folder, obj.data or COCO JSON", group="data")
    split: str = flag("", "that of the training, of data without validation images", metavar="SHARE", group="data")
    imgsz: ImageSize = image_size_flag(640, "size of the training that is planned")
    source: str = flag("", "images to rank: folder or list; '' takes those of --data without labels", group="data")
    weights: list[str] = flag(
        [],
        "model that judges the labels or images; with --cross where its trainings start",
        type=str,
        nargs="+",
        group="model",
    )
    cross: int = flag(
        0, "judge the labels by N models, each trained on the images that the others judge", metavar="N", group="model"
    )
    cross_epochs: int = flag(30, "epochs of each training of --cross", group="model")
    rank: str | None = flag(
        None,
        "rank unlabelled images instead of checking: which to label next",
        type=str,
        choices=["images"],
        group="model",
    )
    device: str = flag("", "cpu, mps or a GPU number; '' takes the first GPU, or the CPU", group="devices")
    json: bool = flag(False, "print the findings as a JSON document on stdout, and messages on stderr", group="output")
    project: str = flag("runs/check", "results go to PROJECT/NAME", group="output")
    name: str = flag("exp", "results go to PROJECT/NAME; a number is added if it exists", group="output")
    exist_ok: bool = flag(False, "use an existing PROJECT/NAME", group="output")

    def __post_init__(self) -> None:
        require_size(self.imgsz)
        if self.cross < 0 or self.cross == 1:
            raise UserError(f"--cross {self.cross}: at least 2 folds, as in --cross 5, or 0 for none")
        if self.cross_epochs < 1:
            raise UserError(f"--cross-epochs {self.cross_epochs}: at least 1")
        if self.rank and (self.cross or not self.weights):
            raise UserError(
                "--rank images needs a model: type --weights runs/train/exp/weights/best.pt, without --cross"
            )
        if self.source and not self.rank:
            raise UserError(f"--source {self.source}: only --rank images reads it. Omit it, or add --rank images")


@dataclass(frozen=True)
class CheckResult:
    """Findings of a check, the worst first, and the folder that holds them."""

    findings: tuple[Finding, ...]
    save_dir: Path

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.level == "error"]


def parse_opt() -> Flags:
    """Return all flags of the command line, for `main`."""
    return parse_flags(CheckOptions, **PROGRAM)


def parse_args(argv: Arguments = None) -> CheckOptions:
    """Return the options."""
    return CheckOptions(**fetch_typed(read_flags(CheckOptions, argv, **PROGRAM)))


def find_all(data: ScannedData, anchors: PlannedAnchors) -> list[Finding]:
    """Return the findings of all checks, the worst first."""
    findings = [finding for check in CHECKS for finding in check(data)]
    return by_level([*findings, *check_fit(data, anchors)])


def planned_anchors(weights: Sequence[str], opened: InferenceModel | None = None) -> PlannedAnchors:
    """Return the anchors of the first weights file, which a training from it starts from.

    Without one they are those of yolov5s.yaml. An exported file counts as none: no training starts from it. `opened` is
    the model of the files if they have been read.
    """
    files = [file for file in find_weights(weights, typed=True, exported=True) if not format_of(file)]
    model = opened.members[0] if isinstance(opened, Ensemble) else opened
    if not isinstance(model, DetectionModel):
        model = load_model(files[0], fuse=False) if files else DetectionModel(DEFAULT_CFG)
    strides = model.stride.cpu()
    sizes_px = (model.head.anchors.cpu() * strides[:, None, None]).detach().numpy()
    return PlannedAnchors(sizes_px, strides.numpy(), files[0].name if files else DEFAULT_CFG)


def check_dataset(options: CheckOptions) -> CheckResult:
    """Check as the options say. Print the findings and write them into a new folder."""
    require_writable(options.project)
    if options.rank:
        return rank_unlabelled(options)
    data = scan(options)
    folder = increment_path(Path(options.project) / options.name, options.exist_ok)
    predictor = open_predictor(options, options.weights) if options.weights and not options.cross else None
    label_errors = review_labels(options, data, folder, predictor)  # first, as a mistake in the weights ends the check
    anchors = planned_anchors(options.weights, predictor.model if predictor else None)
    findings = by_level([*find_all(data, anchors), *label_errors])
    document = describe_check(data, findings, typed=options.data, save_dir=folder)
    write_json(folder / "findings.json", document)
    write_check_page(folder / "report.html", data, findings, typed=options.data)
    console.result(*findings_table(findings), f"\n{data.spec.file}: {summary(findings)}", f"Results saved to {folder}")
    if options.json:
        console.data(to_line(document))
    return CheckResult(tuple(findings), folder)


def scan(options: CheckOptions) -> ScannedData:
    """Read the images and labels of all splits."""
    run_folder = run_folder_of(Path(options.weights[0])) if options.weights else None
    spec = locate_dataset(options.data, division=Division.parse(options.split, run_folder), required=("train",))
    return scan_dataset(spec, options.imgsz)


def review_labels(options: CheckOptions, data: ScannedData, folder: Path, predictor: Predictor | None) -> list[Finding]:
    """Compare the labels with what the models of `--cross`, or else `predictor`, find, if there are any.

    Write lists and images of the worst.
    """
    if options.cross:
        found = cross_judge(options, data, folder / "cross")
    elif predictor:
        found = judge(options, data, predictor)
    else:
        return []
    review = LabelReview.of(data, found)
    if not options.cross and review.recall < POOR_RECALL:
        console.warn(
            f"{options.weights[0]} confirms {review.recall:.0%} of the labels at --imgsz "
            f"{describe_size(options.imgsz)}, and knows too little to judge them. Type the --imgsz of its training, or "
            "better weights"
        )
    write_json(folder / "label_errors.json", review.document())
    review.write_lists(folder / "label_errors")
    review.draw_worst(folder / "label_errors")
    return review.findings()


def open_predictor(options: CheckOptions, weights: Sequence[str]) -> Predictor:
    """Return the model of weights files, with what it doubts among its detections."""
    device = set_current_device(select_device(options.device)[0])
    files = find_weights(weights, typed=True, exported=True)
    model = open_model(files, RuntimeSettings(device), load_networks=lambda networks: load_ensemble(networks, device))
    return Predictor(model, input_shape(options.imgsz, model), JUDGE_NMS)


def judge(options: CheckOptions, data: ScannedData, predictor: Predictor) -> list[np.ndarray | None]:
    """Return what the model of `--weights` finds in the images of all splits."""
    different = name_difference(dict(predictor.names), data.spec.names)
    if predictor.model.num_classes != data.spec.num_classes or different:
        raise UserError(
            f"{options.weights[0]}: {different or f'{predictor.model.num_classes} classes'}, unlike {data.spec.file}. "
            "Give a model of these classes, or --cross 5 to train some"
        )
    console.info(
        "An image from which a model has learned hides its errors. --cross 5 judges all images by other models"
    )
    return detect_images(predictor, list(merged_index(data).paths), "Detecting")


def train_judge(options: CheckOptions, data: Path, folder: Path, *, start: str) -> Path:
    """Train the model of a fold from the weights `start`, or from scratch. Return its weights."""
    import train  # only --cross needs it

    try:
        with console.inner_program():
            result = train.run(
                data=str(data),
                weights=start,
                cfg="" if start else "yolov5n.yaml",
                imgsz=options.imgsz,
                epochs=options.cross_epochs,
                batch_size=FOLD_BATCH,
                recipe="cross",
                device=options.device,
                noval=True,
                noplots=True,
                project=str(folder.parent),
                name=folder.name,
                exist_ok=True,
            )
    except Stopped:
        name = folder.parent.parent.name
        console.error(f"Folds that are done are kept: type the same command with --name {name} --exist-ok to continue")
        raise SystemExit(EXIT_CODE) from None
    assert isinstance(result, TrainResult) and result.last and result.metrics
    console.info(f"{folder.name}: mAP50 {result.metrics.map50:.3f} on the images that it judges")
    if result.metrics.map50 < POOR_MAP50:
        console.warn(f"{folder.name} knows too little to judge labels. Type a higher --cross-epochs or --imgsz")
    return result.last


def cross_judge(options: CheckOptions, data: ScannedData, folder: Path) -> list[np.ndarray | None]:
    """Return what models find in the images of all splits, each in those that it was not trained on."""
    start = str(find_weights(options.weights, typed=True)[0]) if options.weights else ""
    if not start:
        console.warn(
            "--cross trains from scratch, which takes many epochs. Better type --weights yolov5n.pt as its start"
        )
    settings = f"{Path(start).name} {describe_size(options.imgsz)} {options.cross_epochs}"

    def train_fold(yaml: Path, run: Path) -> Path:
        return train_judge(options, yaml, run, start=start)

    def predict_fold(weights: Path, paths: Sequence[str]) -> list[np.ndarray | None]:
        return detect_images(open_predictor(options, [str(weights)]), paths, "Detecting")

    folds = Folds(options.cross, 0, settings)
    names = data.spec.names
    index = merged_index(data)
    return cross_validate(index, folds, names=names, folder=folder, train=train_fold, predict=predict_fold)


def rank_unlabelled(options: CheckOptions) -> CheckResult:
    """Write which unlabelled images to label next: to_label.txt, a list, and to_label.json, with the reasons."""
    has_data = options.data != DEFAULT_DATA or not options.source
    data = scan(options) if has_data else None
    labelled, unlabelled = divide_by_labels(data) if data else ([], [])
    paths = find_images(options.source) if options.source else unlabelled
    if not paths:
        where = options.source or f"{options.data}: all images have labels"
        raise UserError(f"--rank images: no images to rank in {where}. Type --source FOLDER")
    predictor = open_predictor(options, options.weights)
    if not isinstance(predictor.model, DetectionModel):
        raise UserError("--rank images reads features inside of a network. Type one .pt file as --weights")
    folder = increment_path(Path(options.project) / options.name, options.exist_ok)
    ranking = rank_by_model(predictor, predictor.model, paths, labelled)
    ranking.write(folder)
    document = {"program": "check", "save_dir": str(folder), **ranking.document()}
    write_json(folder / "to_label.json", document)
    first = ", ".join(Path(path).name for path in ranking.paths[:5])
    console.result(f"Label first: {first}", f"All {len(paths)} images in their order: {folder / 'to_label.txt'}")
    console.result(
        f"Next: {detect_command(options.weights, options.imgsz, str(folder / 'to_label.txt'))} --save-labels cvat"
    )
    if options.json:
        console.data(to_line(document))
    return CheckResult((), folder)


def write_json(file: Path, document: dict[str, Any]) -> None:
    """Write a document with an indent, for people."""
    with atomic_write(file) as stream:
        stream.write(json.dumps(document, indent=1, allow_nan=False).encode())


def run(data: str | Path | None = None, **flags: Any) -> CheckResult:
    """Check with flags as keywords (`imgsz=320`), from a program. Raises UserError, also for mistakes in the keywords.

    Errors in the data are in the result; they raise nothing.
    """
    with unchanged_process():
        return check_dataset(parse_args({"data": data, **flags}))


def main(argv: Arguments = None) -> CheckResult:
    """Check as the command line `argv` says. Raises SystemExit with code 3 if the data has errors."""
    result = check_dataset(parse_args(argv))
    if result.errors:
        raise SystemExit(ERRORS)
    return result


if __name__ == "__main__":
    run_command(main, closes_files=True)
