"""COCO JSON to label files: the same objects, everything skipped is counted, inputs untouched."""

import json
from pathlib import Path

import numpy as np
import pytest
from test_yolo_writer import rows, snapshot, write_image

from data.scripts.coco_to_yolo import main
from utils.datasets.coco import join_parts
from utils.errors import UserError
from utils.files import read_yaml


def coco(**changes) -> dict:
    """Return two images 200 x 100, with categories whose ids are neither 0...n-1 nor in order."""
    data = {
        "images": [
            {"id": 7, "file_name": "a.jpg", "width": 200, "height": 100},
            {"id": 9, "file_name": "sub/b.jpg", "width": 200, "height": 100},
        ],
        "categories": [{"id": 30, "name": "zebra"}, {"id": 4, "name": "ape"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 7,
                "category_id": 4,
                "bbox": [20, 20, 40, 20],
                "iscrowd": 0,
                "segmentation": [[20, 20, 60, 20, 60, 40]],
            },
            {
                "id": 2,
                "image_id": 7,
                "category_id": 30,
                "bbox": [100, 50, 20, 20],
                "iscrowd": 1,
                "segmentation": {"counts": [1], "size": [100, 200]},
            },
        ],
    }
    return data | changes


def annotation(**changes) -> dict:
    return {"id": 5, "image_id": 7, "category_id": 4, "bbox": [20, 20, 40, 20]} | changes


def convert_coco(tmp_path: Path, data: object, *flags: str) -> Path:
    folder = tmp_path / "in"
    write_image(folder / "a.jpg")
    write_image(folder / "sub/b.jpg")
    (tmp_path / "coco.json").write_text(data if isinstance(data, str) else json.dumps(data))
    split = ["--split", "train", str(tmp_path / "coco.json"), str(folder)]
    main(["--output", str(tmp_path / "out"), *split, *flags])
    return tmp_path / "out"


def test_coco_classes_in_the_files_order_and_crowds_skipped(tmp_path, capsys):
    out = convert_coco(tmp_path, coco())
    assert rows(out, "train", "a") == [[1, 0.2, 0.3, 0.2, 0.2]]
    assert rows(out, "train", "sub/b") == []
    assert read_yaml(out / "out.yaml") == {
        "path": str(out),
        "train": "images/train",
        "val": "images/train",
        "names": {0: "zebra", 1: "ape"},
    }
    printed = capsys.readouterr().out
    assert "train: 2 images, 1 objects, 1 images without any" in printed and "skipped: 1 crowd regions" in printed
    assert "same images for both" in printed


def test_coco_leaves_its_inputs_alone(tmp_path):
    convert_coco(tmp_path, coco())
    before = snapshot(tmp_path / "in") | {"json": (tmp_path / "coco.json").read_bytes()}
    main(["--output", str(tmp_path / "two"), "--split", "train", str(tmp_path / "coco.json"), str(tmp_path / "in")])
    assert before == snapshot(tmp_path / "in") | {"json": (tmp_path / "coco.json").read_bytes()}


@pytest.mark.parametrize(
    "extra, expected, skipped",
    [
        ([annotation(), annotation(id=6)], 1, "1 repeated rows"),
        ([annotation(bbox=[190, 90, 50, 50])], 1, None),  # cut
        ([annotation(bbox=[300, 90, 50, 50])], 0, "1 boxes without area"),
        ([annotation(bbox=[30, 30, 0, 9])], 0, "1 boxes without area"),
        ([annotation(image_id=1000)], 0, "1 annotations of images that are not listed"),
        ([annotation(category_id=30), annotation()], 2, None),  # same box, two classes
    ],
)
def test_coco_odd_annotations(tmp_path, capsys, extra, expected, skipped):
    out = convert_coco(tmp_path, coco(annotations=extra))
    found = rows(out, "train", "a")
    assert len(found) == expected
    printed = capsys.readouterr().out
    assert f"skipped: {skipped}" in printed if skipped else "skipped" not in printed
    for _, x, y, w, h in found:
        assert x - w / 2 >= -1e-6 and x + w / 2 <= 1 + 1e-6 and y - h / 2 >= -1e-6 and y + h / 2 <= 1 + 1e-6


