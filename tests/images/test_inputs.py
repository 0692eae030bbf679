"""Images as programs pass them."""

import http.server
import threading

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from utils.errors import UserError
from utils.images.inputs import read_input, to_rgb

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (4, 6, 3), dtype=np.uint8)  # (H, W, 3) RGB
GREY = COLOURS[:, :, 0]


@pytest.fixture
def file(tmp_path):
    """Write COLOURS as a file."""
    path = tmp_path / "colours.png"
    Image.fromarray(COLOURS).save(path)
    return path


@pytest.mark.parametrize("source, expected", [
    (COLOURS, COLOURS),
    (COLOURS[:, :, ::-1], COLOURS[:, :, ::-1]),  # a view, as cv2.imread(...)[:, :, ::-1] gives
    (COLOURS.transpose(2, 0, 1), COLOURS),
    (GREY, np.dstack([GREY] * 3)),
    (GREY[:, :, None], np.dstack([GREY] * 3)),
    (np.dstack([COLOURS, GREY]), COLOURS),  # alpha is dropped
    (COLOURS / 255, COLOURS),
    (COLOURS.astype(np.float64), COLOURS),
    (COLOURS.astype(np.int64), COLOURS),
    (GREY > 127, np.dstack([(GREY > 127) * np.uint8(255)] * 3)),
    (torch.from_numpy(COLOURS.transpose(2, 0, 1) / 255), COLOURS),
    (torch.from_numpy(COLOURS), COLOURS),
    (Image.fromarray(COLOURS), COLOURS),
    (Image.fromarray(GREY), np.dstack([GREY] * 3)),
    (Image.fromarray(COLOURS).convert("RGBA"), COLOURS),
])  # fmt: skip
def test_every_form_is_the_same_image(source, expected):
    found = read_input(source)
    assert found.image.dtype == np.uint8 and np.array_equal(found.image, expected) and found.path == ""
    assert found.image.flags.c_contiguous


def test_files_are_read_in_rgb(file):
    assert np.array_equal(read_input(file).image, COLOURS) and read_input(file).path == str(file)
    assert np.array_equal(read_input(str(file)).image, COLOURS)
    with Image.open(file) as opened:
        assert read_input(opened).path == str(file)


def test_exif_turns_files_and_pil_images(tmp_path):
    image = Image.fromarray(np.repeat(np.repeat(COLOURS, 16, 0), 16, 1))
    exif = image.getexif()
    exif[0x0112] = 6  # turn by 90 degrees
    image.save(tmp_path / "turned.jpg", exif=exif, quality=100, subsampling=0)
    from_file = read_input(tmp_path / "turned.jpg").image
    with Image.open(tmp_path / "turned.jpg") as opened:
        from_pil = read_input(opened).image
    assert from_file.shape == from_pil.shape == (96, 64, 3)
    assert np.abs(from_file.astype(int) - from_pil).max() <= 4  # two decoders
    assert np.abs(from_file[8, 8].astype(int) - COLOURS[3, 0]).max() < 12  # the lower left is now the upper left


def test_addresses_are_fetched(file):
    content = file.read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/a%20b.png?size=1"
        found = read_input(address)
        server.shutdown()
    assert np.array_equal(found.image, COLOURS) and found.path == address


@pytest.mark.parametrize("source, words", [
    (np.zeros((0, 4, 3), np.uint8), r"shape \(0, 4, 3\) is no image"),
    (np.zeros((5, 6, 2), np.uint8), "is no image: pass"),
    (np.zeros((1, 3, 4, 6), np.uint8), "is no image: pass"),
    (np.full((4, 6, 3), 300), "uint8, or numbers in 0"),
    (np.full((4, 6, 3), -1.0), "uint8, or numbers in 0"),
    (np.full((4, 6, 3), np.nan), "uint8, or numbers in 0"),
    (np.full((4, 6, 3), "a"), "uint8, or numbers in 0"),
    (7, "given as a int"),
    ("missing.jpg", "missing.jpg"),
    ("http://127.0.0.1:9/a.jpg", "could not fetch"),
])  # fmt: skip
def test_what_is_no_image_is_one_line(source, words, monkeypatch):
    monkeypatch.setattr("utils.download.PAUSE_S", 0)
    with pytest.raises(UserError, match=words) as wrong:
        read_input(source)
    assert "\n" not in str(wrong.value)


def test_a_frame_of_opencv_needs_its_channels_swapped(file):
    assert np.array_equal(to_rgb(cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB)), COLOURS)
