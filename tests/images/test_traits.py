"""Traits of image files, each of which an encoder has written."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from utils.images.traits import Traits, read_traits

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
IMAGE = Image.fromarray(PIXELS)
WITH_ALPHA = Image.fromarray(np.dstack([PIXELS, PIXELS[..., 0]]))
DEEP = PIXELS.astype(np.uint16) * 257
TURNED = Image.Exif()
TURNED[0x0112] = 6
UPRIGHT = Image.Exif()
UPRIGHT[0x0112] = 1


def animate(path: Path) -> None:
    IMAGE.save(path, save_all=True, append_images=[IMAGE.rotate(90), IMAGE.rotate(180)])


@pytest.mark.parametrize(
    "name, save, expected",
    [
        ("a.jpg", IMAGE.save, Traits("JPEG")),
        ("gray.jpg", IMAGE.convert("L").save, Traits("JPEG", channels=1)),
        ("cmyk.jpg", IMAGE.convert("CMYK").save, Traits("JPEG", channels=4, cmyk=True)),
        ("progressive.jpg", lambda path: IMAGE.save(path, progressive=True), Traits("JPEG")),
        ("turned.jpg", lambda path: IMAGE.save(path, exif=TURNED), Traits("JPEG", turned=True)),
        ("upright.jpg", lambda path: IMAGE.save(path, exif=UPRIGHT), Traits("JPEG")),
        (
            "profile.jpg",  # a header of 200 kB
            lambda path: IMAGE.convert("L").save(path, icc_profile=bytes(200_000), exif=TURNED),
            Traits("JPEG", channels=1, turned=True),
        ),
        ("a.png", IMAGE.save, Traits("PNG")),
        ("palette.png", IMAGE.convert("P").save, Traits("PNG")),
        ("bits.png", IMAGE.convert("1").save, Traits("PNG", channels=1)),
        ("alpha.png", WITH_ALPHA.save, Traits("PNG", channels=4, alpha=True)),
        ("clear.png", lambda path: IMAGE.convert("P").save(path, transparency=0), Traits("PNG", alpha=True)),
        ("deep.png", lambda path: cv2.imwrite(str(path), DEEP), Traits("PNG", bits=16)),
        ("deep gray.png", lambda path: cv2.imwrite(str(path), DEEP[..., 0]), Traits("PNG", channels=1, bits=16)),
        ("turned.png", lambda path: IMAGE.save(path, exif=TURNED), Traits("PNG", turned=True)),
        ("frames.png", animate, Traits("PNG", frames=3)),
        ("a.webp", IMAGE.save, Traits("WebP")),
        ("lossless.webp", lambda path: IMAGE.save(path, lossless=True), Traits("WebP")),
        ("alpha.webp", WITH_ALPHA.save, Traits("WebP", channels=4, alpha=True)),
        ("lossless alpha.webp", lambda path: WITH_ALPHA.save(path, lossless=True), Traits("WebP", 4, alpha=True)),
        ("frames.webp", animate, Traits("WebP", frames=2)),
        ("a.tif", IMAGE.save, Traits("TIFF")),
        ("gray.tif", IMAGE.convert("L").save, Traits("TIFF", channels=1)),
        ("alpha.tif", WITH_ALPHA.save, Traits("TIFF", channels=4, alpha=True)),
        ("cmyk.tif", IMAGE.convert("CMYK").save, Traits("TIFF", channels=4, cmyk=True)),
        ("deep.tif", lambda path: cv2.imwrite(str(path), DEEP), Traits("TIFF", bits=16)),
        ("pages.tif", animate, Traits("TIFF", frames=2)),
        ("turned.tif", lambda path: IMAGE.save(path, tiffinfo={274: 6}), Traits("TIFF", turned=True)),
        ("a.bmp", IMAGE.save, Traits("BMP")),
        ("a.gif", IMAGE.save, Traits("GIF")),
        ("a.pfm", lambda path: cv2.imwrite(str(path), PIXELS.astype(np.float32)), Traits("PFM")),
        ("empty.jpg", lambda path: path.write_bytes(b""), Traits()),
        ("page.jpg", lambda path: path.write_text("<html>"), Traits()),
    ],
)
def test_traits(tmp_path, name, save, expected):
    save(tmp_path / name)
    assert read_traits(tmp_path / name) == expected


def test_files_that_cannot_be_read_have_the_traits_of_usual_ones(tmp_path):
    assert read_traits(tmp_path / "absent.jpg") == read_traits(tmp_path) == Traits()


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_damaged_headers_raise_nothing(tmp_path, suffix):
    """Each beginning of a file, and files with other bytes in their headers."""
    path, rng = tmp_path / f"a.{suffix}", np.random.default_rng(0)
    IMAGE.save(path, exif=TURNED)
    data = path.read_bytes()
    for length in range(0, 120):
        path.write_bytes(data[:length])
        assert read_traits(path).kind in ("", {"jpg": "JPEG", "png": "PNG", "webp": "WebP", "tif": "TIFF"}[suffix])
    for _ in range(300):
        changed = bytearray(data)
        for position in rng.integers(4, min(len(data), 200), 4):
            changed[position] = rng.integers(256)
        path.write_bytes(changed)
        assert isinstance(read_traits(path), Traits)
