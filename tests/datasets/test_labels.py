"""Which pictures are found, what is left out and said, and when the cache is believed."""

import os
import shutil
import zipfile
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from utils.datasets import image_files, label_cache, labels
from utils.datasets.image_files import find_images, label_path
from utils.datasets.labels import load_index
from utils.errors import UserError


def write_picture(path: Path, height: int = 24, width: int = 32, value: int = 90) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(value).integers(0, 255, (height, width, 3), np.uint8)
    path.write_bytes(cv2.imencode(path.suffix, noise)[1].tobytes())
    return path


def write_labels(path: Path, data: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Three pictures a, b, c; a has two boxes, b an empty label file, c none. The home folder is a temporary one."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in "abc":
        write_picture(tmp_path / f"set/images/train/{name}.jpg")
    write_labels(tmp_path / "set/labels/train/a.txt", "0 .5 .5 .2 .2\n1 .25 .25 .5 .5\n")
    write_labels(tmp_path / "set/labels/train/b.txt", "\n")
    return tmp_path / "set"


def scan(folder: Path, num_classes: int = 3, **settings):
    return load_index(folder / "images/train", num_classes, progress=False, **settings)


# ---- which pictures


@pytest.mark.parametrize("picture, label", [
    ("/a/images/b/images/c.d.jpg", "/a/images/b/labels/c.d.txt"),  # the last folder `images`, the last suffix
    ("/x/y.jpg", "/x/y.txt"),  # no such folder: beside the picture
    ("images/z.png", "labels/z.txt"),  # a relative path may begin with it
    ("my_images/z.png", "my_images/z.txt"),  # part of a name is not a folder
    ("/images/images/z.png", "/images/labels/z.txt"),
    ("/a/images.jpg", "/a/images.txt"),
])  # fmt: skip
def test_label_path(picture, label):
    assert label_path(picture) == label


def test_pictures_are_found_in_any_depth_with_any_case_and_sorted(tmp_path):
    for name in ("b/z.JPG", "b/deep/er/y.Png", "a.webp", "b/notes.md", ".hidden/x.jpg", "b/._z.jpg", "b/jpg"):
        write_labels(tmp_path / name, "x")
    found = [os.path.relpath(path, tmp_path) for path in find_images(tmp_path)]
    assert found == ["a.webp", "b/deep/er/y.Png", "b/z.JPG"]


def test_a_link_to_a_parent_does_not_lead_in_circles(tmp_path):
    write_picture(tmp_path / "a/x.png")
    (tmp_path / "a/again").symlink_to(tmp_path)
    assert len(find_images(tmp_path / "a")) == 1


def test_list_files(tmp_path, monkeypatch):
    beside, here = write_picture(tmp_path / "lists/images/a.png"), write_picture(tmp_path / "cwd/images/b.png")
    absolute = write_picture(tmp_path / "other/c.png")
    text = f"./images/a.png\r\nimages/a.png\nimages/b.png\n\n{absolute}\nnotes.md\n"
    split = write_labels(tmp_path / "lists/train.txt", b"\xef\xbb\xbf" + text.encode())
    monkeypatch.chdir(here.parents[1])
    assert find_images(split) == sorted([str(beside), str(beside), "images/b.png", str(absolute)])


def test_sources_may_mix_folders_lists_and_single_pictures(tmp_path):
    one, two, three = (write_picture(tmp_path / f"{name}/x.png") for name in "abc")
    split = write_labels(tmp_path / "list.txt", f"{two}\n")
    assert find_images([three, tmp_path / "a", split]) == [str(one), str(two), str(three)]


def test_an_absent_source_or_one_without_pictures_is_an_error(tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist"):
        find_images(tmp_path / "nowhere")
    with pytest.raises(UserError, match="val: no images in"):
        load_index(tmp_path, 1, prefix="val: ", progress=False)
    with pytest.raises(UserError, match="not a text file"):
        find_images(write_labels(tmp_path / "list.txt", b"\xff\xfe\x00"))


# ---- what is left out


def test_unusable_pictures_are_left_out_named_and_counted(folder):
    (folder / "images/train/b.jpg").write_bytes(b"")
    (folder / "images/train/c.jpg").write_bytes((folder / "images/train/c.jpg").read_bytes()[:-40])
    index = scan(folder)
    assert [Path(path).name for path in index.paths] == ["a.jpg"]
    assert index.counts == (1, 0, 0, 2)
    assert "b.jpg: image skipped: the file is empty" in index.messages[0]
    assert "c.jpg: image skipped: the picture is truncated" in index.messages[1]


def test_nothing_usable_is_an_error_that_gives_the_first_reason(tmp_path):
    write_labels(tmp_path / "x.jpg", "")
    with pytest.raises(UserError, match="none of the 1 images .* the file is empty"):
        load_index(tmp_path, 1, progress=False, cache=False)


def test_binary_rubbish_keeps_the_picture_and_does_not_flood(folder):
    write_labels(folder / "labels/train/a.txt", bytes(range(1, 256)) * 40)
    index = scan(folder)
    assert index.counts == (0, 1, 2, 0) and len(index) == 3
    assert 0 < len(index.messages) <= labels.NAMED_ROWS + 1 and "more rows skipped" in index.messages[-1]


def test_a_dropped_row_is_named_with_file_and_line(folder):
    path = write_labels(folder / "labels/train/a.txt", "0 .5 .5 .2 .2\n\n0 .5 .5\n")
    index = scan(folder)
    assert index.messages == [
        f"{path}:3: 3 numbers in the row: a box has 5 (class x y w h), "
        "a polygon an odd count of 7 or more (class x1 y1 x2 y2 x3 y3)"
    ]
    assert index.boxes(0).shape == (1, 5)


def test_an_unknown_class_is_an_error_that_names_file_and_line(folder):
    path = write_labels(folder / "labels/train/a.txt", "0 .5 .5 .2 .2\nrubbish\n3 .5 .5 .2 .2\n")
    with pytest.raises(UserError, match=rf"{path}:3: class 3, but the data set names 3 classes \(0\.\.\.2\)"):
        scan(folder)
    index = scan(folder, single_cls=True)
    assert index.labels[:, 0].tolist() == [0, 0]


# ---- the index


def test_the_index_is_flat_and_gives_back_each_pictures_labels(folder):
    write_labels(folder / "labels/train/c.txt", "1 .5 .5 .2 .2\n2 .1 .1 .3 .1 .3 .4\n0 0 0 .5 0 .5 .5 0 .5\n")
    index = scan(folder)
    assert index.counts == (2, 0, 1, 0) and index.offsets.tolist() == [0, 2, 2, 5]
    assert index.shapes.tolist() == [[24, 32]] * 3 and index.shapes.dtype == np.int32
    assert index.labels.dtype == index.points.dtype == np.float32
    assert index.boxes(1).shape == (0, 5) and index.polygons(1) == []
    assert [polygon.shape for polygon in index.polygons(2)] == [(0, 2), (3, 2), (4, 2)]
    np.testing.assert_allclose(index.polygons(2)[1], [[0.1, 0.1], [0.3, 0.1], [0.3, 0.4]])
    np.testing.assert_allclose(index.boxes(0), [[0, 0.5, 0.5, 0.2, 0.2], [1, 0.25, 0.25, 0.5, 0.5]])


def test_many_pictures_scanned_in_chunks_stay_in_order(tmp_path):
    for k in range(150):
        write_picture(tmp_path / f"images/{k:03}.png", 10 + k, 12)
        write_labels(tmp_path / f"labels/{k:03}.txt", f"{k} .5 .5 .2 .2\n" * (k % 3 > 0))
    index = load_index(tmp_path / "images", 150, progress=False, cache=False)
    assert index.shapes[:, 0].tolist() == list(range(10, 160))
    assert all(index.boxes(k)[:, 0].tolist() == [k] * (k % 3 > 0) for k in range(150))


def test_processes_find_what_threads_find(tmp_path, monkeypatch):
    for k in range(150):
        write_picture(tmp_path / f"set/images/{k:03}.png", 10 + k, 12)
        write_labels(tmp_path / f"set/labels/{k:03}.txt", "2 .1 .1 .3 .1 .3 .4\nbad\n" * (k % 3) + f"{k} .5 .5 .2 .2\n")
    write_labels(tmp_path / "set/images/007.png", "")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    threads = load_index(tmp_path / "set/images", 150, progress=False)
    cache = (tmp_path / "set/labels.cache").read_bytes()
    monkeypatch.setattr(image_files, "MANY_IMAGES", 1)
    (tmp_path / "set/labels.cache").unlink()
    processes = load_index(tmp_path / "set/images", 150, progress=False)
    assert (tmp_path / "set/labels.cache").read_bytes() == cache
    assert (processes.paths, processes.messages, processes.counts) == (threads.paths, threads.messages, threads.counts)
    with pytest.raises(UserError, match="003.txt:1: class 3, but the data set names 3 classes"):
        load_index(tmp_path / "set/images", 3, progress=False)


# ---- the cache


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def was_scanned(monkeypatch) -> list[str]:
    """Paths that image_shape is asked about from now on."""
    asked: list[str] = []
    original = labels.image_shape
    monkeypatch.setattr(labels, "image_shape", lambda path: asked.append(path) or original(path))
    return asked


def test_the_cache_gives_the_same_index_and_is_the_only_file_written(folder, monkeypatch):
    write_labels(folder / "labels/train/c.txt", "2 .1 .1 .3 .1 .3 .4\nbad\n")
    (folder / "images/train/b.jpg").write_bytes(b"")
    before = state(folder)
    first = scan(folder)
    cache = folder / "labels/train.cache"
    assert {path: value for path, value in state(folder).items() if path != str(cache)} == before and cache.is_file()
    asked = was_scanned(monkeypatch)
    second = scan(folder)
    assert asked == []
    assert (second.paths, second.counts, second.messages) == (first.paths, first.counts, first.messages)
    for name in ("shapes", "labels", "offsets", "points", "segment_offsets"):
        assert getattr(first, name).dtype == getattr(second, name).dtype
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_an_edit_of_the_same_size_is_seen(folder):
    path = folder / "labels/train/a.txt"
    scan(folder)
    time = path.stat().st_mtime_ns
    write_labels(path, path.read_bytes().replace(b"1 .25", b"2 .35"))
    os.utime(path, ns=(time + 1, time + 1))
    assert scan(folder).boxes(0)[1, :2].tolist() == pytest.approx([2, 0.35])


@pytest.mark.parametrize("change", ["new picture", "new label file", "label gone", "picture edited", "other settings"])
def test_every_change_leads_to_a_new_scan(folder, monkeypatch, change):
    scan(folder)
    settings = {}
    if change == "new picture":
        write_picture(folder / "images/train/d.jpg")
    elif change == "new label file":
        write_labels(folder / "labels/train/c.txt", "0 .5 .5 .2 .2")
    elif change == "label gone":
        (folder / "labels/train/a.txt").unlink()
    elif change == "picture edited":
        write_picture(folder / "images/train/a.jpg", 30, 30)
    else:
        settings = {"single_cls": True}
    fresh = scan(folder, cache=False, **settings)
    asked = was_scanned(monkeypatch)
    index = scan(folder, **settings)
    assert len(asked) == len(find_images(folder / "images/train"))
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
    write_picture(tmp_path / "c.jpg")
    write_picture(folder / "images/train/a.b.jpg")
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
def test_a_damaged_cache_is_scanned_anew(folder, data):
    scan(folder)
    cache = folder / "labels/train.cache"
    whole = cache.read_bytes()
    cache.write_bytes(data)
    assert scan(folder).counts == (1, 1, 1, 0)
    for cut in (10, len(whole) // 2, len(whole) - 5):
        cache.write_bytes(whole[:cut])
        assert scan(folder).counts == (1, 1, 1, 0)


@pytest.mark.parametrize("error", [NotImplementedError, MemoryError, RuntimeError, zlib.error, SyntaxError])
def test_whatever_a_damaged_cache_makes_its_readers_raise_it_is_scanned_anew(folder, monkeypatch, error):
    scan(folder)

    def load(*_, **__):
        raise error

    monkeypatch.setattr(label_cache.np, "load", load)
    assert scan(folder).counts == (1, 1, 1, 0)


def test_a_cache_that_unfolds_or_never_ends_is_not_read(folder, monkeypatch):
    scan(folder)
    asked = was_scanned(monkeypatch)
    cache = folder / "labels/train.cache"
    with zipfile.ZipFile(cache) as whole, zipfile.ZipFile(folder / "packed", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
    shutil.copy(folder / "packed", cache)
    assert scan(folder).counts == (1, 1, 1, 0) and len(asked) == 3
    cache.unlink()
    os.mkfifo(cache)
    assert scan(folder).counts == (1, 1, 1, 0) and len(asked) == 6


def test_a_cache_with_a_pickle_or_false_offsets_is_not_believed(folder):
    scan(folder)
    cache = folder / "labels/train.cache"
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


def test_a_read_only_data_set_is_cached_in_the_home_folder(folder, tmp_path, monkeypatch):
    (folder / "labels").chmod(0o555)
    scan(folder)
    (folder / "labels").chmod(0o755)
    assert not (folder / "labels/train.cache").exists()
    assert len(list((tmp_path / "home/.cache/anchorage/labels").iterdir())) == 1
    (folder / "labels").chmod(0o555)
    asked = was_scanned(monkeypatch)
    assert scan(folder).counts == (1, 1, 1, 0) and asked == []
    (folder / "labels").chmod(0o755)


def test_splits_of_one_labels_folder_have_caches_of_their_own(folder):
    write_labels(folder / "labels/train/c.txt", "1 .5 .5 .2 .2\n")
    for name, pictures in (("train", "ab"), ("val", "c")):
        write_labels(folder / f"{name}.txt", "".join(f"./images/train/{picture}.jpg\n" for picture in pictures))
        assert len(load_index(folder / f"{name}.txt", 3, progress=False)) == len(pictures)
        assert (folder / f"{name}.cache").is_file()
    load_index([folder / "train.txt", folder / "val.txt"], 3, progress=False)
    assert len(list((folder / "labels").glob("train-*.cache"))) == 1


def test_what_is_printed(folder, capsys):
    write_labels(folder / "labels/train/c.txt", "bad\n")
    for _ in range(2):  # scanned, then from the cache
        load_index(folder / "images/train", 3, prefix="train: ")
        printed = capsys.readouterr()
        assert "1 images, 2 backgrounds, 0 corrupt" in printed.out + printed.err
        assert printed.out.count("train: ") >= 1 and "c.txt:1: 1 numbers" in printed.out
    scan(folder)
    assert capsys.readouterr() == ("", "")


def test_a_split_without_any_label_says_where_they_are_expected(tmp_path, capsys):
    write_picture(tmp_path / "images/x.png")
    load_index(tmp_path / "images", 1, cache=False)
    printed = capsys.readouterr()
    assert "WARNING: no labels. Those of" in printed.err and f"expected in {tmp_path}/labels/x.txt" in printed.err


def test_coco128(reference):
    index = load_index(reference / "datasets/coco128/images/train2017", 80, progress=False, cache=False)
    assert index.counts == (126, 0, 2, 0) and len(index.labels) == 929 and index.messages == []
    decoded = [cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR).shape[:2] for path in index.paths[:16]]
    assert index.shapes[:16].tolist() == [list(shape) for shape in decoded]
