"""Conversion of any set that is read: the copy gives the same index, and the input is only read."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from drawn_set import coco_content, write_coco, write_images
from small_splits import write_image, write_labels

from data.scripts import convert
from utils.datasets.labels import load_split
from utils.datasets.locate import locate_dataset
from utils.errors import UserError

ROWS = {"train/a": "2 .5 .5 .123456 .7\n0 .1234567 .25 .0625 .5\n", "train/b": "", "val/a": "1 .3 .3 .3 .3 .5 .6\n"}


@pytest.fixture
def data(tmp_path):
    """Return the YAML of a set with two classes that its labels do not have in the order of the alphabet."""
    for number, (name, rows) in enumerate(ROWS.items()):
        write_image(tmp_path / f"set/images/{name}.png", 40 + number, 64, value=number)
        write_labels(tmp_path / f"set/labels/{name}.txt", rows)
    file = tmp_path / "set/set.yaml"
    file.write_text("train: images/train\nval: images/val\nnames: [wolf, ant, cow]\n")
    return file


def convert_to(data, form, output, *words):
    convert.main(["--data", str(data), "--format", form, "--output", str(output), *words])
    return output / f"{output.name}.yaml"


def load(data, split):
    return load_split(locate_dataset(str(data)), split, progress=False)


def assert_same(first, second, tolerance=1e-6):
    for split in ("train", "val"):
        a, b = load(first, split), load(second, split)
        assert [Path(path).name for path in a.paths] == [Path(path).name for path in b.paths]
        assert np.array_equal(a.shapes, b.shapes) and np.array_equal(a.offsets, b.offsets)
        assert np.array_equal(a.labels[:, 0], b.labels[:, 0])
        np.testing.assert_allclose(a.labels, b.labels, rtol=0, atol=tolerance)


@pytest.mark.parametrize("forms", [("yolo",), ("coco",), ("yolo", "coco", "yolo", "coco")], ids="-".join)
def test_a_round_trip_gives_the_same_index(forms, data, tmp_path):
    copy = data
    for number, form in enumerate(forms):
        copy = convert_to(copy, form, tmp_path / f"copy{number}")
    assert_same(data, copy)
    assert locate_dataset(str(copy)).names == {0: "wolf", 1: "ant", 2: "cow"}
    assert_same(copy, copy.parent)  # the folder is recognised too


def test_outlines_survive_as_polygons(data, tmp_path):
    copy = convert_to(convert_to(data, "coco", tmp_path / "coco"), "yolo", tmp_path / "yolo", "--polygons")
    assert (tmp_path / "yolo/labels/val/a.txt").read_text() == "1 0.3 0.3 0.3 0.3 0.5 0.6\n"
    assert_same(data, copy)
    np.testing.assert_allclose(load(copy, "val").points, load(data, "val").points, atol=1e-6)


def test_pascal_voc_has_whole_pixels(data, tmp_path, capsys):
    copy = convert_to(data, "voc", tmp_path / "voc")
    (tmp_path / "voc/JPEGImages/a_3.png").stat()  # the second a.png, of val
    for split in ("train", "val"):
        a, b = load(data, split), load(copy, split)
        assert np.array_equal(a.labels[:, 0], b.labels[:, 0]) and np.array_equal(a.shapes, b.shapes)
        np.testing.assert_allclose(a.labels, b.labels, rtol=0, atol=1 / 40)
    assert "not in this form: outlines, and fractions of pixels" in capsys.readouterr().out
    again = convert_to(copy, "voc", tmp_path / "again")
    assert_same(copy, again)  # whole pixels stay


def test_the_input_is_only_read_and_images_are_links_or_copies(data, tmp_path):
    before = {path: path.read_bytes() for path in data.parent.rglob("*") if path.is_file()}
    convert_to(data, "coco", tmp_path / "linked")
    convert_to(data, "voc", tmp_path / "copied", "--copy")
    assert (tmp_path / "linked/images/train/a.png").is_symlink()
    assert not (tmp_path / "copied/JPEGImages/a.png").is_symlink()
    assert all(path.read_bytes() == content for path, content in before.items())


def test_images_of_one_name_get_names_of_their_own(data, tmp_path):
    write_image(data.parent / "images/train/a.jpg")
    convert_to(data, "voc", tmp_path / "voc")
    stems = {path.stem for path in (tmp_path / "voc/JPEGImages").iterdir()}
    assert len(stems) == 4 and stems == {path.stem for path in (tmp_path / "voc/Annotations").iterdir()}


def test_a_name_with_the_number_of_another_image_is_not_taken_twice(data, tmp_path):
    write_image(data.parent / "images/train/a_4.png", value=9)  # a.png of val is the fourth image
    before = {path: path.read_bytes() for path in data.parent.rglob("*.png")}
    convert_to(data, "voc", tmp_path / "voc")
    assert {path: path.read_bytes() for path in before} == before  # not written through a link
    assert {path.read_bytes() for path in (tmp_path / "voc/JPEGImages").iterdir()} == set(before.values())


@pytest.mark.parametrize(
    "form, names, message",
    [
        ("coco", "[ant, cow, ant]", "classes 0, 2: COCO knows classes by their names"),
        ("voc", "[ant, cow, ant]", "classes 0, 2: Pascal VOC knows classes by their names"),
        ("voc", '[ant, "", cow]', "class 1: XML does not keep its name ''"),
        ("voc", '[ant, cow, " cow"]', "class 2: XML does not keep its name ' cow'"),
        ("voc", r'[ant, cow, "a\x01"]', "class 2: XML does not keep its name"),
    ],
)
def test_class_names_that_a_form_would_change_are_refused(form, names, message, data, tmp_path):
    data.write_text(f"train: images/train\nval: images/val\nnames: {names}\n")
    with pytest.raises(UserError, match=message):
        convert_to(data, form, tmp_path / form)
    assert not (tmp_path / form).exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
@pytest.mark.parametrize("name", ["2026-01-31T12:30:05", "not\udcffutf8", "line\nend", "c\x01"])
def test_odd_names_of_images(name, data, tmp_path):
    write_image(data.parent / "images/train/x.png").rename(data.parent / f"images/train/{name}.png")
    for form in ("yolo", "coco"):
        assert_same(data, convert_to(data, form, tmp_path / form))
    if name.isprintable():
        assert len(load(convert_to(data, "voc", tmp_path / "voc"), "train")) == 3
    else:
        with pytest.raises(UserError, match="cannot hold a name with spaces or control characters"):
            convert_to(data, "voc", tmp_path / "voc")


def test_one_set_is_divided(data, tmp_path):
    for number in range(10):
        write_image(data.parent / f"images/train/more{number}_{number**2}x.png")
    data.write_text("train: images/train\nnames: [wolf, ant, cow]\n")
    convert_to(data, "coco", tmp_path / "coco", "--split", "0.75")
    counts = [
        len(json.loads((tmp_path / f"coco/annotations/instances_{split}.json").read_text())["images"])
        for split in ("train", "val")
    ]
    assert counts == [9, 3]


@pytest.mark.parametrize("form", ["coco", "voc"])
def test_crowds_stay_ignored_regions(form, tmp_path):
    content = coco_content()
    content["annotations"][0]["iscrowd"] = 1
    write_images(tmp_path / "set")
    file = write_coco(tmp_path / "set/train.json", content)
    convert_to(file, form, tmp_path / form)
    first = load_split(locate_dataset(str(file), required=("train",)), "train", progress=False)
    second = load(tmp_path / form, "train")
    assert len(first.ignored) == 1 and np.array_equal(first.ignored, second.ignored)
    assert np.array_equal(first.labels, second.labels)  # whole pixels in all forms


@pytest.mark.parametrize("form", ["yolo", "coco", "voc"])
def test_channels_and_bits_are_stated_in_the_copy(form, data, tmp_path):
    data.write_text(data.read_text() + "channels: 1\nbit_depth: 12\n")
    copy = locate_dataset(str(convert_to(data, form, tmp_path / form)))
    assert (copy.pixels.channels, copy.pixels.bit_depth) == (1, 12)
    assert load(copy.file, "train").paths  # they are read so


def test_only_what_there_is_is_said_to_be_lost(data, tmp_path, capsys):
    convert_to(data, "yolo", tmp_path / "boxes")
    assert "not in this form" not in capsys.readouterr().out
    content = coco_content()
    content["annotations"][0]["iscrowd"] = 1
    write_images(tmp_path / "crowd")
    convert_to(write_coco(tmp_path / "crowd/train.json", content), "yolo", tmp_path / "lost")
    assert "not in this form: ignored regions" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, message", [(["--format", "voc", "--polygons"], "--polygons is for"), (["--format", "x"], "invalid choice")]
)
def test_mistakes_in_the_flags(words, message, data, tmp_path, capsys):
    with pytest.raises(SystemExit):
        convert.main(["--data", str(data), "--output", str(tmp_path / "x"), *words])
    assert message in capsys.readouterr().err


def test_a_taken_output_is_refused(data, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/mine.txt").write_text("mine")
    with pytest.raises(UserError, match="taken"):
        convert_to(data, "yolo", tmp_path / "taken")
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["mine.txt"]
