"""COCO JSON to label files: the same objects, everything skipped is counted, inputs untouched."""

import json
import tracemalloc
from pathlib import Path

import cv2
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
        ([annotation(), annotation(bbox=[300, 90, 50, 50])], 1, "1 boxes without area inside the image (annotation 5)"),
        ([annotation(), annotation(bbox=[30, 30, 0, 9])], 1, "1 boxes without area"),
        ([annotation(), annotation(image_id=1000)], 1, "1 annotations of images that are not listed (annotation 5)"),
        ([annotation(image_id="7"), annotation(category_id=30.0)], 2, None),  # ids as text or float
        ([annotation(), annotation(image_id=[7], category_id={})], 1, "1 annotations of images that are not listed"),
        ([annotation(bbox=[60, 40, -40, -20])], 1, None),  # drawn from the lower right corner
        (
            [annotation(), annotation(category_id=99)],
            1,
            "1 annotations of unknown categories (annotation 5: category_id 99)",
        ),
        (
            [annotation(), annotation(bbox=[1, 2, 3])],
            1,
            "1 annotations without a box or an outline (annotation 5: bbox [1, 2, 3])",
        ),
        ([annotation(), annotation(bbox=[1, 2, float("nan"), 4])], 1, "1 annotations without a box"),
        (
            [annotation(), annotation(bbox="abcd")],
            1,
            "1 annotations without a box or an outline (annotation 5: bbox abcd)",
        ),
        (
            [annotation(), {"id": 5, "image_id": 7, "category_id": 4}],
            1,
            "1 annotations without a box or an outline (annotation 5: no bbox)",
        ),
        ([annotation(bbox=[], segmentation=[[20, 20, 60, 20, 60, 40]])], 1, None),  # the box around the outline
        (
            [annotation(bbox=[1], segmentation=[[1]]), *[annotation(id=k, bbox=[]) for k in range(4)], annotation()],
            1,
            "5 annotations without a box or an outline (annotation 5: bbox [1], annotation 0: bbox [], "
            "annotation 1: bbox [], ...)",
        ),
        ([annotation(category_id=30), annotation()], 2, None),  # same box, two classes
        ([annotation(), annotation(bbox=[10**400, 1, 2, 3])], 1, "1 annotations without a box"),  # no float holds it
        ([annotation(), annotation(bbox="1234")], 1, "1 annotations without a box"),
        ([annotation(), annotation(image_id="1" * 5000)], 1, "1 annotations of images that are not listed"),
        ([annotation(iscrowd="0")], 1, None),
        ([annotation(), None, 3], 1, "2 entries of 'annotations' that are no objects (1: None, 2: 3)"),
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


@pytest.mark.parametrize("parts", [[[0, 0, 9, 0, 9, 9]] * 1001, [list(range(42_000))]])
def test_outlines_that_would_take_minutes_are_boxes(parts, tmp_path, capsys):
    out = convert_coco(tmp_path, coco(annotations=[annotation(segmentation=parts)]), "--polygons")
    assert rows(out, "train", "a") == [[1, 0.2, 0.3, 0.2, 0.2]]
    assert "1 outlines cannot be used, the boxes are used (annotation 5: an outline of" in capsys.readouterr().out


def test_parts_of_many_points_are_joined_in_little_memory():
    first, second = ([(x + k, y + k) for k in range(5000)] for x, y in ((0, 0), (0, 20_000)))  # 400 MB of distances
    tracemalloc.start()
    joined = join_parts([first, second])
    assert tracemalloc.get_traced_memory()[1] < 50 << 20
    tracemalloc.stop()
    assert len(joined) == 10_002 and joined[4999:5001] == [(4999, 4999), (0, 20_000)]


