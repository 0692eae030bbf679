"""Label cache: read only if nothing has changed, and scanned again if it is damaged."""

import errno
import os
import pickle
import shutil
import zipfile
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT, draw_boxes
from small_splits import make_split, scan, write_image, write_labels

from utils.datasets import label_cache, labels
from utils.datasets.image_files import find_images, label_path
from utils.datasets.label_index import ARRAYS
from utils.datasets.labels import load_index
from utils.errors import UserError

KEPT = ROOT / "tests" / "kept"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    return make_split(tmp_path, monkeypatch)


def cache_of(folder: Path) -> Path:
    """Return the cache file of `make_split`'s images."""
    return label_cache.cache_file([folder / "images/train"])


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def watch_scans(monkeypatch) -> list[str]:
    """Return a list that collects the paths scanned from now on."""
    scanned: list[str] = []
    original = labels.image_shape
    monkeypatch.setattr(labels, "image_shape", lambda path, pixels: scanned.append(path) or original(path, pixels))
    return scanned


def test_the_cache_gives_the_same_index_and_is_the_only_file_written(folder, tmp_path, monkeypatch):
    write_labels(folder / "labels/train/c.txt", "2 .1 .1 .3 .1 .3 .4\nbad\n")
    (folder / "images/train/b.jpg").write_bytes(b"")
    before = state(tmp_path)
    first = scan(folder)
    after = state(tmp_path)
    [cache] = after.keys() - before.keys()
    assert cache.startswith(f"{tmp_path}/cache/anchorage/labels/") and before.items() <= after.items()
    scanned = watch_scans(monkeypatch)
    second = scan(folder)
    assert scanned == []
    assert (second.paths, second.counts, second.messages) == (first.paths, first.counts, first.messages)
    for name in ARRAYS:
        assert getattr(first, name).dtype == getattr(second, name).dtype
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


