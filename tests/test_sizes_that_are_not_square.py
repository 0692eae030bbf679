"""Height and width as --imgsz: what a run at them promises, from the loader to an exported file."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from sizes_by_epoch import sizes_by_epoch

import detect
import export
import train
import val
from utils.autoanchor import check_anchors
from utils.config import Hyperparameters
from utils.datasets.label_index import LabelIndex
from utils.datasets.labels import load_split
from utils.datasets.locate import locate_dataset
from utils.datasets.splits import label_sizes
from utils.files import read_yaml
from utils.image_size import to_shape
from utils.loading.image_cache import DiskCache
from utils.loading.loader import Loader, LoadSettings, make_loader
from utils.loading.sampler import BatchSettings

SHAPES = [(60, 200), (120, 90), (75, 75), (130, 260), (200, 61), (90, 121)]
MODES = {
    "validation, rect": {"batches": BatchSettings(rect=True, pad=0.5)},
    "validation": {},
    "training": {"hyp": {"mosaic": 0.0}},
    "training, rect": {"batches": BatchSettings(rect=True), "hyp": {"mosaic": 0.0}},
}


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> tuple[LabelIndex, LabelIndex]:
    """Return the indices of a set with one white rectangle per image, and of the same set with rows as columns."""
    folders = tmp_path_factory.mktemp("upright"), tmp_path_factory.mktemp("transposed")
    for k, (height, width) in enumerate(SHAPES):
        image = np.zeros((height, width, 3), np.uint8)
        y1, x1, y2, x2 = height // 5, width // 4, height * 3 // 4, width * 2 // 3
        image[y1:y2, x1:x2] = 255
        box = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height
        swapped = box[1], box[0], box[3], box[2]
        for folder, pixels, row in zip(folders, (image, image.transpose(1, 0, 2)), (box, swapped)):
            for kind in ("images", "labels"):
                (folder / kind / "train").mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / "images" / "train" / f"{k}.png"), pixels)
            (folder / "labels" / "train" / f"{k}.txt").write_text(f"0 {' '.join(map(repr, row))}\n")
    indices = []
    for folder in folders:
        file = folder / "set.yaml"
        file.write_text("train: images/train\nval: images/train\nnames: [white]\n")
        indices.append(load_split(locate_dataset(str(file)), "train"))
    return indices[0], indices[1]


def loader_of(index: LabelIndex, imgsz: tuple[int, int], **settings) -> Loader:
    return make_loader(index, imgsz=imgsz, batch_size=1, loading=LoadSettings(workers=0), **settings)


@pytest.mark.parametrize("mode", MODES)
def test_boxes_are_on_their_objects_and_batches_within_the_size(sets, mode):
    for imgsz in ((96, 160), (160, 96)):
        for batch in loader_of(sets[0], imgsz, **MODES[mode]):
            _, _, height, width = batch.images.shape
            assert height <= imgsz[0] + 32 * (mode == "validation, rect")
            assert "rect" in mode or (height, width) == imgsz
            rows, columns = np.nonzero(batch.images[0, 0].numpy() > 150)
            x, y, w, h = batch.targets[0, 2:].tolist()
            found = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            box = (x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height
            np.testing.assert_allclose(found, box, atol=1.01)


@pytest.mark.parametrize("mode", MODES)
def test_batches_of_transposed_images_are_transposed(sets, mode):
    upright, transposed = (
        {Path(batch.paths[0]).name: batch for batch in loader_of(index, imgsz, **MODES[mode])}
        for index, imgsz in zip(sets, ((96, 160), (160, 96)))
    )
    assert upright.keys() == transposed.keys() and len(upright) == len(SHAPES)
    for name, batch in upright.items():
        other = transposed[name].images.transpose(2, 3)
        assert batch.images.shape == other.shape
        assert (batch.images.int() - other.int()).abs().max() <= 2  # OpenCV rounds rows and columns differently
        assert torch.allclose(batch.targets[:, [0, 1, 3, 2, 5, 4]], transposed[name].targets, atol=1e-6)


def test_labels_are_measured_at_height_and_width(sets):
    upright, transposed = label_sizes(sets[0], (96, 160)), label_sizes(sets[1], (160, 96))
    np.testing.assert_array_equal(upright, transposed[:, ::-1])
    gains = [min(96 / height, 160 / width) for height, width in SHAPES]
    sides = sets[0].labels[:, 3:5] * [(width, height) for height, width in SHAPES]
    np.testing.assert_allclose(upright, sides * np.array(gains)[:, None], rtol=1e-6)
    anchors = np.array([[[8.0, 8.0]], [[90.0, 9.0]]])
    found = [check_anchors(one, sizes, 4.0, np.random.default_rng(0)).recall for one, sizes in (
        (anchors, upright), (anchors[..., ::-1], transposed)
    )]  # fmt: skip
    assert found[0] == found[1] > 0


def sizes_of(**changes) -> list[tuple[int, int]]:
    """Return height and width of the network's input in 40 epochs or iterations of a run at 96 x 160 pixels."""
    hyp = {key: changes.pop(key) for key in ("size_start",) if key in changes}
    return sizes_by_epoch((96, 160), 40, Hyperparameters(**hyp), **changes)


