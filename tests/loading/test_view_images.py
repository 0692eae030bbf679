"""Views of images in the loader: the pixels of each, from any cache, in the same batches for all workers and ranks."""

from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from small_split import HYP, assert_same, epoch_of, loader_of, reads

from utils import machine
from utils.datasets.label_index import LabelIndex
from utils.datasets.labels import load_index
from utils.datasets.views import cut_into_views
from utils.errors import UnreadableData
from utils.images.read import read_image, resize_to
from utils.images.tiles import Tiling
from utils.loading import image_cache
from utils.loading.dataset import DetectionDataset

SHAPES = [(150, 420), (64, 60), (200, 90)]
STILL = {"mosaic": 1.0, "copy_paste": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Write three images with red squares on noise, as JPEG and PNG, the second without labels."""
    folder, rng = tmp_path_factory.mktemp("large"), np.random.default_rng(0)
    for k, (height, width) in enumerate(SHAPES):
        image = cv2.resize(rng.integers(0, 200, (height // 4, width // 4, 3), dtype=np.uint8), (width, height))
        image[..., 2] = 0
        rows = []
        for x, y in rng.integers(0, (min(width, 100) - 12, height - 12), (0 if k == 1 else 6, 2)).tolist():
            image[y : y + 12, x : x + 12] = (0, 0, 255)
            rows.append(f"0 {(x + 6) / width} {(y + 6) / height} {12 / width} {12 / height}")
        cv2.imwrite(str(folder / f"{k}.{'jpg' if k == 0 else 'png'}"), image)
        (folder / f"{k}.txt").write_text("\n".join(rows))
    return folder


@pytest.fixture(scope="module")
def views(folder) -> LabelIndex:
    return cut_into_views(load_index(folder, 1, progress=False, cache=False), Tiling(64, 0.25))[0]


@pytest.mark.parametrize("cache", [None, "ram", "disk"])
def test_view_is_cut_from_the_image_and_resized(views, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(image_cache, "user_cache_folder", lambda: tmp_path)
    monkeypatch.setattr(image_cache, "_is_writable", lambda folder: False)
    images = loader_of(views, cache=cache, hyp=HYP).dataset.images
    for _ in range(2):
        for v, (x1, y1, x2, y2) in enumerate(views.views.windows.tolist()):
            expected = resize_to(read_image(views.paths[v])[y1:y2, x1:x2], images.shape(v), smooth=False)
            assert max(images.shape(v)) == 64 and np.array_equal(images.read(v), expected)
    files = list(tmp_path.rglob("*.npy"))
    assert len(files) == (len(views) if cache == "disk" else 0)


def test_ram_cache_decodes_each_image_once(views, folder, monkeypatch):
    read = reads(monkeypatch)
    images = loader_of(views, cache="ram", hyp=HYP).dataset.images
    assert sorted(read) == sorted(str(folder / name) for name in ("0.jpg", "1.png", "2.png"))
    assert images.bytes_needed() == sum(3 * h * w for h, w in images.shapes.tolist()) == images.block.size


def test_tile_of_a_jpeg_reads_no_lower_rows_than_it_has(views, monkeypatch):
    requested = []
    original = image_cache.read_resized

    def record(path, *args, **named):
        requested.append(named["rows"])
        return original(path, *args, **named)

    monkeypatch.setattr(image_cache, "read_resized", record)
    images = loader_of(views, hyp=HYP).dataset.images
    images.read(1, 5)
    assert requested == [64] and views.views.windows[1].tolist() == [0, 0, 64, 64]


def test_a_damaged_image_is_reported_once_for_all_its_views(tmp_path, monkeypatch, capsys):
    for k in range(2):
        cv2.imwrite(str(tmp_path / f"{k}.png"), np.random.default_rng(k).integers(0, 255, (90, 150, 3), dtype=np.uint8))
        (tmp_path / f"{k}.txt").write_text("0 .5 .5 .5 .5")
    index = load_index(tmp_path, 1, progress=False, cache=False)
    file = tmp_path / "0.png"
    data = bytearray(file.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 6] = b"damage"
    file.write_bytes(data)
    views, _ = cut_into_views(index, Tiling(64))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_cache, "CLOCK_TICK_NS", -(10**9))  # the damage is older than the reader
        loader = loader_of(views, hyp=STILL, cache="ram")
    batches = epoch_of(loader, 0)
    assert capsys.readouterr().err.count("A grey image without labels is used instead") == 1
    assert len(batches) == len(loader) and all(torch.isfinite(batch.targets).all() for batch in batches)
    file.unlink()
    images = loader_of(views, hyp=STILL).dataset.images
    monkeypatch.setattr(image_cache, "RETRY_SECONDS", 0.01)
    with pytest.raises(UnreadableData, match="0.png"):
        images.read(1)


def test_labels_are_where_the_objects_are(views):
    dataset = loader_of(views, hyp=STILL, imgsz=128).dataset
    assert isinstance(dataset, DetectionDataset)
    seen = 0
    for v in range(1, len(views)):
        sample = dataset.load_letterboxed(v, (128, 128), scaleup=True)
        red = sample.image[..., 2] > 128
        for _, x1, y1, x2, y2 in sample.boxes.round().astype(int).tolist():
            assert red[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2].mean() > 0.95
            seen += 1
    assert seen > 12


@pytest.mark.parametrize("settings", [{"workers": 2}, {"workers": 2, "cores": 3}, {"cache": "ram"}], ids=str)
def test_batches_depend_on_neither_workers_nor_cache(views, settings, monkeypatch):
    monkeypatch.setattr(machine, "usable_cores", lambda: 8)
    alone = loader_of(views, batch_size=8, shuffle=True, hyp=HYP, imgsz=64)
    with closing(loader_of(views, batch_size=8, shuffle=True, hyp=HYP, imgsz=64, **settings)) as other:
        for epoch in (0, 1):
            whole = epoch_of(alone, epoch)
            assert sum(len(batch.paths) for batch in whole) == views.epoch_size < len(views)
            assert_same(whole, epoch_of(other, epoch))
            assert_same(whole[2:], epoch_of(other, epoch, start_batch=2))


def test_each_epoch_draws_other_empty_tiles_and_all_with_objects(views):
    sampler = loader_of(views, shuffle=True, hyp=HYP).sampler
    epochs = []
    for sampler.epoch in range(3):
        drawn = [i for key in sampler for i in key.indices]
        assert len(set(drawn)) == len(drawn) == views.epoch_size
        assert set(np.flatnonzero(views.draws == 1)) <= set(drawn) and not set(np.flatnonzero(views.draws == 0)) & set(
            drawn
        )
        epochs.append(frozenset(drawn))
    assert len(set(epochs)) == 3
