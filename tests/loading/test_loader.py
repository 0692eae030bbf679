"""Loader: workers, helpers, ranks and interruptions change no batch."""

import errno
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from contextlib import closing

import numpy as np
import pytest
import torch
from small_split import HYP, assert_same, epoch_of, joined, loader_of, reads

import train
from utils import machine
from utils.config import Hyperparameters
from utils.datasets.label_index import LabelIndex
from utils.datasets.labels import load_index
from utils.errors import UserError
from utils.loading import image_cache
from utils.loading.dataset import DetectionDataset
from utils.loss import DetectionLoss, scale_gains


@pytest.mark.parametrize("workers, start_method", [(1, None), (2, None), (2, "fork"), (2, "spawn")])
def test_workers_change_nothing(index, workers, start_method, monkeypatch):
    monkeypatch.setattr(machine, "usable_cores", lambda: 8)
    alone = loader_of(index, hyp=HYP, shuffle=True)
    shared = loader_of(index, hyp=HYP, shuffle=True, workers=workers, start_method=start_method)
    assert shared.workers == workers
    for epoch in (0, 1, 5):
        assert_same(epoch_of(alone, epoch), epoch_of(shared, epoch))


@pytest.mark.parametrize("workers, cores, hands", [(0, 4, 1), (1, 4, 2), (2, 4, 3), (9, 4, 4), (9, 1, 1)])
@pytest.mark.parametrize("platform, kind", [("linux", "processes"), ("darwin", "threads")])
@pytest.mark.parametrize("quad", [False, True])
def test_helpers_change_nothing(index, workers, cores, hands, platform, kind, quad, monkeypatch):
    """Helpers and the main process are at most the cores. No process reads ahead."""
    monkeypatch.setattr(machine, "usable_cores", lambda: 8)
    monkeypatch.setattr(sys, "platform", platform)
    settings = {"hyp": HYP, "shuffle": True, "batch_size": 8, "quad": quad}
    alone, shared = loader_of(index, **settings), loader_of(index, workers=workers, cores=cores, **settings)
    assert shared.workers == 0 and (shared.dataset.helpers.count if shared.dataset.helpers else 0) == hands - 1
    assert (f"by {hands} {kind}" if hands > 1 else "by the main process") in shared.readers
    for epoch in (0, 1, 5):
        assert_same(epoch_of(alone, epoch), epoch_of(shared, epoch))
    assert not shared.workers and not getattr(shared._loader._iterator, "_workers", None)
    shared.close()


def test_helpers_are_at_most_the_images_of_a_rank(index, monkeypatch):
    monkeypatch.setattr(machine, "usable_cores", lambda: 64)
    loader = loader_of(index, batch_size=8, workers=8, cores=64, world_size=4)
    assert loader.dataset.helpers.count == 1


@pytest.mark.parametrize("hyp", [HYP, HYP | {"mosaic": 0.5, "mixup": 0.0}, None], ids=["all", "no mixup", "validation"])
@pytest.mark.parametrize("image_weights", [False, True])
def test_files_of_the_next_batch_are_prefetched(index, hyp, image_weights, monkeypatch):
    monkeypatch.setattr(machine, "usable_cores", lambda: 4)
    monkeypatch.setattr(sys, "platform", "darwin")  # threads, whose calls are visible here
    loader = loader_of(
        index, hyp=hyp, shuffle=True, batch_size=3, workers=1, cores=2, image_weights=image_weights and hyp is not None
    )
    dataset, images, prefetched, read, original = (
        loader.dataset,
        loader.dataset.images,
        [],
        [],
        loader.dataset.images.read,
    )
    monkeypatch.setattr(images, "prefetch", prefetched.append)
    monkeypatch.setattr(images, "read", lambda i, rows=None: read.append(i) or original(i, rows))
    loader.set_epoch(2, weights=np.ones(len(index)))
    keys = list(loader.sampler)
    for key in keys:
        read.clear()
        dataset[key]
        others = set(read) - set(dataset.source_indices(key))
        assert set(read) & set(dataset.source_indices(key)) and (not others or hyp["mixup"])
    assert sum(1 for _ in loader) == len(keys) > 2
    dataset.helpers.pool.submit(int).result()  # after the requests
    assert prefetched == [i for key in keys[1:] for i in dataset.source_indices(key)]


