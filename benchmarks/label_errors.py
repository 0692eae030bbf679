"""Share of label errors, put in by seed, that check.py finds.

A copy of a data set gets errors in 15 % of its boxes. A third each is dropped, gets another class, or is shifted by 25
to 50 % of a side. Then check.py ranks the labels by what models find that have not seen them. An error counts as found
if a row names its kind and its box. As many rows count as there are errors.

    python benchmarks/label_errors.py --data ../shared/datasets/chess --weights yolov5n.pt --cross 5
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import check
from utils.boxes import pairwise_iou, xywh_to_xyxy
from utils.files import read_yaml, write_yaml
from utils.images.header import image_shape

SHARE = 0.05  # of the boxes, for each kind of error
KINDS = {"dropped": "missing", "swapped": "class", "shifted": "shifted"}  # and the kind of the row that finds it
NAMES = {"bccd": ["Platelets", "RBC", "WBC"]}  # of a set without data.yaml


def shift(row: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the box (class, cx, cy, w, h) moved along one axis by 25 to 50 % of its side, inside the image."""
    amount = rng.uniform(0.25, 0.5)
    moves = [(axis, sign) for axis in rng.permutation(2).tolist() for sign in rng.permutation([-1, 1]).tolist()]
    for axis, sign in moves:
        moved = row.copy()
        moved[1 + axis] += sign * amount * row[3 + axis]
        if row[3 + axis] / 2 <= moved[1 + axis] <= 1 - row[3 + axis] / 2:
            return moved
    moved = row.copy()  # a box as large as the image: the part that leaves it stays
    moved[1 + moves[0][0]] += moves[0][1] * amount * row[3 + moves[0][0]]
    return moved


def spoil(labels: dict[str, np.ndarray], num_classes: int, seed: int) -> tuple[dict[str, np.ndarray], list[dict]]:
    """Return labels (n, 5) by image with errors, and a list of these: image, kind, the right row, the wrong row."""
    rng = np.random.default_rng(seed)
    places = [(image, k) for image in sorted(labels) for k in range(len(labels[image]))]
    count = round(SHARE * len(places))
    chosen = rng.permutation(len(places))[: 3 * count].reshape(3, count)
    spoiled, errors, dropped = {image: rows.copy() for image, rows in labels.items()}, [], {}
    for kind, numbers in zip(KINDS, chosen.tolist(), strict=True):
        for image, k in (places[number] for number in numbers):
            right = labels[image][k]
            wrong = right.copy()
            if kind == "dropped":
                dropped.setdefault(image, []).append(k)
            elif kind == "swapped":
                wrong[0] = (right[0] + rng.integers(1, num_classes)) % num_classes
            else:
                wrong = shift(right, rng)
            spoiled[image][k] = wrong
            errors.append({"image": image, "kind": kind, "right": right.tolist(), "wrong": wrong.tolist()})
    for image, rows in dropped.items():
        spoiled[image] = np.delete(spoiled[image], rows, axis=0)
    return spoiled, errors


def make_copy(source: Path, target: Path, seed: int) -> list[dict]:
    """Copy a data set with errors put in. Return them; `image` is the path below `images`."""
    labels = {}
    for image in sorted((source / "images").rglob("*.*")):
        name = image.relative_to(source / "images")
        file = (source / "labels" / name).with_suffix(".txt")
        rows = np.loadtxt(file, ndmin=2) if file.is_file() and file.stat().st_size else np.zeros((0, 5))
        labels[name.as_posix()] = rows.reshape(-1, 5)
        (target / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, target / "images" / name)
    names = class_names(source)
    spoiled, errors = spoil(labels, len(names), seed)
    for name, rows in spoiled.items():
        file = (target / "labels" / name).with_suffix(".txt")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{row[0]:.0f} {row[1]:.6f} {row[2]:.6f} {row[3]:.6f} {row[4]:.6f}\n" for row in rows))
    content = {"path": str(target.resolve()), "train": "images/train", "val": "images/val"}
    write_yaml(target / "data.yaml", {**content, "names": dict(enumerate(names))})
    return errors


def class_names(source: Path) -> list[str]:
    """Return the names of a data set's classes."""
    if not (source / "data.yaml").is_file():
        return NAMES[source.name]
    names = read_yaml(source / "data.yaml")["names"]
    return list(names.values()) if isinstance(names, dict) else names


def is_found(error: dict, row: dict, images: Path) -> bool:
    """Return whether a row of label_errors.json names the error."""
    if row["kind"] != KINDS[error["kind"]] or Path(row["image"]) != images / error["image"]:
        return False
    height, width = image_shape(row["image"])
    stated, box = (row["found"], error["right"]) if error["kind"] == "dropped" else (row["given"], error["wrong"])
    corners = xywh_to_xyxy(np.array(box[1:]) * [width, height, width, height])
    overlap = float(pairwise_iou(torch.from_numpy(corners)[None], torch.tensor([stated["xyxy"]]))[0, 0])
    return overlap >= (0.5 if error["kind"] == "dropped" else 0.95)


def shares(errors: list[dict], rows: list[dict], images: Path) -> dict[str, float]:
    """Return the share of the errors of each kind that one of the rows names."""
    by_image: dict[str, list[dict]] = {}
    for row in rows:
        by_image.setdefault(row["image"], []).append(row)
    found = Counter(
        error["kind"]
        for error in errors
        if any(is_found(error, row, images) for row in by_image.get(str(images / error["image"]), []))
    )
    total = Counter(error["kind"] for error in errors)
    return {kind: found[kind] / total[kind] for kind in total}


def measure(source: Path, folder: Path, options: argparse.Namespace) -> str:
    """Print what check.py finds of the errors in a copy of one data set. Return it as a row of a table."""
    copy = folder / source.name
    shutil.rmtree(copy, ignore_errors=True)
    errors = make_copy(source, copy, options.seed)
    result = check.run(
        data=copy / "data.yaml", weights=options.weights, cross=options.cross, cross_epochs=options.epochs,
        imgsz=options.imgsz, project=folder / "runs", name=source.name, exist_ok=True,
    )  # fmt: skip
    rows = json.loads((result.save_dir / "label_errors.json").read_text())["errors"]
    whole = shares(errors, rows[: len(errors)], copy / "images")
    counts = Counter(error["kind"] for error in errors)
    own = {}
    for kind, name in KINDS.items():
        first = [row for row in rows if row["kind"] == name][: counts[kind]]
        own[kind] = shares([error for error in errors if error["kind"] == kind], first, copy / "images")[kind]
    print(f"{source.name}: {len(errors)} errors, the first as many rows. Of one list, and of a list for each kind:")
    for kind in KINDS:
        print(f"  {kind:8}{whole[kind]:8.1%}{own[kind]:8.1%}")
    found = [f"{whole[kind]:.1%} / {own[kind]:.1%}" for kind in KINDS]
    return f"| {' | '.join([source.name, str(len(errors)), *found])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", type=Path, required=True, help="folders with images/ and labels/")
    parser.add_argument("--weights", default="yolov5n.pt", help="start of the trainings")
    parser.add_argument("--cross", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="for copies and runs; what folds found there is used again")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        rows = [measure(source, options.folder or Path(temporary), options) for source in options.data]
    kinds = " | ".join(KINDS)
    print(f"| data | errors | {kinds} |", "| --- | --- | --- | --- | --- |", *rows, sep="\n")
    print("\nShare found among as many first rows as there are errors: of one list / of a list for each kind.")
    print(f"--cross {options.cross} --epochs {options.epochs} --imgsz {options.imgsz} --seed {options.seed}")


if __name__ == "__main__":
    main()
