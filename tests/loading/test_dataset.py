"""Samples and batches: a batch is a function of (seed, epoch, number), and its boxes are on their objects."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from small_split import HYP, assert_same, epoch_of, joined, loader_of, reads

from utils import machine
from utils.datasets.labels import load_index
from utils.errors import UserError
from utils.images.letterbox import Letterbox
from utils.loading import dataset
from utils.loading.dataset import Batch, merge_in_fours


def test_training_batch(index):
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
def test_validation_reads_every_image_once_and_letterboxes_undo(index, rect):
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
    """The centre of every box is red, if the box is large enough to have one."""
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


def test_clipping_keeps_boxes_slightly_inside():
    rows = dataset._targets(np.array([[2, -5, 10, 645, 650]], np.float32), 3, 640, 640)
    np.testing.assert_allclose(rows, [[3, 2, 0.49999922, 0.50781172, 0.99999844, 0.98437344]], atol=1e-7)
    assert dataset._targets(np.zeros((0, 5), np.float32), 0, 64, 64).shape == (0, 6)


def test_epochs_and_seeds_differ_and_repeat_exactly(index):
    loader = loader_of(index, hyp=HYP, shuffle=True)
    first, second = epoch_of(loader, 0), epoch_of(loader, 1)
    assert [batch.paths for batch in first] != [batch.paths for batch in second]
    assert_same(epoch_of(loader, 0), first)
    other = loader_of(index, hyp=HYP, shuffle=True, seed=8)
    assert [batch.paths for batch in other] != [batch.paths for batch in first]
    unshuffled = [path for batch in loader_of(index, hyp=HYP) for path in batch.paths]
    assert unshuffled == index.paths


def test_sample_depends_only_on_seed_epoch_and_image(index):
    """Batch size and order do not change a sample."""

    def samples(loader) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        return {
            path: (batch.images[k], batch.targets[batch.targets[:, 0] == k, 1:])
            for batch in epoch_of(loader, 3)
            for k, path in enumerate(batch.paths)
        }

    some, others = samples(loader_of(index, hyp=HYP, shuffle=True)), samples(loader_of(index, hyp=HYP, batch_size=11))
    assert some.keys() == others.keys()
    assert all(torch.equal(a, b) for path in some for a, b in zip(some[path], others[path]))


def test_rect_training_has_no_mosaics_and_shuffles_whole_batches(index):
    loader = loader_of(index, hyp=HYP | {"mosaic": 1.0}, rect=True, shuffle=True, batch_size=2, stride=8)
    epochs = [epoch_of(loader, epoch) for epoch in range(3)]
    members = [{tuple(batch.paths) for batch in batches} for batches in epochs]
    assert members[0] == members[1] == members[2]
    assert len({tuple(batch.paths[0] for batch in batches) for batches in epochs}) > 1
    assert len({tuple(batch.images.shape[2:]) for batch in epochs[0]}) > 2


def test_images_of_large_weight_repeat_with_different_augmentation(index):
    weights = np.zeros(len(index))
    weights[2] = 1.0
    loader = loader_of(index, hyp=HYP | {"mosaic": 0.0}, image_weights=True, rect=True)
    batches = epoch_of(loader, 0, 0, weights)
    assert {path for batch in batches for path in batch.paths} == {index.paths[2]}
    assert {tuple(batch.images.shape[2:]) for batch in batches} == {(64, 64)}  # image weights override rect
    images = torch.cat([batch.images for batch in batches])
    assert len({image.numpy().tobytes() for image in images}) == len(index)


def test_image_weights_also_choose_the_other_images_of_a_mosaic(index, monkeypatch):
    read = reads(monkeypatch)
    weights = np.zeros(len(index))
    weights[[2, 5]] = 1.0
    epoch_of(loader_of(index, hyp={"mosaic": 1.0, "mixup": 1.0}, image_weights=True), 0, 0, weights)
    assert set(read) == {index.paths[2], index.paths[5]}


def quad_input() -> Batch:
    images = torch.arange(8, dtype=torch.uint8)[:, None, None, None].expand(8, 3, 4, 6).contiguous() * 10
    targets = torch.tensor([[k, k, 0.5, 0.5, 0.2, 0.4] for k in range(8)])
    return Batch(images, targets, [str(k) for k in range(8)], [None] * 8)


class Coin:
    def __init__(self, value: float):
        self.value = value

    def random(self) -> float:
        return self.value


def test_quad_is_four_tiles_or_the_first_image_enlarged():
    batch = merge_in_fours(quad_input(), [Coin(0.9), Coin(0.1)])
    assert batch.images.shape == (2, 3, 8, 12) and batch.paths == ["0", "4"] and batch.letterboxes == [None, None]
    corners = [(0, 0), (7, 0), (0, 11), (7, 11)]  # tiles fill columns first
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


def test_quad_loader(index, monkeypatch):
    monkeypatch.setattr(machine, "usable_cores", lambda: 8)
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


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_validation_have_the_ignored_regions(index, workers):
    """They are in pixels of the original image, whatever the batch's letterbox. Training knows nothing of them."""
    height, width = index.shapes[5].tolist()
    regions = np.array([[1, 0.5, 0.5, 0.25, 0.5], [0, 0.25, 0.5, 0.5, 1]], np.float32)
    marked = replace(index, ignored=regions, ignored_images=np.array([5, 5]))
    found = []
    for batch in loader_of(marked, workers=workers):
        found += [(batch.paths[int(row[0])], *row[1:].tolist()) for row in batch.ignored]
    corners = (0.375 * width, 0.25 * height, 0.625 * width, 0.75 * height), (0, 0, 0.5 * width, height)
    assert found == [(index.paths[5], 1, *corners[0]), (index.paths[5], 0, *corners[1])]
    assert all(len(batch.ignored) == 0 for batch in loader_of(marked, hyp=HYP, shuffle=True))
    assert all(len(batch.ignored) == 0 for batch in loader_of(index))
