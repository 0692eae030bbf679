"""Findings on what training skips, from the messages of its scan."""

import pytest
from PIL import Image
from scanned_sets import findings_of, places, scan, scan_rows, write_image, write_set

from utils.checking.skipped import check_skipped, count_errors

ROW = "0 .5 .5 .2 .2\n"


def test_data_without_faults_has_no_finding(tmp_path):
    assert findings_of(check_skipped, scan_rows(tmp_path, ROW, "")) == {}


@pytest.mark.parametrize(
    "content, check",
    [
        (b"", "empty-image"),
        (b"GIF89a" + bytes(20), "gif-image"),
        (b"<html>not found</html>", "undecodable-image"),
        (None, "truncated-image"),  # its end is cut off
        (b"BM" + bytes(16) + b"\x05\0\0\0\x05\0\0\0" + bytes(100), "undecodable-image"),
    ],
)
def test_images_that_training_skips(tmp_path, content, check):
    file = write_set(tmp_path, {"train": {"a.jpg": ROW, "b.jpg": ROW}, "val": {"a.jpg": ROW}})
    image = tmp_path / "images/train/b.jpg"
    image.write_bytes(image.read_bytes()[:-40] if content is None else content)
    found = findings_of(check_skipped, scan(file))
    assert list(found) == [check] and found[check].level == "error" and places(found[check]) == ["b.jpg"]


def test_images_without_the_channels_that_the_yaml_states(tmp_path):
    """Training ends there, so the split as a whole is an error."""
    file = write_set(tmp_path, {"train": {"a.png": ROW, "b.jpg": ROW}, "val": {"a.png": ROW}})
    file.write_text(file.read_text() + "\nchannels: 4\n")
    for split in ("train", "val"):
        Image.new("RGBA", (96, 64)).save(tmp_path / f"images/{split}/a.png")
    found = findings_of(check_skipped, scan(file))
    assert list(found) == ["unusable-split"] and found["unusable-split"].split == "train"
    assert "b.jpg: has 3 channels, expected 4" in found["unusable-split"].text


def test_small_images_broken_links_and_label_files_that_are_folders(tmp_path):
    file = write_set(tmp_path, {"train": {"a.jpg": ROW, "folder.jpg": None}, "val": {"a.jpg": ROW}})
    write_image(tmp_path / "images/train/icon.png", 8, 8)
    (tmp_path / "images/train/link.jpg").symlink_to(tmp_path / "nothing.jpg")
    (tmp_path / "labels/train/folder.txt").mkdir()
    found = findings_of(check_skipped, scan(file))
    assert {check: places(finding) for check, finding in found.items()} == {
        "tiny-image": ["icon.png"], "unreadable-image": ["link.jpg"], "unreadable-label": ["folder.jpg"],
    }  # fmt: skip


@pytest.mark.parametrize(
    "row, check, level",
    [
        (ROW, "repeated-row", "warning"),
        ("0 40 60 20 20", "out-of-range", "error"),
        ("0 40 60 80 90", "corners", "error"),
        ("0 .5 .5 0 .2", "zero-area", "error"),
        ("1.5 .5 .5 .2 .2", "not-a-class", "error"),
        ("0 .5 .5 .2", "malformed-row", "error"),
        ("0,.5,.5,.2,.2", "malformed-row", "error"),
        ("0 .5 .5 .2 nan", "malformed-row", "error"),
    ],
)
def test_rows_that_training_skips(tmp_path, row, check, level):
    found = findings_of(check_skipped, scan_rows(tmp_path, ROW, f"{ROW}\n{row}\n"))
    assert list(found) == [check] and found[check].level == level and found[check].group == "labels"
    assert places(found[check]) == ["1.txt:3"] and found[check].examples[0].image.endswith("images/train/1.jpg")


def test_rows_that_are_only_counted_are_in_the_count(tmp_path):
    found = findings_of(check_skipped, scan_rows(tmp_path, ROW + "0 .5 .5 0 0\n" * 25))
    assert found["zero-area"].count == 25 and len(found["zero-area"].examples) == 10


def test_a_split_that_cannot_be_used_is_an_error(tmp_path):
    file = write_set(tmp_path, {"train": {"a.jpg": ROW}, "val": {"a.jpg": ROW}})
    (tmp_path / "images/val/a.jpg").write_bytes(b"")
    found = findings_of(check_skipped, scan(file))
    assert found["unusable-split"].split == "val" and "the file is empty" in found["unusable-split"].text


def test_errors_are_counted_without_warnings(tmp_path):
    index = scan_rows(tmp_path, ROW + ROW + "0 40 60 20 20\n0 .5 .5 0 0\n").splits["train"].index
    assert count_errors(index) == {"out-of-range": 1, "zero-area": 1}
    corners = "".join(f"0 {k / 100} .1 {0.5 + k / 25} .95\n" for k in range(1, 11))
    assert count_errors(scan_rows(tmp_path / "corners", corners).splits["train"].index) == {"corners": 10}


def test_a_test_split_that_cannot_be_used_is_a_warning(tmp_path):
    """Roboflow's YAML names one in archives without it too, and training starts."""
    file = write_set(tmp_path, {"train": {"a.jpg": ROW}, "val": {"a.jpg": ROW}})
    file.write_text(file.read_text() + "\ntest: ../test/images\n")
    found = findings_of(check_skipped, scan(file))["unusable-split"]
    assert found.level == "warning" and found.split == "test" and "Training does not need it" in found.advice