def test_no_file_is_prefetched_if_all_images_are_in_ram(index, monkeypatch):
    monkeypatch.setattr(machine, "usable_cores", lambda: 4)
    monkeypatch.setattr(sys, "platform", "darwin")
    loader, prefetched = loader_of(index, workers=1, cores=2, cache="ram"), []
    monkeypatch.setattr(image_cache, "prefetch_file", prefetched.append)
    assert len(epoch_of(loader, 0)) == 3
    loader.dataset.helpers.pool.submit(int).result()
    assert not prefetched


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_error_of_a_helper_is_raised(index, platform, monkeypatch):
    monkeypatch.setattr(machine, "usable_cores", lambda: 4)
    monkeypatch.setattr(sys, "platform", platform)
    original, here = DetectionDataset.load_letterboxed, os.getpid()

    def fail_elsewhere(*args, **settings):
        if threading.current_thread() is not threading.main_thread() or os.getpid() != here:
            raise RuntimeError("of a helper")
        time.sleep(0.2)  # else the batch may be complete before a helper begins
        return original(*args, **settings)

    monkeypatch.setattr(DetectionDataset, "load_letterboxed", fail_elsewhere)
    loader = loader_of(index, workers=1, cores=2)
    with pytest.raises(RuntimeError, match="of a helper"):
        epoch_of(loader, 0)


# Worker processes share their memory by descriptors, which a thread hands over.
@pytest.mark.parametrize("place", ["multiprocessing.reduction.DupFd", "multiprocessing.connection.Listener.accept"])
@pytest.mark.parametrize(
    "error, message",
    [
        (
            OSError(errno.EMFILE, "Too many open files"),
            "1 data workers(: too many open files; .*ulimit -n| failed, its own message)",
        ),
        (OSError(errno.EIO, "Input/output error"), "1 data workers failed, its own message"),
    ],
    ids=["limit", "other"],
)
def test_worker_that_cannot_hand_a_batch_over_is_an_error(index, place, error, message, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(place, fail)  # the worker inherits it
    with closing(loader_of(index, workers=1)) as loader, pytest.raises(UserError, match=message):
        epoch_of(loader, 0)


@pytest.mark.parametrize(
    "number, message",
    [(errno.EMFILE, "2 data workers: too many open files"), (errno.EROFS, "cannot start 2 data workers .*/dev/shm")],
)
def test_workers_that_cannot_all_be_started_are_ended(index, monkeypatch, number, message):
    monkeypatch.setattr(machine, "usable_cores", lambda: 8)
    begin, begun = multiprocessing.context.ForkProcess.start, []

    def start(process):
        if begun:
            raise OSError(number, "as the system says")
        begin(process)
        begun.append(process)

    loader = loader_of(index, workers=2, start_method="fork")
    monkeypatch.setattr(multiprocessing.context.ForkProcess, "start", start)
    with pytest.raises(UserError, match=message):
        epoch_of(loader, 0)
    assert len(begun) == 1 and begun[0].exitcode is not None


def test_workers_outlive_a_long_name_of_the_temporary_folder(index, tmp_path, monkeypatch):
    (tmp_path / ("x" * 150)).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("x" * 150)))
    monkeypatch.delitem(multiprocessing.current_process()._config, "tempdir", raising=False)
    loader = loader_of(index, workers=1)
    assert_same(epoch_of(loader, 0), epoch_of(loader_of(index), 0))
    loader.close()


def test_abandoned_iteration_does_not_affect_the_next(index, monkeypatch):
    monkeypatch.setattr(machine, "usable_cores", lambda: 8)
    loader = loader_of(index, hyp=HYP, shuffle=True, workers=2)
    loader.set_epoch(0)
    next(iter(loader))
    assert_same(epoch_of(loader, 1), epoch_of(loader_of(index, hyp=HYP, shuffle=True), 1))


def test_global_generator_of_torch_does_not_advance(index):
    before = torch.get_rng_state()
    list(loader_of(index, hyp=HYP, shuffle=True))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
def test_epoch_can_resume_in_the_middle(index, workers, monkeypatch):
    monkeypatch.setattr(machine, "usable_cores", lambda: 8)
    loader = loader_of(index, hyp=HYP, shuffle=True, workers=workers, batch_size=2)
    whole = epoch_of(loader, 2)
    assert_same(epoch_of(loader, 2, start_batch=4), whole[4:])
    assert epoch_of(loader, 2, start_batch=6) == [] and len(loader) == 6


def test_skipped_batches_are_not_loaded(index, monkeypatch):
    read = reads(monkeypatch)
    epoch_of(loader_of(index, batch_size=2), 0, start_batch=5)
    assert read == index.paths[10:]


@pytest.mark.parametrize(
    "settings",
    [{"hyp": HYP, "shuffle": True}, {"hyp": HYP, "shuffle": True, "rect": True}, {"hyp": HYP, "image_weights": True}],
)
@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_batches_of_one_process(index, world_size, settings):
    few = load_index(index.paths[:8], 3, progress=False, cache=False)  # two full batches of four
    weights = np.arange(8.0) if "image_weights" in settings else None
    alone = epoch_of(loader_of(few, **settings), 1, 0, weights)
    slices = [
        epoch_of(loader_of(few, rank=rank, world_size=world_size, **settings), 1, 0, weights)
        for rank in range(world_size)
    ]
    assert_same(joined(slices), alone)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
