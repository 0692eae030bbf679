"""Measure a detector: `python val.py --weights best.pt --data my.yaml`, `torchrun --nproc_per_node 4 val.py ...`.

From a program, call `utils.inference.evaluate.evaluate()`.
"""

from utils.errors import silence_ctrl_c_during_imports

silence_ctrl_c_during_imports(__name__)

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.loading import find_weights, load_ensemble
from utils import console
from utils.autobatch import advice_on_memory
from utils.class_values import Threshold, Thresholds, highest, threshold_flag
from utils.cli import Arguments, Flags, detect_command, flag, image_size_flag, parse_flags, read_flags
from utils.datasets.division import Division
from utils.datasets.labels import load_split
from utils.datasets.locate import locate_dataset
from utils.device import cores_for_loading, describe_device, tune_malloc
from utils.distributed import Distributed
from utils.download import fetch_typed
from utils.errors import UserError
from utils.errors import run as run_command
from utils.exporting.cpu_runtime import convert_after, runtime_flag
from utils.files import atomic_write, increment_path, require_writable
from utils.formats import format_of
from utils.image_size import ImageSize, require_size, scale_size, to_sides
from utils.images.tiles import DEFAULT_OVERLAP, Tiling
from utils.inference.comparison import ComparedModel, compare_models, report_comparison, require_measured
from utils.inference.evaluate import evaluate
from utils.inference.exported_model import ExportedModel
from utils.inference.input_shape import input_shape
from utils.inference.nms_settings import VAL_NMS, NmsSettings
from utils.inference.observer import EvaluationObserver, GuardedObservers
from utils.inference.open_model import open_model
from utils.inference.reporting import ConsoleTable, DiagnosisTable, ValidationBar
from utils.inference.runtime import RuntimeSettings
from utils.inference.speed import describe_speed
from utils.inference.subject import Subject, find_annotations, require_same_classes, warm_up
from utils.inference.tile_pass import views_of_split
from utils.inference.val_result import ValResult, describe_results
from utils.inference.validation_files import ValidationFiles
from utils.loading.loader import Loader, LoadSettings, explained_worker_errors, make_loader
from utils.loading.sampler import BatchSettings
from utils.metrics import Metrics
from utils.output.json_documents import to_line
from utils.output.plots import plot_study
from utils.output.plotter import Plotter
from utils.output.prediction_files import COCO_IDS, CocoWriter, TextWriter
from utils.output.result_names import unique_names
from utils.pending_files import require_written
from utils.process_state import unchanged_process
from utils.training.resume import run_folder_of
from utils.user_observers import as_observers

PROGRAM = {"prog": "val.py", "description": "Measure a detector."}
STUDY_SIZES, STUDY_STRIDE = range(256, 1536 + 1, 128), 32
SPLITS = ("train", "val", "test")
LOWEST = 0.001  # confidence: mAP counts the detections above it
FEW_CLASSES = 50  # with fewer, each class has a row in the table


