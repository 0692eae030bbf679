"""A batch is a function of (seed, epoch, number): not of workers, processes, caches, or what was loaded before."""

import os
import sys
import threading
import time
from dataclasses import fields, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import train
from utils.config import Hyperparameters
from utils.datasets.label_index import LabelIndex
from utils.datasets.labels import load_index
from utils.errors import UserError
from utils.images.letterbox import Letterbox
from utils.images.warp import GREY
from utils.loading import dataset, image_cache
from utils.loading.dataset import Batch, DetectionDataset, merge_in_fours
from utils.loading.image_cache import SharedBytes
from utils.loading.loader import LoadSettings, make_loader
from utils.loading.sampler import BatchSettings, class_weights, image_weights, occurrence_index, rect_shapes
from utils.loss import DetectionLoss, scale_gains

HYP = {
    "hsv_h": 0.015,
    "hsv_s": 0.7,
    "hsv_v": 0.4,
    "degrees": 5.0,
    "translate": 0.1,
    "scale": 0.5,
    "fliplr": 0.5,
    "flipud": 0.2,
    "mosaic": 0.8,
    "mixup": 0.3,
    "copy_paste": 0.5,
}
SHAPES = [(48, 64), (64, 48), (43, 64), (37, 50), (64, 43), (54, 96), (60, 60), (96, 54), (40, 64), (64, 64), (32, 90)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Eleven pictures of many shapes with two red rectangles each, labelled as boxes, as outline and box, or not."""
    folder = tmp_path_factory.mktemp("pictures")
    for name in ("images/set", "labels/set"):
        (folder / name).mkdir(parents=True)
    for k, (height, width) in enumerate(SHAPES):
        image = np.full((height, width, 3), 20 * k, np.uint8)
        y1, y2, x1, x2 = height // 4, height // 2, width // 4, width // 2
        image[y1:y2, x1:x2] = (0, 0, 255)
        x, y, w, h = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height
        corners = (x1, y1), (x2, y1), (x2, y2), (x1, y2)
        outline = " ".join(f"{column / width} {row / height}" for column, row in corners)
        image[round(height * 0.8) : round(height * 0.95), round(width * 0.8) : round(width * 0.95)] = (0, 0, 255)
        cv2.imwrite(str(folder / f"images/set/{k:02}.png"), image)
        second = "\n0 .875 .875 .15 .15"
        rows = ["", f"{k % 3} {x} {y} {w} {h}{second}", f"{k % 3} {outline}{second}"][k and 1 + k % 2]
        (folder / f"labels/set/{k:02}.txt").write_text(rows)
    return folder


@pytest.fixture(scope="module")
def index(folder) -> LabelIndex:
    return load_index(folder / "images/set", 3, progress=False, cache=False)


def loader_of(index: LabelIndex, **settings):
    """Return a loader; `settings` are those of make_loader and the fields of its two settings objects."""
    settings = {"imgsz": 64, "batch_size": 4, "workers": 0, "seed": 7} | settings
    batches, loading = (
        kind(**{field.name: settings.pop(field.name) for field in fields(kind) if field.name in settings})
        for kind in (BatchSettings, LoadSettings)
    )
    return make_loader(index, batches=batches, loading=loading, **settings)


def assert_same(ours: list[Batch], theirs: list[Batch]) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs):
        assert a.paths == b.paths and a.letterboxes == b.letterboxes
        assert torch.equal(a.images, b.images) and torch.equal(a.targets, b.targets)


def epoch_of(loader, epoch: int, start_batch: int = 0, weights=None) -> list[Batch]:
    loader.set_epoch(epoch, start_batch, weights)
    return list(loader)


# ---- what a batch is


def test_a_training_batch(index):
    loader = loader_of(index, hyp=HYP, shuffle=True)
    batches = list(loader)
    assert len(loader) == 3 and [len(batch.images) for batch in batches] == [4, 4, 3]
    for batch in batches:
        assert batch.images.dtype == torch.uint8 and batch.images.is_contiguous()
        assert batch.images.shape[1:] == (3, 64, 64) and len(batch.paths) == len(batch.images)
        assert batch.targets.dtype == torch.float32 and batch.targets.shape[1] == 6
        assert set(batch.targets[:, 0].tolist()) <= set(range(len(batch.images)))
        assert ((batch.targets[:, 2:] >= 0) & (batch.targets[:, 2:] <= 1)).all()
        assert batch.letterboxes == [None] * len(batch.images)
    assert sorted(path for batch in batches for path in batch.paths) == index.paths


def test_images_are_red_green_blue(tmp_path):
    cv2.imwrite(str(tmp_path / "x.png"), np.full((64, 64, 3), (10, 20, 30), np.uint8))
    index = load_index(tmp_path, 1, progress=False, cache=False)
    [batch] = loader_of(index)
    assert batch.images[0, :, 5, 5].tolist() == [30, 20, 10]
    assert batch.targets.shape == (0, 6)


def test_hyperparameters_may_be_an_object(index):
    class Hyp:
        mosaic, scale = 1.0, 0.5

    as_object, as_mapping = (list(loader_of(index, hyp=hyp)) for hyp in (Hyp(), {"mosaic": 1.0, "scale": 0.5}))
    assert_same(as_object, as_mapping)


@pytest.mark.parametrize("rect", [False, True])
def test_validation_reads_every_picture_once_and_boxes_lead_back_to_the_originals(index, rect):
    loader = loader_of(index, rect=rect, pad=0.5)
    seen = []
    for batch in loader:
        height, width = batch.images.shape[2:]
        for k, (path, box) in enumerate(zip(batch.paths, batch.letterboxes)):
            i = index.paths.index(path)
            seen.append(i)
            assert isinstance(box, Letterbox) and box.shape == tuple(index.shapes[i])
            rows = batch.targets[batch.targets[:, 0] == k].numpy()
            xywh = rows[:, 2:] * (width, height, width, height)
            xyxy = np.concatenate([xywh[:, :2] - xywh[:, 2:] / 2, xywh[:, :2] + xywh[:, 2:] / 2], 1)
            labels = index.boxes(i)
            native = np.concatenate([labels[:, 1:3] - labels[:, 3:] / 2, labels[:, 1:3] + labels[:, 3:] / 2], 1)
            native *= np.tile(index.shapes[i][::-1], 2)
            np.testing.assert_allclose(box.undo(xyxy), native, atol=2e-2)
            for x1, y1, x2, y2 in xyxy[:1].round().astype(int):  # the first label is the red rectangle
                inside = batch.images[k, :, y1 + 1 : y2 - 1, x1 + 1 : x2 - 1].float()
                assert (inside[0] - inside[1]).min() > 200
    assert sorted(seen) == list(range(len(index)))


@pytest.mark.parametrize("hyp", [{"mosaic": 0.0}, {"mosaic": 1.0}, HYP, HYP | {"perspective": 0.0005, "mosaic": 0.5}])
def test_augmented_boxes_stay_on_their_objects(index, hyp):
    """The middle of every box is red, wherever the box is large enough to have one."""
    loader, checked = loader_of(index, hyp=hyp | {"hsv_h": 0.0, "mixup": 0.0}, imgsz=128, shuffle=True), 0
    for epoch in range(6):
        for batch in epoch_of(loader, epoch):
            redness = batch.images[:, 0].float() - batch.images[:, 1]
            for k, _, x, y, w, h in batch.targets.tolist():
                if min(w, h) * 128 > 9 and (w < 0.5) and (h < 0.5):
                    inside = redness[
                        int(k),
                        int((y - h / 4) * 128) : int((y + h / 4) * 128),
                        int((x - w / 4) * 128) : int((x + w / 4) * 128),
                    ]
                    checked += 1
                    assert (inside > 40).float().mean() > 0.9
    assert checked > 30


def test_clipping_keeps_boxes_a_trifle_inside():
    rows = dataset._targets(np.array([[2, -5, 10, 645, 650]], np.float32), 3, 640, 640)
    np.testing.assert_allclose(rows, [[3, 2, 0.49999922, 0.50781172, 0.99999844, 0.98437344]], atol=1e-7)
    assert dataset._targets(np.zeros((0, 5), np.float32), 0, 64, 64).shape == (0, 6)


# ---- order and randomness


@pytest.mark.parametrize("workers, start_method", [(1, None), (2, None), (2, "fork"), (2, "spawn")])
def test_workers_change_nothing(index, workers, start_method, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    alone = loader_of(index, hyp=HYP, shuffle=True)
    shared = loader_of(index, hyp=HYP, shuffle=True, workers=workers, start_method=start_method)
    assert shared.workers == workers
    for epoch in (0, 1, 5):
        assert_same(epoch_of(alone, epoch), epoch_of(shared, epoch))


@pytest.mark.parametrize("workers, cores, hands", [(0, 4, 1), (1, 4, 2), (2, 4, 3), (9, 4, 4), (9, 1, 1)])
@pytest.mark.parametrize("platform, kind", [("linux", "processes"), ("darwin", "threads")])
@pytest.mark.parametrize("quad", [False, True])
def test_helpers_that_make_batches_in_turn_change_nothing(
    index, workers, cores, hands, platform, kind, quad, monkeypatch
):
    """Never more than there are cores, with the one that asks for the batch; and nobody reads ahead."""
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(sys, "platform", platform)
    settings = {"hyp": HYP, "shuffle": True, "batch_size": 8, "quad": quad}
    alone, shared = loader_of(index, **settings), loader_of(index, workers=workers, cores=cores, **settings)
    assert shared.workers == 0 and (shared.dataset.helpers.count if shared.dataset.helpers else 0) == hands - 1
    assert (f"by {hands} {kind}" if hands > 1 else "by the main process") in shared.readers
    for epoch in (0, 1, 5):
        assert_same(epoch_of(alone, epoch), epoch_of(shared, epoch))
    assert not shared.workers and not getattr(shared._loader._iterator, "_workers", None)
    shared.close()


def test_helpers_are_no_more_than_the_pictures_of_a_process(index, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    loader = loader_of(index, batch_size=8, workers=8, cores=64, world_size=4)
    assert loader.dataset.helpers.count == 1


@pytest.mark.parametrize("hyp", [HYP, HYP | {"mosaic": 0.5, "mixup": 0.0}, None], ids=["all", "no mixup", "validation"])
@pytest.mark.parametrize("image_weights", [False, True])
def test_the_files_of_the_next_batch_are_asked_for(index, hyp, image_weights, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(sys, "platform", "darwin")  # what threads do is seen from here
    loader = loader_of(
        index, hyp=hyp, shuffle=True, batch_size=3, workers=1, cores=2, image_weights=image_weights and hyp is not None
    )
    dataset, pictures, asked, read, plain = (loader.dataset, loader.dataset.images, [], [], loader.dataset.images.read)
    monkeypatch.setattr(pictures, "prefetch", asked.append)
    monkeypatch.setattr(pictures, "read", lambda i, rows=None: read.append(i) or plain(i, rows))
    loader.set_epoch(2, weights=np.ones(len(index)))
    keys = list(loader.sampler)
    for key in keys:
        read.clear()
        dataset[key]
        others = set(read) - set(dataset.source_indices(key))
        assert set(read) & set(dataset.source_indices(key)) and (not others or hyp["mixup"])
    assert sum(1 for _ in loader) == len(keys) > 2
    dataset.helpers.pool.submit(int).result()  # after what was asked for
    assert asked == [i for key in keys[1:] for i in dataset.source_indices(key)]


def test_no_file_is_asked_for_when_all_pictures_are_in_memory(index, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(sys, "platform", "darwin")
    loader, asked = loader_of(index, workers=1, cores=2, cache="ram"), []
    monkeypatch.setattr(image_cache, "prefetch_file", asked.append)
    assert len(epoch_of(loader, 0)) == 3
    loader.dataset.helpers.pool.submit(int).result()
    assert not asked


@pytest.mark.parametrize("cache", [None, "disk"])
def test_asking_for_a_file_needs_none(index, folder, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(image_cache, "user_cache_folder", lambda: tmp_path)
    pictures = loader_of(index, cache=cache).dataset.images
    for _ in range(2):
        assert pictures.prefetch(0) is None
        pictures.read(0)
    os.mkfifo(tmp_path / "pipe")
    assert image_cache.prefetch_file(index.paths[0]) and image_cache.prefetch_file(
        tmp_path / "pipe"
    )  # which has no writer
    assert not image_cache.prefetch_file(tmp_path / "absent")


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_an_error_of_a_helper_arrives(index, platform, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(sys, "platform", platform)
    plain, here = DetectionDataset.load_letterboxed, os.getpid()

    def fail_elsewhere(*args, **settings):
        if threading.current_thread() is not threading.main_thread() or os.getpid() != here:
            raise RuntimeError("of a helper")
        time.sleep(0.2)  # else all may be done before a helper begins
        return plain(*args, **settings)

    monkeypatch.setattr(DetectionDataset, "load_letterboxed", fail_elsewhere)
    loader = loader_of(index, workers=1, cores=2)
    with pytest.raises(RuntimeError, match="of a helper"):
        epoch_of(loader, 0)


def test_an_iteration_given_up_in_the_middle_leaves_nothing_behind(index, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    loader = loader_of(index, hyp=HYP, shuffle=True, workers=2)
    loader.set_epoch(0)
    next(iter(loader))
    assert_same(epoch_of(loader, 1), epoch_of(loader_of(index, hyp=HYP, shuffle=True), 1))


def test_epochs_and_seeds_differ_and_repeat_exactly(index):
    loader = loader_of(index, hyp=HYP, shuffle=True)
    first, second = epoch_of(loader, 0), epoch_of(loader, 1)
    assert [batch.paths for batch in first] != [batch.paths for batch in second]
    assert_same(epoch_of(loader, 0), first)
    other = loader_of(index, hyp=HYP, shuffle=True, seed=8)
    assert [batch.paths for batch in other] != [batch.paths for batch in first]
    unshuffled = [path for batch in loader_of(index, hyp=HYP) for path in batch.paths]
    assert unshuffled == index.paths


def test_a_sample_depends_on_seed_epoch_and_picture_alone(index):
    """Another batch size and another order, the same samples."""

    def samples(loader) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        return {
            path: (batch.images[k], batch.targets[batch.targets[:, 0] == k, 1:])
            for batch in epoch_of(loader, 3)
            for k, path in enumerate(batch.paths)
        }

    some, others = samples(loader_of(index, hyp=HYP, shuffle=True)), samples(loader_of(index, hyp=HYP, batch_size=11))
    assert some.keys() == others.keys()
    assert all(torch.equal(a, b) for path in some for a, b in zip(some[path], others[path]))


def test_torchs_generator_is_not_touched(index):
    before = torch.get_rng_state()
    list(loader_of(index, hyp=HYP, shuffle=True))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_can_be_taken_up_in_the_middle(index, workers, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    loader = loader_of(index, hyp=HYP, shuffle=True, workers=workers, batch_size=2)
    whole = epoch_of(loader, 2)
    assert_same(epoch_of(loader, 2, start_batch=4), whole[4:])
    assert epoch_of(loader, 2, start_batch=6) == [] and len(loader) == 6


def test_skipped_batches_are_not_loaded(index, monkeypatch):
    read = reads(monkeypatch)
    epoch_of(loader_of(index, batch_size=2), 0, start_batch=5)
    assert read == index.paths[10:]


# ---- processes


def joined(slices: list[list[Batch]]) -> list[Batch]:
    """The slices of all ranks put together again, batch by batch."""
    batches = []
    for parts in zip(*slices):
        shifts = np.cumsum([0] + [len(part.images) for part in parts])
        targets = [part.targets + torch.tensor([shift, 0, 0, 0, 0, 0]) for part, shift in zip(parts, shifts)]
        batches.append(
            Batch(
                torch.cat([part.images for part in parts]),
                torch.cat(targets),
                sum((part.paths for part in parts), []),
                sum((part.letterboxes for part in parts), []),
            )
        )
    return batches


@pytest.mark.parametrize(
    "settings",
    [{"hyp": HYP, "shuffle": True}, {"hyp": HYP, "shuffle": True, "rect": True}, {"hyp": HYP, "image_weights": True}],
)
@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_share_the_batches_of_one(index, world_size, settings):
    few = load_index(index.paths[:8], 3, progress=False, cache=False)  # two full batches of four
    weights = np.arange(8.0) if "image_weights" in settings else None
    alone = epoch_of(loader_of(few, **settings), 1, 0, weights)
    slices = [
        epoch_of(loader_of(few, rank=rank, world_size=world_size, **settings), 1, 0, weights)
        for rank in range(world_size)
    ]
    assert_same(joined(slices), alone)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
def test_processes_have_equally_many_training_batches(index, world_size):
    loaders = [
        loader_of(index, hyp=HYP, shuffle=True, batch_size=8, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    slices = [list(loader) for loader in loaders]
    assert {len(part) for part in slices} == {2} == {len(loader) for loader in loaders}
    assert all(len(batch.images) for part in slices for batch in part)
    assert {path for part in slices for batch in part for path in batch.paths} == set(index.paths)


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_shares_with_fillers_add_up_to_the_loss_of_one_process(index, world_size):
    """Eleven pictures in batches of eight: the last batch has three,
    so of eight processes five have none that counts."""
    gains = scale_gains(Hyperparameters().to_dict(), 1, 3, 64)

    def loss(add=None):
        return DetectionLoss(torch.ones(1, 3, 2) * 4, torch.tensor([8.0]), 3, gains, sum_over_processes=add)

    def predict(batch, weight):  # (B, 3, 8, 8, 5+3), of each picture by itself
        means = batch.images.float().mean((1, 2, 3)) / 255
        return [means[:, None, None, None, None] * weight]

    weight = torch.randn(1, 3, 8, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    settings = {"hyp": HYP, "shuffle": True, "batch_size": 8}
    ranks = [list(loader_of(index, rank=rank, world_size=world_size, **settings)) for rank in range(world_size)]
    fillers = [[batch.is_padding for batch in batches] for batches in ranks]
    assert sum(map(sum, fillers)) == max(world_size - 3, 0) and not any(first for first, _ in fillers)
    for number, batch in enumerate(loader_of(index, **settings)):
        total, parts = loss()(predict(batch, weight), batch.targets)
        (expected,) = torch.autograd.grad(total, weight)
        shares = [batches[number] for batches in ranks]
        seen = [train.without_padding(predict(share, weight), share) for share in shares]
        counts = []  # first what each one counts, then the loss with the sums
        for raw, share in zip(seen, shares):
            loss(lambda mine: counts.append(mine) or mine)(raw, share.targets)
        found = [loss(lambda mine: sum(counts))(raw, share.targets) for raw, share in zip(seen, shares)]
        (gradient,) = torch.autograd.grad(sum(value for value, _ in found), weight)
        assert sum(value for value, _ in found).item() == pytest.approx(total.item(), rel=1e-6)
        assert torch.stack([torch.stack(each) for _, each in found]).sum(0).tolist() == pytest.approx(
            [part.item() for part in parts], rel=1e-5
        )
        assert torch.allclose(gradient, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("rect", [False, True])
def test_validation_pictures_are_divided_each_once(index, world_size, rect):
    loaders = [
        loader_of(index, rect=rect, batch_size=9, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    slices = [list(loader) for loader in loaders]
    assert [len(part) for part in slices] == [len(loader) for loader in loaders]
    assert sorted(path for part in slices for batch in part for path in batch.paths) == index.paths


# ---- rectangular batches


WIDTHS_HEIGHTS = [(640, 480), (480, 640), (640, 427), (500, 375), (427, 640), (1920, 1080), (600, 600), (1080, 1920)]


@pytest.mark.parametrize("batch_size, pad, shapes", [
    (8, 0.0, [(640, 640)]),
    (8, 0.5, [(672, 672)]),
    (2, 0.0, [(448, 640), (480, 640), (640, 640), (640, 448)]),
    (2, 0.5, [(448, 672), (512, 672), (672, 672), (672, 448)]),
])  # fmt: skip
def test_rect_shapes(batch_size, pad, shapes):
    order, ours = rect_shapes(np.array(WIDTHS_HEIGHTS)[:, ::-1], batch_size, imgsz=640, stride=32, pad=pad)
    assert ours == shapes
    assert order.tolist() == [5, 2, 0, 3, 6, 1, 4, 7]  # 0 and 3 are alike: in their order


def test_a_rect_shape_holds_every_picture_of_its_batch():
    rng = np.random.default_rng(0)
    shapes = rng.integers(10, 2000, (400, 2))
    order, sizes = rect_shapes(shapes, 3, imgsz=320, stride=32, pad=0.0)
    for number, size in enumerate(sizes):
        for i in order[3 * number : 3 * number + 3]:
            inner = image_cache.resized_shapes(shapes[i : i + 1], 320)[0]
            assert inner[0] <= size[0] and inner[1] <= size[1] and size[0] % 32 == size[1] % 32 == 0


def test_rect_training_has_no_mosaics_and_shuffles_whole_batches(index):
    loader = loader_of(index, hyp=HYP | {"mosaic": 1.0}, rect=True, shuffle=True, batch_size=2, stride=8)
    epochs = [epoch_of(loader, epoch) for epoch in range(3)]
    members = [{tuple(batch.paths) for batch in batches} for batches in epochs]
    assert members[0] == members[1] == members[2]
    assert len({tuple(batch.paths[0] for batch in batches) for batches in epochs}) > 1
    assert len({tuple(batch.images.shape[2:]) for batch in epochs[0]}) > 2


# ---- unreadable pictures


@pytest.mark.parametrize("settings", [{"hyp": {"mosaic": 0.0}}, {"hyp": {"mosaic": 1.0}}, {}, {"cache": "disk"}])
def test_a_picture_deleted_after_the_scan_is_grey_and_warned_of_once(tmp_path, capsys, settings):
    for name in "ab":
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.zeros((64, 64, 3), np.uint8))
        (tmp_path / f"{name}.txt").write_text("0 .5 .5 .5 .5")
    index = load_index(tmp_path, 1, progress=False, cache=False)
    assert len(index.labels) == 2
    os.remove(index.paths[1])
    loader = loader_of(index, batch_size=2, **settings)
    for epoch in range(2):
        [batch] = epoch_of(loader, epoch)
        if settings.get("hyp", {}).get("mosaic") != 1.0:
            assert (batch.images[1] == GREY).all() and not (batch.targets[:, 0] == 1).any()
    assert capsys.readouterr().err.count("WARNING: ") == 1


def test_workers_warn_once_between_them(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    for k in range(8):
        cv2.imwrite(str(tmp_path / f"{k}.png"), np.zeros((64, 64, 3), np.uint8))
    index = load_index(tmp_path, 1, progress=False, cache=False)
    os.remove(index.paths[0])
    loader = loader_of(index, hyp={"mosaic": 1.0}, workers=2, batch_size=2)
    for epoch in range(3):
        assert len(epoch_of(loader, epoch)) == 4
    assert capfd.readouterr().err.count("0.png: cannot be read: No such file or directory. A grey") == 1


def test_a_picture_replaced_by_one_of_another_size_does_no_harm(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((64, 32, 3), np.uint8))
    index = load_index(tmp_path, 1, progress=False, cache=False)
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((20, 90, 3), np.uint8))
    [batch] = loader_of(index)
    assert batch.images.shape == (1, 3, 64, 64) and (batch.images[0, 0] == 0).sum() == 64 * 32


# ---- caches of pictures


TRAINING, VALIDATION = {"hyp": HYP, "shuffle": True}, {"rect": True, "pad": 0.5}


@pytest.mark.parametrize("cache, workers, start_method, settings", [
    ("ram", 0, None, TRAINING), ("ram", 0, None, VALIDATION),
    ("ram", 2, "fork", TRAINING), ("ram", 2, "spawn", TRAINING),
    ("disk", 0, None, TRAINING), ("disk", 2, "fork", TRAINING), ("disk", 2, "fork", VALIDATION),
])  # fmt: skip
def test_caches_change_nothing(index, cache, workers, start_method, settings, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    plain = loader_of(index, **settings)
    cached = loader_of(index, cache=cache, workers=workers, start_method=start_method, **settings)
    for epoch in (0, 1):
        assert_same(epoch_of(plain, epoch), epoch_of(cached, epoch))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> LabelIndex:
    """JPEGs, of which a mosaic's lower tiles need the upper rows alone; some are a little higher than --imgsz 96."""
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for k, (height, width) in enumerate(
        [(97, 72), (98, 40), (96, 96), (96, 64), (64, 96), (200, 150), (150, 200), (110, 96)]
    ):
        picture = cv2.resize(rng.integers(0, 256, (9, 9, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{k}.jpg"), picture)
        (folder / f"{k}.txt").write_text("0 .5 .5 .5 .5\n")
    return load_index(folder, 1, progress=False, cache=False)


@pytest.mark.parametrize("cache, workers", [("ram", 0), ("ram", 2), ("disk", 0), ("disk", 2)])
def test_what_is_read_in_part_is_the_same_as_from_a_cache(photographs, cache, workers, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    settings = {"hyp": HYP | {"degrees": 0.0, "mosaic": 1.0}, "shuffle": True, "imgsz": 96}
    plain = loader_of(photographs, workers=workers, **settings)
    cached = loader_of(photographs, workers=workers, cache=cache, **settings)
    for epoch in range(4):
        assert_same(epoch_of(plain, epoch), epoch_of(cached, epoch))


def test_a_mosaic_reads_no_more_rows_than_show(photographs, monkeypatch):
    heights, original = [], image_cache.read_resized

    def read(path: str, shape: tuple[int, int], **settings: object) -> np.ndarray:
        picture = original(path, shape, **settings)
        heights.append((len(picture), shape[0]))
        return picture

    monkeypatch.setattr(image_cache, "read_resized", read)
    epoch_of(loader_of(photographs, hyp={"mosaic": 1.0, "scale": 0.5, "translate": 0.1}, imgsz=96), 0)
    assert sum(part < whole for part, whole in heights) > len(heights) / 5
    assert sum(part == whole for part, whole in heights) > len(heights) / 3  # the upper tiles


def test_the_disk_cache_keeps_whole_pictures(photographs, monkeypatch):
    pictures = loader_of(photographs, hyp=HYP, imgsz=90, cache="disk").dataset.images
    read = reads(monkeypatch)
    assert len(pictures.read(5, 20)) == pictures.shape(5)[0] == 90 and read == [photographs.paths[5]]
    assert len(pictures.read(5)) == 90 and len(read) == 1


def reads(monkeypatch) -> list[str]:
    """The files that are read from now on, in this process."""
    read: list[str] = []
    original = image_cache.read_resized

    def noting(path: str, *shape: object, **settings: object) -> np.ndarray:
        read.append(path)
        return original(path, *shape, **settings)

    monkeypatch.setattr(image_cache, "read_resized", noting)
    return read


def test_the_ram_cache_reads_each_picture_once(index, monkeypatch):
    read = reads(monkeypatch)
    loader = loader_of(index, cache="ram", hyp=HYP)
    list(loader)
    assert sorted(read) == index.paths


@pytest.fixture
def own_set(tmp_path, monkeypatch) -> LabelIndex:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "set/images").mkdir(parents=True)
    for k in range(3):
        cv2.imwrite(str(tmp_path / f"set/images/{k}.png"), np.full((80, 100, 3), 50 * k, np.uint8))
    return load_index(tmp_path / "set/images", 1, progress=False, cache=False)


def test_the_disk_cache_is_beside_the_pictures_and_outlives_the_loader(own_set, tmp_path, monkeypatch):
    first = list(loader_of(own_set, cache="disk"))
    assert len(list((tmp_path / "set/images.npy_cache").iterdir())) == 3
    assert len(list((tmp_path / "set/images").iterdir())) == 3
    read = reads(monkeypatch)
    assert_same(list(loader_of(own_set, cache="disk")), first)
    assert read == []
    list(loader_of(own_set, cache="disk", imgsz=32))
    assert len(read) == 3  # of another size


def test_the_disk_cache_is_never_stale(own_set):
    list(loader_of(own_set, cache="disk"))
    path = own_set.paths[1]
    size, time = os.path.getsize(path), os.stat(path).st_mtime_ns
    cv2.imwrite(path, np.full((80, 100, 3), 51, np.uint8))
    os.utime(path, ns=(time + 1, time + 1))
    assert os.path.getsize(path) == size
    [batch] = loader_of(own_set, cache="disk")
    assert batch.images[:, 0, 32, 32].tolist() == [0, 51, 100]
    cv2.imwrite(path, np.full((80, 100, 3), 52, np.uint8))
    os.utime(path, ns=(time + 1, time + 1))  # set back, as cp -p and rsync do
    [batch] = loader_of(own_set, cache="disk")
    assert batch.images[:, 0, 32, 32].tolist() == [0, 52, 100]


def giant(whole: bytes) -> bytes:
    """The .npy file with a header that says a thousand terabytes."""
    start = whole.index(b"'shape': (")
    end = whole.index(b"\n")
    header = (whole[:start] + b"'shape': (999999999999999,), }").ljust(end)
    return header + whole[end:]


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: whole[:1000],
        lambda whole: bytes(len(whole)),
        giant,
        lambda whole: b"PK\x03\x04" + whole,
        lambda whole: whole.replace(b"|u1", b"|i1"),
        lambda whole: b"PK\x05\x06" + bytes(18),
    ],
    ids=["empty", "cut", "zeros", "giant", "no zip", "other type", "empty zip"],
)
def test_damaged_files_of_the_disk_cache_are_made_anew(own_set, tmp_path, damage):
    first = list(loader_of(own_set, cache="disk"))
    for path in (tmp_path / "set/images.npy_cache").iterdir():
        path.write_bytes(damage(path.read_bytes()))
    assert_same(list(loader_of(own_set, cache="disk")), first)


def test_the_disk_cache_of_a_read_only_set_is_in_the_home_folder(own_set, tmp_path):
    (tmp_path / "set").chmod(0o555)
    try:
        list(loader_of(own_set, cache="disk"))
    finally:
        (tmp_path / "set").chmod(0o755)
    assert not (tmp_path / "set/images.npy_cache").exists()
    assert len(list((tmp_path / "home/.cache/anchorage/images").rglob("*.npy"))) == 3


def test_a_cache_folder_that_cannot_be_written_is_done_without(own_set, tmp_path, capsys):
    (tmp_path / "set/images.npy_cache").write_text("a file is in the way")
    [batch] = loader_of(own_set, cache="disk")
    assert batch.images[:, 0, 32, 32].tolist() == [0, 50, 100]
    assert capsys.readouterr().err.count("Images stay uncached") == 1


def test_a_cache_that_does_not_fit_is_left_out_with_a_line(index, capsys, monkeypatch):
    monkeypatch.setattr(image_cache, "available_memory", lambda: 1000)
    loader = loader_of(index, cache="ram")
    assert type(loader.dataset.images) is image_cache.ImageReader
    assert "--cache ram: 0.0GB required, 0.0GB available, not caching images" in capsys.readouterr().out
    monkeypatch.setattr(image_cache.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10}))
    loader = loader_of(index, cache="disk", imgsz=96)
    assert type(loader.dataset.images) is image_cache.ImageReader
    assert "--cache disk: " in capsys.readouterr().out
    with pytest.raises(UserError, match="--cache both: expected ram or disk"):
        loader_of(index, cache="both")


