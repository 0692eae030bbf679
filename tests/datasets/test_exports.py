"""One small set as the writers of other programs left it: each folder gives the same boxes.

The writers of FiftyOne 1.22.1 (fo_), Datumaro 1.13.12 (dm_), label-studio-converter 0.0.59 (ls_) and Supervision 0.31.2
(sv_) made tests/kept/exports.tar.xz from drawn images. Label Studio puts images beside the labels, its converter does
not. Absolute paths in the files are those of another machine.
"""

import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest

from utils.datasets.division import Division
from utils.datasets.labels import load_split
from utils.datasets.locate import locate_dataset

NAMES = {0: "ant", 1: "bee", 2: "cow"}
ONE = {"train": 6}  # images by split
TWO = {"train": 4, "val": 2}
EXACT, SIX_DIGITS = 1e-7, 6e-7

# Folder: images by split, tolerance
EXPORTS = {
    "fo_yolo4": (ONE, SIX_DIGITS),
    "fo_yolo5": (TWO, SIX_DIGITS),
    "fo_yolo5_one": ({"val": 6}, SIX_DIGITS),  # FiftyOne's name for a set without splits
    "fo_coco": (ONE, EXACT),
    "fo_voc": (ONE, EXACT),
    "dm_yolo": (TWO, SIX_DIGITS),
    "dm_yolo_ultralytics": (TWO, SIX_DIGITS),
    "dm_coco_instances": (TWO, EXACT),
    "dm_voc_detection": (TWO, EXACT),  # no XML for images without objects
    "ls_YOLO": (ONE, EXACT),
    "ls_COCO": (ONE, EXACT),
    "ls_VOC": (ONE, EXACT),
    "sv_yolo": (ONE, 6e-6),  # five digits
    "sv_coco": (ONE, EXACT),
    "sv_voc": (ONE, 1 / 64),  # counts pixels from 1, which its files do not say
}


@pytest.fixture(scope="session")
def exports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    with tarfile.open(Path(__file__).parents[1] / "kept" / "exports.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def true_labels(exports):
    """Return the rows (n, 5) of each image, sorted."""
    truth = json.loads((exports / "truth.json").read_text())
    return {
        name: sorted(
            [c, (x1 + x2) / 2 / w, (y1 + y2) / 2 / h, (x2 - x1) / w, (y2 - y1) / h] for c, x1, y1, x2, y2 in rows
        )
        for name, (h, w, rows) in truth.items()
    }


@pytest.mark.parametrize("export", EXPORTS)
def test_an_export_gives_the_boxes_that_were_drawn(export, exports):
    counts, tolerance = EXPORTS[export]
    spec, truth = locate_dataset(str(exports / export), required=()), true_labels(exports)
    assert spec.names == NAMES
    assert {split for split, sources in spec.splits.items() if sources} == counts.keys()
    for split, count in counts.items():
        index = load_split(spec, split, progress=False)
        assert len(index) == count and index.counts.corrupt == 0
        for i, path in enumerate(index.paths):
            name = re.search(r"img\d_[a-f]", path)[0]
            rows = np.array(sorted(index.boxes(i).tolist())).reshape(-1, 5)
            np.testing.assert_allclose(rows, np.array(truth[f"{name}.png"]).reshape(-1, 5), rtol=0, atol=tolerance)


@pytest.mark.parametrize("export", [name for name, (counts, _) in EXPORTS.items() if len(counts) == 1])
def test_an_export_without_splits_is_divided(export, exports, capsys):
    spec = locate_dataset(str(exports / export), division=Division(0.6))
    parts = [load_split(spec, split, progress=False) for split in ("train", "val")]
    assert sum(map(len, parts)) == 6 and min(map(len, parts)) >= 1
    assert capsys.readouterr().out.count("--split 0.6: ") == 1
