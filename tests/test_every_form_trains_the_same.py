"""The numbers do not depend on the form of the labels: label files, COCO and Pascal VOC train to the same bytes."""

import sys
from pathlib import Path

import pytest
import torch
from tiny_training import train_flags

import train

sys.path.append(str(Path(__file__).resolve().parent / "datasets"))

from drawn_set import NAMES, Drawn, coco_content, write_coco, write_images, write_voc, write_yolo

# Sides that are powers of two, so that all forms give the same float32 values.
SPLITS = {
    "train": [Drawn(f"{k}.png", 64, 64, [(k % 3, 4 * k, 8, 4 * k + 20, 40), (1, 30, 2 * k, 60, 33)]) for k in range(8)],
    "val": [Drawn(f"{k}.png", 64, 64, [(k % 3, 10, 4 * k, 50, 4 * k + 30)] * (k > 0)) for k in range(3)],
}


def write_form(folder: Path, form: str) -> None:
    for split, drawn in SPLITS.items():
        if form == "yolo":
            write_yolo(folder / split, drawn)
            continue
        write_images(folder / split / "images", drawn)
        if form == "coco":
            write_coco(folder / split / "x.json", coco_content(drawn))
        else:
            write_voc(folder / split / "annotations", drawn)
    source = "x.json" if form == "coco" else "images"
    names = f"names: {list(NAMES)}\n" if form == "yolo" else ""
    (folder / "data.yaml").write_text(f"train: train/{source}\nval: val/{source}\n{names}")


@pytest.mark.slow
def test_every_form_trains_to_the_same_bytes(tmp_path, tiny_cfg):
    found = {}
    for form in ("yolo", "coco", "voc"):
        write_form(tmp_path / form, form)
        train.main(train_flags(tmp_path / form / "data.yaml", tiny_cfg, tmp_path / "runs" / form, epochs=1))
        run = tmp_path / "runs" / form / "run"
        state = torch.load(run / "weights/last.pt", weights_only=True)["model"]["state_dict"]
        rows = [row.split(",") for row in (run / "results.csv").read_text().splitlines()]
        found[form] = state, rows
    for state, rows in (found["coco"], found["voc"]):
        assert rows == found["yolo"][1]
        assert state.keys() == found["yolo"][0].keys()
        assert all(torch.equal(value, found["yolo"][0][name]) for name, value in state.items())