def test_coco_polygons(tmp_path):
    square, far = [20, 20, 60, 20, 60, 40, 20, 40], [100, 20, 140, 20, 140, 40]
    out = convert_coco(
        tmp_path,
        coco(
            annotations=[
                annotation(segmentation=[square]),
                annotation(segmentation=[square, far]),
                annotation(segmentation={"counts": "xx", "size": [100, 200]}),  # run lengths: the box
                annotation(segmentation=[[1, 2, 3, 4]], bbox=[0, 0, 10, 10]),  # a line: the box
                annotation(segmentation=[[-50, 20, 60, 20, 60, 400]]),  # cut
            ]
        ),
        "--polygons",
    )
    one, two, run_length, line, cut = rows(out, "train", "a")
    assert one == [1, 0.1, 0.2, 0.3, 0.2, 0.3, 0.4, 0.1, 0.4]
    points = {tuple(p) for p in np.reshape(two[1:], (-1, 2)).tolist()}
    assert points == {(0.1, 0.2), (0.3, 0.2), (0.3, 0.4), (0.1, 0.4), (0.5, 0.2), (0.7, 0.2), (0.7, 0.4)}
    assert run_length == [1, 0.2, 0.3, 0.2, 0.2] and line == [1, 0.025, 0.05, 0.05, 0.1]
    assert cut == [1, 0, 0.2, 0.3, 0.2, 0.3, 1]


def test_join_parts_keeps_the_area():
    """Walking to the other part and back on the same line adds no area (shoelace formula)."""

    def area(points):
        edges = zip(points, points[1:] + points[:1], strict=True)
        return abs(sum(ax * by - bx * ay for (ax, ay), (bx, by) in edges)) / 2

    parts = [[(0, 0), (4, 0), (4, 4), (0, 4)], [(10, 1), (12, 1), (12, 3), (10, 3)], [(5, 10), (6, 10), (6, 11)]]
    assert area(join_parts(parts)) == pytest.approx(16 + 4 + 0.5)
    assert join_parts(parts[:1]) == parts[0]


def test_coco_size_is_read_from_the_image_where_absent(tmp_path):
    data = coco()
    for image in data["images"]:
        image |= {"width": 0, "height": None}
    assert rows(convert_coco(tmp_path, data), "train", "a") == [[1, 0.2, 0.3, 0.2, 0.2]]


def test_coco_absent_images_are_counted(tmp_path, capsys):
    data = coco()
    data["images"].append({"id": 10, "file_name": "gone.jpg", "width": 9, "height": 9})
    out = convert_coco(tmp_path, data)
    assert not (out / "labels/train/gone.txt").exists()
    assert "skipped: 1 images that are not in" in capsys.readouterr().out


@pytest.mark.parametrize(
    "data, message",
    [
        ("{\n\n oops", r"coco\.json:3: not JSON"),
        ("[]", "no list 'images'"),
        ({"images": [], "annotations": []}, "no list 'categories'"),
        (coco(annotations=[3]), "no list 'annotations'"),
        (coco(categories=[]), "'categories' is empty"),
        (
            coco(categories=[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]),
            "category id 1 occurs twice, as 'a' and 'b'",
        ),
        (coco(categories=[{"id": 1}]), "no 'name'"),
        (coco(annotations=[annotation(category_id=99)]), "annotation 5: category_id 99 is not among"),
        (coco(annotations=[annotation(bbox=[1, 2, 3])]), r"annotation 5: bbox is \[1, 2, 3\]: expected 4 finite"),
        (coco(annotations=[annotation(bbox=[1, 2, float("nan"), 4])]), "annotation 5: bbox .* expected 4 finite"),
        (coco(annotations=[annotation(bbox="abcd")]), "annotation 5: bbox is 'abcd'"),
        (coco(annotations=[{"id": 5, "image_id": 7, "category_id": 4}]), "annotation 5: no 'bbox'"),
        (
            coco(images=[{"id": 7, "file_name": "a.jpg"}, {"id": 7, "file_name": "sub/b.jpg"}]),
            "1 image ids occur twice",
        ),
        (coco(images=[{"id": 7, "file_name": "../coco.json"}]), "leads out of its folder"),
        (coco(images=[{"id": 7, "file_name": "gone.jpg"}], annotations=[]), "no image of any split was found"),
        ("[" * 100000, "cannot be read as JSON|not JSON"),
    ],
)
def test_coco_mistakes_are_one_clear_error_and_leave_nothing(tmp_path, data, message):
    with pytest.raises(UserError, match=message) as caught:
        convert_coco(tmp_path, data)
    assert "\n" not in str(caught.value)
    assert {f.name for f in tmp_path.iterdir()} == {"in", "coco.json"}


