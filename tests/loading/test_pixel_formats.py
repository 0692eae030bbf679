"""Images of other channels and depths: the same geometry, the same caches, and brightness instead of colours."""

import cv2
import numpy as np
import pytest
import torch
from small_split import HYP, SHAPES, assert_same, epoch_of, loader_of

from utils.datasets.labels import load_index
from utils.pixel_format import GREY, RGB, PixelFormat

FORMATS = {
    "gray": PixelFormat(1),
    "pages": PixelFormat(5),
    "deep": PixelFormat(1, 16),
    "deep pages": PixelFormat(5, 16),
}
GEOMETRY = {name: value for name, value in HYP.items() if not name.startswith("hsv")}


@pytest.fixture(scope="module")
def indices(tmp_path_factory):
    """Return the indices of one split in each format, RGB too. All channels of an image are equal."""
    folder = tmp_path_factory.mktemp("formats")
    rng = np.random.default_rng(0)
    images = [cv2.GaussianBlur(rng.integers(0, 256, shape).astype(np.uint8), (5, 5), 2) for shape in SHAPES]
    found = {}
    for name, pixels in ({"rgb": RGB} | FORMATS).items():
        for part in ("images", "labels"):
            (folder / part / name).mkdir(parents=True)
        for k, image in enumerate(images):
            stored = image if pixels.bit_depth == 8 else image * np.uint16(257)
            if pixels.channels == 5:
                assert cv2.imwritemulti(str(folder / f"images/{name}/{k:02}.tiff"), [stored] * 5)
            else:
                assert cv2.imwrite(str(folder / f"images/{name}/{k:02}.png"), stored)
            (folder / f"labels/{name}/{k:02}.txt").write_text("0 .3 .3 .5 .5\n1 .6 .6 .7 .6 .7 .8\n")
        found[name] = load_index(folder / "images" / name, 2, progress=False, cache=False, pixels=pixels)
    return found


def scaled(images):
    """Return images in 0…255, of whichever depth."""
    return images.double() / (1 if images.dtype == torch.uint8 else 257)


@pytest.mark.parametrize(
    "hyp, settings", [(None, {"rect": True, "pad": 0.5}), (GEOMETRY, {}), (GEOMETRY, {"quad": True})]
)
@pytest.mark.parametrize("name", FORMATS)
def test_pixels_are_where_those_of_rgb_are(indices, name, hyp, settings):
    ours, theirs = (list(loader_of(indices[one], hyp=hyp, **settings)) for one in (name, "rgb"))
    for batch, expected in zip(ours, theirs, strict=True):
        assert batch.images.shape == (len(expected.images), FORMATS[name].channels, *expected.images.shape[2:])
        assert batch.images.dtype == (torch.uint8 if FORMATS[name].bit_depth == 8 else torch.uint16)
        assert torch.equal(batch.targets, expected.targets)
        # OpenCV rounds five channels in another way, and deep images are rounded less often.
        tolerance = {"gray": 0, "pages": 2}.get(name, 3)
        assert (scaled(batch.images) - scaled(expected.images[:, :1])).abs().max() <= tolerance
        assert bool((scaled(batch.images) == GREY).any())


@pytest.mark.parametrize("name", ["gray", "pages"])
def test_without_colours_the_brightness_is_that_of_rgb(indices, name):
    ours, theirs = (list(loader_of(indices[one], hyp=HYP)) for one in (name, "rgb"))
    for batch, expected in zip(ours, theirs, strict=True):
        assert (scaled(batch.images) - scaled(expected.images[:, :1])).abs().max() <= {"gray": 1, "pages": 3}[name]


@pytest.mark.parametrize("name", ["gray", "deep pages"])
@pytest.mark.parametrize("settings", [{"cache": "ram"}, {"cache": "disk"}, {"workers": 2}, {"workers": 2, "cores": 2}])
def test_caches_workers_and_helpers_change_nothing(indices, name, settings):
    plain = loader_of(indices[name], hyp=HYP)
    expected = [epoch_of(plain, epoch) for epoch in (0, 1)]
    for _ in range(2):  # the second reads the files of the first
        other = loader_of(indices[name], hyp=HYP, **settings)
        for epoch in (0, 1):
            assert_same(epoch_of(other, epoch), expected[epoch])
        other.close()


def test_a_cache_on_disk_is_of_one_format(indices):
    folder = indices["gray"].paths[0].rsplit("/", 2)[0]
    for pixels in (PixelFormat(1), PixelFormat(1, 16), RGB):
        index = load_index(f"{folder}/gray", 2, progress=False, cache=False, pixels=pixels)
        for _ in range(2):
            assert_same(list(loader_of(index, cache="disk")), list(loader_of(index)))
