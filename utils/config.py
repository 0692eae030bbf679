"""Typed, validated settings: command line options, hyperparameters, data sets. Read once, frozen, written as YAML.

Names of flags and YAML keys are interfaces of YOLOv5 and kept; each becomes a dataclass field here and nowhere else.
"""

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from utils.cli import brief, flag, nearest
from utils.errors import UserError
from utils.files import find_file, read_yaml


@dataclass(frozen=True)
class TrainOptions:
    """What `train.py` was asked to do; one field per flag, same names, types and defaults as users know."""

    weights: str = flag("yolov5s.pt", "initial weights; '' trains from scratch")
    cfg: str = flag("", "model YAML, e.g. yolov5n.yaml")
    data: str = flag("data/shapes.yaml", "data set YAML")
    hyp: str = flag("data/hyps/hyp.scratch-low.yaml", "hyperparameter YAML")
    epochs: int = flag(100, "total epochs")
    batch_size: int = flag(16, "total batch over all devices, -1 finds it", names=["--batch-size"])
    nbs: int = flag(0, "gradients of about so many pictures make an optimizer step; 0: 64, or less in a short run")
    imgsz: int = flag(640, "train and validation size in pixels", names=["--imgsz", "--img", "--img-size"])
    rect: bool = flag(False, "rectangular training batches, no mosaic, no shuffling")
    resume: str | bool = flag(
        False,
        "go on with the latest run, or with the named run or checkpoint",
        type=str,
        nargs="?",
        const=True,
        metavar="RUN",
    )
    nosave: bool = flag(False, "keep only the checkpoints of the last epoch")
    noval: bool = flag(False, "validate only after the last epoch")
    noautoanchor: bool = flag(False, "skip the anchor check")
    noplots: bool = flag(False, "write no pictures")
    cache: str | None = flag(
        None,
        "keep decoded images; left out: in memory if they are small",
        type=str,
        nargs="?",
        const="ram",
        choices=["ram", "disk", "val", "off"],
    )
    image_weights: bool = flag(False, "draw images by the weights of their classes")
    device: str = flag("", "cpu, 0 or 0,1,2,3; '' takes the first GPU, or the CPU")
    multi_scale: bool = flag(False, "another input size from 50 to 150 percent in each batch")
    single_cls: bool = flag(False, "treat all classes as one")
    optimizer: str = flag("SGD", "optimizer", choices=["SGD", "Adam", "AdamW"])
    sync_bn: bool = flag(False, "batch statistics over all processes (several GPUs)")
    workers: int = flag(8, "data loading processes at most, for each device; threads where the model has all cores")
    project: str = flag("runs/train", "results go to PROJECT/NAME")
    name: str = flag("exp", "results go to PROJECT/NAME; `cfg` takes the model's name")
    exist_ok: bool = flag(False, "use an existing PROJECT/NAME")
    quad: bool = flag(False, "merge batches in fours at twice the size")
    cos_lr: bool = flag(False, "cosine instead of linear decay of the learning rate")
    label_smoothing: float = flag(0.0, "label smoothing, 0 to 1")
    patience: int = flag(100, "epochs without improvement before stopping, 0 never stops")
    freeze: list = flag([0], "freeze the first N layers, or exactly the listed ones", type=int, nargs="+")
    save_period: int = flag(-1, "keep a checkpoint every N epochs, off below 1")
    save_minutes: float = flag(10.0, "minutes between saves within an epoch, 0 saves at epochs' ends only")
    seed: int = flag(0, "seed of every random choice")
    local_rank: int = flag(-1, "accepted for launchers, the environment decides", names=["--local_rank"])
    amp: str = flag("auto", "mixed precision", choices=["auto", "off", "fp16", "bf16"])
    compile: bool = flag(False, "compile the model with torch.compile, if that proves faster")
    evolve: int = flag(
        0,
        "search hyperparameters in N trainings (300 if not given); the same command goes on",
        nargs="?",
        const=300,
        metavar="N",
    )
    evolve_population: str = flag(
        "data/hyps", "folder of hyperparameter files to try first besides --hyp", names=["--evolve_population"]
    )
    resume_evolve: str = flag(
        "", "try the individuals of an evolve_population.yaml or evolve.csv first", names=["--resume_evolve"]
    )
    evolve_workers: int = flag(0, "trainings at a time; 0 takes one for each device")
    evolve_storage: str = flag("", "Optuna study that machines share: postgresql://..., sqlite:///FILE, a journal FILE")
    evolve_prune: bool = flag(False, "stop a generation that falls behind the median of the others")
    evolve_fraction: float = flag(1.0, "share of the training pictures to use, the same ones each time")
    evolve_timeout: float = flag(0.0, "minutes that one generation may take; 0 goes by the others")
    score_only: bool = flag(False, "leave results.csv only: no checkpoints, no second look at the best")

    def __post_init__(self) -> None:
        checks = [
            (self.epochs >= 1, f"--epochs {self.epochs}: at least 1"),
            (self.batch_size >= 1 or self.batch_size == -1, f"--batch-size {self.batch_size}: at least 1, or -1"),
            (self.nbs >= 0, f"--nbs {self.nbs}: at least 1, or 0 to let the run's length decide"),
            (self.imgsz >= 1, f"--imgsz {self.imgsz}: at least 32"),
            (self.workers >= 0, f"--workers {self.workers}: 0 or more"),
            (0 <= self.label_smoothing <= 1, f"--label-smoothing {self.label_smoothing}: 0 to 1"),
            (self.patience >= 0, f"--patience {self.patience}: 0 or more"),
            (0 <= self.seed < 2**63, f"--seed {self.seed}: 0 or more, below 2^63"),
            (self.save_minutes >= 0, f"--save-minutes {self.save_minutes}: 0 or more"),
            (all(layer >= 0 for layer in self.freeze), f"--freeze {' '.join(map(str, self.freeze))}: 0 or more"),
            (self.evolve >= 0, f"--evolve {self.evolve}: 0 (off) or more"),
            (self.evolve_workers >= 0, f"--evolve-workers {self.evolve_workers}: at least 1"),
            (self.evolve_timeout >= 0, f"--evolve-timeout {self.evolve_timeout}: 0 or more minutes"),
            (0 < self.evolve_fraction <= 1, f"--evolve-fraction {self.evolve_fraction}: above 0, at most 1"),
            (self.cfg or self.weights, "--weights '' needs a --cfg, for instance --cfg yolov5n.yaml"),
        ]
        for holds, message in checks:
            if not holds:
                raise UserError(message)

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str = "options") -> "TrainOptions":
        """From a mapping as written by `to_dict`; keys that this version does not know are left out.

        UserError names `source` and a key whose value is of another type than it should be.
        """
        known = {key: value for key, value in values.items() if key in cls.__dataclass_fields__}
        defaults = cls().to_dict()
        for key, value in known.items():
            fitting = {float: (int, float), type(None): (str, type(None))}.get(type(defaults[key]), type(defaults[key]))
            fits = isinstance(value, fitting) and (type(value) is bool) == (fitting is bool)
            if key != "resume" and not (fits and (fitting is not list or all(type(entry) is int for entry in value))):
                raise UserError(f"{source}: option {key}: {brief(value)} is not of the type of {defaults[key]!r}")
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, in the order of the fields."""
        return asdict(self)

    def replace(self, **changes: Any) -> "TrainOptions":
        return replace(self, **changes)


@dataclass(frozen=True)
class Hyperparameters:
    """The values of a `hyp.*.yaml`; the defaults are those of hyp.scratch-low."""

    lr0: float = 0.01  # learning rate after warm-up
    lrf: float = 0.01  # last learning rate as a fraction of lr0
    momentum: float = 0.937  # SGD momentum, Adam's beta1
    weight_decay: float = 0.0005  # for a nominal batch of 64
    warmup_epochs: float = 3.0  # fractions allowed, 0 switches warm-up off
    warmup_momentum: float = 0.8
    warmup_bias_lr: float = 0.1
    box: float = 0.05  # gain of the box loss
    cls: float = 0.5  # gain of the class loss
    cls_pw: float = 1.0  # positive weight of the class loss
    obj: float = 1.0  # gain of the objectness loss
    obj_pw: float = 1.0  # positive weight of the objectness loss
    iou_t: float = 0.2  # known from old files, used by nothing
    anchor_t: float = 4.0  # largest ratio of a side to its anchor's side
    anchors: float = 0.0  # anchors per level, rounded; 0 keeps the model's own
    fl_gamma: float = 0.0  # focal loss exponent, 0 is off
    hsv_h: float = 0.015
    hsv_s: float = 0.7
    hsv_v: float = 0.4
    degrees: float = 0.0  # rotation, plus or minus
    translate: float = 0.1  # fraction of the picture, plus or minus
    scale: float = 0.5  # gain, plus or minus
    shear: float = 0.0  # degrees, plus or minus
    perspective: float = 0.0  # 0 to 0.001
    flipud: float = 0.0  # probability
    fliplr: float = 0.5  # probability
    mosaic: float = 1.0  # probability
    mixup: float = 0.0  # probability
    copy_paste: float = 0.0  # probability

    LIMITS = {  # beyond these a value has no meaning; evolution has narrower bounds of its own
        "lr0": (0, 10), "lrf": (0, 100), "momentum": (0, 0.9999), "weight_decay": (0, 10), "warmup_epochs": (0, 1e6),
        "warmup_momentum": (0, 0.9999), "warmup_bias_lr": (0, 10), "anchor_t": (1, 1e6), "anchors": (0, 100),
        "hsv_h": (0, 1), "hsv_s": (0, 1), "hsv_v": (0, 1), "degrees": (0, 180), "translate": (0, 1), "scale": (0, 1),
        "shear": (0, 89), "perspective": (0, 0.01), "flipud": (0, 1), "fliplr": (0, 1), "mosaic": (0, 1),
        "mixup": (0, 1), "copy_paste": (0, 1),
    }  # fmt: skip

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str = "hyperparameters") -> "Hyperparameters":
        """Checked values; UserError names `source`, the key and the nearest known one. Absent keys take defaults."""
        known = [entry.name for entry in fields(cls)]
        for key, value in values.items():
            if key not in known:
                raise UserError(f"{source}: unknown hyperparameter {key}{nearest(str(key), known)}")
        numbers = {key: _number(value) for key, value in values.items()}
        for key, value in numbers.items():
            cls._check(key, value, source)
        return cls(**{key: float(value) for key, value in numbers.items()})

    @classmethod
    def _check(cls, key: str, value: Any, source: str) -> None:
        low, high = cls.LIMITS.get(key, (0, 1e6))
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
            raise UserError(f"{source}: {key}: {brief(value)} is not a number")
        if not low <= value <= high:
            raise UserError(f"{source}: {key}: {brief(value)} is outside {low} to {high}")

    @classmethod
    def load(cls, path: str | Path, *folders: Path) -> "Hyperparameters":
        found = cls.find(path, *folders)
        return cls.from_dict(read_yaml(found), str(found))

    @staticmethod
    def find(path: str | Path, *folders: Path) -> Path:
        """The file of `--hyp`; UserError where it is not there."""
        found = find_file(path, *folders)
        if found is None:
            known = [file.name for folder in folders for file in folder.glob("hyp.*.yaml")]
            raise UserError(
                f"--hyp {path}: no such file, here or in {' or '.join(map(str, folders))}"
                f"{nearest(Path(path).name, known)}"
            )
        return found

    def to_dict(self) -> dict[str, float]:
        """All values by key, in the files' order; `anchors` only when it is set, as in the files."""
        return {key: value for key, value in asdict(self).items() if key != "anchors" or value}


def _number(value: Any) -> Any:
    """The number that a text is: YAML takes 1e-3, unlike 1.0e-3, for one. Anything else as it is."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
