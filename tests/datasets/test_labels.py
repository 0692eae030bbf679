"""Index of a split: what is skipped and reported, what is printed, the same from threads and processes."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from small_splits import make_split, scan, write_image, write_labels

from utils import machine
from utils.datasets import image_files, labels
from utils.datasets.label_cache import cache_file
from utils.datasets.labels import describe_absent_labels, load_index
from utils.errors import UserError


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    return make_split(tmp_path, monkeypatch)


# ---- skipped images and rows


def test_unusable_images_are_skipped_named_and_counted(folder):
    (folder / "images/train/b.jpg").write_bytes(b"")
    (folder / "images/train/c.jpg").write_bytes((folder / "images/train/c.jpg").read_bytes()[:-40])
    index = scan(folder)
    assert [Path(path).name for path in index.paths] == ["a.jpg"]
    assert index.counts == (1, 0, 0, 2)
    assert "b.jpg: image skipped: the file is empty" in index.messages[0]
    assert "c.jpg: image skipped: " in index.messages[1] and "is truncated" in index.messages[1]


def test_nothing_usable_is_an_error_that_gives_the_first_reason(tmp_path):
    write_labels(tmp_path / "x.jpg", "")
    with pytest.raises(UserError, match="none of the 1 images .* the file is empty"):
        load_index(tmp_path, 1, progress=False, cache=False)


def test_binary_rubbish_keeps_the_image_and_does_not_flood(folder):
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


def test_the_index_is_flat_and_gives_back_each_images_labels(folder):
    write_labels(folder / "labels/train/c.txt", "1 .5 .5 .2 .2\n2 .1 .1 .3 .1 .3 .4\n0 0 0 .5 0 .5 .5 0 .5\n")
    index = scan(folder)
    assert index.counts == (2, 0, 1, 0) and index.offsets.tolist() == [0, 2, 2, 5]
    assert index.shapes.tolist() == [[24, 32]] * 3 and index.shapes.dtype == np.int32
    assert index.labels.dtype == index.points.dtype == np.float32
    assert index.boxes(1).shape == (0, 5) and index.polygons(1) == []
    assert [polygon.shape for polygon in index.polygons(2)] == [(0, 2), (3, 2), (4, 2)]
    np.testing.assert_allclose(index.polygons(2)[1], [[0.1, 0.1], [0.3, 0.1], [0.3, 0.4]])
    np.testing.assert_allclose(index.boxes(0), [[0, 0.5, 0.5, 0.2, 0.2], [1, 0.25, 0.25, 0.5, 0.5]])


def test_many_images_scanned_in_chunks_stay_in_order(tmp_path):
    for k in range(150):
        write_image(tmp_path / f"images/{k:03}.png", 10 + k, 12)
        write_labels(tmp_path / f"labels/{k:03}.txt", f"{k} .5 .5 .2 .2\n" * (k % 3 > 0))
    index = load_index(tmp_path / "images", 150, progress=False, cache=False)
    assert index.shapes[:, 0].tolist() == list(range(10, 160))
    assert all(index.boxes(k)[:, 0].tolist() == [k] * (k % 3 > 0) for k in range(150))


def test_processes_find_what_threads_find(tmp_path, monkeypatch):
    for k in range(150):
        write_image(tmp_path / f"set/images/{k:03}.png", 10 + k, 12)
        write_labels(tmp_path / f"set/labels/{k:03}.txt", "2 .1 .1 .3 .1 .3 .4\nbad\n" * (k % 3) + f"{k} .5 .5 .2 .2\n")
    write_labels(tmp_path / "set/images/007.png", "")
    monkeypatch.setattr(machine, "usable_cores", lambda: 3)
    threads = load_index(tmp_path / "set/images", 150, progress=False)
    file = cache_file([tmp_path / "set/images"])
    cache = file.read_bytes()
    monkeypatch.setattr(image_files, "MANY_IMAGES", 1)
    file.unlink()
    processes = load_index(tmp_path / "set/images", 150, progress=False)
    assert file.read_bytes() == cache
    assert (processes.paths, processes.messages, processes.counts) == (threads.paths, threads.messages, threads.counts)
    with pytest.raises(UserError, match="003.txt:1: class 3, but the data set names 3 classes"):
        load_index(tmp_path / "set/images", 3, progress=False)


# ---- messages


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
    write_image(tmp_path / "images/x.png")
    load_index(tmp_path / "images", 1, cache=False)
    printed = capsys.readouterr()
    assert "WARNING: no labels. Those of" in printed.err and f"expected in {tmp_path}/labels/x.txt" in printed.err


def test_labels_that_were_all_refused_are_not_said_to_be_absent(tmp_path, capsys):
    image = write_image(tmp_path / "images/x.png")
    path = write_labels(tmp_path / "labels/x.txt", "0 5 5 9 9\n")
    index = load_index(image, 1, cache=False)
    assert (
        f"WARNING: no labels. All rows of the label files were refused, the first is {path}:1: "
        in capsys.readouterr().err
    )
    assert describe_absent_labels(index).startswith("All rows")


@pytest.mark.parametrize("corners", [True, False])
def test_rows_that_are_corners_are_recognised(tmp_path, capsys, corners):
    """x1 y1 x2 y2 are valid as a centre and a size, only the boxes are absurd."""
    rng = np.random.default_rng(0)
    image = write_image(tmp_path / "images/x.png")
    low, size = rng.uniform(0.02, 0.5, (20, 2)), rng.uniform(0.05, 0.4, (20, 2))
    boxes = np.concatenate((low, low + size) if corners else (low + size / 2, size), 1)
    write_labels(tmp_path / "labels/x.txt", "".join(f"0 {' '.join(f'{v:.6f}' for v in box)}\n" for box in boxes))
    load_index(image, 1, cache=False)
    assert ("look like corners (class x1 y1 x2 y2)" in capsys.readouterr().err) is corners


@pytest.mark.parametrize("keypoints", [True, False])
def test_rows_with_keypoints_are_recognised_without_kpt_shape(tmp_path, capsys, keypoints):
    rng = np.random.default_rng(0)
    image = write_image(tmp_path / "images/x.png")
    rows = []
    for _ in range(20):
        center, size = rng.uniform(0.3, 0.7, 2), rng.uniform(0.05, 0.4, 2)
        points = (center + size * rng.uniform(-0.5, 0.5, (4, 2))).ravel()
        rows.append([*center, *size, *points] if keypoints else [*points, *points[:4] + 0.01])
    write_labels(tmp_path / "labels/x.txt", "".join(f"0 {' '.join(f'{v:.6f}' for v in row)}\n" for row in rows))
    load_index(image, 1, cache=False)
    assert ("look like boxes with keypoints" in capsys.readouterr().err) is keypoints


@pytest.mark.parametrize("kind", ["folder", "too large"])
def test_an_image_whose_label_file_is_none_is_skipped(folder, monkeypatch, kind):
    path = folder / "labels/train/a.txt"
    if kind == "folder":
        path.unlink()
        path.mkdir()
    else:
        monkeypatch.setattr(labels, "MAX_LABEL_BYTES", 8)
    index = scan(folder)
    assert index.counts == (0, 1, 1, 1)
    assert f"a.jpg: image skipped: its label file {path} cannot be read" in index.messages[0]


def test_keypoints_are_part_of_the_cache(folder):
    write_labels(folder / "labels/train/a.txt", "0 .8 .8 .1 .1 .7 .8 .9 .8\n")
    assert len(scan(folder).polygons(0)[0]) == 4
    assert scan(folder, keypoint_values=4).boxes(0)[0].tolist() == pytest.approx([0, 0.8, 0.8, 0.1, 0.1])
    assert [len(polygon) for polygon in scan(folder, keypoint_values=4).polygons(0)] == [0]


def test_coco128(reference):
    index = load_index(reference / "datasets/coco128/images/train2017", 80, progress=False, cache=False)
    assert index.counts == (126, 0, 2, 0) and len(index.labels) == 929 and index.messages == []
    decoded = [cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR).shape[:2] for path in index.paths[:16]]
    assert index.shapes[:16].tolist() == [list(shape) for shape in decoded]


def test_a_long_list_of_skipped_rows_is_cut_on_the_console(tmp_path, monkeypatch, capsys):
    folder = make_split(tmp_path, monkeypatch)
    monkeypatch.setattr(labels, "REPORTED_MESSAGES", 3)
    write_labels(folder / "labels/train/c.txt", "0 .5 .5 0 0\n" * 9)
    index = load_index(folder / "images/train", 3)
    printed = capsys.readouterr().out
    assert len(index.messages) == 9 and printed.count("no area") == 3
    assert "6 more images and rows are skipped: check.py counts them all" in printed