# Format 2 held rows, and format 3 sizes of images, that are now read otherwise.
@pytest.mark.parametrize("number, scans", [(4, 0), (3, 8), (2, 8)])
def test_kept_caches_of_each_format(tmp_path, monkeypatch, number, scans):
    """The kept files were written for these images by earlier versions. Their stamps are of other files."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for image_number in range(8):
        image, rows = draw_boxes(rng, int(rng.integers(1, 4)))
        write_labels(tmp_path / f"labels/train/{image_number}.txt", "".join(rows))
        (tmp_path / "images/train").mkdir(parents=True, exist_ok=True)
        cv2.imwrite(f"images/train/{image_number}.png", image)
    fresh = load_index("images/train", 2, progress=False, cache=False)
    with np.load(KEPT / f"labels-format{number}.cache") as arrays:
        stamps = arrays["stamps"]
    monkeypatch.setattr(label_cache, "stamp_files", lambda paths: stamps)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = label_cache.cache_file(["images/train"])
    file.parent.mkdir(parents=True)
    shutil.copy(KEPT / f"labels-format{number}.cache", file)
    scanned = watch_scans(monkeypatch)
    kept = load_index("images/train", 2, progress=False)
    assert len(scanned) == scans
    assert (kept.paths, kept.counts, kept.messages) == (fresh.paths, fresh.counts, fresh.messages)
    for name in ARRAYS:
        assert getattr(kept, name).dtype == getattr(fresh, name).dtype
        np.testing.assert_array_equal(getattr(kept, name), getattr(fresh, name))


@pytest.mark.parametrize("function", ["open", "read"])
@pytest.mark.parametrize("file", ["labels/train/a.txt", "images/train/a.jpg"])
@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.EACCES])
def test_read_errors_are_not_remembered(folder, monkeypatch, capsys, function, file, number):
    """The image is skipped, named, and there again in the next scan. It never becomes a background."""
    original = getattr(os, function)

    def fail(first, *args, **settings):
        path = os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else os.fspath(first)
        if str(path).endswith(file):
            raise OSError(number, os.strerror(number))
        return original(first, *args, **settings)

    monkeypatch.setattr("utils.files.RETRY_DELAYS", (0, 0))
    with monkeypatch.context() as patch:
        patch.setattr(os, function, fail)
        index = load_index(folder / "images/train", 3)
    assert index.counts == (0, 1, 1, 1) and f"{folder}/images/train/a.jpg" not in index.paths
    assert os.strerror(number) in index.messages[0] and "a.jpg: image skipped" in index.messages[0]
    assert scan(folder).counts == (1, 1, 1, 0)


def test_a_read_error_that_passes_costs_nothing(folder, monkeypatch):
    original, failures = os.open, [errno.EIO, errno.EMFILE]

    def fail_twice(path, *args, **settings):
        if str(path).endswith("a.txt") and failures:
            raise OSError(failures.pop(), "no luck")
        return original(path, *args, **settings)

    monkeypatch.setattr(os, "open", fail_twice)
    assert scan(folder).counts == (1, 1, 1, 0) and not failures and cache_of(folder).exists()


def test_a_disk_that_fails_ends_the_scan(folder, monkeypatch):
    for number in range(labels.MAX_UNREADABLE + 20):
        shutil.copy(folder / "images/train/a.jpg", folder / f"images/train/d{number}.jpg")

    def fail(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("utils.files.RETRY_DELAYS", ())
    monkeypatch.setattr(labels, "image_shape", lambda path, pixels: (24, 32))
    monkeypatch.setattr(labels, "read_regular", fail)
    with pytest.raises(UserError, match="more than 100 files cannot be read, the last is .*Input/output error"):
        scan(folder)


def test_an_edit_of_the_same_size_is_seen(folder):
    path = folder / "labels/train/a.txt"
    scan(folder)
    time = path.stat().st_mtime_ns
    write_labels(path, path.read_bytes().replace(b"1 .25", b"2 .35"))
    os.utime(path, ns=(time + 1, time + 1))
    assert scan(folder).boxes(0)[1, :2].tolist() == pytest.approx([2, 0.35])


@pytest.mark.parametrize("change", ["new image", "new label file", "label gone", "image edited", "other settings"])
def test_every_change_leads_to_a_new_scan(folder, monkeypatch, change):
    scan(folder)
    settings = {}
    if change == "new image":
        write_image(folder / "images/train/d.jpg")
    elif change == "new label file":
        write_labels(folder / "labels/train/c.txt", "0 .5 .5 .2 .2")
    elif change == "label gone":
        (folder / "labels/train/a.txt").unlink()
    elif change == "image edited":
        write_image(folder / "images/train/a.jpg", 30, 30)
    else:
        settings = {"single_cls": True}
    fresh = scan(folder, cache=False, **settings)
    scanned = watch_scans(monkeypatch)
    index = scan(folder, **settings)
    assert len(scanned) == len(find_images(folder / "images/train"))
    assert (index.paths, index.counts) == (fresh.paths, fresh.counts)
    np.testing.assert_array_equal(index.labels, fresh.labels)


def test_stamps_of_files_in_any_place(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (folder / "link").symlink_to(folder / "images")
    paths = [
        "set/images/train/a.jpg",
        "set/images/train/gone.jpg",
        "set/link/train/b.jpg",
        "c.jpg",
        "/no/d.jpg",
        "set/images/train/a.b.jpg",
        "set/images/train/c.jpg",
        str(folder / "images/train/b.jpg"),
        f"{os.sep}e.jpg",
    ]
    write_image(tmp_path / "c.jpg")
    write_image(folder / "images/train/a.b.jpg")
    write_labels(folder / "labels/train/a.b.txt", "0 .5 .5 .2 .2")

    def stamp(path: str) -> list[int]:
        if not os.path.exists(path):
            return [-1] * 3
        status = os.stat(path)
        return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]

    want = [stamp(path) + stamp(label_path(path)) for path in paths]
    assert label_cache.stamp_files(paths).tolist() == want and sum(row[0] > 0 for row in want) == 6
    monkeypatch.delattr(os, "O_PATH")  # other systems
    assert label_cache.stamp_files(paths).tolist() == want


@pytest.mark.parametrize("data", [b"", b"rubbish", b"PK\x03\x04 half a zip"])
def test_a_damaged_cache_is_scanned_again(folder, data):
    scan(folder)
    cache = cache_of(folder)
    whole = cache.read_bytes()
    cache.write_bytes(data)
    assert scan(folder).counts == (1, 1, 1, 0)
    for cut in (10, len(whole) // 2, len(whole) - 5):
        cache.write_bytes(whole[:cut])
        assert scan(folder).counts == (1, 1, 1, 0)


@pytest.mark.parametrize("error", [NotImplementedError, MemoryError, RuntimeError, zlib.error, SyntaxError])
def test_whatever_a_damaged_cache_makes_its_readers_raise_it_is_scanned_again(folder, monkeypatch, error):
    scan(folder)

    def load(*_, **__):
        raise error

    monkeypatch.setattr(label_cache.np, "load", load)
    assert scan(folder).counts == (1, 1, 1, 0)


def test_a_cache_that_unfolds_or_never_ends_is_not_read(folder, monkeypatch):
    scan(folder)
    scanned = watch_scans(monkeypatch)
    cache = cache_of(folder)
    with zipfile.ZipFile(cache) as whole, zipfile.ZipFile(folder / "packed", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
    shutil.copy(folder / "packed", cache)
    assert scan(folder).counts == (1, 1, 1, 0) and len(scanned) == 3
    cache.unlink()
    os.mkfifo(cache)
    assert scan(folder).counts == (1, 1, 1, 0) and len(scanned) == 6


def test_a_cache_with_a_pickle_or_false_offsets_is_not_believed(folder):
    scan(folder)
    cache = cache_of(folder)
    arrays = dict(np.load(cache))
    for name, value in (
        ("labels", np.array([object()])),
        ("offsets", np.array([0, 9, 9, 9])),
        ("segment_offsets", np.array([0, 5, 0])),
        ("shapes", np.zeros((1, 2), np.int32)),
    ):
        with open(cache, "wb") as file:
            np.savez(file, **(arrays | {name: value}))
        index = scan(folder)
        assert index.offsets.tolist() == [0, 2, 2, 2] and len(index.shapes) == 3


@pytest.mark.parametrize("of", ["YOLOv5", "an earlier version"])
def test_a_cache_beside_the_data_is_neither_read_nor_changed(folder, monkeypatch, of):
    """YOLOv5 writes pickles there. Earlier versions wrote the format of today."""
    beside = folder / "labels/train.cache"
    scan(folder)
    beside.write_bytes(pickle.dumps({"version": 0.6}) if of == "YOLOv5" else cache_of(folder).read_bytes())
    cache_of(folder).unlink()
    before, scanned = state(folder), watch_scans(monkeypatch)
    assert scan(folder).counts == (1, 1, 1, 0) and len(scanned) == 3
    assert state(folder) == before and cache_of(folder).is_file()


def test_a_data_set_whose_labels_cannot_be_cached_is_scanned_with_a_warning(folder, tmp_path, capsys):
    (tmp_path / "cache").write_text("a file is in the way")
    assert load_index(folder / "images/train", 3, prefix="val: ").counts == (1, 1, 1, 0)
    printed = capsys.readouterr().err
    assert f"WARNING: val: the labels cannot be cached: {tmp_path}/cache/anchorage/labels is not writable." in printed


def test_splits_of_one_labels_folder_have_caches_of_their_own(folder, tmp_path, monkeypatch):
    write_labels(folder / "labels/train/c.txt", "1 .5 .5 .2 .2\n")
    for name, images in (("train", "ab"), ("val", "c")):
        write_labels(folder / f"{name}.txt", "".join(f"./images/train/{image}.jpg\n" for image in images))
        assert len(load_index(folder / f"{name}.txt", 3, progress=False)) == len(images)
    load_index([folder / "train.txt", folder / "val.txt"], 3, progress=False)
    scanned = watch_scans(monkeypatch)
    for names in (["train"], ["val"], ["train", "val"]):
        load_index([folder / f"{name}.txt" for name in names], 3, progress=False)
    assert not scanned and len(list((tmp_path / "cache/anchorage/labels").iterdir())) == 3


def test_one_split_has_one_cache_from_wherever_it_is_read(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert label_cache.cache_file(["images/train/"]) == cache_of(folder) != label_cache.cache_file(["images"])


@pytest.mark.parametrize("chosen", ["/somewhere", "", "relative"])
def test_the_cache_folder_is_in_the_home_folder_unless_the_user_chose_another(monkeypatch, chosen):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_CACHE_HOME", chosen)
    expected = "/somewhere" if chosen == "/somewhere" else "/home/me/.cache"
    assert str(label_cache.user_cache_folder()) == f"{expected}/anchorage"


def test_the_cache_of_a_user_without_a_home_folder(monkeypatch, tmp_path):
    """Remove HOME and the entry of the user, as some containers do."""

    def fail():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert label_cache.user_cache_folder().parent == tmp_path


def test_what_a_killed_process_left_of_a_label_cache_is_removed(folder, leave_behind):
    left, other = leave_behind(cache_of(folder)), leave_behind(cache_of(folder / "other"))
    scan(folder)
    assert not left.exists() and other.exists() and cache_of(folder).is_file()
