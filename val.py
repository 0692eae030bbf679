"""Measure a detector: `python val.py --weights best.pt --data my.yaml`, or `evaluate()` from a program.

Letters: B pictures of a batch, H W rows and columns, T targets, n detections and m labels of a picture, L levels.
"""

from utils.errors import silence_ctrl_c_during_imports

if __name__ == "__main__":
    silence_ctrl_c_during_imports()  # amid the imports

import itertools
import math
import operator
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from models.loading import find_weights, load_ensemble
from utils.autobatch import advice_on_memory
from utils.boxes import xywh_to_xyxy
from utils.cli import SuggestingParser, add_flags, detect_command, flag
from utils.datasets.label_index import LabelIndex
from utils.datasets.labels import load_index
from utils.datasets.locate import locate_dataset
from utils.datasets.spec import DatasetSpec
from utils.device import cores_for_loading, describe_device, select_device, set_current_device, tune_malloc
from utils.distributed import Distributed
from utils.download import fetch_typed
from utils.errors import UserError
from utils.errors import run as run_command
from utils.files import atomic_write, increment_path, require_writable
from utils.inference.preprocess import to_network_input
from utils.loading.dataset import Batch, Loader, make_loader
from utils.loading.prefetch import prefetch
from utils.loss import DetectionLoss, LossSums
from utils.metrics import IOU_LEVELS, ConfusionMatrix, Metrics, Speed, match_detections
from utils.nms import non_max_suppression
from utils.output.plots import plot_study
from utils.output.plotter import Plotter
from utils.output.prediction_files import COCO_IDS, CocoWriter, TextWriter, Writer, unique_names
from utils.output.validation_report import HEADER, draw_batch, draw_curves, table

IOU = 0.6  # boxes that overlap more are one object
COCO_IOU = 0.65  # by which COCO's figures of models are published
PICTURED_BATCHES = 3  # drawn into the run folder
STUDY_SIZES = range(256, 1536 + 1, 128)


# ---------------------------------------------------------------------------------------------------------------------
# Measuring


class Statistics(NamedTuple):
    """What a batch adds to the metrics; plain arrays, so that processes can exchange it."""

    images: int
    right: np.ndarray  # (n, 10) bool, by IoU level
    confidence: np.ndarray  # (n,)
    predicted: np.ndarray  # (n,) class
    true: np.ndarray  # (m,) class
    losses: np.ndarray | None  # (5, L), the fields of LossSums


