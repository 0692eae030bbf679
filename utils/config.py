"""Typed, validated settings: command line options, hyperparameters, data sets. Read once, frozen, written as YAML.

Names of flags and YAML keys are interfaces of YOLOv5 and kept; each becomes a dataclass field here and nowhere else.
"""

import argparse
import difflib
import reprlib
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import find_file, read_yaml

MAX_PATH = 4096  # characters


def brief(value: Any) -> str:
    """`value` as one may type it, shortened where it is large."""
    return reprlib.repr(value)


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?`, or nothing when no known word is close."""
    plain = {one.lstrip("-"): one for one in known}  # what all flags begin with makes none of them like another
    close = difflib.get_close_matches(word.lstrip("-"), plain, n=1, cutoff=0.6)
    return f"; did you mean {plain[close[0]]}?" if close else ""


NOT_OFFERED = {"__entity", "__upload_dataset", "__bbox_interval", "__artifact_alias", "__bucket", "__visualize"}


def detect_command(weights: Iterable[str | Path], imgsz: Sequence[int], source: str = "YOUR_PICTURES") -> str:
    """What to type for detections with these weights; `imgsz` is named where it is not the usual."""
    size = [] if list(imgsz) == [640] else ["--imgsz", *map(str, imgsz)]
    return shlex.join(["python", "detect.py", "--weights", *map(str, weights), "--source", source, *size])


class SuggestingParser(argparse.ArgumentParser):
    """argparse, except that an unknown flag names the nearest known one, and `_` and `-` are the same in flags."""

    def error(self, message: str) -> None:
        self.exit(2, f"error: {message} (python {self.prog} --help lists all flags)\n")

    def parse_args(self, args: Sequence[str] | None = None, namespace=None):
        words = [self._canonical(word) for word in (sys.argv[1:] if args is None else args)]
        parsed, unknown = self.parse_known_args(words, namespace)
        if unknown:
            self.error("; ".join(map(self._complain, [word for word in unknown if word[0] == "-"] or unknown[:1])))
        return parsed

    def _complain(self, word: str) -> str:
        flag = word.partition("=")[0]
        if flag.replace("-", "_") in NOT_OFFERED:
            return f"{flag} of YOLOv5 is not offered (README.md, Deliberate differences): leave it out"
        return f"unknown argument {word}{nearest(flag, self._option_string_actions)}"

    def _canonical(self, word: str) -> str:
        if not word.startswith("--"):
            return word
        flag, separator, value = word.partition("=")
        for spelling in (flag, flag.replace("_", "-"), "--" + flag[2:].replace("-", "_")):
            if spelling in self._option_string_actions:
                return spelling + separator + value
        return word


def flag(default: Any, text: str, *, type: Callable = None, names: Sequence[str] = (), **extra) -> Any:
    """A dataclass field that is also a command line flag; `extra` goes to argparse."""
    metadata = {"help": text, "type": type, "names": tuple(names), **extra}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def add_flags(parser: argparse.ArgumentParser, options: type) -> argparse.ArgumentParser:
    """One flag per field of the dataclass `options`; fields whose names list is empty get `--field-name`.

    A flag that is not given is absent from the namespace, so that the caller knows what the user asked for.
    """
    for entry in fields(options):
        settings = dict(entry.metadata)
        names = settings.pop("names") or (f"--{entry.name.replace('_', '-')}",)
        default = entry.default if entry.default is not MISSING else entry.default_factory()
        value_type = settings.pop("type", None)
        if default is False and "nargs" not in settings:
            settings["action"] = "store_true"
        else:
            settings["type"] = value_type or type(default)
        shown = "" if default is False or default is None or default == "" else f" (default {default})"
        settings["help"] = f"{settings['help']}{shown}".replace("%", "%%")
        parser.add_argument(*names, dest=entry.name, default=argparse.SUPPRESS, **settings)
    return parser


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


def _wrong_keys(names: Any) -> str:
    if not isinstance(names, dict):
        return ""
    texts = [repr(key) for key in names if type(key) is not int]
    if texts:
        return f"; no numbers: {brief(', '.join(texts))}"
    absent = [str(index) for index in range(len(names)) if index not in names]
    return f"; among the {len(names)} there is no {brief(', '.join(absent))}"


def _number(value: Any) -> Any:
    """The number that a text is: YAML takes 1e-3, unlike 1.0e-3, for one. Anything else as it is."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


@dataclass(frozen=True)
class DatasetSpec:
    """A data set YAML with its paths resolved; `splits` maps train, val and test to lists of existing paths."""

    file: Path
    root: Path
    splits: dict[str, list[Path]]
    names: dict[int, str]
    download: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        return len(self.names)

    @property
    def is_coco(self) -> bool:
        """Whether this is COCO 2017, by the name and place of its list of pictures."""
        return any(path.as_posix().endswith("coco/val2017.txt") for path in self.splits.get("val", ()))

    def sources(self, split: str) -> list[Path]:
        """Folders and list files of `split`; UserError when the YAML does not have it."""
        if not self.splits.get(split):
            raise UserError(f"{self.file}: no `{split}:` images; add the key, or choose another --task")
        return self.splits[split]

    @classmethod
    def load(cls, path: Path, folders: Sequence[Path]) -> "DatasetSpec":
        """Read `path`; a relative `path:` is looked for beside the YAML, then in each of `folders`.

        Raises MissingData (a UserError) with the places looked at when train or val are nowhere.
        """
        content, names = read_dataset(path)
        if content.get("nc") not in (None, len(names)):
            print(f"WARNING {path}: nc: {brief(content['nc'])} but {len(names)} names; the names count")
        download = _as_strings(content.get("download") or [], path, "download")
        wanted = {key: _as_strings(content.get(key) or [], path, key) for key in ("train", "val", "test")}
        start = _as_strings(content.get("path") or ".", path, "path")
        try:
            roots = _root_candidates(start[0] if start else ".", path, folders)
            for root in roots:
                splits = {key: [_resolve(root, entry) for entry in entries] for key, entries in wanted.items()}
                if all(entry.exists() for key in ("train", "val") for entry in splits[key]):
                    return cls(path, root, splits, names, tuple(download))
        except (OSError, RuntimeError) as error:  # a name too long, links in a circle
            raise UserError(f"{path}: a path in it cannot be followed: {brief(str(error))}") from error
        raise MissingData(path, roots, wanted, download)


def read_dataset(path: Path) -> tuple[dict[str, Any], dict[int, str]]:
    """The keys of a data set YAML and its class names; the pictures need not be there yet."""
    content = read_yaml(path)
    for key in ("train", "val", "names"):
        if not content.get(key):
            raise UserError(f"{path}: `{key}:` is missing")
    return content, _read_names(content["names"], path)


class MissingData(UserError):
    """The pictures of a data set are in none of `roots`; `download` holds the URLs that its YAML gives."""

    def __init__(self, file: Path, roots: list[Path], wanted: dict[str, list[str]], download: list[str]):
        self.file, self.roots, self.download = file, roots, download
        self.places = ", ".join(str(root) for root in roots)
        entries = dict.fromkeys(wanted["train"] + wanted["val"])
        absent = [entry for entry in entries if not any(_resolve(root, entry).exists() for root in roots)]
        self.entries = " and ".join(absent or entries)
        # The places come last: where they are many the line is cut, and what to do must stay.
        super().__init__(
            f"{file}: {self.entries} not found; correct `path:` in the YAML, or set ANCHORAGE_DATASETS to "
            f"the folder that holds your data sets; looked in {self.places}"
        )


def _root_candidates(root: str, file: Path, folders: Sequence[Path]) -> list[Path]:
    """Where `root` may be: as it is when absolute, else beside the YAML and below each folder, with and without the
    leading ../ and datasets/ that shared YAMLs carry."""
    if Path(root).is_absolute():
        return [Path(root)]
    parts = [part for part in Path(root).parts if part != ".."]
    tail = Path(*(parts[1:] if parts[:1] == ["datasets"] else parts))
    bases = [file.parent, *folders]
    candidates = [base / root for base in bases] + [base / tail for base in bases]
    return list(dict.fromkeys(candidate.resolve() for candidate in candidates))


def _resolve(root: Path, entry: str) -> Path:
    """`entry` below `root`; a leading ../ is dropped when that is where the images are."""
    direct = (root / entry).resolve()
    if not direct.exists() and entry.startswith("../") and (root / entry[3:]).exists():
        return (root / entry[3:]).resolve()
    return direct


def _as_strings(value: Any, file: Path, key: str) -> list[str]:
    values = value if isinstance(value, list) else [value]
    for entry in values:
        if not isinstance(entry, str) or "\0" in entry or len(entry) > MAX_PATH:
            raise UserError(f"{file}: {key}: {brief(entry)} is not a path")
    return values


def _read_names(names: Any, file: Path) -> dict[int, str]:
    """{0: name, …} from a list or a mapping with the keys 0 to n-1."""
    pairs = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(pairs, dict) or sorted(pairs, key=str) != sorted(range(len(pairs)), key=str):
        raise UserError(f"{file}: names: expected a list, or a mapping with the keys 0 to n-1{_wrong_keys(pairs)}")
    for index, name in pairs.items():
        if isinstance(name, (bool, dict, list, type(None))):
            raise UserError(f"{file}: names: {index}: {brief(name)} is not a name; put quotes around it")
    return {index: str(pairs[index]) for index in range(len(pairs))}