@pytest.mark.parametrize("name", ["x" * 5000, "a/" * 100_000 + "b.jpg", "x" * 300 + ".jpg"])
def test_coco_a_path_that_no_file_can_have_is_an_absent_image(name, tmp_path, capsys):
    images = [*coco()["images"], {"id": 1, "file_name": name}]
    assert len(rows(convert_coco(tmp_path, coco(images=images)), "train", "a")) == 1
    assert "skipped: 1 images that are not in" in capsys.readouterr().out


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
        (coco(annotations=[annotation(category_id=99)]), "no object was kept.*annotation 5: category_id 99"),
        (coco(annotations=[annotation(bbox=[1, 2, 3])]), r"no object was kept.*annotation 5: bbox \[1, 2, 3\]"),
        (
            coco(annotations=[annotation(iscrowd=1)] * 2),
            "no object was kept; skipped: 2 crowd regions, kept with --keep-crowds",
        ),
        (coco(categories=[{"id": 1, "name": ["a"]}]), "no 'name'"),
        (coco(categories=[{"id": [], "name": "a"}]), "no 'id'"),
        (coco(categories=[{"id": 4, "name": "\ud800"}]), "its name .* is no text"),
        (
            coco(images=[{"id": 7, "file_name": "a.jpg"}, {"id": 7, "file_name": "sub/b.jpg"}]),
            "1 image ids occur twice",
        ),
        (coco(images=[{"id": 7, "file_name": "../coco.json"}]), r"no image of any split.*not in .*\(\.\./coco\.json\)"),
        (coco(images=[{"id": 7, "file_name": "gone.jpg"}], annotations=[]), "no image of any split was found"),
        ("[" * 100000, "cannot be read as JSON|not JSON"),
    ],
)
def test_coco_mistakes_are_one_clear_error_and_leave_nothing(tmp_path, data, message):
    with pytest.raises(UserError, match=message) as caught:
        convert_coco(tmp_path, data)
    assert "\n" not in str(caught.value)
    assert {f.name for f in tmp_path.iterdir()} == {"in", "coco.json"}


def test_coco_bad_polygon_is_named_and_its_box_used(tmp_path, capsys):
    out = convert_coco(tmp_path, coco(annotations=[annotation(segmentation=[[1, 2, 3]])]), "--polygons")
    assert rows(out, "train", "a") == [[1, 0.2, 0.3, 0.2, 0.2]]
    named = "annotation 5: segmentation part [1, 2, 3] is not a list of x y pairs"
    assert f"corrected: 1 outlines cannot be used, the boxes are used ({named})" in capsys.readouterr().out


def test_coco_crowds_are_kept_on_request(tmp_path):
    out = convert_coco(tmp_path, coco(), "--keep-crowds")
    assert rows(out, "train", "a") == [[1, 0.2, 0.3, 0.2, 0.2], [0, 0.55, 0.6, 0.1, 0.2]]


@pytest.mark.parametrize(
    "stated",
    [
        "/home/someone/in/a.jpg",
        "../../media/upload/1/a.jpg",
        "data/local-files/?d=x%20y/a.jpg",
        "C:\\in\\a.jpg",
        "./a.jpg",
    ],
)
def test_coco_images_are_found_by_the_end_of_their_names(tmp_path, stated):
    out = convert_coco(tmp_path, coco(images=[{"id": 7, "file_name": stated, "width": 200, "height": 100}]))
    assert rows(out, "train", "a") == [[1, 0.2, 0.3, 0.2, 0.2]] and (out / "images/train/a.jpg").is_file()


def test_coco_names_that_end_alike_do_not_take_one_image(tmp_path, capsys):
    images = [{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "x/a.jpg"}, {"id": 9, "file_name": "x/sub/b.jpg"}]
    objects = [annotation(), annotation(image_id=8, bbox=[0, 0, 9, 9]), annotation(image_id=9)]
    out = convert_coco(tmp_path, coco(images=images, annotations=objects))
    assert rows(out, "train", "a") == [[1, 0.2, 0.3, 0.2, 0.2]] == rows(out, "train", "sub/b")
    assert "skipped: 1 images whose name fits those of others (x/a.jpg)" in capsys.readouterr().out