def test_the_space_that_pictures_need_is_known_beforehand(index):
    pictures = image_cache.ImageReader(index, 64, smooth=False)
    assert pictures.bytes_needed() == sum(pictures.read(i).nbytes for i in range(len(index)))
    many = replace(index, shapes=np.tile(np.array([[480, 640]], np.int32), (5000, 1)))
    assert image_cache.ImageReader(many, 640, smooth=False).bytes_needed() == 5000 * 480 * 640 * 3  # more than 32 bits


def test_available_memory_is_plausible():
    assert 2**20 < image_cache.available_memory() < 2**50


def test_shared_bytes_are_the_same_memory_in_both_processes():
    block = SharedBytes(10)
    child = os.fork()
    if child == 0:
        block.array[3] = 77
        os._exit(0)
    os.waitpid(child, 0)
    assert block.array.tolist() == [0, 0, 0, 77, 0, 0, 0, 0, 0, 0]
    state = block.__getstate__()
    other = SharedBytes.__new__(SharedBytes)
    other.__setstate__(state)
    other.array[0] = 5
    assert block.array[0] == 5 and SharedBytes(0).array.size <= 1


# ---- four in one


def quad_input() -> Batch:
    images = torch.arange(8, dtype=torch.uint8)[:, None, None, None].expand(8, 3, 4, 6).contiguous() * 10
    targets = torch.tensor([[k, k, 0.5, 0.5, 0.2, 0.4] for k in range(8)])
    return Batch(images, targets, [str(k) for k in range(8)], [None] * 8)


