"""Built-in data set: the same from the same seed, labelled correctly, varied, written as a whole or not at all."""

import hashlib
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from data.scripts import make_shapes as make_shapes_script
from utils.datasets import shapes as making
from utils.datasets import shapes_drawing as drawing
from utils.datasets.shapes import make_shapes
from utils.datasets.shapes_drawing import (
    EXTENTS,
    IMAGE_SIZES,
    MAX_OBJECTS,
    MIN_SIDE,
    MIN_VISIBLE,
    NAMES,
    SHAPES,
    Scene,
    add_object,
    draw_image,
    draw_line,
)
from utils.datasets.shapes_textures import BACKGROUNDS, TEXTURES, color, pixels, triangle_wave
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def rng_of(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


@pytest.fixture(scope="module")
def small_set(tmp_path_factory) -> Path:
    return make_shapes(tmp_path_factory.mktemp("drawn") / "shapes", seed=3, train=5, val=3, progress=False)


@pytest.fixture(scope="module")
def drawn() -> list:
    """Draw a hundred images without writing them."""
    return [draw_image(11, "train", index) for index in range(100)]


# ---------------------------------------------------------------- sameness


def test_same_seed_gives_the_same_bytes(small_set, tmp_path):
    again = make_shapes(tmp_path / "again", seed=3, train=5, val=3, progress=False)
    assert contents(again) == contents(small_set)


def test_other_seed_gives_other_images(small_set, tmp_path):
    other = contents(make_shapes(tmp_path / "other", seed=4, train=5, val=3, progress=False))
    same = contents(small_set)
    assert other.keys() == same.keys()
    assert all(other[name] != data for name, data in same.items() if name.endswith(".jpg"))


def test_an_image_depends_on_seed_split_and_index_alone(small_set, tmp_path):
    larger = contents(make_shapes(tmp_path / "larger", seed=3, train=7, val=4, progress=False))
    drawn_before = {name: data for name, data in contents(small_set).items() if name != making.RECORD}
    assert {name: larger[name] for name in drawn_before} == drawn_before


def test_splits_show_different_images():
    train, val = draw_image(0, "train", 0), draw_image(0, "val", 0)
    assert train.image.shape != val.image.shape or (train.image != val.image).any()


def test_pixels_are_the_same_on_every_machine():
    """Drawing may not depend on the processor, on OpenCV, or on versions: this sum was taken once and stays."""
    digest = hashlib.sha256()
    for split, index in [("train", 0), ("train", 1), ("train", 2), ("val", 0), ("val", 1), ("val", 2)]:
        sample = draw_image(0, split, index)
        digest.update(sample.image.tobytes() + repr(sample.boxes).encode())
    assert digest.hexdigest()[:16] == "ef3c940aafb425ef", "images changed: raise VERSION in shapes.py"


# ---------------------------------------------------------------- what is written


def test_folders_names_and_record(small_set):
    names = set(contents(small_set))
    expected = {
        f"{kind}/{split}/{index:05d}.{suffix}"
        for split, count in (("train", 5), ("val", 3))
        for index in range(count)
        for kind, suffix in (("images", "jpg"), ("labels", "txt"))
    }
    assert names == expected | {making.RECORD}
    record = json.loads((small_set / making.RECORD).read_text())
    assert record == {"shapes": making.VERSION, "seed": 3, "train": 5, "val": 3}


def test_label_files_are_valid_and_say_what_was_drawn(small_set):
    rows = 0
    for split, count in (("train", 5), ("val", 3)):
        for index in range(count):
            sample = draw_image(3, split, index)
            H, W = sample.image.shape[:2]
            assert cv2.imread(str(small_set / f"images/{split}/{index:05d}.jpg")).shape == (H, W, 3)
            lines = (small_set / f"labels/{split}/{index:05d}.txt").read_text().splitlines()
            assert len(lines) == len(sample.boxes)
            for line, (class_id, *box) in zip(lines, sample.boxes, strict=True):
                assert re.fullmatch(r"\d( [01]\.\d{6}){4}", line)
                number, x, y, w, h = map(float, line.split())
                assert number == class_id
                edges = [(x - w / 2) * W, (y - h / 2) * H, (x + w / 2) * W, (y + h / 2) * H]
                assert edges == pytest.approx(box, abs=0.002)
                rows += 1
    assert rows > 8


def test_jpeg_keeps_what_was_drawn(small_set):
    drawn_image = draw_image(3, "train", 0).image.astype(int)
    written = cv2.imread(str(small_set / "images/train/00000.jpg")).astype(int)
    assert np.abs(drawn_image - written).mean() < 5


def test_yaml_describes_the_set():
    data = yaml.safe_load((ROOT / "data" / "shapes.yaml").read_text())
    assert data["names"] == dict(enumerate(NAMES))
    assert (data["path"], data["train"], data["val"]) == ("datasets/shapes", "images/train", "images/val")
    assert "download" not in data


# ---------------------------------------------------------------- true boxes


def flat_scene(height: int = 300, width: int = 400) -> Scene:
    return Scene(np.full((3, height, width), 128, np.float32))


def test_box_is_tight_around_a_single_object(monkeypatch):
    """White on grey without a shadow: the pixels that are more than half covered span exactly the box."""
    monkeypatch.setattr(drawing, "draw_shadow", lambda *_, **__: None)
    monkeypatch.setattr(
        drawing, "paint_surface", lambda rng, ground, u, v, depth, class_id: np.full((3, *depth.shape), 255, np.float32)
    )
    seen = set()
    for seed in range(80):
        scene = flat_scene()
        if add_object(scene, rng_of(seed)):
            columns, rows = (np.flatnonzero((scene.canvas[0] > 191.5).any(axis)) for axis in (0, 1))
            assert scene.boxes() == [(scene.classes[0], columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)]
            seen.add(scene.classes[0])
    assert len(seen) == len(SHAPES)


def test_boxes_lie_inside_and_are_big_enough(drawn):
    for sample in drawn:
        H, W = sample.image.shape[:2]
        for class_id, left, top, right, bottom in sample.boxes:
            assert 0 <= class_id < len(NAMES)
            assert 0 <= left < right <= W and 0 <= top < bottom <= H


def test_a_line_that_hides_most_of_an_object_is_refused():
    scene = flat_scene()
    rng = rng_of(0)
    while not add_object(scene, rng):
        pass
    [(_, left, top, right, bottom)] = scene.boxes()
    before = scene.canvas.copy()
    middle = (top + bottom) / 2
    draw_line(scene, (left, middle), (right, middle), width=2.0 * (bottom - top), paint=color(0, 1, 1))
    assert (scene.canvas == before).all() and scene.visible == [int((scene.owner == 1).sum())]


def test_every_object_drawn_keeps_its_share_in_sight():
    """Crowd a scene: areas and visible pixels stay true, and no object loses more than it may."""
    scene, rng = flat_scene(), rng_of(5)
    placed = sum(add_object(scene, rng) for _ in range(150))
    assert placed == len(scene.boxes()) > 8
    counted = np.bincount(scene.owner.ravel(), minlength=placed + 1)[1:]
    assert scene.visible == counted.tolist()
    assert all(seen >= MIN_VISIBLE * area for seen, area in zip(scene.visible, scene.areas, strict=True))
    assert sum(scene.visible) < sum(scene.areas)  # some overlap


def test_a_covered_part_is_not_boxed():
    scene = flat_scene()
    scene.claim((slice(50, 150), slice(50, 150)), np.ones((100, 100), bool), 1)
    scene.classes, scene.areas, scene.visible = [0], [10000], [10000]
    assert scene.claim((slice(40, 160), slice(130, 160)), np.ones((120, 30), bool), 0)
    assert scene.boxes() == [(0, 50, 50, 130, 150)] and scene.visible == [8000]


@pytest.mark.parametrize(
    "class_id, area",
    [
        (0, np.pi * 0.92**2),  # circle
        (1, 1.52**2),  # square, less its corners
        (2, 3 * 3**0.5 / 4),  # triangle in the unit circle, less its corners
        (7, 2 * 2 * 0.95 * 0.54 - 0.54**2),  # cross with the middle width of arm
    ],
)
def test_shapes_have_the_area_geometry_gives(class_id, area):
    x, y = pixels((400, 400))
    measured = float((SHAPES[class_id](x / 200 - 1, y / 200 - 1, rng_of(0)) < 0).mean()) * 4
    assert measured == pytest.approx(area, rel=0.15)


def test_shapes_fit_the_unit_circle_and_differ():
    x, y = pixels((120, 120))
    u, v = x / 50 - 1.2, y / 50 - 1.2
    masks = [shape(u, v, rng_of(1)) < 0 for shape in SHAPES]
    for mask in masks:
        assert mask.any() and not mask[np.broadcast_to(u * u + v * v > 1.17, mask.shape)].any()
    for one in range(len(masks)):
        for two in range(one):
            overlap = (masks[one] & masks[two]).sum() / (masks[one] | masks[two]).sum()
            assert overlap < 0.8, (NAMES[one], NAMES[two])


# ---------------------------------------------------------------- variety


def test_all_classes_sizes_and_some_empty_images(drawn):
    boxes = np.array([box for sample in drawn for box in sample.boxes])
    counts = np.bincount(boxes[:, 0], minlength=len(NAMES))
    assert counts.min() > 0.5 * counts.mean()
    sides = (boxes[:, 3:] - boxes[:, 1:3]).max(1)
    assert sides.min() < 16 and sides.max() > 200
    assert 0.03 < (sides < 24).mean() < 0.25, "tiny objects exist and are a minority"
    objects = [len(sample.boxes) for sample in drawn]
    assert 1 <= objects.count(0) <= 15 and 9 <= max(objects) <= MAX_OBJECTS
    assert {sample.image.shape[:2] for sample in drawn} == set(IMAGE_SIZES)


def test_objects_touch_the_frame_and_each_other(drawn):
    at_frame = crossing = 0
    for sample in drawn:
        H, W = sample.image.shape[:2]
        boxes = np.array(sample.boxes).reshape(-1, 5)[:, 1:]
        at_frame += int(((boxes[:, :2] == 0).any(1) | (boxes[:, 2] == W) | (boxes[:, 3] == H)).sum())
        low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
        high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
        crossing += int(((high > low).all(2).sum() - len(boxes)) // 2)
    assert at_frame > 20 and crossing > 50


def test_images_are_textured_and_well_exposed(drawn):
    for index, sample in enumerate(drawn):
        assert sample.image.dtype == np.uint8
        assert sample.image.std() > 4, index
        assert 12 < sample.image.mean() < 243, index


@pytest.mark.parametrize("background", BACKGROUNDS, ids=lambda function: function.__name__)
def test_backgrounds_fill_the_image(background):
    canvas = background(rng_of(2), (90, 130), [color(0.1, 0.5, 0.5), color(0.3, 0.5, 0.7), color(0.6, 0.5, 0.3)])
    assert canvas.shape == (3, 90, 130) and canvas.dtype == np.float32
    assert canvas.std(axis=(1, 2)).max() > 2 and canvas.min() >= 0 and canvas.max() < 300


@pytest.mark.parametrize("texture", sorted(set(TEXTURES), key=TEXTURES.index), ids=lambda function: function.__name__)
def test_textures_are_shares(texture):
    x, y = pixels((40, 40))
    share = texture(x / 20 - 1, y / 20 - 1, rng_of(3))
    assert share.dtype == np.float32 and share.min() >= 0 and share.max() <= 1
    assert texture.__name__ == "plain_texture" or np.ptp(share) > 0.2


def test_wave_is_a_triangle():
    assert triangle_wave(np.array([0, 0.25, 0.5, 0.75, 1, -0.25])).tolist() == [1, 0.5, 0, 0.5, 1, 0.5]


def test_extents_are_shares_of_one():
    assert sum(share for share, _, _ in EXTENTS) == pytest.approx(1)
    assert all(0 < low < high < 0.6 for _, low, high in EXTENTS) and MIN_SIDE >= 6


# ---------------------------------------------------------------- whole or not at all


def test_a_run_cut_short_leaves_nothing(tmp_path, monkeypatch):
    calls = []

    def stop_at_third(*args, **kwargs):
        calls.append(args)
        if len(calls) >= 3:
            raise KeyboardInterrupt
        return draw_image(*args, **kwargs)

    monkeypatch.setattr(making, "draw_image", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        make_shapes(tmp_path / "shapes", train=20, val=2, progress=False)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    folder = make_shapes(tmp_path / "shapes", train=2, val=1, progress=False)
    assert len(list(folder.rglob("*.jpg"))) == 3 and list(tmp_path.iterdir()) == [folder]


def test_complete_set_is_left_alone(small_set, capsys, monkeypatch):
    monkeypatch.setattr(making, "draw_image", lambda *_: pytest.fail("drawn again"))
    before = {file: file.stat().st_mtime_ns for file in small_set.rglob("*")}
    assert make_shapes(small_set, seed=3, train=5, val=3) == small_set
    assert "complete already" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in small_set.rglob("*")} == before


def test_other_contents_are_never_overwritten(small_set, tmp_path):
    with pytest.raises(UserError, match=r"seed 3, train 5, val 3; wanted: .*seed 9.*--folder"):
        make_shapes(small_set, seed=9, train=5, val=3, progress=False)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match="was not made by make_shapes.py: give another --folder"):
        make_shapes(mine, train=1, val=1, progress=False)
    assert contents(mine) == {"holiday.jpg": b"x"}


def test_empty_folder_is_used(tmp_path):
    (tmp_path / "shapes").mkdir()
    folder = make_shapes(tmp_path / "shapes", train=1, val=1, progress=False)
    assert (folder / making.RECORD).is_file()


def test_of_two_runs_at_once_the_first_to_end_wins(tmp_path, monkeypatch):
    folder = tmp_path / "shapes"
    write_images = making.write_images

    def overtaken(*args, **kwargs):
        monkeypatch.setattr(making, "write_images", write_images)
        make_shapes(folder, train=1, val=1, progress=False)
        write_images(*args, **kwargs)

    monkeypatch.setattr(making, "write_images", overtaken)
    assert make_shapes(folder, train=1, val=1, progress=False) == folder
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("seed, train, val", [(-1, 1, 1), (0, 0, 1), (0, 1, -5)])
def test_impossible_numbers_are_refused(tmp_path, seed, train, val):
    with pytest.raises(UserError, match="must be 0 or more"):
        make_shapes(tmp_path / "shapes", seed=seed, train=train, val=val, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_command_line(tmp_path, capsys):
    make_shapes_script.main(["--folder", str(tmp_path / "set"), "--train", "1", "--val", "1", "--seed", "2"])
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "set")
    assert len(list((tmp_path / "set").rglob("*.txt"))) == 2