@dataclass(frozen=True)
class ValOptions:
    """Options of `val.py`: one field per flag."""

    data: str = flag("data/shapes.yaml", "data set YAML, or a folder, obj.data or COCO JSON", group="data")
    split: str = flag("", "that of the training, of data without validation images", metavar="SHARE", group="data")
    task: str = flag(
        "val",
        "split to measure on, or speed, study (all sizes), compare (files of several formats side by side)",
        choices=[*SPLITS, "speed", "study", "compare"],
        group="data",
    )
    batch_size: int = flag(32, "images per batch", group="data")
    imgsz: ImageSize = image_size_flag(640, "network input size in pixels")
    workers: int = flag(8, "most data loading processes; threads where the model uses all cores", group="data")
    single_cls: bool = flag(False, "treat all classes as one", group="data")
    weights: list[str] = flag(
        ["yolov5s.pt"], "model file; several .pt files form an ensemble", type=str, nargs="+", group="model"
    )
    augment: bool = flag(False, "run each image at three scales (slower)", group="model")
    half: bool = flag(False, "half precision (GPU)", group="model")
    dnn: bool = flag(False, "run ONNX files with OpenCV", group="model")
    runtime: str = runtime_flag()
    conf_thres: Threshold = threshold_flag(LOWEST, "lowest confidence")
    iou_thres: float = flag(
        VAL_NMS.iou_thres, "NMS threshold: boxes that overlap more are one object", group="detection"
    )
    max_det: int = flag(300, "most detections per image; more if an image has more labels", group="detection")
    tile: int = flag(
        0, "look at tiles of N x N pixels of the image too, for small objects; 0 is off", metavar="N", group="detection"
    )
    tile_overlap: float = flag(DEFAULT_OVERLAP, "least share of a tile that the next one sees too", group="detection")
    device: str = flag("", "cpu, mps or a GPU number; '' takes the first GPU, or the CPU", group="devices")
    verbose: bool = flag(False, "print a row per class, however many there are", group="output")
    save_txt: bool = flag(False, "write labels/*.txt", group="output")
    save_hybrid: bool = flag(False, "add the labels to the detections in labels/*.txt", group="output")
    save_conf: bool = flag(False, "add the confidence to labels/*.txt", group="output")
    save_json: bool = flag(False, "write a COCO results file, and score it by COCO's rule", group="output")
    annotations: str = flag("", "COCO ground truth of the split, for --save-json", group="output")
    json: bool = flag(False, "print the results as a JSON document on stdout, and messages on stderr", group="output")
    project: str = flag("runs/val", "results go to PROJECT/NAME", group="output")
    name: str = flag("exp", "results go to PROJECT/NAME; a number is added if it exists", group="output")
    exist_ok: bool = flag(False, "use an existing PROJECT/NAME", group="output")
    typed: frozenset[str] = field(default=frozenset(), repr=False, compare=False)  # fields that the user typed

    def __post_init__(self) -> None:
        for name, value in (("--conf-thres", highest(self.conf_thres)), ("--iou-thres", self.iou_thres)):
            if not 0 <= value <= 1:
                raise UserError(f"{name} {value}: 0 to 1")
        require_size(self.imgsz)
        for name, value in (("--batch-size", self.batch_size), ("--max-det", self.max_det)):
            if value < 1:
                raise UserError(f"{name} {value}: at least 1")
        if self.workers < 0:
            raise UserError(f"--workers {self.workers}: 0 or more")
        if self.annotations and not Path(self.annotations).is_file():
            raise UserError(f"--annotations {self.annotations}: no such file")

        if self.tiling and self.save_hybrid:
            raise UserError("--save-hybrid and --tile exclude each other: omit one of them")

    @property
    def tiling(self) -> Tiling | None:
        return Tiling.from_flags(self.tile, self.tile_overlap)

    @property
    def measured(self) -> str:
        """Split to measure on. The other tasks take `val`."""
        return self.task if self.task in SPLITS else "val"

    @property
    def nms(self) -> NmsSettings:
        return NmsSettings(self.conf_thres, self.iou_thres, self.max_det, multi_label=True, hybrid=self.save_hybrid)


def parse_opt() -> Flags:
    """Return all flags of the command line, for `main`."""
    return parse_flags(ValOptions, **PROGRAM)


def parse_args(argv: Arguments = None) -> tuple[ValOptions, bool]:
    """Return the options, and True if the user typed the weights: only then they are ever downloaded."""
    typed = fetch_typed(read_flags(ValOptions, argv, **PROGRAM))
    options = ValOptions(**typed, typed=frozenset(typed))
    wants_json = options.save_json or bool(options.annotations) or Path(options.data).name == "coco.yaml"
    options = replace(options, save_txt=options.save_txt or options.save_hybrid, save_json=wants_json)
    if options.task in SPLITS:
        if options.save_hybrid:
            console.warn("--save-hybrid adds the labels to the detections, so the metrics are meaningless")
        if isinstance(options.conf_thres, Thresholds) or options.conf_thres > LOWEST:
            console.warn(
                f"--conf-thres {options.conf_thres} drops detections that count, so mAP is not comparable. "
                f"Use --conf-thres {LOWEST}"
            )
        return options, "weights" in typed
    one_side = len(to_sides(options.imgsz)) == 1  # a study keeps the ratio of two
    fixed = {"speed": ("conf_thres", "iou_thres"), "study": ("imgsz",) * one_side}.get(options.task, ())
    for name in (*fixed, "save_txt", "save_json", "save_hybrid", "save_conf", "annotations"):
        if name in typed:
            reason = f"has its own {name}" if name in fixed else "writes no detections"
            console.warn(f"--{name.replace('_', '-')} is ignored: --task {options.task} {reason}")
    return replace(options, save_hybrid=False), "weights" in typed


