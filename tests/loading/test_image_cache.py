"""Image reader and its caches: the same pixels, never stale, and one warning per problem."""

import errno
import os
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from small_split import HYP, assert_same, epoch_of, loader_of, reads

from utils import machine
from utils.datasets.label_index import LabelIndex
from utils.datasets.labels import load_index
from utils.errors import UnreadableData, UserError
from utils.loading import image_cache
from utils.loading.image_cache import SharedBytes
from utils.pixel_format import GREY


@pytest.mark.parametrize("cache", [None, "disk"])
def test_absent_files_and_pipes_can_be_prefetched(index, folder, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(image_cache, "user_cache_folder", lambda: tmp_path)
    images = loader_of(index, cache=cache).dataset.images
    for _ in range(2):
        assert images.prefetch(0) is None
        images.read(0)
    os.mkfifo(tmp_path / "pipe")
    assert image_cache.prefetch_file(index.paths[0]) and image_cache.prefetch_file(
        tmp_path / "pipe"
    )  # the pipe has no writer
    assert not image_cache.prefetch_file(tmp_path / "absent")


def write_set(folder: Path, count: int) -> LabelIndex:
    """Write grey PNGs 0.png, 1.png, ... of 64 x 64 pixels, each with a label."""
    for k in range(count):
        cv2.imwrite(str(folder / f"{k}.png"), np.full((64, 64, 3), 10 * k, np.uint8))
        (folder / f"{k}.txt").write_text("0 .5 .5 .5 .5")
    return load_index(folder, 1, progress=False, cache=False)


def damage(path: str) -> None:
    """Overwrite the middle of a PNG, which a scan of labels does not notice."""
    with open(path, "r+b") as file:
        file.seek(os.path.getsize(path) // 2)
        file.write(b"damage")


@pytest.fixture(autouse=True)
def no_delay(monkeypatch):
    monkeypatch.setattr(image_cache, "RETRY_SECONDS", 0.01)


READERS = {
    "the process itself": {},
    "mosaics": {"hyp": {"mosaic": 1.0}},
    "data workers": {"workers": 2},
    "helpers": {"workers": 2, "cores": 3},
    "--cache disk": {"cache": "disk"},
    "--cache disk, data workers": {"cache": "disk", "workers": 2},
}
CHANGES = {
    "gone": (os.remove, "cannot be read: No such file or directory"),
    "emptied": (lambda path: open(path, "wb").close(), "the file is empty"),
    "damaged": (damage, "not an image that can be decoded"),
    "of another size": (lambda path: cv2.imwrite(path, np.zeros((20, 90, 3), np.uint8)), "has 90x20 pixels, not 64x64"),
}


@pytest.mark.parametrize("settings", READERS.values(), ids=READERS)
@pytest.mark.parametrize("change, reason", CHANGES.values(), ids=CHANGES)
def test_an_image_that_changes_during_a_run_is_an_error(tmp_path, monkeypatch, settings, change, reason):
    monkeypatch.setattr(machine, "usable_cores", lambda: 8)
    index = write_set(tmp_path, 4)
    with closing(loader_of(index, batch_size=2, **settings)) as loader:
        assert len(epoch_of(loader, 0)) == 2
        change(index.paths[3])
        with pytest.raises(UnreadableData) as error:
            epoch_of(loader, 1)
    assert str(error.value).startswith(f"{index.paths[3]}: {reason}") and "\n" not in str(error.value)


def test_the_line_of_a_spawned_worker_is_the_same(tmp_path):
    index = write_set(tmp_path, 4)
    os.remove(index.paths[3])
    loader = loader_of(index, batch_size=2, workers=1, start_method="spawn")
    with closing(loader), pytest.raises(UnreadableData) as error:
        list(loader)
    assert str(error.value) == f"{index.paths[3]}: cannot be read: No such file or directory"


@pytest.mark.parametrize("threads", ["linux", "darwin"], ids=["processes", "threads"])
def test_helpers_count_the_images_that_are_gone(tmp_path, monkeypatch, threads):
    monkeypatch.setattr(machine, "usable_cores", lambda: 8)
    monkeypatch.setattr(sys, "platform", threads)
    (tmp_path / "set").mkdir()
    index = write_set(tmp_path / "set", 5)
    with closing(loader_of(index, batch_size=4, workers=2, cores=3)) as loader:
        (tmp_path / "set").rename(tmp_path / "elsewhere")
        with pytest.raises(
            UnreadableData, match="png: cannot .* directory; 4 of 4 other images cannot be opened either"
        ):
            list(loader)


def test_an_image_that_is_back_in_a_moment_is_read(tmp_path, monkeypatch):
    index = write_set(tmp_path, 2)
    loader = loader_of(index, cache="disk")
    os.rename(index.paths[1], tmp_path / "away")
    monkeypatch.setattr(time, "sleep", lambda _: os.rename(tmp_path / "away", index.paths[1]))
    [batch] = loader
    assert (batch.images[1] == 10).all() and batch.targets[:, 0].tolist() == [0, 1]


@pytest.mark.parametrize("settings", READERS.values(), ids=READERS)
def test_an_image_damaged_before_the_run_is_grey_with_one_warning(tmp_path, capfd, monkeypatch, settings):
    monkeypatch.setattr(machine, "usable_cores", lambda: 8)
    index = write_set(tmp_path, 4)
    damage(index.paths[3])
    monkeypatch.setattr(image_cache, "CLOCK_TICK_NS", -1)
    with closing(loader_of(index, batch_size=2, **settings)) as loader:
        for epoch in range(2):
            last = epoch_of(loader, epoch)[-1]
            if "hyp" not in settings:
                assert (last.images[1] == GREY).all() and last.targets[:, 0].tolist() == [0]
    warning = f"WARNING: {index.paths[3]}: not an image that can be decoded. A grey image without labels is used"
    assert capfd.readouterr().err.count(warning) == 1


def test_a_read_error_is_never_cached(tmp_path, monkeypatch):
    """The cache in RAM is filled at the start, that on disk during the first epoch."""
    index, original, failing = write_set(tmp_path, 4), os.open, []

    def open_or_fail(path, *args, **named):
        if path == index.paths[2] and failing:
            raise OSError(errno.EIO, "Input/output error")
        return original(path, *args, **named)

    monkeypatch.setattr("utils.files.os.open", open_or_fail)
    monkeypatch.setattr("utils.files.RETRY_DELAYS", ())
    for cache in ("ram", "disk"):
        failing.append(True)
        with pytest.raises(UnreadableData, match="2.png: cannot be read: Input/output error$"):
            list(loader_of(index, cache=cache))
        failing.clear()
        [batch] = loader_of(index, cache=cache)
        assert batch.images[:, 0, 0, 0].tolist() == [0, 10, 20, 30] and len(batch.targets) == 4


TRAINING, VALIDATION = {"hyp": HYP, "shuffle": True}, {"rect": True, "pad": 0.5}


@pytest.mark.parametrize("cache, workers, start_method, settings", [
    ("ram", 0, None, TRAINING), ("ram", 0, None, VALIDATION),
    ("ram", 2, "fork", TRAINING), ("ram", 2, "spawn", TRAINING),
    ("disk", 0, None, TRAINING), ("disk", 2, "fork", TRAINING), ("disk", 2, "fork", VALIDATION),
])  # fmt: skip
def test_caches_change_nothing(index, cache, workers, start_method, settings, monkeypatch):
    monkeypatch.setattr(machine, "usable_cores", lambda: 8)
    uncached = loader_of(index, **settings)
    cached = loader_of(index, cache=cache, workers=workers, start_method=start_method, **settings)
    for epoch in (0, 1):
        assert_same(epoch_of(uncached, epoch), epoch_of(cached, epoch))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> LabelIndex:
    """Write JPEGs, some slightly higher than --imgsz 96. The lower tiles of a mosaic need only their upper rows."""
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for k, (height, width) in enumerate(
        [(97, 72), (98, 40), (96, 96), (96, 64), (64, 96), (200, 150), (150, 200), (110, 96)]
    ):
        image = cv2.resize(rng.integers(0, 256, (9, 9, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{k}.jpg"), image)
        (folder / f"{k}.txt").write_text("0 .5 .5 .5 .5\n")
    return load_index(folder, 1, progress=False, cache=False)


@pytest.mark.parametrize("cache, workers", [("ram", 0), ("ram", 2), ("disk", 0), ("disk", 2)])
def test_partly_read_images_equal_those_of_a_cache(photographs, cache, workers, monkeypatch):
    monkeypatch.setattr(machine, "usable_cores", lambda: 8)
    settings = {"hyp": HYP | {"degrees": 0.0, "mosaic": 1.0}, "shuffle": True, "imgsz": 96}
    uncached = loader_of(photographs, workers=workers, **settings)
    cached = loader_of(photographs, workers=workers, cache=cache, **settings)
    for epoch in range(4):
        assert_same(epoch_of(uncached, epoch), epoch_of(cached, epoch))


def test_mosaic_reads_only_the_visible_rows(photographs, monkeypatch):
    heights, original = [], image_cache.read_resized

    def read(path: str, shape: tuple[int, int], **settings: object) -> np.ndarray:
        image = original(path, shape, **settings)
        heights.append((len(image), shape[0]))
        return image

    monkeypatch.setattr(image_cache, "read_resized", read)
    epoch_of(loader_of(photographs, hyp={"mosaic": 1.0, "scale": 0.5, "translate": 0.1}, imgsz=96), 0)
    assert sum(part < whole for part, whole in heights) > len(heights) / 5
    assert sum(part == whole for part, whole in heights) > len(heights) / 3  # the upper tiles


def test_disk_cache_keeps_whole_images(photographs, monkeypatch):
    images = loader_of(photographs, hyp=HYP, imgsz=90, cache="disk").dataset.images
    read = reads(monkeypatch)
    assert len(images.read(5, 20)) == images.shape(5)[0] == 90 and read == [photographs.paths[5]]
    assert len(images.read(5)) == 90 and len(read) == 1


def test_ram_cache_reads_each_image_once(index, monkeypatch):
    read = reads(monkeypatch)
    loader = loader_of(index, cache="ram", hyp=HYP)
    list(loader)
    assert sorted(read) == index.paths


@pytest.fixture
def own_set(tmp_path, monkeypatch) -> LabelIndex:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home/.cache"))
    (tmp_path / "set/images").mkdir(parents=True)
    for k in range(3):
        cv2.imwrite(str(tmp_path / f"set/images/{k}.png"), np.full((80, 100, 3), 50 * k, np.uint8))
    return load_index(tmp_path / "set/images", 1, progress=False, cache=False)


def test_disk_cache_is_beside_the_images_and_outlives_the_loader(own_set, tmp_path, monkeypatch):
    first = list(loader_of(own_set, cache="disk"))
    assert len(list((tmp_path / "set/images.npy_cache").iterdir())) == 3
    assert len(list((tmp_path / "set/images").iterdir())) == 3
    read = reads(monkeypatch)
    assert_same(list(loader_of(own_set, cache="disk")), first)
    assert read == []
    list(loader_of(own_set, cache="disk", imgsz=32))
    assert len(read) == 3  # another image size


def test_disk_cache_is_never_stale(own_set):
    list(loader_of(own_set, cache="disk"))
    path = own_set.paths[1]
    size, time = os.path.getsize(path), os.stat(path).st_mtime_ns
    cv2.imwrite(path, np.full((80, 100, 3), 51, np.uint8))
    os.utime(path, ns=(time + 1, time + 1))
    assert os.path.getsize(path) == size
    [batch] = loader_of(own_set, cache="disk")
    assert batch.images[:, 0, 32, 32].tolist() == [0, 51, 100]
    cv2.imwrite(path, np.full((80, 100, 3), 52, np.uint8))
    os.utime(path, ns=(time + 1, time + 1))  # set back, as by cp -p and rsync
    [batch] = loader_of(own_set, cache="disk")
    assert batch.images[:, 0, 32, 32].tolist() == [0, 52, 100]


def giant(whole: bytes) -> bytes:
    """Return the .npy file with a header that states a thousand terabytes."""
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
def test_damaged_files_of_the_disk_cache_are_written_again(own_set, tmp_path, damage):
    first = list(loader_of(own_set, cache="disk"))
    for path in (tmp_path / "set/images.npy_cache").iterdir():
        path.write_bytes(damage(path.read_bytes()))
    assert_same(list(loader_of(own_set, cache="disk")), first)


def test_disk_cache_of_a_read_only_set_is_in_the_home_folder(own_set, tmp_path):
    (tmp_path / "set").chmod(0o555)
    try:
        list(loader_of(own_set, cache="disk"))
    finally:
        (tmp_path / "set").chmod(0o755)
    assert not (tmp_path / "set/images.npy_cache").exists()
    assert len(list((tmp_path / "home/.cache/anchorage/images").rglob("*.npy"))) == 3


def test_images_stay_uncached_if_the_cache_folder_cannot_be_written(own_set, tmp_path, capsys):
    (tmp_path / "set/images.npy_cache").write_text("a file is in the way")
    [batch] = loader_of(own_set, cache="disk")
    assert batch.images[:, 0, 32, 32].tolist() == [0, 50, 100]
    assert capsys.readouterr().err.count("Images stay uncached") == 1


def test_cache_that_does_not_fit_is_skipped_with_a_line(index, capsys, monkeypatch):
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


def test_bytes_needed_are_known_beforehand(index):
    images = image_cache.ImageReader(index, 64, smooth=False)
    assert images.bytes_needed() == sum(images.read(i).nbytes for i in range(len(index)))
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


def test_small_splits_are_cached_by_default(index, monkeypatch):
    need = image_cache.ImageReader(index, 64, smooth=False).bytes_needed()
    for free, kind in ((11 * need, image_cache.RamCache), (9 * need, image_cache.ImageReader)):
        monkeypatch.setattr(image_cache, "available_memory", lambda free=free: free)
        assert type(loader_of(index, cache="auto").dataset.images) is kind


def test_what_a_killed_process_left_in_the_cache_on_disk_is_removed(tmp_path, leave_behind):
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.png"), np.zeros((64, 32, 3), np.uint8))
    left = leave_behind(tmp_path / "images.npy_cache" / "a.png.64.npy")
    index = load_index(tmp_path / "images", 1, progress=False, cache=False)
    image_cache.DiskCache(index, 64, smooth=False).read(0)
    assert not left.exists() and [path.name for path in left.parent.iterdir()] == ["a.png.64.npy"]
