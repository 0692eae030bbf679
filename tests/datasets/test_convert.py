"""COCO JSON and Pascal VOC XML to label files: same objects, nothing lost in silence, inputs untouched."""

import json
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import cv2
import numpy as np
import pytest

from data.scripts import coco_to_yolo, voc_to_yolo
from data.scripts.coco_to_yolo import bridge
from utils.datasets.labels import load_index
from utils.datasets.yolo_writer import Dataset, box_row, new_folder, place, safe_name, write_dataset
from utils.errors import UserError
from utils.files import read_yaml


def picture(path: Path, height: int = 100, width: int = 200) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((height, width, 3), 90, np.uint8))
    return path


def rows(folder: Path, split: str, stem: str) -> list[list[float]]:
    lines = (folder / f"labels/{split}/{stem}.txt").read_text().splitlines()
    return [[float(value) for value in line.split()] for line in lines]


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(f): (f.read_bytes(), f.stat().st_mtime_ns) for f in sorted(folder.rglob("*")) if f.is_file()}


# ---------------------------------------------------------------- rows and folders


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((10, 20, 50, 40), "3 0.150000 0.300000 0.200000 0.200000"),  # inside a 200 x 100 picture
        ((-10, -10, 100, 50), "3 0.250000 0.250000 0.500000 0.500000"),  # cut at the frame
        ((150, 50, 900, 900), "3 0.875000 0.750000 0.250000 0.500000"),
        ((50, 20, 50, 40), None),  # no width
        ((50, 40, 60, 20), None),  # upside down
        ((250, 20, 300, 40), None),  # beside the picture
        ((10, 10, 10.00001, 20), None),  # zero as written
    ],
)
def test_box_row(box, expected):
    assert box_row(3, box, (100, 200)) == expected


@pytest.mark.parametrize("name", ["../a.jpg", "/etc/a.jpg", "x/../../a.jpg", "..\\a.jpg", "C:/a.jpg", "", "c:a.jpg"])
def test_names_that_lead_out_are_refused(name):
    with pytest.raises(UserError, match="leads out of its folder"):
        safe_name(name)


@pytest.mark.parametrize(("name", "expected"), [("a.jpg", "a.jpg"), ("x/a.jpg", "x/a.jpg"), ("x\\a.jpg", "x/a.jpg")])
def test_names_below_the_folder_are_kept(name, expected):
    assert safe_name(name) == expected


def test_folder_appears_when_whole(tmp_path):
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "out") as draft:
        (draft / "half").touch()
        raise KeyboardInterrupt
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
def test_pictures_are_linked_or_copied(tmp_path, copy):
    source = picture(tmp_path / "a.jpg")
    place(source, tmp_path / "x" / "b.jpg", copy=copy)
    assert (tmp_path / "x" / "b.jpg").is_symlink() != copy
    assert (tmp_path / "x" / "b.jpg").read_bytes() == source.read_bytes()


def test_pictures_that_would_share_a_label_file_are_refused(tmp_path):
    dataset = Dataset(["thing"])
    for name in ("a.jpg", "a.png"):
        dataset.add("train", picture(tmp_path / name), name=name, rows=[])
    with pytest.raises(UserError, match=r"a\.jpg and a\.png would share the label file a\.txt"):
        write_dataset(dataset, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "split", [["train", "."], ["training", ".", "."], ["train", ".", ".", "."], ["train", ".", "absent"]]
)
def test_wrong_split_is_one_clear_error(tmp_path, monkeypatch, split):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--split"):
        coco_to_yolo.main(["--output", "out", "--split", *split])


def test_split_given_twice_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="once for each of train, val, test"):
        coco_to_yolo.main(["--output", "out", "--split", "val", ".", ".", "--split", "val", ".", "."])


# ---------------------------------------------------------------- COCO


def coco(**changes) -> dict:
    """Two pictures 200 x 100; categories whose ids are neither 0...n-1 nor in order."""
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
    picture(folder / "a.jpg")
    picture(folder / "sub/b.jpg")
    (tmp_path / "coco.json").write_text(data if isinstance(data, str) else json.dumps(data))
    split = ["--split", "train", str(tmp_path / "coco.json"), str(folder)]
    coco_to_yolo.main(["--output", str(tmp_path / "out"), *split, *flags])
    return tmp_path / "out"