class Coin:
    def __init__(self, value: float):
        self.value = value

    def random(self) -> float:
        return self.value


def test_four_pictures_as_tiles_or_the_first_enlarged():
    batch = merge_in_fours(quad_input(), [Coin(0.9), Coin(0.1)])
    assert batch.images.shape == (2, 3, 8, 12) and batch.paths == ["0", "4"] and batch.letterboxes == [None, None]
    corners = [(0, 0), (7, 0), (0, 11), (7, 11)]  # tiles go down first, then right
    assert [batch.images[0, 0, y, x].item() for y, x in corners] == [0, 10, 20, 30]
    assert (batch.images[1] == 40).all()
    want = [
        [0, 0, 0.25, 0.25, 0.1, 0.2],
        [0, 1, 0.25, 0.75, 0.1, 0.2],
        [0, 2, 0.75, 0.25, 0.1, 0.2],
        [0, 3, 0.75, 0.75, 0.1, 0.2],
        [1, 4, 0.5, 0.5, 0.2, 0.4],
    ]
    np.testing.assert_allclose(batch.targets, want, atol=1e-6)


def test_a_quad_loader(index, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    loader = loader_of(index, hyp=HYP, quad=True, shuffle=True)
    batches = list(loader)
    assert len(loader) == 2 and [tuple(batch.images.shape) for batch in batches] == [(1, 3, 128, 128)] * 2
    assert_same(batches, epoch_of(loader_of(index, hyp=HYP, quad=True, shuffle=True, workers=2), 0))
    two = [loader_of(index, hyp=HYP, quad=True, batch_size=8, rank=rank, world_size=2) for rank in (0, 1)]
    assert_same(joined([list(loader) for loader in two]), list(loader_of(index, hyp=HYP, quad=True, batch_size=8)))
    with pytest.raises(UserError, match="of 2 processes: --batch-size 12 must be a multiple of 8, for instance 8"):
        loader_of(index, hyp=HYP, quad=True, batch_size=12, world_size=2)
    with pytest.raises(UserError, match="--quad needs a batch of at least 4"):
        loader_of(index, hyp=HYP, quad=True, batch_size=3)


# ---- weights


def flat_index(classes: list[list[int]]) -> LabelIndex:
    labels = np.array([[kind, 0.5, 0.5, 0.1, 0.1] for row in classes for kind in row], np.float32).reshape(-1, 5)
    offsets = np.cumsum([0] + [len(row) for row in classes])
    paths = [f"{k}.png" for k in range(len(classes))]
    return LabelIndex(
        paths,
        np.full((len(classes), 2), 64, np.int32),
        labels,
        offsets,
        np.zeros((0, 2), np.float32),
        np.zeros(len(labels) + 1, np.int64),
        None,
        [],
    )


def test_class_and_image_weights():
    index = flat_index([[0, 1], [0]])
    weights = class_weights(index, 3)
    np.testing.assert_allclose(weights, [0.2, 0.4, 0.4])
    np.testing.assert_allclose(image_weights(index, weights), [0.6, 0.2])
    assert image_weights(flat_index([[], [1], []]), weights).tolist() == [0, 0.4, 0]


def test_heavy_pictures_come_more_often_and_their_repeats_differ(index):
    weights = np.zeros(len(index))
    weights[2] = 1.0
    loader = loader_of(index, hyp=HYP | {"mosaic": 0.0}, image_weights=True, rect=True)
    batches = epoch_of(loader, 0, 0, weights)
    assert {path for batch in batches for path in batch.paths} == {index.paths[2]}
    assert {tuple(batch.images.shape[2:]) for batch in batches} == {(64, 64)}  # weights rule rect out
    pictures = torch.cat([batch.images for batch in batches])
    assert len({picture.numpy().tobytes() for picture in pictures}) == len(index)


def test_weights_choose_the_partners_in_a_mosaic_too(index, monkeypatch):
    read = reads(monkeypatch)
    weights = np.zeros(len(index))
    weights[[2, 5]] = 1.0
    epoch_of(loader_of(index, hyp={"mosaic": 1.0, "mixup": 1.0}, image_weights=True), 0, 0, weights)
    assert set(read) == {index.paths[2], index.paths[5]}


@pytest.mark.parametrize("weights", [None, np.zeros(len(SHAPES)), np.ones(len(SHAPES))])
def test_equal_or_no_weights_draw_alike(index, weights):
    batches = epoch_of(loader_of(index, image_weights=True), 1, 0, weights)
    assert len({path for batch in batches for path in batch.paths}) > 3


def test_drawing_follows_the_weights():
    index = flat_index([[0]] * 4000)
    loader = loader_of(index, image_weights=True, batch_size=100)
    weights = np.r_[np.full(2000, 3.0), np.full(2000, 1.0)]
    loader.set_epoch(0, weights=weights)
    drawn = np.array([i for key in loader.sampler for i in key.indices])
    assert (drawn < 2000).mean() == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize("values, earlier", [([], []), ([4], [0]), ([2, 2, 1, 2, 1], [0, 1, 0, 2, 1])])
def test_count_earlier(values, earlier):
    assert occurrence_index(np.array(values, np.int64)).tolist() == earlier


# ---- limits


@pytest.mark.parametrize(
    "cpus, batch_size, workers, want", [(8, 4, 8, 4), (2, 16, 8, 2), (8, 1, 8, 0), (8, 16, 3, 3), (8, 16, 0, 0)]
)
def test_the_number_of_workers(index, monkeypatch, cpus, batch_size, workers, want):
    monkeypatch.setattr(os, "cpu_count", lambda: cpus)
    assert loader_of(index, batch_size=batch_size, workers=workers).workers == want


@pytest.mark.parametrize("launched, evolving, want", [(1, 1, 8), (8, 1, 2), (4, 1, 4), (2, 2, 4), (32, 1, 1)])
def test_processes_of_a_machine_share_its_cores(index, monkeypatch, launched, evolving, want):
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(launched))
    monkeypatch.setenv("ANCHORAGE_SIDE_BY_SIDE", str(evolving))
    assert loader_of(index, batch_size=11, workers=8).workers == want


