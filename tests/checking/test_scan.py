"""The scan of a data set for its checks: as training reads it, but to the end."""

import json

import pytest
from scanned_sets import findings_of, places, scan, scan_rows, write_image, write_set

from utils.checking.box_pairs import check_box_pairs
from utils.checking.file_names import check_label_files
from utils.checking.scan import label_lines
from utils.checking.skipped import check_skipped
from utils.datasets.label_cache import cache_file
from utils.errors import UserError

ROW = "0 .5 .5 .2 .2\n"


def test_splits_with_the_same_images_are_scanned_once(tmp_path):
    data = scan_rows(tmp_path, ROW)
    assert list(data.splits) == ["train"] and data.same == {"val": "train"}


def test_classes_beyond_the_names_do_not_end_the_scan_and_leave_no_cache(tmp_path):
    data = scan_rows(tmp_path, ROW, "7 .5 .5 .2 .2\n")
    assert data.splits["train"].index.labels[:, 0].tolist() == [0, 7]
    assert not cache_file([tmp_path / "images/train"]).exists()
    scan_rows(tmp_path, ROW, ROW)
    assert cache_file([tmp_path / "images/train"]).exists()  # of rows that training accepts


def test_a_split_without_a_usable_image_leaves_the_others(tmp_path):
    file = write_set(tmp_path, {"train": {"a.jpg": ROW}, "val": {"b.jpg": ROW}})
    (tmp_path / "images/val/b.jpg").write_bytes(b"")
    data = scan(file)
    assert list(data.splits) == ["train"] and "none of the 1 images" in data.unusable["val"]
    (tmp_path / "images/train/a.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="none of the 1 images"):
        scan(file)


@pytest.mark.parametrize(
    "text, lines",
    [
        ("", []),
        (ROW, [1]),
        ("\ufeff\n" + ROW + "\n1 .5 .5 .1 .1\n", [2, 4]),  # a byte order mark and empty lines
        (ROW + ROW + "0 9 9 9 9\n0 .5 .5 .3 .3", [1, 4]),  # repeated and refused rows
        ("0 .1 .1 .5 .1 .5 .5\nx\n0 .1 .1 .5 .1 .6 .6\n", [1, 3]),
    ],
)
def test_the_lines_of_the_valid_rows(text, lines):
    assert label_lines(text.encode()) == lines


def test_an_example_names_the_line_and_the_box(tmp_path):
    split = scan_rows(tmp_path, ROW, "\n1 .5 .5 .1 .1\n0 .25 .5 .5 .5\n").splits["train"]
    example = split.label_example(2, "wide", others=[1])
    assert example.place == f"{tmp_path}/labels/train/1.txt:3" and example.detail == "wide"
    assert example.image == f"{tmp_path}/images/train/1.jpg"
    assert [box[0] for box in example.boxes] == [0, 1] and example.boxes[0] == (0, 0.25, 0.5, 0.5, 0.5)
    assert len(split.image_example(1, with_boxes=True).boxes) == 2 and split.image_example(1).boxes == ()


def test_a_label_file_that_has_changed_meanwhile_has_no_lines(tmp_path):
    split = scan_rows(tmp_path, ROW).splits["train"]
    (tmp_path / "labels/train/0.txt").write_text(ROW + "1 .5 .5 .1 .1\n")
    assert split.label_example(0).line == 0
    (tmp_path / "labels/train/0.txt").unlink()
    assert split.label_example(0).place == f"{tmp_path}/labels/train/0.txt"


def write_coco(root, annotations):
    write_image(root / "train/a.jpg")
    boxes = [{"id": k, "image_id": 1, "category_id": 5, "bbox": box} for k, box in enumerate(annotations)]
    content = {"images": [{"id": 1, "file_name": "a.jpg", "width": 96, "height": 64}], "annotations": boxes}
    (root / "train.json").write_text(json.dumps(content | {"categories": [{"id": 5, "name": "ship"}]}))
    (root / "data.yaml").write_text(f"path: {root}\ntrain: train.json\nval: train.json\n")
    return scan(root / "data.yaml")


def test_labels_of_a_coco_file_have_their_image_as_the_place(tmp_path):
    data = write_coco(tmp_path, [[10, 10, 30, 30], [10, 10, 30, 31], [10, 10, 30, 30], [5, 5, 0, 3]])
    (tmp_path / "train/a.txt").write_text("0 .5 .5 .2 .2\n0 .5 .5 .3 .3\n")  # of other labels, which are not read
    example = data.splits["train"].label_example(1)
    assert example.place == example.image == f"{tmp_path}/train/a.jpg" and example.detail == "annotation 1"
    assert findings_of(check_label_files, data) == {}  # there are no label files to miss
    assert findings_of(check_box_pairs, data)["near-duplicate"].count == 1
    found = findings_of(check_skipped, data)
    assert {check: (one.level, one.count) for check, one in found.items()} == {
        "repeated-object": ("warning", 1), "skipped-object": ("error", 1),
    }  # fmt: skip
    assert (
        places(found["skipped-object"]) == ["train.json"] and "annotation" in found["skipped-object"].examples[0].detail
    )


def test_labels_of_pascal_voc_have_their_xml_file_as_the_place(tmp_path):
    write_image(tmp_path / "train/a.jpg")
    box = "<bndbox><xmin>9</xmin><ymin>9</ymin><xmax>40</xmax><ymax>40</ymax></bndbox>"
    text = f"<annotation><filename>a.jpg</filename><object><name>ship</name>{box}</object></annotation>"
    (tmp_path / "train/a.xml").write_text(text)
    (tmp_path / "data.yaml").write_text(f"path: {tmp_path}\ntrain: train\nval: train\n")
    split = scan(tmp_path / "data.yaml").splits["train"]
    assert split.label_example(0).place == f"{tmp_path}/train/a.xml" and split.names == {0: "ship"}
