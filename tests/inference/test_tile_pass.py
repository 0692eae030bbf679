"""Detection and validation by tiles, with a model that finds drawn rectangles: the flags from image to boxes."""

from dataclasses import astuple

import numpy as np
import pytest
import torch
from rectangles import Rectangles, draw, scatter, write_set

import detect
import val
from utils.errors import UserError
from utils.images.tiles import Tiling
from utils.inference.exported_model import ExportedModel
from utils.inference.hub_model import HubModel
from utils.inference.predictor import Predictor
from utils.inference.runtime import InputShape

SHAPE = (380, 500)


@pytest.fixture(scope="module")
def scene():
    """Return an image with 48 small objects, and a large one from side to side below them."""
    objects = scatter(np.random.default_rng(3), (300, 500), (6, 15))
    objects = np.concatenate((objects, [[40, 320, 470, 372, 0]]))
    return draw(SHAPE, objects), objects


def assert_boxes(rows, objects, within=1.5):
    """Check that the detections are the objects, each once, within some pixels."""
    assert len(rows) == len(objects)
    distance = np.abs(rows[:, None, :4] - objects[:, :4]).max(axis=2) + 1e3 * (rows[:, 5:6] != objects[:, 4])
    assert (np.sort(distance.argmin(axis=0)) == np.arange(len(rows))).all() and distance.min(axis=0).max() <= within


def test_small_objects_are_found_by_tiles_only(scene):
    image, objects = scene
    model = Rectangles()
    (alone,) = Predictor(model, (160, 160))([image])
    assert [row.astype(int).tolist()[5] for row in alone.rows if row[2] - row[0] > 400] == [0]
    assert len(alone.rows) < 0.6 * len(objects)  # coarsely
    model.shapes.clear()
    (found,) = Predictor(model, (160, 160), tiling=Tiling(160))([image], ["a.png"])
    assert_boxes(found.rows, objects)
    assert model.shapes == [(1, 3, 128, 160), (8, 3, 160, 160), (4, 3, 160, 160)]  # the whole, then 3 x 4 tiles
    assert (found.path, found.shape, found.input_shape) == ("a.png", SHAPE, (128, 160))
    assert (np.diff(found.rows[:, 4]) <= 0).all() and min(astuple(found.speed)) > 0


@pytest.mark.parametrize("size", [96, 224])
def test_tiles_are_resized_to_the_input(scene, size):
    """Find boxes to a pixel of the network's input."""
    image, objects = scene
    (found,) = Predictor(Rectangles(least_px=2), (size, size), tiling=Tiling(128, 0.3))([image])
    assert_boxes(found.rows, objects, within=2 * 128 / size + 0.5)


def test_an_image_of_one_tile_is_as_without(scene):
    image = scene[0][:160, :150]
    model = Rectangles()
    (without,), (found,) = (Predictor(model, (128, 128), tiling=tiling)([image]) for tiling in (None, Tiling(160)))
    assert np.array_equal(found.rows, without.rows) and len(model.shapes) == 2


def test_images_of_several_shapes(scene):
    image, objects = scene
    turned = np.ascontiguousarray(image.transpose(1, 0, 2))
    predictor = Predictor(Rectangles(), (160, 160), tiling=Tiling(160))
    for found, known in zip(predictor([image, turned]), (objects, objects[:, [1, 0, 3, 2, 4]]), strict=True):
        assert_boxes(found.rows, known)
    assert (predictor.tiles.num_images, predictor.tiles.num_tiles) == (2, 24)


class Static:
    """A runtime of fixed batch and shape around the model."""

    title, device, properties = "rectangles", torch.device("cpu"), {"names": "{0: 'red', 1: 'green'}"}

    def __init__(self, batch, height, width):
        self.input_shape, self.model = InputShape((batch, height, width)), Rectangles()

    def run(self, images):
        decoded = self.model(images)[0]
        rows = torch.zeros(len(images), 100, 7)
        rows[:, : decoded.shape[1]] = decoded
        return [rows]


@pytest.mark.parametrize("batch", [1, 3])
def test_tiles_fill_a_fixed_shape_and_batch(scene, batch, tmp_path):
    image, objects = scene
    model = ExportedModel(tmp_path / "best.onnx", Static(batch, 160, 192))
    (found,) = Predictor(model, (640, 640), tiling=Tiling(160))([image])
    assert_boxes(found.rows, objects)
    assert set(model.runtime.model.shapes) == {(batch, 3, 160, 192)}


