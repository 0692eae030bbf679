"""Division of one set of images: whole sequences, the same each time, kept outside the data."""

import json

import numpy as np
import pytest

from utils.datasets import division as module
from utils.datasets.division import Division
from utils.errors import UserError


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "user_cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "data"


def paths_of(root, *names):
    return [str(root / name) for name in names]


def divide(division, paths, root, *classes):
    """Divide images that each have one object, of class 0 unless there are `classes`."""
    classes = classes or [0] * len(paths)
    pairs = np.array([(image, number) for image, number in enumerate(classes) if number is not None], np.int64)
    return division.divide(paths, root, pairs=pairs.reshape(-1, 2), names={0: "apple", 1: "banana"})


MANY = [f"images/{name}.jpg" for name in np.random.default_rng(0).permutation(100_000)[:200]]


@pytest.mark.parametrize("text", ["1", "0", "-0.5", "x", "nan", "0.8:x", "0.8:-1", "0.8,3", "0.8:"])
def test_other_shares_are_refused(text):
    with pytest.raises(UserError, match="--split .*0.8:3 with a seed"):
        Division.parse(text)


def test_no_text_is_no_division():
    assert Division.parse("") is None


def test_copies_and_short_sequences_stay_together(root):
    names = [f"images/{k:03}x_jpg.rf.{copy}.jpg" for k in (np.arange(40) ** 2) for copy in "abc"]
    names += [f"images/{clip}_{frame}.jpg" for clip in "abcdefghij" for frame in range(5)]
    parts = divide(Division(0.8), paths_of(root, *names), root)
    sides = np.zeros(len(names), bool)
    sides[parts.val] = True
    assert 0.1 < sides.mean() < 0.3 and len(parts.train) + len(parts.val) == len(names)
    assert all(np.ptp(run.astype(int)) == 0 for run in [*sides[:120].reshape(40, 3), *sides[120:].reshape(10, 5)])


def test_one_long_video_is_cut_into_runs_of_frames(root):
    parts = divide(Division(0.8), paths_of(root, *(f"frame_{k:04}.jpg" for k in range(1000))), root)
    assert 150 <= len(parts.val) <= 250
    assert (np.diff(parts.val) > 1).sum() < 5  # few neighbours are on both sides


def test_frames_of_one_video_are_said(root, capsys):
    divide(Division(0.8), paths_of(root, *(f"frame_{k:04}.jpg" for k in range(50))), root)
    said = "(by their names 50 images form 1 group of frames or copies, so that neighbours stay together)"
    assert said in capsys.readouterr().out


def test_a_division_is_kept_in_the_cache_and_said(root, capsys):
    paths = paths_of(root, *MANY)
    first = divide(Division(0.8), paths, root)
    assert "160 images to train on, 40 to validate on, drawn at random by class; kept in" in capsys.readouterr().out
    more = [*paths, *paths_of(root, "images/new1.jpg", "images/new2.jpg")]
    again = divide(Division(0.8), more, root)
    assert "as kept in" in (out := capsys.readouterr().out) and "(+2 images since then" in out
    assert [more[i] for i in again.val] == [paths[i] for i in first.val]
    assert not root.exists()


def test_each_class_is_on_both_sides(root, capsys):
    classes = [None] * 100 + [0] * 96 + [1, 1] + [2, 2]  # 96 of class 0 and twice two of others
    parts = divide(Division(0.8), paths_of(root, *MANY), root, *classes)
    assert {classes[i] for i in parts.val} == {classes[i] for i in parts.train} == {None, 0, 1, 2}
    assert len(parts.val) == 40 and sum(classes[i] == 0 for i in parts.val) == 19
    assert not capsys.readouterr().err


def test_a_class_that_cannot_be_divided_is_named_once(root, capsys):
    names = [*MANY[:50], *(f"images/{stem}_jpg.rf.{copy}.jpg" for stem in "vw" for copy in "abc")]
    parts = divide(Division(0.8), paths_of(root, *names), root, *[0] * 50, *[1] * 3, *[2] * 3)
    assert set(range(50, 56)) <= set(parts.train.tolist())
    said = "no image to validate on of banana (3 in all), 2 (3 in all): a single image or sequence is not divided"
    assert said in capsys.readouterr().err
    divide(Division(0.8), paths_of(root, *names), root)
    assert not capsys.readouterr().err


def test_a_division_without_labels_is_not_kept(root, tmp_path, capsys):
    divide(Division(0.8), paths_of(root, *MANY), root, *[None] * 200)
    assert "drawn at random by class\n" in capsys.readouterr().out and not (tmp_path / "cache").exists()


def test_a_set_that_has_grown_much_is_warned_of(root, capsys):
    divide(Division(0.8), paths_of(root, *MANY[:10]), root)
    divide(Division(0.8), paths_of(root, *MANY[:19]), root)
    assert not capsys.readouterr().err
    parts = divide(Division(0.8), paths_of(root, *MANY), root)
    assert len(parts.val) == 2
    assert "WARNING: --split 0.8: few images are left to validate on. Delete" in capsys.readouterr().err


def test_that_of_a_run_counts_more_than_the_cache_and_moves_with_the_data(root, tmp_path):
    paths, run = paths_of(root, *MANY), tmp_path / "run"
    run.mkdir()
    divide(Division(0.8), paths, root)
    Division(0.8).write(run / "split.json", val_paths=paths[:3], num_images=len(paths), root=root)
    moved = paths_of(tmp_path / "elsewhere", *MANY)
    parts = divide(Division.parse("0.8", run), moved, tmp_path / "elsewhere")
    assert parts.val.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"val": 3}', b'{"val": ["gone.jpg"], "images": 3, "split": "0.8"}']
)
def test_a_file_of_other_images_or_damage_does_not_count(root, tmp_path, content):
    (tmp_path / "split.json").write_bytes(content)
    assert len(divide(Division.parse("0.8", tmp_path), paths_of(root, *MANY), root).val) == 40


def test_names_of_any_bytes_are_kept(root):
    paths = paths_of(root, *(f"a\udcff{name}.jpg" for name in "bcdfgh"))
    first = divide(Division(0.5), paths, root)
    assert np.array_equal(divide(Division(0.5), paths, root).val, first.val)


def test_the_file_is_readable(root, tmp_path):
    Division(0.8, 3).write(
        tmp_path / "split.json", val_paths=[str(root / "a.jpg"), "/other/b.jpg"], num_images=9, root=root
    )
    content = json.loads((tmp_path / "split.json").read_text())
    assert content == {"split": "0.8:3", "images": 9, "val": ["a.jpg", "/other/b.jpg"]}
