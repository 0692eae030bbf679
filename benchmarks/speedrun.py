"""Accuracy and minutes of training recipes on small data sets, over several seeds, from scratch and from weights.

    python benchmarks/speedrun.py --variants yolov5 small                   hours; cut off, it goes on where it was
    python benchmarks/speedrun.py --variants yolov5 small --report          trains nothing: table and chart
    python benchmarks/speedrun.py --sets bccd chess --starts scratch --seeds 0

Each finished training is a row of benchmarks/speedrun.csv. Minutes are those of training alone, without start-up and
validation, on one thread. They are CPU time, so that two trainings at a time (--jobs 2) hardly disturb each other.
Recipes are chosen on CHOOSE and reported on REPORT. The data sets lie in $ANCHORAGE_REFERENCE, default ../shared.
"""

import argparse
import csv
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.metrics import fitness

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = Path(os.environ.get("ANCHORAGE_REFERENCE", ROOT / ".." / "shared")).resolve()
TABLE = ROOT / "benchmarks" / "speedrun.csv"
CHOOSE = ("bccd", "chess", "thermal", "microcontrollers")
REPORT = ("aquarium", "fruit_voc", "rabbit", "shapes")
BASELINE = "yolov5"
COMMON = "--imgsz 320 --batch-size 16 --cos-lr --threads 1 --workers 0 --cache ram --noplots --score-only".split()
STARTS = {
    "scratch": ["--weights", "", "--cfg", "yolov5n.yaml", "--epochs", "60"],
    "weights": ["--weights", str(REFERENCE / "weights" / "yolov5n.pt"), "--epochs", "30"],
}
# Flags of each variant. Words without dashes are hyperparameters.
VARIANTS = {
    "yolov5": "--recipe yolov5",
    "small": "--recipe small",
    "muon": "--optimizer Muon",
    "muon-tenth": "--optimizer Muon muon_lr=0.002",
    "muon-half": "--optimizer Muon muon_lr=0.01",
    "muon-decay": "--optimizer Muon muon_decay=0.05",
    "muon-cls": "--optimizer Muon cls=2.5",
    "muon-sizes": "--optimizer Muon size_start=0.5",
    "muon-close": "--optimizer Muon close_mosaic=0.15",
    "muon-ema": "--optimizer Muon ema_decay=0.995 ema_tau=100",
    "adamw": "--optimizer AdamW lr0=0.002 momentum=0.9 warmup_bias_lr=0.0",
    "adamw-half": "--optimizer AdamW lr0=0.001 momentum=0.9 warmup_bias_lr=0.0",
    "adamw-head": "--optimizer AdamW lr0=0.001 momentum=0.9 warmup_bias_lr=0.0 anchor_fit=0 head_rows=1",
    "muon-head": "--optimizer Muon muon_lr=0.002 anchor_fit=0 head_rows=1",
    "sgd-anchors": "anchor_fit=0",
    "muon-head-cls": "--optimizer Muon muon_lr=0.002 anchor_fit=0 head_rows=1 cls=2.5",
    "muon-head-calm": "--optimizer Muon muon_lr=0.002 anchor_fit=0 head_rows=1 cls=2.5 mosaic=0 scale=0.25",
    "muon-head-fast": "--optimizer Muon muon_lr=0.01 anchor_fit=0 head_rows=1 cls=2.5 mosaic=0 scale=0.25",
    "sgd-head": "anchor_fit=0 head_rows=1",
    "sgd-close": "close_mosaic=0.15",
    "sgd-cls": "cls=2.5",
    "sgd-ema": "ema_decay=0.995 ema_tau=100",
}