class Stopwatch:
    """Seconds spent in its parts, each timed by `with watch(part):`, with what the device still had to do."""

    def __init__(self, device: torch.device):
        self.device, self.seconds = device, Counter()

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = self._now()
        yield
        self.seconds[part] += self._now() - start

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def speed(self, images: int) -> Speed:
        return Speed(*(1000 * self.seconds[part] / max(images, 1) for part in ("preprocess", "inference", "nms")))


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode, and afterwards every part of it into the mode it had."""
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: Iterable[Batch],
    *,
    conf: float = 0.001,
    iou: float = IOU,
    max_det: int = 300,
    single_cls: bool = False,
    augment: bool = False,
    autocast: torch.dtype | None = None,
    loss: DetectionLoss | None = None,
    names: Mapping[int, str] | None = None,
    hybrid: bool = False,
    plots: str | Path | None = None,
    writers: Sequence[Writer] = (),
    verbose: bool = False,
    progress: bool = True,
    distributed: Distributed | None = None,
    before_batch: Callable[[], None] | None = None,
) -> Metrics:
    """Metrics of a model on the pictures of a loader that reads for validation; the model is left as it was.

    conf, iou, max_det: of the suppression. single_cls: classes do not count. autocast: type to run the model in,
    None for float32. loss: adds the validation losses, means over the batches. names: of the classes, the model's if
    None. hybrid: the labels join the detections. plots: folder for pictures and curves. verbose: a row for each class.
    distributed: the processes that share the pictures; each of them gets the metrics of all pictures. before_batch:
    called before each batch; what it raises ends the evaluation.
    No pictures or no labels give zeros. A class id outside the names is a UserError.
    """
    device = next(model.parameters()).device
    group = distributed or Distributed(0, 1, device)
    names = names or model.names
    confusion, watch, statistics = ConfusionMatrix(1 if single_cls else len(names)), Stopwatch(device), []
    shown = progress and group.is_main
    bar = tqdm(
        prefetch(loader, device),
        HEADER,
        operator.length_hint(loader) or None,
        disable=not shown,
        bar_format="{l_bar}{bar:10}{r_bar}",
        mininterval=0.5,
    )
    with evaluation_mode(model), Plotter() as plotter, bar:
        ask = before_batch or (lambda: None)
        ask()  # before the first one is read, too: its workers may take long to begin
        for number, batch in enumerate(bar):
            ask()
            with watch("preprocess"):
                images = to_network_input(batch.images, device)
            with watch("inference"), torch.autocast(device.type, autocast, enabled=autocast is not None):
                decoded, raw = model(images, augment=augment)
            sums = None if loss is None else torch.stack(loss.sums(raw, batch.targets)).cpu().numpy()
            labels = labels_by_picture(batch)
            with watch("nms"):
                prior = [rows.to(device) for rows in labels] if hybrid else None
                detections = non_max_suppression(
                    decoded, conf, iou, agnostic=single_cls, multi_label=True, max_det=max_det, labels=prior
                )
            detections = [rows.cpu() for rows in detections]
            if single_cls:
                for rows in detections:
                    rows[:, 5] = 0
            statistics.append(compare(batch, detections, labels, sums, confusion, writers))
            if plots and group.is_main and number < PICTURED_BATCHES:
                draw_batch(plotter, Path(plots), number, batch, detections, names)
    metrics = summarise(group, statistics, confusion, loss, watch)
    if shown:
        print(*table(metrics, names, verbose=verbose), sep="\n")
    if plots and group.is_main:
        draw_curves(Path(plots), metrics, names)
    return metrics


def labels_by_picture(batch: Batch) -> list[Tensor]:
    """The targets as (m, 5) class, x, y, w, h in pixels of the batch, for each picture."""
    height, width = batch.images.shape[2:]
    rows = batch.targets[:, 1:] * batch.targets.new_tensor([1, width, height, width, height])
    return [rows[batch.targets[:, 0] == i] for i in range(len(batch.images))]


def compare(
    batch: Batch,
    detections: list[Tensor],
    labels: list[Tensor],
    losses: np.ndarray | None,
    confusion: ConfusionMatrix,
    writers: Sequence[Writer],
) -> Statistics:
    """Match a batch's detections (pixels of the batch) with its labels in the pixels of the original pictures."""
    right = [np.zeros((0, len(IOU_LEVELS)), bool)]
    for path, box, found, known in zip(batch.paths, batch.letterboxes, detections, labels, strict=True):
        found = torch.cat((box.undo(found[:, :4]), found[:, 4:]), 1)
        known = torch.cat((known[:, :1], box.undo(xywh_to_xyxy(known[:, 1:]))), 1)
        right.append(match_detections(found, known))
        confusion.update(found, known)
        for write in writers:
            write(path, found, box.shape)
    rows = torch.cat((torch.zeros(0, 6), *detections)).numpy()
    true = batch.targets[:, 1].numpy()
    return Statistics(len(batch.images), np.concatenate(right), rows[:, 4], rows[:, 5], true, losses)


def summarise(
    group: Distributed,
    statistics: list[Statistics],
    confusion: ConfusionMatrix,
    loss: DetectionLoss | None,
    watch: Stopwatch,
) -> Metrics:
    """Metrics of the statistics of all processes, the same on each: batch k of all of them, then batch k + 1."""
    shares = itertools.zip_longest(*group.gather(statistics))
    batches = [[share for share in batch if share is not None] for batch in shares]
    none = np.zeros(0, np.float32)
    start = Statistics(0, np.zeros((0, len(IOU_LEVELS)), bool), none, none, none, None)  # there may be no batch at all
    images, *arrays, _ = zip(start, *itertools.chain.from_iterable(batches))
    confusion.matrix = sum(group.gather(confusion.matrix))
    return Metrics.from_statistics(
        *(np.concatenate(parts) for parts in arrays),
        num_classes=confusion.num_classes,
        images=sum(images),
        confusion=confusion,
        losses=mean_losses(loss, batches),
        speed=watch.speed(sum(share.images for share in statistics)),
    )


