"""Folds: every image is judged by a model that has not seen it."""

from pathlib import Path

import numpy as np
import pytest

from utils.checking.folds import (
    Folds,
    cross_validate,
    fingerprint,
    link_or_copy,
    read_detections,
    write_detections,
    write_fold,
)
from utils.datasets.labels import load_index
from utils.errors import UserError
from utils.files import read_yaml
from utils.output.drawing import save_image
from utils.pixel_format import RGB, PixelFormat

NAMES = {0: "cat", 1: "dog: a 'b'"}


def small_index(folder: Path, count: int = 7):
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for i in range(count):
        save_image(folder / "images" / f"{i}.png", np.full((32, 48, 3), i, np.uint8))
        (folder / "labels" / f"{i}.txt").write_text(f"{i % 2} 0.5 0.5 0.{i + 1} 0.3333333\n")
    return load_index([folder / "images"], 2, cache=False, progress=False)


class Trainer:
    """Stands for training: notes the images that it was given."""

    def __init__(self):
        self.seen: list[set[Path]] = []
        self.labels: dict[Path, str] = {}

    def __call__(self, data: Path, folder: Path) -> Path:
        content = read_yaml(data)
        assert content["names"] == NAMES
        root = Path(content["path"])
        lines = (root / content["train"]).read_text().split()
        self.seen.append({(root / line).resolve() for line in lines})
        for line in lines:
            self.labels[(root / line).resolve()] = (
                (root / line.replace("images/", "labels/")).with_suffix(".txt").read_text()
            )
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"weights{len(self.seen)}.pt"


@pytest.fixture
def judged(tmp_path):
    """Return a data set and a cross-validation whose models answer with their own number."""
    index, trainer = small_index(tmp_path / "data"), Trainer()

    def predict(weights: Path, paths):
        number = int(weights.stem[-1])
        assert not {Path(path) for path in paths} & trainer.seen[number - 1]
        return [np.full((number, 6), int(Path(path).stem), np.float32) for path in paths]

    def run(seed: int = 0, settings: str = "s"):
        plan = Folds(3, seed, settings)
        return cross_validate(index, plan, names=NAMES, folder=tmp_path / "cross", train=trainer, predict=predict)

    return index, trainer, run


def test_each_image_is_judged_by_a_model_that_has_not_seen_it(judged):
    _, trainer, run = judged
    found = run()
    assert len(trainer.seen) == 3
    assert [int(rows[0, 0]) for rows in found] == list(range(7))  # in the order of the index
    assert sorted(len(seen) for seen in trainer.seen) == [4, 5, 5]


def test_the_labels_arrive_unchanged(judged):
    index, trainer, run = judged
    run()
    for i, path in enumerate(index.paths):
        values = np.array(trainer.labels[Path(path).resolve()].split(), np.float32)
        np.testing.assert_array_equal(values, index.boxes(i)[0])


def test_what_a_fold_found_is_read_again_until_something_changes(judged):
    _, trainer, run = judged
    first = run()
    again = run()
    assert len(trainer.seen) == 3
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    run(settings="more epochs")
    assert len(trainer.seen) == 6


def test_the_copy_is_removed_and_the_data_stay(judged, tmp_path):
    before = {path: path.read_bytes() for path in (tmp_path / "data").rglob("*.*")}
    judged[2]()
    assert {path: path.read_bytes() for path in (tmp_path / "data").rglob("*.*")} == before
    assert not (tmp_path / "cross" / "data").exists()


def test_frames_of_a_sequence_stay_in_one_fold_and_folds_are_of_similar_size():
    paths = [f"a{'bcdefghijklmno'[k]}/frame_{i:03}.jpg" for k in range(10) for i in range(1 + k % 3)]
    paths += [f"cat_jpg.rf.{i:04}.jpg" for i in range(2)]
    fold_of = Folds(2, 0, "").assign(paths)
    assert abs(int(np.bincount(fold_of)[0]) - len(paths) // 2) <= 1
    assert fold_of[-1] == fold_of[-2]


def test_one_long_sequence_is_cut_into_blocks_of_neighbours():
    paths = [f"video/frame_{i:03}.jpg" for i in range(80)]
    shuffled = np.random.default_rng(0).permutation(80)
    fold_of = np.empty(80, np.int64)
    fold_of[shuffled] = Folds(5, 0, "").assign([paths[i] for i in shuffled])
    assert np.bincount(fold_of).tolist() == [16] * 5
    assert int((np.diff(fold_of) != 0).sum()) <= 19  # 20 blocks


def test_folds_depend_on_the_seed_alone():
    paths = [f"{'abcdefghij'[i % 10]}{'xy'[i // 10]}.jpg" for i in range(20)]
    one, again, other = (Folds(5, seed, "").assign(paths).tolist() for seed in (0, 0, 1))
    assert one == again != other


def test_too_few_folds_or_images_are_reported(tmp_path):
    with pytest.raises(UserError, match="at least 2 folds"):
        Folds(1, 0, "")
    index = small_index(tmp_path, 2)
    with pytest.raises(UserError, match="only 2 images. Type a lower number"):
        cross_validate(index, Folds(3, 0, ""), names=NAMES, folder=tmp_path, train=None, predict=None)


def test_the_fingerprint_follows_labels_names_and_folds(tmp_path):
    index = small_index(tmp_path)
    fold_of = np.zeros(7, np.int64)
    keys = {
        fingerprint(index, fold_of, "", NAMES),
        fingerprint(index, fold_of + 1, "", NAMES),
        fingerprint(index, fold_of, "x", NAMES),
        fingerprint(index, fold_of, "", {0: "cat", 1: "cow"}),
    }
    index.labels[0, 0] = 1
    keys.add(fingerprint(index, fold_of, "", NAMES))
    assert len(keys) == 5


def test_the_pixel_format_of_the_images_is_kept(tmp_path):
    (tmp_path / "images.txt").write_text("./images/0.tif\n./images/1.tif\n")
    fold_of = np.array([0, 1])
    for pixels, keys in ((RGB, {}), (PixelFormat(4, 16), {"channels": 4, "bit_depth": 16})):
        content = read_yaml(write_fold(tmp_path, fold_of, 0, names=NAMES, pixels=pixels))
        assert {key: content[key] for key in ("channels", "bit_depth") if key in content} == keys


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut off"])
def test_a_damaged_file_counts_as_none(tmp_path, content):
    (tmp_path / "fold1.npz").write_bytes(content)
    assert read_detections(tmp_path / "fold1.npz", "key") is None


def test_detections_come_back(tmp_path):
    rows = [np.zeros((0, 6), np.float32), None, np.arange(12, dtype=np.float32).reshape(2, 6)]
    write_detections(tmp_path / "fold1.npz", rows, "key")
    back = read_detections(tmp_path / "fold1.npz", "key")
    assert back is not None and back[1] is None
    assert back[0].tolist() == [] and back[2].tolist() == rows[2].tolist()
    assert read_detections(tmp_path / "fold1.npz", "other") is None


def test_an_image_is_copied_where_links_are_impossible(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no links here")

    monkeypatch.setattr("os.symlink", fail)
    monkeypatch.setattr("os.link", fail)
    (tmp_path / "a.png").write_bytes(b"image")
    link_or_copy(tmp_path / "a.png", tmp_path / "b.png")
    assert (tmp_path / "b.png").read_bytes() == b"image" and not (tmp_path / "b.png").is_symlink()