def test_coco_classes_in_the_files_order_and_crowds_left_out(tmp_path, capsys):
    out = convert_coco(tmp_path, coco())
    assert rows(out, "train", "a") == [[1, 0.2, 0.3, 0.2, 0.2]]
    assert rows(out, "train", "sub/b") == []
    assert read_yaml(out / "out.yaml") == {
        "path": str(out),
        "train": "images/train",
        "val": "images/train",
        "names": {0: "zebra", 1: "ape"},
    }
    said = capsys.readouterr().out
    assert "train: 2 pictures, 1 objects, 1 pictures without any" in said and "left out: 1 crowd regions" in said
    assert "same pictures for both" in said


def test_coco_leaves_its_inputs_alone(tmp_path):
    convert_coco(tmp_path, coco())
    before = snapshot(tmp_path / "in") | {"json": (tmp_path / "coco.json").read_bytes()}
    coco_to_yolo.main(
        ["--output", str(tmp_path / "two"), "--split", "train", str(tmp_path / "coco.json"), str(tmp_path / "in")]
    )
    assert before == snapshot(tmp_path / "in") | {"json": (tmp_path / "coco.json").read_bytes()}


@pytest.mark.parametrize(
    ("extra", "expected", "left_out"),
    [
        ([annotation(), annotation(id=6)], 1, "1 repeated rows"),
        ([annotation(bbox=[190, 90, 50, 50])], 1, None),  # cut
        ([annotation(bbox=[300, 90, 50, 50])], 0, "1 boxes without area"),
        ([annotation(bbox=[30, 30, 0, 9])], 0, "1 boxes without area"),
        ([annotation(image_id=1000)], 0, "1 annotations of images that are not listed"),
        ([annotation(category_id=30), annotation()], 2, None),  # same box, two classes
    ],
)
def test_coco_odd_annotations(tmp_path, capsys, extra, expected, left_out):
    out = convert_coco(tmp_path, coco(annotations=extra))
    found = rows(out, "train", "a")
    assert len(found) == expected
    said = capsys.readouterr().out
    assert f"left out: {left_out}" in said if left_out else "left out" not in said
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


def test_bridge_keeps_the_area():
    """Walking to the other part and back on the same line adds no area (shoelace formula)."""

    def area(points):
        edges = zip(points, points[1:] + points[:1], strict=True)
        return abs(sum(ax * by - bx * ay for (ax, ay), (bx, by) in edges)) / 2

    parts = [[(0, 0), (4, 0), (4, 4), (0, 4)], [(10, 1), (12, 1), (12, 3), (10, 3)], [(5, 10), (6, 10), (6, 11)]]
    assert area(bridge(parts)) == pytest.approx(16 + 4 + 0.5)
    assert bridge(parts[:1]) == parts[0]


def test_coco_size_is_read_from_the_picture_where_absent(tmp_path):
    data = coco()
    for image in data["images"]:
        image |= {"width": 0, "height": None}
    assert rows(convert_coco(tmp_path, data), "train", "a") == [[1, 0.2, 0.3, 0.2, 0.2]]