def mean_losses(loss: DetectionLoss | None, batches: list[list[Statistics]]) -> tuple[float, float, float]:
    """Box, objectness and class loss, each a mean over the batches, of which several processes may have a share."""
    if loss is None or not batches:
        return 0.0, 0.0, 0.0
    sums = [torch.from_numpy(sum(share.losses for share in batch)) for batch in batches]  # (5, L) each
    means = [torch.stack(loss.mean(LossSums(*rows))) for rows in sums]
    return tuple(torch.stack(means).mean(0).tolist())


# ---------------------------------------------------------------------------------------------------------------------
# Command line


@dataclass(frozen=True)
class ValOptions:
    """What `val.py` was asked to do; one field per flag."""

    data: str = flag("data/shapes.yaml", "data set YAML")
    weights: list = flag(["yolov5s.pt"], "model file; several are combined", type=str, nargs="+")
    batch_size: int = flag(32, "pictures at a time")
    imgsz: int = flag(640, "size of the model's input in pixels", names=["--imgsz", "--img", "--img-size"])
    conf_thres: float = flag(0.001, "least confidence")
    iou_thres: float = flag(IOU, "boxes that overlap more are one object")
    max_det: int = flag(300, "most detections in a picture")
    task: str = flag(
        "val", "split to measure on, or speed, or study (all sizes)", choices=["train", "val", "test", "speed", "study"]
    )
    device: str = flag("", "cpu, mps or a GPU number; '' takes the first GPU, or the CPU")
    workers: int = flag(8, "data loading processes at most; threads where the model has all cores")
    single_cls: bool = flag(False, "treat all classes as one")
    augment: bool = flag(False, "look at each picture in three sizes (slower)")
    verbose: bool = flag(False, "a row for each class, however many there are")
    save_txt: bool = flag(False, "write labels/*.txt")
    save_hybrid: bool = flag(False, "labels join the detections in labels/*.txt")
    save_conf: bool = flag(False, "add the confidence to labels/*.txt")
    save_json: bool = flag(False, "write a COCO results file, and score it by COCO's rule")
    annotations: str = flag("", "COCO ground truth of the split, for --save-json")
    project: str = flag("runs/val", "results go to PROJECT/NAME")
    name: str = flag("exp", "results go to PROJECT/NAME; a number is added if it exists")
    exist_ok: bool = flag(False, "use an existing PROJECT/NAME")
    half: bool = flag(False, "half precision (GPU)")
    dnn: bool = flag(False, "not offered: reads ONNX files in the original")

    def __post_init__(self) -> None:
        for value, name in ((self.conf_thres, "--conf-thres"), (self.iou_thres, "--iou-thres")):
            if not 0 <= value <= 1:
                raise UserError(f"{name} {value}: 0 to 1")
        for value, name in ((self.batch_size, "--batch-size"), (self.imgsz, "--imgsz"), (self.max_det, "--max-det")):
            if value < 1:
                raise UserError(f"{name} {value}: at least 1")
        if self.dnn:
            raise UserError("--dnn needs an ONNX model, and only PyTorch weights are read: leave it out")
        if self.annotations and not Path(self.annotations).is_file():
            raise UserError(f"--annotations {self.annotations}: no such file")


@dataclass(frozen=True)
class Subject:
    """A model and the pictures to measure it on."""

    weights: list[Path]
    model: nn.Module
    spec: DatasetSpec
    split: str
    index: LabelIndex
    names: Mapping[int, str]

    @property
    def grid(self) -> int:
        return self.model.size_multiple


