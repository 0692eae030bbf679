"""Findings on formats and sizes of images."""

import cv2
import numpy as np
from PIL import Image
from scanned_sets import findings_of, places, scan, write_image, write_set

from utils.checking.image_files import check_images, expected_traits, trait_findings
from utils.images.traits import Traits
from utils.pixel_format import PixelFormat

ROW = "0 .5 .5 .2 .2\n"


def test_usual_images_have_no_finding(tmp_path):
    data = scan(write_set(tmp_path, {"train": {"a.jpg": ROW, "b.png": ROW, "c.tif": ROW}, "val": {"a.bmp": ROW}}))
    assert findings_of(check_images, data) == {}


def test_formats_that_bring_surprises(tmp_path):
    file = write_set(tmp_path, {"train": {"a.jpg": ROW}, "val": {"a.jpg": ROW}})
    images = tmp_path / "images/train"
    image = Image.open(images / "a.jpg")
    image.save(images / "png.jpg", "png")
    image.convert("CMYK").save(images / "cmyk.jpg")
    image.convert("RGBA").save(images / "alpha.png")
    cv2.imwrite(str(images / "deep.png"), np.full((64, 96), 40_000, np.uint16))
    image.save(images / "moving.webp", save_all=True, append_images=[image.rotate(90)])
    turned = Image.Exif()
    turned[0x0112] = 3
    image.save(images / "turned.JPEG", exif=turned)
    found = findings_of(check_images, scan(file))
    assert {check: (places(one), one.level) for check, one in found.items()} == {
        "wrong-suffix": (["png.jpg"], "warning"),
        "exif-turned": (["turned.JPEG"], "warning"),
        "animated": (["moving.webp"], "warning"),
        "cmyk": (["cmyk.jpg"], "note"),
        "deep": (["deep.png"], "note"),
        "alpha": (["alpha.png"], "note"),
    }


def test_a_stated_pixel_format_is_no_surprise():
    assert expected_traits(PixelFormat(3, 8)) == expected_traits(PixelFormat(1, 8)) == set()
    assert expected_traits(PixelFormat(1, 16)) == {"deep"}
    assert expected_traits(PixelFormat(4, 8)) == {"alpha", "animated", "cmyk"}


def test_sizes_far_from_that_of_the_training(tmp_path):
    file = write_set(tmp_path, {"train": {"a.jpg": ROW}, "val": {"a.jpg": ROW}})
    for name, height, width in (("small", 12, 20), ("large", 300, 400), ("larger", 500, 300), ("long", 20, 90)):
        write_image(tmp_path / f"images/train/{name}.jpg", height, width)
    found = findings_of(check_images, scan(file, imgsz=96))
    assert {check: places(one) for check, one in found.items()} == {
        "large-image": ["larger.jpg", "large.jpg"], "small-image": ["small.jpg"], "odd-aspect": ["long.jpg"],
    }  # fmt: skip
    assert found["large-image"].examples[0].detail == "300x500"


def test_all_suffixes_of_a_format_are_right():
    names = ["a.jpg", "a.jpeg", "a.mpo", "a.tif", "a.dng", "a.png", "a.txt"]
    kinds = ["JPEG"] * 3 + ["TIFF"] * 2 + ["JPEG", ""]
    found = list(trait_findings("train", names, [Traits(kind) for kind in kinds]))
    assert len(found) == 1 and places(found[0]) == ["a.png"]