def test_coco_absent_pictures_are_counted(tmp_path, capsys):
    data = coco()
    data["images"].append({"id": 10, "file_name": "gone.jpg", "width": 9, "height": 9})
    out = convert_coco(tmp_path, data)
    assert not (out / "labels/train/gone.txt").exists()
    assert "left out: 1 pictures that are not in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{\n\n oops", r"coco\.json:3: not JSON"),
        ("[]", "no list 'images'"),
        ({"images": [], "annotations": []}, "no list 'categories'"),
        (coco(annotations=[3]), "no list 'annotations'"),
        (coco(categories=[]), "'categories' is empty"),
        (
            coco(categories=[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]),
            "category id 1 is there twice, as 'a' and 'b'",
        ),
        (coco(categories=[{"id": 1}]), "no 'name'"),
        (coco(annotations=[annotation(category_id=99)]), "annotation 5: category_id 99 is not among"),
        (coco(annotations=[annotation(bbox=[1, 2, 3])]), r"annotation 5: bbox is \[1, 2, 3\]: expected 4 finite"),
        (coco(annotations=[annotation(bbox=[1, 2, float("nan"), 4])]), "annotation 5: bbox .* expected 4 finite"),
        (coco(annotations=[annotation(bbox="abcd")]), "annotation 5: bbox is 'abcd'"),
        (coco(annotations=[{"id": 5, "image_id": 7, "category_id": 4}]), "annotation 5: no 'bbox'"),
        (
            coco(images=[{"id": 7, "file_name": "a.jpg"}, {"id": 7, "file_name": "sub/b.jpg"}]),
            "1 image ids are .* twice",
        ),
        (coco(images=[{"id": 7, "file_name": "../coco.json"}]), "leads out of its folder"),
        (coco(images=[{"id": 7, "file_name": "gone.jpg"}], annotations=[]), "no picture of any split was found"),
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
        coco_to_yolo.main(
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
    coco_to_yolo.main(
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
    coco_to_yolo.main(["--output", str(tmp_path / "boxes"), *splits])
    coco_to_yolo.main(["--output", str(tmp_path / "outlines"), "--polygons", *splits])
    assert "val: 50 pictures, 377 objects" in capsys.readouterr().out
    for file in sorted((tmp_path / "boxes" / "labels").rglob("*.txt")):
        split, stem = file.parent.name, file.stem
        boxes, outlines = (rows(tmp_path / kind, split, stem) for kind in ("boxes", "outlines"))
        assert len(boxes) == len(outlines)
        for (kind, x, y, w, h), (same, *flat) in zip(boxes, outlines, strict=True):
            corners = np.reshape(flat, (-1, 2))
            hull = [*corners.min(0), *corners.max(0)]
            assert kind == same and hull == pytest.approx([x - w / 2, y - h / 2, x + w / 2, y + h / 2], abs=0.01)


# ---------------------------------------------------------------- VOC


def voc_object(name: str = "ape", box=(20, 20, 60, 40), difficult: str = "<difficult>0</difficult>") -> str:
    edges = "".join(f"<{edge}>{value}</{edge}>" for edge, value in zip(voc_to_yolo.EDGES, box, strict=True))
    return f"<object><name>{name}</name>{difficult}<bndbox>{edges}</bndbox></object>"


def voc(
    *objects: str, size: str = "<size><width>200</width><height>100</height></size>", filename: str = "a.jpg"
) -> str:
    return f"<annotation><filename>{filename}</filename>{size}{''.join(objects)}</annotation>"


def convert_voc(tmp_path: Path, xml: str | bytes, *flags: str, stem: str = "a") -> Path:
    folder = tmp_path / "in"
    picture(folder / "a.jpg")
    (folder / f"{stem}.xml").write_bytes(xml if isinstance(xml, bytes) else xml.encode())
    voc_to_yolo.main(["--output", str(tmp_path / "out"), *flags, "--split", "train", str(folder), str(folder)])
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("xml", "flags", "expected"),
    [
        (voc(), ["--names", "ape"], []),  # a background
        (voc(voc_object()), [], [[0, 0.2, 0.3, 0.2, 0.2]]),
        (voc(voc_object()), ["--pascal"], [[0, 0.1975, 0.295, 0.205, 0.21]]),  # pixels 20...60 of 1...: edges 19 and 60
        (voc(voc_object(box=("20.0", "20.0", " 60 ", "40"))), [], [[0, 0.2, 0.3, 0.2, 0.2]]),
        (voc(voc_object(), size="<size><width>0</width><height>0</height></size>"), [], [[0, 0.2, 0.3, 0.2, 0.2]]),
        (voc(voc_object(), size=""), [], [[0, 0.2, 0.3, 0.2, 0.2]]),
        (voc(voc_object("zoo"), voc_object("ape")), [], [[1, 0.2, 0.3, 0.2, 0.2], [0, 0.2, 0.3, 0.2, 0.2]]),
        (
            voc(voc_object("zoo"), voc_object("ape")),
            ["--names", "zoo", "ape"],
            [[0, 0.2, 0.3, 0.2, 0.2], [1, 0.2, 0.3, 0.2, 0.2]],
        ),
        (voc(voc_object(), voc_object()), [], [[0, 0.2, 0.3, 0.2, 0.2]]),  # twice the same
        (voc(voc_object(box=(-20, 20, 900, 40))), [], [[0, 0.5, 0.3, 1, 0.2]]),  # cut
        (voc(voc_object(), voc_object(box=(60, 40, 20, 20))), [], [[0, 0.2, 0.3, 0.2, 0.2]]),  # upside down: left out
        (
            voc(voc_object(), voc_object("zoo", difficult="<difficult>1</difficult>")),
            ["--names", "ape", "zoo"],
            [[0, 0.2, 0.3, 0.2, 0.2]],
        ),
        (voc(voc_object("zoo", difficult="<difficult>1</difficult>")), ["--difficult"], [[0, 0.2, 0.3, 0.2, 0.2]]),
        (voc(voc_object(difficult="")), [], [[0, 0.2, 0.3, 0.2, 0.2]]),
        (voc(voc_object(), voc_object("zoo")), ["--names", "ape", "--skip-unknown"], [[0, 0.2, 0.3, 0.2, 0.2]]),
    ],
)
def test_voc_rows(tmp_path, xml, flags, expected):
    assert rows(convert_voc(tmp_path, xml, *flags), "train", "a") == expected


def test_voc_says_what_it_left_out(tmp_path, capsys):
    convert_voc(
        tmp_path,
        voc(
            voc_object(),
            voc_object("zoo"),
            voc_object(box=(9, 9, 9, 9)),
            voc_object(),
            voc_object(difficult="<difficult>1</difficult>"),
        ),
        "--names",
        "ape",
        "--skip-unknown",
    )
    said = capsys.readouterr().out
    for line in ("objects of the unknown class 'zoo'", "boxes without area", "repeated rows", "difficult objects"):
        assert f"left out: 1 {line}" in said


def test_voc_picture_is_found_by_the_name_that_the_xml_gives(tmp_path):
    out = convert_voc(tmp_path, voc(voc_object(), filename="C:\\somewhere\\a.jpg"), stem="other")
    assert len(rows(out, "train", "a")) == 1 and (out / "images/train/a.jpg").is_file()


def test_voc_absent_pictures_are_counted(tmp_path, capsys):
    picture(tmp_path / "in" / "a.jpg")
    (tmp_path / "in" / "gone.xml").write_text(voc(voc_object(), filename="gone.jpg"))
    convert_voc(tmp_path, voc(voc_object()))
    assert "left out: 1 XML files whose picture is not in" in capsys.readouterr().out


def test_voc_list_chooses_files(tmp_path):
    for stem in ("a", "b", "c"):
        picture(tmp_path / f"jpg/{stem}.jpg")
        (tmp_path / f"{stem}.xml").write_text(voc(voc_object(), filename=f"{stem}.jpg"))
    (tmp_path / "val.txt").write_text("c  1\na -1\n\n")
    voc_to_yolo.main(
        [
            "--output",
            str(tmp_path / "out"),
            "--split",
            "val",
            str(tmp_path),
            str(tmp_path / "jpg"),
            str(tmp_path / "val.txt"),
        ]
    )
    assert {f.stem for f in (tmp_path / "out/labels/val").iterdir()} == {"a", "c"}
    assert read_yaml(tmp_path / "out/out.yaml")["train"] == "images/val"
    (tmp_path / "val.txt").write_text("a\nzzz\n")
    with pytest.raises(UserError, match=r"val\.txt: 1 of 2 names have no XML file, the first is .*zzz\.xml"):
        voc_to_yolo.main(
            [
                "--output",
                str(tmp_path / "two"),
                "--split",
                "val",
                str(tmp_path),
                str(tmp_path / "jpg"),
                str(tmp_path / "val.txt"),
            ]
        )


BOMB = (
    "<!DOCTYPE a [<!ENTITY x 'ha'>"
    + "".join(f"<!ENTITY x{k} '{('&x%s;' % (k - 1 if k > 1 else '')) * 10}'>" for k in range(1, 10))
    + "]>"
)


@pytest.mark.parametrize(
    "xml",
    [
        BOMB + "<annotation>&x9;</annotation>",
        ("<?xml version='1.0' encoding='utf-16'?>" + BOMB + "<annotation>&x9;</annotation>").encode("utf-16"),
        b"<?xml version='1.0' encoding='cp037'?>" + (BOMB + "<annotation>&x9;</annotation>").encode("cp037"),
        "<!DOCTYPE annotation SYSTEM 'file:///etc/passwd'>" + voc(voc_object()),
        "<!DOCTYPE a [<!ENTITY f SYSTEM 'file:///etc/passwd'>]>" + voc(voc_object("&f;")),
    ],
    ids=["bomb", "utf-16 bomb", "ebcdic bomb", "outside definition", "outside file"],
)
def test_voc_refuses_doctypes_at_once(tmp_path, xml):
    start = time.process_time()
    with pytest.raises(UserError, match=r"a\.xml: .*(DOCTYPE|not XML)"):
        convert_voc(tmp_path, xml)
    assert time.process_time() - start < 2
    assert not (tmp_path / "out").exists()


def test_voc_parser_itself_stops_at_a_doctype():
    """The scan of the bytes is the first guard; this is the second."""
    with pytest.raises(UserError, match="DOCTYPE"):
        ET.fromstring("<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>", parser=ET.XMLParser(target=voc_to_yolo.NoDoctype()))


@pytest.mark.parametrize(
    ("xml", "flags", "message"),
    [
        ("<annotation>", [], r"a\.xml: not XML"),
        ("", [], r"a\.xml: not XML"),
        ("<?xml version='1.0' encoding='klingon'?><a/>", [], r"a\.xml: not XML"),
        (voc("<object><name>ape</name></object>"), [], r"<bndbox> of ape is \['', '', '', ''\]: expected 4 finite"),
        (voc(voc_object(box=(1, 2, "x", 4))), [], "<bndbox> of ape .* expected 4 finite"),
        (voc(voc_object(box=(1, 2, "inf", 4))), [], "<bndbox> of ape .* expected 4 finite"),
        (voc(voc_object("")), [], "an <object> has no <name>"),
        (voc(voc_object(), size="<size><width>wide</width><height>9</height></size>"), [], "<size> is"),
        (
            voc(voc_object("zoo"), voc_object("dog"), voc_object("dog")),
            ["--names", "ape"],
            r"--names lacks: 'dog' \(2\), 'zoo' \(1\); add them to --names, or give --skip-unknown",
        ),
        (voc(), [], "nothing to name the classes by; give --names"),
    ],
)
def test_voc_mistakes_are_one_clear_error_and_leave_nothing(tmp_path, xml, flags, message):
    with pytest.raises(UserError, match=message) as caught:
        convert_voc(tmp_path, xml, *flags)
    assert "\n" not in str(caught.value)
    assert {f.name for f in tmp_path.iterdir()} == {"in"}


def test_voc_unreadable_picture_is_named_when_its_size_is_needed(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "b.jpg").write_bytes(b"no picture")
    (tmp_path / "in" / "b.xml").write_text(voc(voc_object(), size="", filename="b.jpg"))
    with pytest.raises(UserError, match=r"b\.jpg: its size is needed, but it cannot be read"):
        convert_voc(tmp_path, voc(voc_object()))


def test_voc_folder_without_xml(tmp_path):
    with pytest.raises(UserError, match=r"no \.xml file in it"):
        voc_to_yolo.main(["--output", str(tmp_path / "out"), "--split", "train", str(tmp_path), str(tmp_path)])


def test_fruit_voc_converts_and_reads_back(reference, tmp_path, capsys):
    source = reference / "datasets" / "fruit_voc"
    splits = [
        word
        for name, folder in (("train", "train"), ("val", "test"))
        for word in ("--split", name, str(source / folder), str(source / folder))
    ]
    voc_to_yolo.main(["--output", str(tmp_path / "fruit"), *splits])
    assert "train: 240 pictures, 465 objects" in capsys.readouterr().out
    data = read_yaml(tmp_path / "fruit" / "fruit.yaml")
    assert list(data["names"].values()) == ["apple", "banana", "orange"]
    index = load_index([tmp_path / "fruit" / data["train"]], 3, cache=False, progress=False)
    assert len(index) == 240 and len(index.labels) == 465 and index.messages == []


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