def test_the_hub_model_has_the_flags_as_attributes(scene):
    image, objects = scene
    model = HubModel(Rectangles())
    assert len(model(image[:, :, ::-1], size=160).xyxy[0]) < 0.6 * len(objects)
    model.tile, model.tile_overlap = 160, 0.25
    first, second = model([image[:, :, ::-1], image[:100, :100, ::-1]], size=160).pred
    assert_boxes(first.numpy(), objects)
    assert len(second)  # an image of one tile
    for name, value in (("tile", 8), ("tile", "large"), ("tile_overlap", 0.95), ("tile_overlap", None)):
        broken = HubModel(Rectangles())
        broken.tile = 160
        setattr(broken, name, value)
        with pytest.raises(UserError, match=f"model.{name} ="):
            broken(image)


@pytest.fixture
def drawn_set(scene, tmp_path, monkeypatch):
    """Write a set of two large images and a small one, and let val.py and detect.py use the model of rectangles."""
    model, small = Rectangles(), np.array([[20, 30, 90, 80, 1]])
    other = scatter(np.random.default_rng(4), (420, 300), (6, 15))
    for program in (val, detect):
        monkeypatch.setattr(program, "open_model", lambda *_, **__: model)
        monkeypatch.setattr(program, "find_weights", lambda *_, **__: [tmp_path / "best.pt"])
    return write_set(tmp_path / "set", [scene, (draw((420, 300), other), other), (draw((100, 120), small), small)])


def validate(drawn_set, tmp_path, **flags):
    settings = {"imgsz": 160, "workers": 0, "device": "cpu", "project": str(tmp_path / "runs"), "batch_size": 2}
    return val.run(data=drawn_set, weights="best.pt", **settings, **flags)


@pytest.mark.parametrize("single_cls", [False, True])
def test_validation_measures_whole_images(drawn_set, tmp_path, capsys, single_cls):
    """Reach the mAP of an ideal detector with tiles, and hardly any without them."""
    without = validate(drawn_set, tmp_path, single_cls=single_cls)
    assert "Tiles of" not in capsys.readouterr().out
    result = validate(drawn_set, tmp_path, tile=160, save_txt=True, save_conf=True, single_cls=single_cls)
    assert without.metrics.map50 < 0.75 and result.metrics.map50 == pytest.approx(0.995, abs=0.002)
    assert result.metrics.map > 0.9  # boxes to a pixel
    out = capsys.readouterr().out
    assert "Tiles of 160 px: 8.0 per image besides the whole; at most " in out and "GB of RAM used" in out
    assert "detect.py" in out.splitlines()[-1] and out.rstrip().endswith("--tile 160 --tile-overlap 0.2")
    assert len((result.save_dir / "labels/0.txt").read_text().splitlines()) == 41


def test_detect_counts_tiles(drawn_set, scene, tmp_path, capsys):
    flags = {"imgsz": [160], "device": "cpu", "project": str(tmp_path / "runs"), "tile": 160, "save_txt": True}
    folder = detect.run(weights="best.pt", source=drawn_set.parent / "images/val", **flags)
    assert "Tiles of 160 px: 8.0 per image besides the whole" in capsys.readouterr().out
    assert len((folder / "labels/0.txt").read_text().splitlines()) == len(scene[1])
    detect.run(weights="best.pt", source=drawn_set.parent / "images/val", **{**flags, "tile": 500})
    assert "--tile 500 has no effect: no image is larger than a tile" in capsys.readouterr().err


def test_impossible_flags(drawn_set, tmp_path):
    for flags, words in (({"tile": 5}, "--tile 5"), ({"tile": 64, "save_hybrid": True}, "--save-hybrid and --tile")):
        with pytest.raises(UserError, match=words):
            validate(drawn_set, tmp_path, **flags)
    with pytest.raises(UserError, match="--tile-overlap 0.4 needs --tile"):
        detect.run(weights="best.pt", source=drawn_set.parent, tile_overlap=0.4)


def test_a_damaged_image_is_grey_by_tiles_too(drawn_set, tmp_path, capsys):
    file = drawn_set.parent / "images/val/1.png"
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    metrics = validate(drawn_set, tmp_path, tile=160).metrics
    assert capsys.readouterr().err.count("A grey image without labels is used instead") <= 1
    assert metrics.map50 > 0.99