def share_subject(options: ValOptions, weights: Sequence[Path], group: Distributed) -> Subject:
    """Build the subject on every rank, on rank 0 first. The images and labels are those that rank 0 has found."""
    subject = group.main_first(lambda: build_subject(options, weights, group))
    return replace(subject, index=group.on_main(lambda: subject.index))


def build_subject(options: ValOptions, weights: Sequence[Path], group: Distributed) -> Subject:
    """Load model and label index. Raise UserError if their numbers of classes differ."""
    device = group.device
    settings = RuntimeSettings(device, dnn=options.dnn, half=options.half)
    load = convert_after(lambda files: load_ensemble(files, device), options.runtime, augment=options.augment)
    model = open_model(weights, settings, load_networks=load)
    if isinstance(model, ExportedModel):
        model.check_choices(augment=options.augment, sizes=options.task == "study")
    # The model is first: damaged weights cost no download.
    division = Division.parse(options.split, run_folder_of(weights[0]))
    spec = locate_dataset(options.data, division=division, required=(options.measured,))
    if not options.single_cls:
        require_same_classes(model, spec, weights[0])
    spec = spec.with_pixels(model.pixels, of=weights[0])
    index = load_split(spec, options.measured, single_cls=options.single_cls)
    names = {0: "item"} if options.single_cls else spec.names
    subject = f"an image of the {options.measured} split has"
    nms = options.nms.fit(model).with_room(index.most_labels, subject, typed="max_det" in options.typed)
    return Subject([*weights], model, spec, options.measured, index, names, nms, group)


def measure(options: ValOptions, subject: Subject, observers: Sequence[EvaluationObserver] = ()) -> Metrics:
    """Evaluate as the options say, and print the table and the speed."""
    verbose = options.verbose or len(subject.names) < FEW_CLASSES
    table = ConsoleTable(subject.names, verbose=verbose, final=True, thresholds=options.task in SPLITS)
    metrics = evaluate_subject(options, subject, [table, *observers])
    batch, shape = min(options.batch_size, len(subject.index)), input_shape(options.imgsz, subject.model)
    console.result(describe_speed(metrics.speed, (batch, subject.model.pixels.channels, *shape)))
    return metrics


def evaluate_subject(options: ValOptions, subject: Subject, observers: Sequence[EvaluationObserver]) -> Metrics:
    """Evaluate as the options say. Only the observers print."""
    device, shape = subject.model.device, input_shape(options.imgsz, subject.model)
    loader = open_loader(options, subject, shape)
    memory = advice_on_memory(options.batch_size, shape, training=False)
    with closing(loader), memory, explained_worker_errors(loader.workers):
        if device.type == "cuda":
            warm_up(subject.model, shape)
        views = views_of_split(
            options.tiling, loader.dataset.images, subject.model, shape=shape, nms=subject.nms,
            batch_size=options.batch_size, augment=options.augment,
        )  # fmt: skip
        metrics = evaluate(
            subject.model,
            loader,
            nms=subject.nms,
            names=subject.names,
            single_cls=options.single_cls,
            views=views,
            autocast=torch.float16 if options.half and device.type == "cuda" else None,
            distributed=subject.group,
            observers=observers,
        )
    if views.tiles:
        views.tiles.summarise(device)
    return metrics


def open_loader(options: ValOptions, subject: Subject, shape: tuple[int, int]) -> Loader:
    """Return the loader of a split.

    Batches have shapes that fit their images, or all `shape` (H, W) if speeds are compared or the input is fixed.
    """
    device = subject.model.device
    rect = options.task not in ("speed", "compare") and subject.model.fixed_shape is None
    return make_loader(
        subject.index,
        imgsz=shape,
        batch_size=options.batch_size,
        stride=subject.model.size_multiple,
        batches=BatchSettings(rect=rect, pad=0.5 if rect else 0.0, whole=True),
        loading=LoadSettings(
            workers=options.workers, cores=cores_for_loading(device), pin_memory=device.type == "cuda"
        ),
        rank=subject.group.rank,
        world_size=subject.group.world_size,
    )


