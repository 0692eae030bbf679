"""Typed, validated settings: command line options and hyperparameters, read once and frozen.

The names of flags and YAML keys are those of YOLOv5. Each becomes a dataclass field here and nowhere else.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from utils.class_values import AUTO, read_class_values
from utils.cli import flag, image_size_flag, shorten, suggest
from utils.errors import UserError
from utils.files import find_file, read_yaml
from utils.image_size import ImageSize, require_size
from utils.metrics import DEFAULT_FITNESS, Fitness

LOGGERS = ("tensorboard", "mlflow", "wandb", "clearml", "comet", "trackio")
EACH_EPOCH = -1  # value of `--threads auto`
MEDIAN_CLASS = -1.0  # value of `--class-balance` without a number


def number_or_auto(text: str) -> int:
    """Return the number of threads in a text, EACH_EPOCH for `auto`."""
    return EACH_EPOCH if text == "auto" else int(text)


def check_class_weights(words: Sequence[str]) -> None:
    """Raise UserError unless these are words of `--class-weights`: `auto`, numbers by class, or both."""
    expected = f"--class-weights {' '.join(map(str, words))}"
    plain, by_class = read_class_values(map(str, words), expected)
    if plain not in ([], [AUTO]) or not all(0 <= value < math.inf for value in by_class.values()):
        raise UserError(f"{expected}: expected {AUTO} or CLASS=NUMBER with numbers from 0, such as person=2")


@dataclass(frozen=True)
class TrainOptions:
    """Options of `train.py`: one field per flag, with the names, types and defaults that users know.

    `typed` holds the fields that the user typed. It is not an option: it is neither compared nor written to files.
    """

    weights: str = flag("yolov5s.pt", "initial weights; '' trains from scratch", group="model")
    cfg: str = flag("", "model YAML, e.g. yolov5n.yaml", group="model")
    data: str = flag("data/shapes.yaml", "data set YAML, or a folder, obj.data or COCO JSON", group="data")
    split: str = flag(
        "",
        "share of the images to train on, 0.8 or 0.8:SEED, of a data set without validation images",
        metavar="SHARE",
        group="data",
    )
    hyp: str = flag(
        "data/hyps/hyp.scratch-low.yaml",
        "hyperparameter YAML: optimisation, losses, augmentation",
        group="optimisation",
    )
    recipe: str = flag(
        "yolov5",
        "optimizer and hyperparameters that --hyp and typed flags leave open: yolov5 (none), small, auto, or a file",
        group="optimisation",
    )
    epochs: int = flag(100, "total epochs", group="optimisation")
    time: float = flag(
        0.0, "hours that training may take; settles the number of epochs at the start, 0 is off", group="optimisation"
    )
    batch_size: int = flag(
        16, "total batch over all devices, -1 finds the largest", names=["--batch-size"], group="optimisation"
    )
    nbs: int = flag(
        0,
        "nominal batch: images per optimizer step, by accumulation; 0: 64, or less in a short run",
        group="optimisation",
    )
    tile: int = flag(
        0,
        "also train on tiles of N x N pixels of the image files, each letterboxed to --imgsz; 0 is off",
        metavar="N",
        group="data",
    )
    tile_overlap: float = flag(0.2, "least share of a tile that the next one sees too", group="data")
    imgsz: ImageSize = image_size_flag(640, "train and validation size in pixels")
    rect: bool = flag(False, "rectangular training batches, no mosaic, no shuffling", group="augmentation")
    resume: str | bool = flag(
        False,
        "resume the latest run, or the named run or checkpoint",
        type=str,
        nargs="?",
        const=True,
        metavar="RUN",
        group="output",
    )
    nosave: bool = flag(False, "keep only the checkpoints of the last epoch", group="output")
    noval: bool = flag(False, "validate only after the last epoch", group="output")
    noautoanchor: bool = flag(False, "skip the anchor check", group="model")
    noplots: bool = flag(False, "write no images", group="output")
    cache: str | None = flag(
        None,
        "keep decoded images; default: in RAM if they are small",
        type=str,
        nargs="?",
        const="ram",
        choices=["ram", "disk", "val", "off"],
        group="data",
    )
    image_weights: bool = flag(False, "sample images by the weights of their classes", group="data")
    class_balance: float = flag(
        0.0,
        "draw images of classes in less than a share T of the images more often; without T that of the median class",
        nargs="?",
        const=MEDIAN_CLASS,
        metavar="T",
        group="data",
    )
    class_weights: list = flag(
        [],
        'weights of classes in the class loss: person=2 "traffic light=3", or auto by their numbers of labels',
        type=str,
        nargs="+",
        metavar="WEIGHT",
        group="optimisation",
    )
    device: str = flag("", "cpu, 0 or 0,1,2,3; '' takes the first GPU, or the CPU", group="devices")
    multi_scale: bool = flag(False, "another input size from 50 to 150 percent in each batch", group="augmentation")
    single_cls: bool = flag(False, "treat all classes as one", group="data")
    optimizer: str = flag(
        "SGD",
        "optimizer; Muon learns faster from scratch",
        choices=["SGD", "Adam", "AdamW", "Muon"],
        group="optimisation",
    )
    sync_bn: bool = flag(False, "batch statistics over all processes (several GPUs)", group="devices")
    workers: int = flag(
        8, "most data loading processes per device; threads if the model uses all cores", group="devices"
    )
    threads: int = flag(
        0,
        "CPU threads of the model; 0 chooses at the start by what is free, auto again at each epoch",
        type=number_or_auto,
        metavar="N",
        group="devices",
    )
    project: str = flag("runs/train", "results go to PROJECT/NAME", group="output")
    name: str = flag("exp", "results go to PROJECT/NAME; `cfg` takes the model's name", group="output")
    exist_ok: bool = flag(False, "use an existing PROJECT/NAME", group="output")
    quad: bool = flag(False, "merge batches in fours at twice the size", group="augmentation")
    cos_lr: bool = flag(False, "cosine instead of linear decay of the learning rate", group="optimisation")
    label_smoothing: float = flag(0.0, "label smoothing, 0 to 1", group="optimisation")
    patience: int = flag(100, "epochs without improvement before stopping, 0 never stops", group="optimisation")
    fitness: str = flag(
        DEFAULT_FITNESS,
        "best by: map, map50, f1, or weights of mAP50 and mAP50-95; for best.pt, early stop and evolution",
        group="optimisation",
    )
    min_delta: float = flag(
        0.0, "smaller gains of fitness are no improvement for --patience", names=["--min-delta"], group="optimisation"
    )
    freeze: list = flag(
        [0], "freeze the first N layers, or exactly the listed ones", type=int, nargs="+", group="model"
    )
    save_period: int = flag(-1, "keep a checkpoint every N epochs, off below 1", group="output")
    save_minutes: float = flag(
        10.0, "minutes between saves within an epoch, 0 saves only at the end of epochs", group="output"
    )
    seed: int = flag(0, "seed of every random choice", group="optimisation")
    local_rank: int = flag(
        -1, "accepted for launchers, the environment decides", names=["--local_rank"], group="devices"
    )
    amp: str = flag("auto", "mixed precision", choices=["auto", "off", "fp16", "bf16"], group="devices")
    dry_run: bool = flag(
        False, "time a few steps, report what the run takes and writes, and end; nothing is written", group="output"
    )
    compile: bool = flag(False, "compile the model with torch.compile, if that proves faster", group="devices")
    evolve: int = flag(
        0,
        "search hyperparameters in N trainings (300 without N); the same command continues the search",
        nargs="?",
        const=300,
        metavar="N",
        group="evolution",
    )
    evolve_population: str = flag(
        "data/hyps",
        "folder of hyperparameter files to try first besides --hyp",
        names=["--evolve_population"],
        group="evolution",
    )
    resume_evolve: str = flag(
        "",
        "try the individuals of an evolve_population.yaml or evolve.csv first",
        names=["--resume_evolve"],
        group="evolution",
    )
    evolve_workers: int = flag(0, "trainings at a time; 0: one per device", group="evolution")
    evolve_storage: str = flag(
        "",
        "Optuna study shared by several machines: postgresql://..., sqlite:///FILE, a journal FILE",
        group="evolution",
    )
    evolve_prune: bool = flag(False, "stop a generation that falls behind the median of the others", group="evolution")
    evolve_fraction: float = flag(
        1.0, "share of the training images to use, the same ones each time", group="evolution"
    )
    evolve_timeout: float = flag(
        0.0, "minutes that one generation may take; 0 derives a limit from the others", group="evolution"
    )
    score_only: bool = flag(
        False, "write only results.csv: no checkpoints, no final validation of the best", group="evolution"
    )
    log: list = flag(
        [],
        "also log to these, if they are installed: tensorboard mlflow wandb clearml comet trackio",
        type=str,
        nargs="*",
        choices=LOGGERS,
        names=["--log", "--loggers"],
        metavar="TOOL",
        group="output",
    )
    log_project: str = flag("", "project or experiment there; '' leaves it to the tool's settings", group="output")
    log_weights: bool = flag(False, "also keep best.pt and last.pt there, at the end", group="output")
    typed: frozenset[str] = field(default=frozenset(), repr=False, compare=False)

    def __post_init__(self) -> None:
        checks = [
            (self.epochs >= 1, f"--epochs {self.epochs}: at least 1"),
            (self.batch_size >= 1 or self.batch_size == -1, f"--batch-size {self.batch_size}: at least 1, or -1"),
            (0 <= self.time < math.inf, f"--time {self.time}: 0 (off) or more hours"),
            (self.nbs >= 0, f"--nbs {self.nbs}: at least 1, or 0 to let the run's length decide"),
            (not (self.tile and self.rect), "--rect with --tile: tiles are square, so omit one of the two"),
            (self.workers >= 0, f"--workers {self.workers}: 0 or more"),
            (self.threads >= EACH_EPOCH, f"--threads {self.threads}: at least 1, or auto"),
            (0 <= self.label_smoothing <= 1, f"--label-smoothing {self.label_smoothing}: 0 to 1"),
            (self.patience >= 0, f"--patience {self.patience}: 0 or more"),
            (self.min_delta >= 0, f"--min-delta {self.min_delta}: 0 or more"),
            (0 <= self.seed < 2**63, f"--seed {self.seed}: 0 or more, below 2^63"),
            (self.save_minutes >= 0, f"--save-minutes {self.save_minutes}: 0 or more"),
            (all(layer >= 0 for layer in self.freeze), f"--freeze {' '.join(map(str, self.freeze))}: 0 or more"),
            (
                self.class_balance == MEDIAN_CLASS or 0 <= self.class_balance <= 1,
                f"--class-balance {self.class_balance}: above 0, at most 1, or no number",
            ),
            (
                not (self.class_balance and self.image_weights),
                "--class-balance and --image-weights both decide how often images are drawn: omit one",
            ),
            (
                not (self.class_balance and self.rect),
                "--class-balance repeats images, --rect draws each of them once: omit one",
            ),
            (self.evolve >= 0, f"--evolve {self.evolve}: 0 (off) or more"),
            (self.evolve_workers >= 0, f"--evolve-workers {self.evolve_workers}: at least 1"),
            (self.evolve_timeout >= 0, f"--evolve-timeout {self.evolve_timeout}: 0 or more minutes"),
            (0 < self.evolve_fraction <= 1, f"--evolve-fraction {self.evolve_fraction}: above 0, at most 1"),
            (
                set(self.log) <= set(LOGGERS),
                f"--log {' '.join(map(str, self.log))}: one or more of {' '.join(LOGGERS)}",
            ),
            (self.cfg or self.weights, "--weights '' needs a --cfg, for instance --cfg yolov5n.yaml"),
        ]
        for holds, message in checks:
            if not holds:
                raise UserError(message)
        require_size(self.imgsz)
        check_class_weights(self.class_weights)
        Fitness.parse(self.fitness)  # raises UserError

    @classmethod
    def from_typed(cls, typed: Mapping[str, Any]) -> "TrainOptions":
        """Return the options that the user typed, with the defaults for the rest."""
        return cls(**typed, typed=frozenset(typed))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "options") -> "TrainOptions":
        """Return the options of a mapping that `to_dict` wrote.

        Keys that this version does not know are ignored: a newer one may have written them. Raises UserError naming
        `source` and the key if a value has another type than its default.
        """
        defaults = cls().to_dict()
        known = {key: value for key, value in values.items() if key in defaults}
        for key, value in known.items():
            entries = value if key == "imgsz" and isinstance(value, list) else [value]
            if key != "resume" and not all(_has_type_of(entry, defaults[key]) for entry in entries):
                raise UserError(f"{source}: option {key}: {shorten(value)} is not of the type of {defaults[key]!r}")
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        """Return the options as plain types, in the order of the fields."""
        return {key: value for key, value in asdict(self).items() if key != "typed"}

    def replace(self, **changes: Any) -> "TrainOptions":
        """Return the options with `changes`."""
        return replace(self, **changes)


def _has_type_of(value: Any, default: Any) -> bool:
    """Return True if `value` may stand in for the default of an option."""
    kinds: dict[type, tuple[type, ...]] = {float: (int, float), type(None): (str, type(None))}
    wanted = kinds.get(type(default), (type(default),))
    if isinstance(value, bool) != isinstance(default, bool):  # a bool is also an int
        return False
    if isinstance(value, list) and isinstance(default, list):
        entry_type = type(default[0]) if default else str
        return all(type(entry) is entry_type for entry in value)
    return isinstance(value, wanted)


@dataclass(frozen=True)
class Hyperparameters:
    """Values of a `hyp.*.yaml`, with the defaults of hyp.scratch-low."""

    lr0: float = 0.01  # learning rate after warm-up
    lrf: float = 0.01  # final learning rate as a fraction of lr0
    momentum: float = 0.937  # momentum of SGD, first beta of Adam
    weight_decay: float = 0.0005  # for a nominal batch of 64
    warmup_epochs: float = 3.0  # fractions allowed, 0 switches warm-up off
    warmup_momentum: float = 0.8  # momentum at the start of warm-up
    warmup_bias_lr: float = 0.1  # learning rate of the biases at the start of warm-up
    box: float = 0.05  # gain of the box loss
    cls: float = 0.5  # gain of the class loss
    cls_pw: float = 1.0  # positive weight of the class loss
    obj: float = 1.0  # gain of the objectness loss
    obj_pw: float = 1.0  # positive weight of the objectness loss
    iou_t: float = 0.2  # read from old files, not used
    anchor_t: float = 4.0  # largest ratio of a label's side to the anchor's side
    anchors: float = 0.0  # anchors per level, rounded; 0 keeps the model's own
    fl_gamma: float = 0.0  # exponent of the focal loss, 0 is off
    hsv_h: float = 0.015  # hue shift, fraction, plus or minus
    hsv_s: float = 0.7  # saturation gain, fraction, plus or minus
    hsv_v: float = 0.4  # brightness gain, fraction, plus or minus
    degrees: float = 0.0  # rotation, plus or minus
    translate: float = 0.1  # fraction of the image, plus or minus
    scale: float = 0.5  # gain, plus or minus
    shear: float = 0.0  # degrees, plus or minus
    perspective: float = 0.0  # 0 to 0.001
    flipud: float = 0.0  # probability of an upside-down flip
    fliplr: float = 0.5  # probability of a left-right flip
    mosaic: float = 1.0  # probability
    mixup: float = 0.0  # probability
    copy_paste: float = 0.0  # probability
    muon_lr: float = 0.02  # learning rate of the kernels after warm-up with --optimizer Muon; follows that of weights
    muon_momentum: float = 0.937  # their momentum; its warm-up is that of `momentum`
    # Their weight decay, decoupled: a step shrinks them by the factor 1 - rate x muon_decay. `weight_decay` is no
    # measure for it: that adds to the gradient, so it acts more strongly at the same number.
    muon_decay: float = 0.0005
    lr_body: float = 1.0  # factor on the rates of all layers but the head in a run from weights
    anchor_fit: float = 1.0  # 0 keeps the anchors of weights that the run starts from
    head_rows: float = 0.0  # 1 carries rows of the head over from weights with other classes
    ema_decay: float = 0.9999  # decay of the EMA of the weights at a step
    ema_tau: float = 2000.0  # updates in which that decay rises from 0
    close_mosaic: float = (
        0.0  # last epochs without mosaic, mixup and copy-paste: below 1 their share, else their number
    )
    size_start: float = 1.0  # image size of the first epoch as a fraction of --imgsz
    size_epochs: float = 0.7  # share of the epochs in which the size rises to --imgsz, if size_start is below 1
    cls_rise: float = 1.0  # factor on `cls` in the last epoch; it rises from 1 in the first one, in equal steps

    # Keys that the published files lack. They are written only if they differ from their defaults.
    OPTIONAL: ClassVar[frozenset[str]] = frozenset(
        """
        anchors muon_lr muon_momentum muon_decay lr_body anchor_fit head_rows ema_decay ema_tau close_mosaic
        size_start size_epochs cls_rise
        """.split()
    )
    # Values outside these limits have no meaning. Evolution has narrower bounds of its own.
    LIMITS: ClassVar[dict[str, tuple[float, float]]] = {
        "lr0": (0, 10), "lrf": (0, 100), "momentum": (0, 0.9999), "weight_decay": (0, 10), "warmup_epochs": (0, 1e6),
        "warmup_momentum": (0, 0.9999), "warmup_bias_lr": (0, 10), "anchor_t": (1, 1e6), "anchors": (0, 100),
        "hsv_h": (0, 1), "hsv_s": (0, 1), "hsv_v": (0, 1), "degrees": (0, 180), "translate": (0, 1), "scale": (0, 1),
        "shear": (0, 89), "perspective": (0, 0.01), "flipud": (0, 1), "fliplr": (0, 1), "mosaic": (0, 1),
        "mixup": (0, 1), "copy_paste": (0, 1), "muon_lr": (0, 10), "muon_momentum": (0, 0.9999), "muon_decay": (0, 10),
        "anchor_fit": (0, 1), "head_rows": (0, 1), "ema_decay": (0, 1), "ema_tau": (1e-3, 1e9),
        "size_start": (0.1, 1), "size_epochs": (0, 1), "cls_rise": (0, 1e6),
    }  # fmt: skip

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "hyperparameters") -> "Hyperparameters":
        """Return the checked values, with defaults for absent keys.

        Raises UserError naming `source` and the key: an unknown one with the nearest known, or a wrong value.
        """
        known = [entry.name for entry in fields(cls)]
        for key in values:
            if key not in known:
                raise UserError(f"{source}: unknown hyperparameter {key}{suggest(f'{key}', known)}")
        numbers: dict[str, Any] = {key: _number(value) for key, value in values.items()}
        for key, value in numbers.items():
            cls._check(key, value, source)
        return cls(**{key: float(value) for key, value in numbers.items()})

    @classmethod
    def _check(cls, key: str, value: Any, source: str) -> None:
        low, high = cls.LIMITS.get(key, (0, 1e6))
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
            raise UserError(f"{source}: {key}: {shorten(value)} is not a number")
        if not low <= value <= high:
            raise UserError(f"{source}: {key}: {shorten(value)} is outside {low} to {high}")

    @classmethod
    def load(cls, path: str | Path, *folders: Path) -> "Hyperparameters":
        """Return the values of the file `--hyp`, searched here and in `folders`."""
        found = cls.find(path, *folders)
        return cls.from_dict(read_yaml(found), str(found))

    @staticmethod
    def find(path: str | Path, *folders: Path) -> Path:
        """Return the file of `--hyp`, searched here and in `folders`. Raises UserError if it does not exist."""
        found = find_file(path, *folders)
        if found is None:
            known = [file.name for folder in folders for file in folder.glob("hyp.*.yaml")]
            raise UserError(
                f"--hyp {path}: no such file, here or in {' or '.join(map(str, folders))}"
                f"{suggest(Path(path).name, known)}"
            )
        return found

    def to_dict(self) -> dict[str, float]:
        """Return all values by key, in the order of the files, without `OPTIONAL` ones that have their default."""
        return {
            key: value
            for key, value in asdict(self).items()
            if key not in self.OPTIONAL or value != getattr(type(self), key)
        }


def _number(value: Any) -> Any:
    """Return the number in a text, since YAML reads 1e-3 as text. Return anything else unchanged."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