def test_coco_an_image_listed_twice_has_the_objects_of_both(tmp_path):
    images = [{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "a.jpg"}]
    objects = [annotation(), annotation(image_id=8), annotation(image_id=8, bbox=[0, 0, 20, 10])]
    out = convert_coco(tmp_path, coco(images=images, annotations=objects))
    assert rows(out, "train", "a") == [[1, 0.2, 0.3, 0.2, 0.2], [1, 0.05, 0.05, 0.1, 0.1]]


@pytest.mark.parametrize(
    "categories, names",
    [
        ("fruit:none apple:fruit pear:fruit", ["apple", "pear"]),
        ("fruit: apple:fruit", ["apple"]),
        ("fruit:none apple:fruit nut:food", ["fruit", "apple", "nut"]),
        ("fruit:none apple:none", ["fruit", "apple"]),
        ("fruit:none", ["fruit"]),
    ],
)
@pytest.mark.parametrize("used", [True, False])
def test_coco_a_dummy_category_is_no_class(tmp_path, capsys, categories, names, used):
    """One exporter adds a category that all others belong to, and that no annotation has."""
    pairs = [pair.split(":") for pair in categories.split()]
    entries = [{"id": k, "name": name, "supercategory": top} for k, (name, top) in enumerate(pairs)]
    objects = [annotation(category_id=0)] * used + [annotation(category_id=len(pairs) - 1)]
    out = convert_coco(tmp_path, coco(categories=entries, annotations=objects))
    names = [name for name, _ in pairs] if used else names
    assert list(read_yaml(out / "out.yaml")["names"].values()) == names
    assert rows(out, "train", "a")[-1][0] == len(names) - 1
    said = "skipped: 1 categories that only stand for all others (fruit)" in capsys.readouterr().out
    assert said is (len(names) < len(pairs))


def rotated_jpeg(path: Path) -> None:
    """Write an image of 100 x 60 pixels that its EXIF orientation turns into 60 x 100."""
    data = cv2.imencode(".jpg", np.full((60, 100, 3), 90, np.uint8))[1].tobytes()
    body = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    path.write_bytes(data[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + data[2:])


@pytest.mark.parametrize(
    "box, expected, said",
    [
        ([10, 40, 30, 40], [1, 0.416667, 0.6, 0.5, 0.4], "corrected: 1 sizes were stated before the EXIF rotation"),
        ([70, 10, 30, 40], None, "skipped: 1 images with boxes from before their EXIF rotation (phone.jpg)"),
    ],
)
def test_coco_sizes_from_before_the_exif_rotation(tmp_path, capsys, box, expected, said):
    (tmp_path / "in").mkdir()
    rotated_jpeg(tmp_path / "in/phone.jpg")
    images = [*coco()["images"], {"id": 1, "file_name": "phone.jpg", "width": 100, "height": 60}]
    out = convert_coco(tmp_path, coco(images=images, annotations=[annotation(), annotation(image_id=1, bbox=box)]))
    assert (rows(out, "train", "phone") == [expected]) if expected else not (out / "labels/train/phone.txt").exists()
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("width, height, said", [(400, 200, False), (300, 200, True)])
def test_coco_sizes_of_scaled_images_count_as_stated(tmp_path, capsys, width, height, said):
    images = [{"id": 7, "file_name": "a.jpg", "width": width, "height": height}]
    out = convert_coco(tmp_path, coco(images=images, annotations=[annotation(bbox=[0, 0, 30, 20])]))
    assert rows(out, "train", "a")[0][3:] == pytest.approx([30 / width, 0.1])
    assert ("corrected: 1 images have another shape than stated" in capsys.readouterr().out) is said


def test_coco_an_unreadable_image_or_entry_does_not_end_the_conversion(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/bad.jpg").write_bytes(b"no image")
    images = [
        {"id": 7, "file_name": "a.jpg"},
        {"id": 8, "file_name": "bad.jpg"},
        {"id": 9},
        {"id": None, "file_name": "a"},
    ]
    out = convert_coco(tmp_path, coco(images=images))
    assert rows(out, "train", "a") == [[1, 0.2, 0.3, 0.2, 0.2]]
    printed = capsys.readouterr().out
    assert "skipped: 1 images that cannot be read" in printed and "skipped: 2 images without id or file_name" in printed


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