def open_coco_writer(options: ValOptions, subject: Subject) -> CocoWriter:
    """Return the writer of the COCO results file. Raise UserError if the annotations do not fit the data."""
    return CocoWriter(
        Path(options.annotations) if options.annotations else find_annotations(subject),
        subject.names,
        subject.index.paths,
        single_cls=options.single_cls,
        coco=subject.spec.is_coco and subject.spec.num_classes == len(COCO_IDS),
    )


def open_files(options: ValOptions, subject: Subject) -> ValidationFiles:
    """Make a new folder for drawings and the files that the options name."""
    coco = open_coco_writer(options, subject) if options.save_json else None
    folder = increment_path(Path(options.project) / options.name, options.exist_ok)
    text = None
    if options.save_txt:
        text = TextWriter(folder / "labels", subject.index.paths, confidence=options.save_conf)
    return ValidationFiles(folder, subject, text=text, coco=coco)


def validate(options: ValOptions, subject: Subject, observers: Sequence[EvaluationObserver] = ()) -> ValResult:
    """Measure, and write drawings and the files that the options name, on rank 0."""
    group = subject.group
    files = group.main_only(lambda: open_files(options, subject))
    metrics = measure(options, subject, [DiagnosisTable(), *(files.observers if files else ()), *observers])
    return ValResult(metrics, group.on_main(lambda: files.finish(metrics) if files else Path()))


def study_sizes(options: ValOptions) -> list[ImageSize]:
    """Return the sizes to measure at: their longer sides are STUDY_SIZES, their ratio is that of --imgsz."""
    return [scale_size(options.imgsz, longer, STUDY_STRIDE) for longer in STUDY_SIZES]


def study(
    options: ValOptions, subject: Subject, file: Path, observers: Sequence[EvaluationObserver] = ()
) -> tuple[list[Metrics], np.ndarray]:
    """Measure at all sizes and write a table into `file`. Return the metrics and the table (S, 10).

    A row has P, R, mAP50, mAP50-95, three losses (0) and three times in ms. S is the number of sizes.
    """
    found, rows = [], []
    for size in study_sizes(options):
        found.append(measure(replace(options, imgsz=size), subject, observers))
        m, s = found[-1], found[-1].speed
        rows.append((m.precision, m.recall, m.map50, m.map, *m.losses, s.preprocess, s.inference, s.nms))
    with atomic_write(file) as stream:
        np.savetxt(stream, rows, fmt="%10.4g", delimiter="")
    return found, np.array(rows)


def compare_speed(
    options: ValOptions, weights: Sequence[Path], group: Distributed, observers: Sequence[EvaluationObserver] = ()
) -> list[Metrics]:
    """Measure each model by itself, with the thresholds that detect.py uses."""
    options = replace(options, conf_thres=0.25, iou_thres=0.45)
    return [measure(options, build_subject(options, [file], group), observers) for file in weights]


def compare_sizes(
    options: ValOptions, weights: Sequence[Path], group: Distributed, observers: Sequence[EvaluationObserver] = ()
) -> list[Metrics]:
    """Measure each model by itself at all sizes. Write a table per model and a chart of all."""
    folder = increment_path(Path(options.project) / options.name, options.exist_ok)
    found, tables = [], {}
    for path, name in unique_names(list(map(str, weights))).items():
        subject = build_subject(options, [Path(path)], group)
        file = folder / f"study_{subject.spec.file.stem}_{name}.txt"
        metrics, tables[name] = study(options, subject, file, observers)
        found += metrics
    with Plotter() as plotter:
        plotter.submit(plot_study, tables, STUDY_SIZES, folder / "study.png")
    require_written(plotter.unwritten)
    console.result(f"Results saved to {folder}")
    return found