@pytest.mark.parametrize("changes, shapes", [
    ({}, {(96, 160)}),
    ({"size_start": 0.5}, {(64, 64), (64, 96), (96, 128), (96, 160)}),
    ({"multi_scale": True}, {(64, 64), (64, 96), (96, 128), (96, 160), (128, 192), (160, 224), (160, 256)}),
])  # fmt: skip
def test_varying_sizes_keep_the_ratio(changes, shapes):
    """Each side is the next multiple of the stride."""
    found = sizes_of(**changes)
    assert set(found) <= shapes and len(set(found)) >= len(shapes) - 1
    for height, width in found:
        assert height % 32 == width % 32 == 0 and 0 <= height - width * 96 / 160 < 32


@pytest.fixture(scope="module")
def trained(tiny_data, tiny_cfg, tmp_path_factory):
    """Return the settings of a training at 64 x 96 pixels, and its result."""
    settings = dict(
        data=tiny_data, cfg=tiny_cfg, imgsz=[64, 96], batch_size=8, workers=0, epochs=1, device="cpu", amp="off",
        cache="ram", noplots=True,
    )  # fmt: skip
    return settings, train.run(**settings, project=tmp_path_factory.mktemp("runs"), name="first")


def test_a_run_at_height_and_width_is_resumed_measured_exported_and_used(trained, tmp_path, capsys):
    settings, result = trained
    assert read_yaml(result.save_dir / "opt.yaml")["imgsz"] == [64, 96]
    resumed = train.run(resume=str(result.last), epochs=2)
    assert resumed.options.imgsz == [64, 96] and "--imgsz" not in (printed := capsys.readouterr().out).split("Next")[0]
    assert "Image size 64 96, batch 8" in printed and "--source YOUR_IMAGES --imgsz 64 96\n" in printed

    shared = {"data": str(settings["data"]), "device": "cpu"}
    folder = {"project": str(tmp_path), "exist_ok": True, "workers": 0}
    val.run(weights=str(resumed.best), imgsz=(64, 96), json=True, **shared, **folder)
    measured = capsys.readouterr()
    assert json.loads(measured.out)["results"][0]["imgsz"] == [64, 96] and "(8, 3, 64, 96)" in measured.err
    square = val.run(weights=str(resumed.best), imgsz=96, task="speed", **shared, **folder)
    assert "(8, 3, 96, 96)" in capsys.readouterr().out and len(square) == 1

    (file,) = export.run(weights=str(resumed.best), imgsz=(64, 96), include=["torchscript"], **shared)
    report = json.loads(next(resumed.best.parent.glob("*_export.json")).read_text())
    assert report["agrees"] is True
    capsys.readouterr()
    val.run(weights=str(file), imgsz=(64, 96), **shared, **folder)
    val.run(weights=str(file), imgsz=(96, 64), **shared, **folder)
    measured = capsys.readouterr()
    assert measured.out.count("(8, 3, 64, 96)") == 2
    assert measured.err.count("--imgsz 96 64 is ignored: this file has a fixed input of 64 x 96") == 1
    images = settings["data"].parent / "images" / "val"
    detect.run(weights=str(file), source=str(images), device="cpu", project=str(tmp_path), imgsz=(64, 96))
    assert capsys.readouterr().out.count(": 64x96 ") == 8


def test_images_on_disk_are_kept_by_height_and_width(sets):
    for imgsz, ending in (((96, 160), ".96x160.npy"), ((160, 160), ".160.npy"), (160, ".160.npy")):
        cache = DiskCache(sets[0], imgsz, smooth=False)
        images = [cache.read(i) for i in range(len(sets[0]))]
        assert all(cache._file(i).name.endswith(ending) and cache._file(i).is_file() for i in range(len(sets[0])))
        for image, again, (height, width) in zip(images, map(cache.read, range(len(sets[0]))), SHAPES):
            limits = to_shape(imgsz)
            gain = min(limits[0] / height, limits[1] / width)
            assert np.array_equal(image, again) and image.shape[:2] == (
                np.ceil(height * gain - 1e-9),
                np.ceil(width * gain - 1e-9),
            )