@dataclass(frozen=True)
class Row:
    """A finished training. `curve` is `minutes:mAP50-95` after each epoch."""

    variant: str
    data: str
    start: str
    seed: int
    epochs: int
    best_map50: float
    best_map: float
    best_epoch: int
    last_map50: float
    last_map: float
    minutes: float  # CPU time of training
    wall_minutes: float
    peak_mb: int
    curve: str

    @property
    def key(self) -> tuple[str, str, str, int]:
        return self.variant, self.data, self.start, self.seed

    def points(self) -> np.ndarray:
        """Return minutes and mAP50-95 after each epoch (E, 2)."""
        return np.array([[float(value) for value in point.split(":")] for point in self.curve.split()])


# ---------------------------------------------------------------------------------------------------------------------
# Data sets


def write_data_yaml(name: str, folder: Path) -> Path:
    """Return a data set YAML for `name`. The images stay where they are; VOC labels are converted into `folder`."""
    if name == "shapes":
        return ROOT / "data" / "shapes.yaml"
    source, file = REFERENCE / "datasets" / name, folder / f"{name}.yaml"
    if name == "fruit_voc":
        return convert_voc(source, folder / name)
    content: dict[str, Any] = {"train": "images/train", "val": "images/val"}
    if (source / "data.yaml").is_file():
        content = yaml.safe_load((source / "data.yaml").read_text())
    else:
        content["names"] = {0: "Platelets", 1: "RBC", 2: "WBC"}
    content["path"] = str(source)
    file.write_text(yaml.safe_dump(content))
    return file


def convert_voc(source: Path, output: Path) -> Path:
    if not (output / f"{output.name}.yaml").is_file():
        words = [sys.executable, str(ROOT / "data" / "scripts" / "voc_to_yolo.py"), "--output", str(output)]
        for split, name in (("train", "train"), ("val", "test")):
            words += ["--split", split, str(source / name), str(source / name)]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return next(output.glob("*.yaml"))


# ---------------------------------------------------------------------------------------------------------------------
# One training, in a process of its own


