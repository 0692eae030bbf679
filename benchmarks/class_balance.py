"""Gain of `--class-balance` and `--class-weights` on a data set that is made long-tailed.

A copy of the training split loses images until the number by class falls by a factor from the commonest to the rarest.
It consists of links in a temporary folder. The validation split stays whole. Each variant is trained with each seed.
Reported is mAP50-95 of the rarest third of the classes, and of the others, after the last epoch.

    python benchmarks/class_balance.py --data ../shared/datasets/aquarium --weights yolov5n.pt --epochs 40 --seeds 3
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train
from utils import console
from utils.datasets.class_balance import image_shares
from utils.datasets.label_index import LabelIndex
from utils.datasets.locate import locate_dataset
from utils.datasets.splits import load_splits
from utils.files import write_yaml
from utils.metrics import Metrics

VARIANTS = {
    "plain": {},
    "balance": {"class_balance": True},
    "weights": {"class_weights": ["auto"]},
    "both": {"class_balance": True, "class_weights": ["auto"]},
}


def keep_long_tail(index: LabelIndex, num_classes: int, factor: float, seed: int) -> np.ndarray:
    """Return which images (N,) to keep, so that images by class fall by `factor` from the commonest to the rarest.

    The order of the classes stays. Images are removed at random, first for the rarest class. Backgrounds stay.
    """
    counts = image_shares(index, num_classes) * len(index)
    order = np.argsort(-counts, kind="stable")
    wanted = counts.max() * factor ** -np.linspace(0, 1, num_classes)
    kept, rng = np.ones(len(index), bool), np.random.default_rng(seed)
    holds = np.zeros((len(index), num_classes), bool)
    holds[np.repeat(np.arange(len(index)), np.diff(index.offsets)), index.labels[:, 0].astype(int)] = True
    for cls, number in zip(order[::-1], wanted[::-1], strict=True):
        images = rng.permutation(np.flatnonzero(holds[:, cls] & kept))
        kept[images[max(round(number), 1) :]] = False
    return kept


def write_long_tail(index: LabelIndex, kept: np.ndarray, names: Mapping[int, str], val: object, folder: Path) -> Path:
    """Write a data set of links to the images to keep, with label files of its own. Return its YAML."""
    for kind in ("images", "labels"):
        (folder / kind / "train").mkdir(parents=True)
    for i in np.flatnonzero(kept).tolist():
        source = Path(index.paths[i]).resolve()
        (folder / "images" / "train" / f"{i}{source.suffix}").symlink_to(source)
        rows = "".join(f"{int(cls)} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n" for cls, x, y, w, h in index.boxes(i).tolist())
        (folder / "labels" / "train" / f"{i}.txt").write_text(rows)
    file = folder / "long_tail.yaml"
    write_yaml(file, {"train": str(folder / "images" / "train"), "val": val, "names": dict(names)})
    return file


def mean_maps(metrics: Metrics, rare: np.ndarray) -> tuple[float, float]:
    """Return mAP50-95 of the classes in `rare` and of the others, of those that have labels to validate on."""
    is_rare = np.isin(metrics.per_class.classes, rare)
    maps = metrics.per_class.ap.mean(1)
    return float(maps[is_rare].mean()), float(maps[~is_rare].mean())


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure what balancing rare classes gains.")
    parser.add_argument("--data", default="../shared/datasets/aquarium", help="data set to make long-tailed")
    parser.add_argument("--weights", default="yolov5n.pt")
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each variant")
    parser.add_argument("--factor", type=float, default=20, help="images of the commonest class to those of the rarest")
    parser.add_argument("--variants", nargs="+", default=[*VARIANTS], choices=[*VARIANTS])
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def train_variant(variant: str, seed: int, file: Path, project: Path, options: argparse.Namespace) -> Metrics:
    """Train a variant. Return the metrics after its last epoch."""
    console.begin_program(quiet=True)
    result = train.run(
        data=str(file), weights=options.weights, imgsz=options.imgsz, epochs=options.epochs, seed=seed, name=variant,
        batch_size=options.batch_size, threads=options.threads, workers=0, project=str(project), noplots=True,
        noval=True, score_only=True, device="cpu", quiet=True, **VARIANTS[variant],
    )  # fmt: skip
    assert result.metrics is not None
    shutil.rmtree(project)
    return result.metrics


def report(rows: Sequence[tuple[float, float]], variant: str) -> None:
    """Print the means of a variant, and their deviations over the seeds."""
    values = np.array(rows)
    mean, spread = values.mean(0), values.std(0)
    print(f"{variant:>10}   rare third {mean[0]:.4f} +- {spread[0]:.4f}   others {mean[1]:.4f} +- {spread[1]:.4f}")


def main() -> None:
    options = parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        spec = locate_dataset(options.data)
        splits = load_splits(spec)
        kept = keep_long_tail(splits.train, len(splits.names), options.factor, seed=0)
        val = [str(source) for source in spec.sources("val")]
        file = write_long_tail(splits.train, kept, splits.names, val, folder / "set")
        counts = image_shares(load_splits(locate_dataset(str(file))).train, len(splits.names)) * kept.sum()
        order = np.argsort(counts, kind="stable")
        rare = order[: -(-len(order) // 3)]
        listed = ", ".join(f"{splits.names[int(k)]} {round(counts[k])}" for k in order[::-1])
        print(f"{kept.sum()} of {len(kept)} images; by class: {listed}; rare: {len(rare)}", flush=True)
        for variant in options.variants:
            rows = []
            for seed in range(options.seeds):
                rows.append(mean_maps(train_variant(variant, seed, file, folder / "runs", options), rare))
                print(
                    f"{variant:>10}   seed {seed}   rare third {rows[-1][0]:.4f}   others {rows[-1][1]:.4f}", flush=True
                )
            report(rows, variant)


if __name__ == "__main__":
    main()