def compare_formats(
    options: ValOptions, group: Distributed, *, weights_typed: bool, observers: Sequence[EvaluationObserver]
) -> list[Metrics]:
    """Measure each file by itself, and print and write a table of all. One that fails has its reason there."""

    def measure_one(name: str) -> ComparedModel:
        path = find_weights([name], typed=weights_typed, exported=True)[0]
        subject = build_subject(options, [path], group)
        metrics = evaluate_subject(options, subject, [ValidationBar(path.name), *observers])
        return ComparedModel(str(path), input_shape(options.imgsz, subject.model), metrics)

    division = Division.parse(options.split)
    locate_dataset(options.data, division=division, required=(options.measured,))  # its errors are no model's
    folder = increment_path(Path(options.project) / options.name, options.exist_ok)
    models = compare_models(options.weights, measure_one)
    settings = {"data": options.data, "split": options.measured, "batch_size": options.batch_size}
    content = report_comparison(folder / "compare.json", models, settings)
    if options.json:
        console.data(to_line({"program": "val", "task": options.task, "save_dir": str(folder), **content}))
    return require_measured(models)


def main(argv: Arguments = None, observers: Sequence[object] = ()) -> Metrics | list[Metrics]:
    """Measure as the command line `argv` says.

    Return the metrics; for the tasks speed and study, a list of those of each weights file and size. `observers` have
    methods of utils.inference.observer.EvaluationObserver. One that raises is reported and dropped.
    """
    typed = read_flags(ValOptions, argv, **PROGRAM)
    with Distributed.join(typed).session() as group:
        found = measure_models(*group.on_main(lambda: parse_args(typed)), group, observers)
    return found.metrics if isinstance(found, ValResult) else found


def run(
    data: str | Path | None = None, weights: Any = None, *, observers: Sequence[object] = (), **flags: Any
) -> ValResult | list[Metrics]:
    """Measure with flags as keywords (`imgsz=320, half=True`), from a program, in this process alone.

    Raises UserError, also for mistakes.
    """
    with unchanged_process():
        options, weights_typed = parse_args({"data": data, "weights": weights, **flags})
        return measure_models(options, weights_typed, Distributed.alone(), observers)


def check_start(options: ValOptions, group: Distributed) -> None:
    """Raise UserError if the results cannot be written, or if several processes would disturb measured times."""
    if group.world_size > 1 and options.task not in SPLITS:
        raise UserError(f"--task {options.task} measures times, in one process: start python val.py, without torchrun")
    if options.task != "speed":  # which writes no files
        require_writable(options.project)


def measure_models(
    options: ValOptions, weights_typed: bool, group: Distributed, observers: Sequence[object] = ()
) -> ValResult | list[Metrics]:
    """Measure as the options say. The tasks speed and study give a list: metrics of each weights file and size."""
    watching = [GuardedObservers(as_observers(observers))]
    group.on_main(lambda: check_start(options, group))
    tune_malloc()
    group = group.use(options.device)
    device = group.device
    if len(group.devices) > 1:
        console.warn(
            f"one process measures on one GPU, here {device}. For all of them type "
            f"torchrun --nproc_per_node {len(group.devices)} val.py ..."
        )
    if options.task == "compare":
        return compare_formats(options, group, weights_typed=weights_typed, observers=watching)
    weights = group.on_main(lambda: find_weights(options.weights, typed=weights_typed, exported=True))
    if options.task in ("speed", "study"):
        options = replace(options, half=device.type == "cuda")
    elif options.half and device.type != "cuda" and format_of(weights[0]) is None:
        console.warn("--half needs a GPU. Running in float32")
        options = replace(options, half=False)
    processes = f" x {group.world_size}" if group.world_size > 1 else ""
    device_text = f"{describe_device(device)}{processes}"
    console.info(f"val: {device_text}, torch {torch.__version__}, {', '.join(map(str, weights))}")
    if options.task == "speed":
        found: ValResult | list[Metrics] = compare_speed(options, weights, group, watching)
    elif options.task == "study":
        found = compare_sizes(options, weights, group, watching)
    else:
        found = validate(options, share_subject(options, weights, group), watching)
    tiles = f" --tile {options.tile} --tile-overlap {options.tile_overlap:g}" if options.tile else ""
    console.result(f"Next: {detect_command(weights, options.imgsz)}{tiles}")
    if options.json and group.is_main:
        sizes = study_sizes(options) if options.task == "study" else [options.imgsz]
        settings = {"task": options.task, "data": options.data, "split": options.measured}
        console.data(to_line(describe_results(found, weights, sizes, **settings)))
    return found


if __name__ == "__main__":
    run_command(main, closes_files=True)