def test_ranks_have_equally_many_training_batches(index, world_size):
    loaders = [
        loader_of(index, hyp=HYP, shuffle=True, batch_size=8, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    slices = [list(loader) for loader in loaders]
    assert {len(part) for part in slices} == {2} == {len(loader) for loader in loaders}
    assert all(len(batch.images) for part in slices for batch in part)
    assert {path for part in slices for batch in part for path in batch.paths} == set(index.paths)


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_losses_of_ranks_with_padding_batches_sum_to_that_of_one_process(index, world_size):
    """Eleven images in batches of eight: the last batch has three, so five of eight ranks have a padding batch."""
    gains = scale_gains(Hyperparameters().to_dict(), 1, 3, 64)

    def loss(add=None):
        return DetectionLoss(torch.ones(1, 3, 2) * 4, torch.tensor([8.0]), 3, gains, sum_over_processes=add)

    def predict(batch, weight):  # (B, 3, 8, 8, 5+3), for each image separately
        means = batch.images.float().mean((1, 2, 3)) / 255
        return [means[:, None, None, None, None] * weight]

    weight = torch.randn(1, 3, 8, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    settings = {"hyp": HYP, "shuffle": True, "batch_size": 8}
    ranks = [list(loader_of(index, rank=rank, world_size=world_size, **settings)) for rank in range(world_size)]
    is_padding = [[batch.is_padding for batch in batches] for batches in ranks]
    assert sum(map(sum, is_padding)) == max(world_size - 3, 0) and not any(first for first, _ in is_padding)
    for number, batch in enumerate(loader_of(index, **settings)):
        total, parts = loss()(predict(batch, weight), batch.targets)
        (expected,) = torch.autograd.grad(total, weight)
        slices = [batches[number] for batches in ranks]
        seen = [train.without_padding(predict(part, weight), part) for part in slices]
        counts = []  # first the counts of each rank, then the loss with their sums
        for raw, part in zip(seen, slices):
            loss(lambda mine, counts=counts: counts.append(mine) or mine)(raw, part.targets)
        found = [loss(lambda mine, counts=counts: sum(counts))(raw, part.targets) for raw, part in zip(seen, slices)]
        (gradient,) = torch.autograd.grad(sum(value for value, _ in found), weight)
        assert sum(value for value, _ in found).item() == pytest.approx(total.item(), rel=1e-6)
        assert torch.stack([torch.stack(each) for _, each in found]).sum(0).tolist() == pytest.approx(
            [part.item() for part in parts], rel=1e-5
        )
        assert torch.allclose(gradient, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("rect", [False, True])
def test_ranks_read_every_validation_image_once(index, world_size, rect):
    loaders = [
        loader_of(index, rect=rect, batch_size=9, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    slices = [list(loader) for loader in loaders]
    assert [len(part) for part in slices] == [len(loader) for loader in loaders]
    assert sorted(path for part in slices for batch in part for path in batch.paths) == index.paths


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # PyTorch sees the CPUs that are really here
@pytest.mark.parametrize(
    "cpus, batch_size, workers, want", [(8, 4, 8, 4), (2, 16, 8, 2), (8, 1, 8, 0), (8, 16, 3, 3), (8, 16, 0, 0)]
)
def test_number_of_workers(index, monkeypatch, cpus, batch_size, workers, want):
    monkeypatch.setattr(machine, "usable_cores", lambda: cpus)
    assert loader_of(index, batch_size=batch_size, workers=workers).workers == want


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # PyTorch sees the CPUs that are really here
@pytest.mark.parametrize("launched, evolving, want", [(1, 1, 8), (8, 1, 2), (4, 1, 4), (2, 2, 4), (32, 1, 1)])
def test_processes_of_a_machine_share_its_cpus(index, monkeypatch, launched, evolving, want):
    monkeypatch.setattr(machine, "usable_cores", lambda: 16)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(launched))
    monkeypatch.setenv("ANCHORAGE_SIDE_BY_SIDE", str(evolving))
    assert loader_of(index, batch_size=11, workers=8).workers == want


def test_batch_is_at_most_the_split(index):
    loader = loader_of(index, batch_size=64)
    assert loader.batch_size == len(index) == 11 and len(loader) == 1


def test_million_images_are_planned_quickly():
    """Planning an epoch takes a few numbers of memory per image, and seconds at most."""
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