class Clock:
    """Time spent in training epochs, and the metrics after each of them."""

    def __init__(self) -> None:
        self.cpu = self.wall = 0.0  # seconds
        self.scores: list[tuple[float, float, float]] = []  # minutes, mAP50, mAP50-95

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            cpu, wall = time.process_time(), time.perf_counter()
            result = function(*args, **kwargs)
            self.cpu, self.wall = self.cpu + time.process_time() - cpu, self.wall + time.perf_counter() - wall
            return result

        return run

    def scored(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            metrics = function(*args, **kwargs)
            self.scores.append((self.cpu / 60, metrics.map50, metrics.map))
            return metrics

        return run


def train_here(row: dict[str, str], words: Sequence[str]) -> None:
    """Train in this process, and print the finished Row."""
    import train

    clock = Clock()
    with (
        mock.patch.object(train, "train_one_epoch", clock.timed(train.train_one_epoch)),
        mock.patch.object(train, "validate", clock.scored(train.validate)),
    ):
        train.main(list(words))
    minutes, map50, maps = zip(*clock.scores)
    best = int(np.argmax([fitness(0, 0, *pair) for pair in zip(map50, maps)]))
    result = {
        "epochs": len(maps),
        "best_map50": round(map50[best], 4),
        "best_map": round(maps[best], 4),
        "best_epoch": best,
        "last_map50": round(map50[-1], 4),
        "last_map": round(maps[-1], 4),
        "minutes": round(clock.cpu / 60, 3),
        "wall_minutes": round(clock.wall / 60, 3),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "curve": " ".join(f"{when:.2f}:{value:.3f}" for when, value in zip(minutes, maps)),
    }
    print("ROW " + yaml.safe_dump({**row, **result}, default_flow_style=True, width=1_000_000).strip())


def train_one(variant: str, data: str, start: str, seed: int, folder: Path) -> Row:
    """Train in a process of its own with one thread. Raise RuntimeError with its last lines if it fails."""
    flags = [word for word in VARIANTS[variant].split() if "=" not in word]
    changes = dict(word.split("=") for word in VARIANTS[variant].split() if "=" in word)
    if changes:
        hyp = yaml.safe_load((ROOT / "data" / "hyps" / "hyp.scratch-low.yaml").read_text())
        file = folder / f"{variant}.yaml"
        file.write_text(yaml.safe_dump(hyp | {key: float(value) for key, value in changes.items()}))
        flags += ["--hyp", str(file)]
    words = [*COMMON, *STARTS[start], *flags, "--data", str(folder / f"{data}.yaml"), "--seed", str(seed)]
    with tempfile.TemporaryDirectory(dir=folder) as project:
        child = subprocess.run(
            [sys.executable, __file__, "--work", variant, data, start, str(seed), "--", *words, "--project", project],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    lines = [line for line in child.stdout.splitlines() if line.startswith("ROW ")]
    if not lines:
        raise RuntimeError(f"{variant} {data} {start} {seed}: " + (child.stderr or child.stdout)[-2000:])
    return Row(**yaml.safe_load(lines[-1].removeprefix("ROW ")))


# ---------------------------------------------------------------------------------------------------------------------
# All trainings, and the table of the finished ones


def read_rows() -> list[Row]:
    if not TABLE.is_file():
        return []
    kinds = {field.name: field.type for field in fields(Row)}
    with TABLE.open(newline="") as lines:
        return [Row(**{key: kinds[key](value) for key, value in line.items()}) for line in csv.DictReader(lines)]


def append_row(row: Row) -> None:
    new = not TABLE.is_file()
    with TABLE.open("a", newline="") as lines:
        writer = csv.DictWriter(lines, [field.name for field in fields(Row)], lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(asdict(row))


def train_missing(options: argparse.Namespace) -> None:
    """Run the trainings that have no row yet, variants of the same seed and data next to each other."""
    done, lock = {row.key for row in read_rows()}, threading.Lock()
    folder = Path(options.work_folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in options.sets:
        (folder / f"{name}.yaml").write_text(write_data_yaml(name, folder).read_text())

    def run(key: tuple[str, str, str, int]) -> None:
        row = train_one(*key, folder)
        with lock:
            append_row(row)
            print(
                f"{' '.join(map(str, key))}: {row.best_map50:.3f} / {row.best_map:.3f}, {row.minutes:.1f} min",
                flush=True,
            )

    keys = [
        (variant, data, start, seed)
        for seed in options.seeds
        for start in options.starts
        for data in options.sets
        for variant in options.variants
    ]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(run, [key for key in keys if key not in done]))


def minutes_until(row: Row, value: float) -> float | None:
    """Return the minutes until the mAP50-95 reaches `value`, or None if it never does."""
    points = row.points()
    reached = np.flatnonzero(points[:, 1] >= value)
    return float(points[reached[0], 0]) if len(reached) else None


def summarise(rows: Iterable[Row], baseline: dict[tuple[str, str, int], Row]) -> list[str]:
    """Return the cells of one variant on one set: accuracy over the seeds, minutes, time to the baseline's end."""
    rows = list(rows)
    best50, best, last, minutes = (
        np.array([getattr(row, name) for row in rows]) for name in ("best_map50", "best_map", "last_map", "minutes")
    )
    shares = []
    for row in rows:
        other = baseline.get((row.data, row.start, row.seed))
        when = minutes_until(row, other.last_map) if other else None
        shares.append(np.nan if when is None or other is None else when / other.minutes)
    spread = f" ± {best.std(ddof=1):.3f}" if len(rows) > 1 else ""
    times = np.isfinite(shares).sum()
    reached = f"{np.nanmean(shares):.0%} ({times} of {len(rows)})" if times else "never"
    return [
        f"{best50.mean():.3f}",
        f"{best.mean():.3f}{spread}",
        f"{last.mean():.3f}",
        f"{minutes.mean():.2f}",
        reached,
        f"{max(row.peak_mb for row in rows)}",
        f"{len(rows)}",
    ]


def print_head(*titles: str) -> None:
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}")


def print_tables(options: argparse.Namespace) -> None:
    rows = read_rows()
    baseline = {(row.data, row.start, row.seed): row for row in rows if row.variant == BASELINE}
    for start in options.starts:
        print(f"\n## {start}\n")
        print_head("set", "variant", "mAP50", "mAP50-95", "last epoch", "minutes", "to baseline's end", "MB", "seeds")
        for data in options.sets:
            for variant in options.variants:
                chosen = [row for row in rows if (row.variant, row.data, row.start) == (variant, data, start)]
                if chosen:
                    print(f"| {data} | {variant} | {' | '.join(summarise(chosen, baseline))} |")
        print_gate(rows, baseline, options, start)


def print_gate(
    rows: Sequence[Row], baseline: dict[tuple[str, str, int], Row], options: argparse.Namespace, start: str
) -> None:
    """Print the mean gain over the baseline with its standard error, and the worst set."""
    print()
    print_head("variant", "gain of mAP50-95", "standard error", "worst set", "minutes / baseline", "pairs")
    for variant in options.variants:
        pairs = [
            (row, baseline[row.data, row.start, row.seed])
            for row in rows
            if (row.variant, row.start) == (variant, start)
            and row.data in options.sets
            and (row.data, row.start, row.seed) in baseline
        ]
        if variant == BASELINE or not pairs:
            continue
        gains = np.array([row.best_map - other.best_map for row, other in pairs])
        by_set = {
            data: np.mean([gain for gain, (row, _) in zip(gains, pairs) if row.data == data])
            for data in {row.data for row, _ in pairs}
        }
        worst = min(by_set, key=lambda data: by_set[data])
        error = f"{gains.std(ddof=1) / len(gains) ** 0.5:.3f}" if len(gains) > 1 else "-"
        share = np.mean([row.minutes / other.minutes for row, other in pairs])
        print(
            f"| {variant} | {gains.mean():+.3f} | {error} | {worst} {by_set[worst]:+.3f} | {share:.2f} | {len(pairs)} |"
        )


def draw(options: argparse.Namespace, file: Path) -> None:
    """Draw mAP50-95 against minutes of training: one panel a set, one line a variant, all seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = read_rows()
    figure, axes = plt.subplots(
        len(options.starts), len(options.sets), figsize=(3 * len(options.sets), 3 * len(options.starts)), squeeze=False
    )
    for line, start in zip(axes, options.starts):
        for axis, data in zip(line, options.sets):
            for color, variant in zip(plt.rcParams["axes.prop_cycle"].by_key()["color"], options.variants):
                for row in rows:
                    if (row.variant, row.data, row.start) == (variant, data, start):
                        label = variant if row.seed == min(options.seeds) else None
                        axis.plot(*row.points().T, color=color, linewidth=1, label=label)
            axis.set_title(f"{data}, {start}", fontsize=9)
            axis.set_xlabel("minutes", fontsize=8)
            axis.set_ylabel("mAP50-95", fontsize=8)
            axis.tick_params(labelsize=7)
    axes[0, 0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(file, dpi=120)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", nargs="+", default=[BASELINE, "small"], choices=VARIANTS)
    parser.add_argument("--sets", nargs="+", default=[*CHOOSE, *REPORT], choices=[*CHOOSE, *REPORT])
    parser.add_argument("--starts", nargs="+", default=list(STARTS), choices=STARTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, each with one thread")
    parser.add_argument("--work-folder", default="runs/speedrun")
    parser.add_argument("--report", action="store_true", help="train nothing")
    parser.add_argument("--chart", type=Path, help="also draw accuracy against minutes into this file")
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse_args()
    if options.work:
        variant, data, start, seed = options.work
        return train_here({"variant": variant, "data": data, "start": start, "seed": int(seed)}, options.words)
    if not options.report:
        train_missing(options)
    print_tables(options)
    if options.chart:
        draw(options, options.chart)


if __name__ == "__main__":
    main()
