"""Data set folders that the converters write: whole or not at all, names that stay inside, clear errors."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from data.scripts.coco_to_yolo import main
from utils.datasets.yolo_writer import Dataset, box_row, link_or_copy, new_folder, safe_name, write_dataset
from utils.errors import UserError


def write_image(path: Path, height: int = 100, width: int = 200) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((height, width, 3), 90, np.uint8))
    return path


def rows(folder: Path, split: str, stem: str) -> list[list[float]]:
    lines = (folder / f"labels/{split}/{stem}.txt").read_text().splitlines()
    return [[float(value) for value in line.split()] for line in lines]


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(f): (f.read_bytes(), f.stat().st_mtime_ns) for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.mark.parametrize(
    "box, expected",
    [
        ((10, 20, 50, 40), "3 0.150000 0.300000 0.200000 0.200000"),  # inside a 200 x 100 image
        ((-10, -10, 100, 50), "3 0.250000 0.250000 0.500000 0.500000"),  # cut at the image
        ((150, 50, 900, 900), "3 0.875000 0.750000 0.250000 0.500000"),
        ((50, 20, 50, 40), None),  # no width
        ((50, 40, 10, 20), "3 0.150000 0.300000 0.200000 0.200000"),  # swapped corners
        ((250, 20, 300, 40), None),  # beside the image
        ((10, 10, 10.00001, 20), None),  # zero as written
    ],
)
def test_box_row(box, expected):
    assert box_row(3, box, (100, 200)) == expected


@pytest.mark.parametrize("name", ["../a.jpg", "/etc/a.jpg", "x/../../a.jpg", "..\\a.jpg", "C:/a.jpg", "", "c:a.jpg"])
def test_names_that_lead_out_are_refused(name):
    with pytest.raises(UserError, match="leads out of its folder"):
        safe_name(name)


@pytest.mark.parametrize("name, expected", [("a.jpg", "a.jpg"), ("x/a.jpg", "x/a.jpg"), ("x\\a.jpg", "x/a.jpg")])
def test_names_below_the_folder_are_kept(name, expected):
    assert safe_name(name) == expected


def test_a_folder_that_a_killed_process_left_is_removed(tmp_path, leave_behind):
    left = leave_behind(tmp_path / "out", folder=True)
    with new_folder(tmp_path / "out") as draft:
        assert [*tmp_path.iterdir()] == [draft]
    assert not left.exists() and [*tmp_path.iterdir()] == [tmp_path / "out"]


def test_folder_appears_when_whole(tmp_path):
    def interrupt() -> None:
        with new_folder(tmp_path / "out") as draft:
            (draft / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert list(tmp_path.iterdir()) == []
    with new_folder(tmp_path / "out") as draft:
        (draft / "whole").touch()
        assert not (tmp_path / "out").exists()
    assert [f.name for f in (tmp_path / "out").iterdir()] == ["whole"]


def test_full_folder_is_refused(tmp_path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UserError, match="not empty: give another --output"), new_folder(tmp_path):
        pass
    assert [f.name for f in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("copy", [True, False])
def test_images_are_linked_or_copied(tmp_path, copy):
    source = write_image(tmp_path / "a.jpg")
    link_or_copy(source, tmp_path / "x" / "b.jpg", copy=copy)
    assert (tmp_path / "x" / "b.jpg").is_symlink() != copy
    assert (tmp_path / "x" / "b.jpg").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("copy", [True, False])
def test_an_image_is_never_written_through_a_link(copy, tmp_path):
    first, second = (write_image(tmp_path / name) for name in ("a.jpg", "b.jpg"))
    second.write_bytes(b"another image")
    before = first.read_bytes()
    (tmp_path / "link.jpg").symlink_to(first)
    with pytest.raises(FileExistsError):
        link_or_copy(second, tmp_path / "link.jpg", copy=copy)
    assert first.read_bytes() == before


def test_images_that_would_share_a_label_file_get_other_names(tmp_path):
    dataset = Dataset(["thing"])
    for number, name in enumerate(("a.jpg", "a.png", "a_png.png", "a.png")):
        dataset.add("train", write_image(tmp_path / name), name=name, rows=[f"0 .5 .5 .2 .{number + 1}"])
    write_dataset(dataset, tmp_path / "out", progress=False)
    assert {file.name for file in (tmp_path / "out/images/train").iterdir()} == {"a.jpg", "a_png.png", "a_png_png.png"}
    assert rows(tmp_path / "out", "train", "a_png") == [[0, 0.5, 0.5, 0.2, 0.2], [0, 0.5, 0.5, 0.2, 0.4]]  # a.png
    assert rows(tmp_path / "out", "train", "a_png_png") == [[0, 0.5, 0.5, 0.2, 0.3]]


@pytest.mark.parametrize(
    "split", [["train", "."], ["training", ".", "."], ["train", ".", ".", "."], ["train", ".", "absent"]]
)
def test_wrong_split_is_one_clear_error(tmp_path, monkeypatch, split):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--split"):
        main(["--output", "out", "--split", *split])


def test_split_given_twice_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="once for each of train, val, test"):
        main(["--output", "out", "--split", "val", ".", ".", "--split", "val", ".", "."])


@pytest.mark.parametrize("script", ["coco_to_yolo", "voc_to_yolo", "make_shapes"])
def test_scripts_start_as_files_from_anywhere(tmp_path, script):
    file = Path(__file__).resolve().parents[2] / "data" / "scripts" / f"{script}.py"
    done = subprocess.run([sys.executable, str(file), "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "usage:" in done.stdout
    bad = subprocess.run(
        [sys.executable, str(file), "--split", "train", "x", "y", "--output", "z", "--seed", "-1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert bad.returncode in (1, 2) and bad.stderr.startswith("error: ") and bad.stderr.count("\n") == 1