def parse_args(argv: Sequence[str] | None = None) -> tuple[ValOptions, bool]:
    """The options, and whether the weights were named by the user: only then they are ever downloaded."""
    parser = add_flags(SuggestingParser(prog="val.py", description="Measure a detector."), ValOptions)
    given = fetch_typed(vars(parser.parse_args(argv)))
    options = ValOptions(**given)
    wants_json = options.save_json or bool(options.annotations) or Path(options.data).name == "coco.yaml"
    options = replace(options, save_txt=options.save_txt or options.save_hybrid, save_json=wants_json)
    if options.task in ("speed", "study"):
        fixed = ("conf_thres", "iou_thres") if options.task == "speed" else ("imgsz",)
        for name in (*fixed, "save_txt", "save_json", "save_hybrid", "save_conf", "annotations"):
            if name in given:
                reason = f"has its own {name}" if name in fixed else "writes no detections"
                print(f"WARNING --{name.replace('_', '-')} left aside: --task {options.task} {reason}")
    elif options.save_hybrid:
        print("WARNING --save-hybrid: the labels are among the detections, so that the metrics say nothing")
    if options.task in ("train", "val", "test") and options.conf_thres > 0.001:
        print(f"WARNING --conf-thres {options.conf_thres} leaves out detections that count: mAP is not comparable")
    return options, "weights" in given


def build_subject(options: ValOptions, weights: Sequence[Path], device: torch.device) -> Subject:
    """Load model and label index; UserError when their classes differ in number."""
    model = load_ensemble(weights, device)  # first: damaged weights cost no download
    spec = locate_dataset(options.data)
    split = options.task if options.task in ("train", "val", "test") else "val"
    sources = spec.sources(split)
    if model.num_classes != spec.num_classes and not options.single_cls:
        raise UserError(
            f"{weights[0]} has {model.num_classes} classes, {spec.file} names {spec.num_classes}: "
            "give the --data that the model was trained with"
        )
    index = load_index(sources, spec.num_classes, prefix=f"{split}: ", single_cls=options.single_cls)
    return Subject(list(weights), model, spec, split, index, {0: "item"} if options.single_cls else spec.names)


def measure(options: ValOptions, subject: Subject, **settings) -> Metrics:
    """`evaluate` as the options say; `settings` go to it."""
    device = next(subject.model.parameters()).device
    square = options.task == "speed"
    size = math.ceil(options.imgsz / subject.grid) * subject.grid
    if size != options.imgsz:
        print(f"WARNING --imgsz {options.imgsz} is not a multiple of the model's stride {subject.grid}; using {size}")
    loader = open_loader(options, subject, size, square=square, device=device)
    with closing(loader), advice_on_memory(options.batch_size, size, training=False):
        if device.type == "cuda":  # the first pass is slow and would be timed
            with torch.no_grad():
                subject.model(torch.zeros(1, 3, size, size, device=device))
        metrics = evaluate(
            subject.model,
            loader,
            conf=options.conf_thres,
            iou=options.iou_thres,
            max_det=options.max_det,
            single_cls=options.single_cls,
            augment=options.augment,
            names=subject.names,
            autocast=torch.float16 if options.half else None,
            verbose=options.verbose or len(subject.names) < 50,
            **settings,
        )
    speed = metrics.speed
    print(
        f"Speed: {speed.preprocess:.1f}ms pre-process, {speed.inference:.1f}ms inference, {speed.nms:.1f}ms NMS "
        f"per image at shape {(min(options.batch_size, len(subject.index)), 3, size, size)}"
    )
    return metrics


def open_loader(options: ValOptions, subject: Subject, size: int, *, square: bool, device: torch.device) -> Loader:
    return make_loader(
        subject.index,
        imgsz=size,
        batch_size=options.batch_size,
        stride=subject.grid,
        rect=not square,
        pad=0.0 if square else 0.5,
        workers=options.workers,
        pin_memory=device.type == "cuda",
        cores=cores_for_loading(device),
    )