def test_coco_bad_polygon_is_named(tmp_path):
    with pytest.raises(UserError, match=r"annotation 5: segmentation part \[1, 2, 3\] is not a list of x y pairs"):
        convert_coco(tmp_path, coco(annotations=[annotation(segmentation=[[1, 2, 3]])]), "--polygons")


def test_coco_splits_must_share_categories(tmp_path):
    convert_coco(tmp_path, coco())
    swapped = coco(categories=coco()["categories"][::-1])
    (tmp_path / "val.json").write_text(json.dumps(swapped))
    folder = str(tmp_path / "in")
    with pytest.raises(UserError, match="its categories are not those of"):
        main(
            [
                "--output",
                str(tmp_path / "two"),
                "--split",
                "train",
                str(tmp_path / "coco.json"),
                folder,
                "--split",
                "val",
                str(tmp_path / "val.json"),
                folder,
            ]
        )


def test_coco128_gives_its_published_labels(reference, tmp_path):
    source = reference / "datasets" / "coco128"
    main(
        [
            "--output",
            str(tmp_path / "out"),
            "--split",
            "train",
            str(source / "instances_train2017.json"),
            str(source / "images" / "train2017"),
        ]
    )
    compared = 0
    for file in sorted((source / "labels" / "train2017").glob("*.txt")):
        published, ours = (
            np.array(rows(folder, split, file.stem)).reshape(-1, 5)
            for folder, split in ((source, "train2017"), (tmp_path / "out", "train"))
        )
        order = [np.lexsort(table.round(3).T[::-1]) for table in (published, ours)]
        assert ours[order[1]] == pytest.approx(published[order[0]], abs=2e-4), file.stem
        compared += len(ours)
    assert compared == 929
    assert len(read_yaml(tmp_path / "out" / "out.yaml")["names"]) == 80


def test_tiny_coco_splits_and_polygons(reference, tmp_path, capsys):
    source = reference / "datasets" / "tiny_coco" / "tiny_coco"
    splits = [
        word
        for split in ("train", "val")
        for word in (
            "--split",
            split,
            str(source / f"annotations/instances_{split}2017.json"),
            str(source / f"{split}2017"),
        )
    ]
    main(["--output", str(tmp_path / "boxes"), *splits])
    main(["--output", str(tmp_path / "outlines"), "--polygons", *splits])
    assert "val: 50 images, 377 objects" in capsys.readouterr().out
    for file in sorted((tmp_path / "boxes" / "labels").rglob("*.txt")):
        split, stem = file.parent.name, file.stem
        boxes, outlines = (rows(tmp_path / kind, split, stem) for kind in ("boxes", "outlines"))
        assert len(boxes) == len(outlines)
        for (kind, x, y, w, h), (same, *flat) in zip(boxes, outlines, strict=True):
            corners = np.reshape(flat, (-1, 2))
            hull = [*corners.min(0), *corners.max(0)]
            assert kind == same and hull == pytest.approx([x - w / 2, y - h / 2, x + w / 2, y + h / 2], abs=0.01)