def test_a_batch_is_no_larger_than_the_split(index):
    loader = loader_of(index, batch_size=64)
    assert loader.batch_size == len(index) == 11 and len(loader) == 1


def test_a_million_pictures_are_no_trouble():
    """Planning an epoch takes memory in proportion to a few numbers a picture, and seconds at most."""
    count = 1_000_000
    index = LabelIndex(
        ["x.png"] * count,
        np.tile(np.array([[48, 64]], np.int32), (count, 1)),
        np.zeros((count, 5), np.float32),
        np.arange(count + 1),
        np.zeros((0, 2), np.float32),
        np.zeros(count + 1, np.int64),
        None,
        [],
    )
    loader = loader_of(index, hyp=HYP, shuffle=True, rect=True, batch_size=64)
    loader.set_epoch(1)
    key = next(iter(loader.sampler))
    assert len(loader) == 15_625 and len(key.indices) == 64


def test_small_pictures_are_cached_unasked(index, monkeypatch):
    need = image_cache.ImageReader(index, 64, smooth=False).bytes_needed()
    for free, kind in ((11 * need, image_cache.RamCache), (9 * need, image_cache.ImageReader)):
        monkeypatch.setattr(image_cache, "available_memory", lambda free=free: free)
        assert type(loader_of(index, cache="auto").dataset.images) is kind