def find_annotations(subject: Subject) -> Path | None:
    """instances_<split, or its folder or list>.json in the data set's root or its annotations/, where there is one."""
    root, stems = subject.spec.root, [subject.split, *(Path(s).stem for s in subject.spec.sources(subject.split))]
    candidates = [folder / f"instances_{stem}.json" for folder in (root, root / "annotations") for stem in stems]
    return next((file for file in candidates if file.is_file()), None)


def validate(options: ValOptions, subject: Subject) -> Metrics:
    """Measure with pictures and the files asked for, in a new folder."""
    text = coco = None
    if options.save_json:
        annotations = Path(options.annotations) if options.annotations else find_annotations(subject)
        coco = CocoWriter(
            annotations,
            subject.names,
            single_cls=options.single_cls,
            coco=subject.spec.is_coco and subject.spec.num_classes == len(COCO_IDS),
        )
    folder = increment_path(Path(options.project) / options.name, options.exist_ok)
    if options.save_txt:
        text = TextWriter(folder / "labels", subject.index.paths, confidence=options.save_conf)
    metrics = measure(
        options, subject, plots=folder, hybrid=options.save_hybrid, writers=[w for w in (text, coco) if w]
    )
    if coco:
        coco.finish(folder / f"{subject.weights[0].stem}_predictions.json", metrics)
    if text:
        print(f"{text.written} labels saved to {folder / 'labels'}")
    print(f"Results saved to {folder}")
    return metrics


def study(options: ValOptions, subject: Subject, file: Path) -> tuple[list[Metrics], np.ndarray]:
    """Measure at all sizes; in `file` and the second answer a row of P, R, mAP50, mAP50-95, three losses (0) and
    three times in ms for each size (S, 10)."""
    found, rows = [], []
    for size in STUDY_SIZES:
        found.append(measure(replace(options, imgsz=size), subject))
        m, s = found[-1], found[-1].speed
        rows.append((m.precision, m.recall, m.map50, m.map, *m.losses, s.preprocess, s.inference, s.nms))
    with atomic_write(file) as stream:
        np.savetxt(stream, rows, fmt="%10.4g", delimiter="")
    return found, np.array(rows)


def main(argv: Sequence[str] | None = None) -> Metrics | list[Metrics]:
    """Measure as the command line `argv` says: the metrics, or, for speed and study, those of each weights and size."""
    options, named = parse_args(argv)
    if options.task != "speed":  # which only prints
        require_writable(options.project)
    tune_malloc()
    device = set_current_device(select_device(options.device)[0])
    weights = find_weights(options.weights, typed=named)
    if options.task in ("speed", "study"):
        options = replace(options, half=device.type == "cuda")
    elif options.half and device.type != "cuda":
        print("WARNING --half needs a GPU: going on in float32")
        options = replace(options, half=False)
    print(f"val: {describe_device(device)}, torch {torch.__version__}, {', '.join(map(str, weights))}")
    if options.task in ("speed", "study"):
        metrics = compare_weights(options, weights, device)
    else:
        metrics = validate(options, build_subject(options, weights, device))
    print(f"Next: {detect_command(weights, [options.imgsz])}")
    return metrics


def compare_weights(options: ValOptions, weights: Sequence[Path], device: torch.device) -> list[Metrics]:
    """The tasks speed and study: each weights by itself."""
    if options.task == "speed":
        fast = replace(options, conf_thres=0.25, iou_thres=0.45)
        return [measure(fast, build_subject(options, [file], device)) for file in weights]
    folder = increment_path(Path(options.project) / options.name, options.exist_ok)
    found, tables = [], {}
    for path, name in unique_names(list(map(str, weights))).items():
        subject = build_subject(options, [Path(path)], device)
        metrics, tables[name] = study(options, subject, folder / f"study_{subject.spec.file.stem}_{name}.txt")
        found += metrics
    with Plotter() as plotter:
        plotter.submit(plot_study, tables, STUDY_SIZES, folder / "study.png")
    print(f"Results saved to {folder}")
    return found


if __name__ == "__main__":
    run_command(main)
