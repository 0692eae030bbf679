"""Options, hyperparameters and data set files: read once, checked, and every mistake named."""

from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from utils import console
from utils.cli import GROUPS, SuggestingParser, add_flags, flag_fields, read_flags, suggest
from utils.config import Hyperparameters, TrainOptions
from utils.datasets.spec import MissingData, read_dataset_yaml
from utils.errors import UserError

# The command line that users of such tools know: flag, default. A row vanishes only with a row in the README's table.
TRAIN_FLAGS = {
    "--weights": "yolov5s.pt", "--cfg": "", "--data": "data/shapes.yaml", "--hyp": "data/hyps/hyp.scratch-low.yaml",
    "--epochs": 100, "--batch-size": 16, "--imgsz": 640, "--img": 640, "--img-size": 640, "--rect": False,
    "--resume": False, "--nosave": False, "--noval": False, "--noautoanchor": False, "--noplots": False,
    "--cache": None, "--image-weights": False, "--device": "", "--multi-scale": False, "--single-cls": False,
    "--optimizer": "SGD", "--sync-bn": False, "--workers": 8, "--project": "runs/train", "--name": "exp",
    "--exist-ok": False, "--quad": False, "--cos-lr": False, "--label-smoothing": 0.0, "--patience": 100,
    "--freeze": [0], "--save-period": -1, "--seed": 0, "--local_rank": -1, "--amp": "auto",
}  # fmt: skip


def parser() -> SuggestingParser:
    return add_flags(SuggestingParser(prog="train.py"), TrainOptions)


def test_no_flag_of_the_training_command_line_vanishes():
    options, known = TrainOptions(), parser()._option_string_actions
    for flag, default in TRAIN_FLAGS.items():
        assert flag in known, flag
        assert getattr(options, known[flag].dest) == default, flag


def test_flags_are_read_in_every_known_spelling():
    read = vars(
        parser().parse_args(["--img", "320", "--batch", "8", "--cos_lr", "--local-rank=3", "--freeze", "1", "2"])
    )
    assert read == {"imgsz": 320, "batch_size": 8, "cos_lr": True, "local_rank": 3, "freeze": [1, 2]}


@pytest.mark.parametrize(
    "argv, resume, cache",
    [
        (["--resume"], True, None),  # the latest run
        (["--resume", "runs/train/exp"], "runs/train/exp", None),
        (["--cache"], False, "ram"),
        (["--cache", "disk"], False, "disk"),
    ],
)
def test_flags_with_an_optional_value(argv, resume, cache):
    read = vars(parser().parse_args(argv))
    assert (read.get("resume", False), read.get("cache")) == (resume, cache)


def test_unknown_flag_names_the_nearest_one(capsys):
    with pytest.raises(SystemExit) as stopped:
        parser().parse_args(["--epoch-s", "3"])
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert "--epoch-s" in message and "--epochs" in message and len(message.splitlines()) == 1


@pytest.mark.parametrize(
    "values, word",
    [
        ({"epochs": 0}, "--epochs 0"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"label_smoothing": 2.0}, "--label-smoothing"),
        ({"weights": "", "cfg": ""}, "--cfg"),
        ({"seed": -1}, "--seed -1"),
        ({"seed": 2**70}, "--seed"),
        ({"freeze": [3, -1]}, "--freeze 3 -1"),
        ({"save_minutes": -1.0}, "--save-minutes -1"),
        ({"save_minutes": float("nan")}, "--save-minutes nan"),
    ],
)
def test_options_without_sense_are_refused(values, word):
    with pytest.raises(UserError, match=word):
        TrainOptions(**values)


def test_options_survive_a_round_trip_and_newer_files():
    options = TrainOptions(epochs=3, freeze=[1, 2], resume="runs/x")
    assert TrainOptions.from_dict({**options.to_dict(), "of_the_future": 1}) == options


def test_hyperparameters_default_to_scratch_low():
    file = yaml.safe_load((Path(__file__).parents[2] / "data/hyps/hyp.scratch-low.yaml").read_text())
    assert Hyperparameters().to_dict() == file
    assert list(Hyperparameters().to_dict()) == list(file)


def test_optional_hyperparameters_are_written_if_they_differ_from_their_defaults():
    changed = Hyperparameters(muon_lr=0.01, anchors=3.0)
    assert changed.to_dict() == {**Hyperparameters().to_dict(), "anchors": 3.0, "muon_lr": 0.01}
    assert Hyperparameters.from_dict(changed.to_dict()) == changed
    assert set(Hyperparameters.OPTIONAL) == {entry.name for entry in fields(Hyperparameters)} - {
        *Hyperparameters().to_dict()
    }


@pytest.mark.parametrize(
    "values, message",
    [
        ({"lr_0": 0.1}, "unknown hyperparameter lr_0; did you mean lr0"),
        ({"lr0": "fast"}, "lr0: 'fast' is not a number"),
        ({"lr0": True}, "is not a number"),
        ({"lr0": float("nan")}, "is not a number"),
        ({"lr0": "nan"}, "is not a number"),
        ({"lr0": "1e99"}, "is outside"),
        ({"fliplr": 1.5}, "fliplr: 1.5 is outside 0 to 1"),
    ],
)
def test_a_wrong_hyperparameter_is_named(values, message):
    with pytest.raises(UserError, match=message):
        Hyperparameters.from_dict(values, "hyp.yaml")


def test_numbers_that_yaml_reads_as_text_are_numbers():
    """1e-3 is one only with a point in it by YAML 1.1."""
    hyp = Hyperparameters.from_dict(yaml.safe_load("lr0: 1e-3\nbox: '0.07'\nmomentum: 9.0e-1"), "hyp.yaml")
    assert (hyp.lr0, hyp.box, hyp.momentum) == (0.001, 0.07, 0.9)


def write_data(folder: Path, **content) -> Path:
    for split in ("train", "val"):
        (folder / "set" / "images" / split).mkdir(parents=True, exist_ok=True)
    file = folder / "my.yaml"
    file.write_text(
        yaml.safe_dump({"path": "set", "train": "images/train", "val": "images/val", "names": ["a", "b"], **content})
    )
    return file


def test_data_is_found_beside_the_yaml(tmp_path):
    spec = read_dataset_yaml(write_data(tmp_path)).resolve([])
    assert spec.splits["train"] == [tmp_path / "set/images/train"] and spec.names == {0: "a", 1: "b"}


@pytest.mark.parametrize(
    "place, val, found",
    [("coco", "val2017.txt", True), ("coco", "train2017.txt", False), ("coco128", "val2017.txt", False)],
)
def test_coco_is_known_by_the_place_of_its_list(tmp_path, place, val, found):
    (tmp_path / place).mkdir()
    for name in ("train2017.txt", "val2017.txt"):
        (tmp_path / place / name).touch()
    file = tmp_path / "any.yaml"
    file.write_text(f"path: {place}\ntrain: train2017.txt\nval: {val}\nnames: [a]\n")
    assert read_dataset_yaml(file).resolve([]).is_coco is found


def test_data_is_found_below_the_given_folders_without_the_leading_dots(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    file = write_data(elsewhere, path="../datasets/set")
    spec = read_dataset_yaml(file.rename(tmp_path / "my.yaml")).resolve([elsewhere])
    assert spec.root == elsewhere / "set"


def test_names_may_be_a_mapping_and_splits_a_list(tmp_path):
    file = write_data(tmp_path, names={1: "b", 0: 7}, train=["images/train", "images/val"])
    spec = read_dataset_yaml(file).resolve([])
    assert spec.names == {0: "7", 1: "b"} and len(spec.splits["train"]) == 2


def test_missing_data_lists_every_place_looked_at(tmp_path):
    file = write_data(tmp_path, path="nowhere", download="https://example.org/set.zip")
    with pytest.raises(MissingData) as missing:
        read_dataset_yaml(file).resolve([tmp_path / "other"])
    assert str(tmp_path / "nowhere") in str(missing.value) and str(tmp_path / "other" / "nowhere") in str(missing.value)
    assert read_dataset_yaml(file).download == ["https://example.org/set.zip"]


def test_only_what_is_absent_is_named(tmp_path):
    file = write_data(tmp_path, train="images/trainn")
    with pytest.raises(MissingData, match="my.yaml: images/trainn not found; correct"):
        read_dataset_yaml(file).resolve([])
    for split in ("train", "val"):  # each somewhere, nowhere both
        (tmp_path / split / "set" / split).mkdir(parents=True)
    file.write_text("path: set\ntrain: train\nval: val\nnames: [a]\n")
    with pytest.raises(MissingData, match="my.yaml: train and val not found; correct"):
        read_dataset_yaml(file).resolve([tmp_path / "train", tmp_path / "val"])


def test_a_flag_like_none_is_likened_to_none():
    assert suggest("--visualize", ["--img-size"]) == "" and "--device" in suggest("--devise", ["--device"])


@pytest.mark.parametrize(
    "content, message",
    [
        ({"names": None}, "`names:` is missing"),
        ({"val": ""}, "`val:` is missing"),
        ({"names": {0: "a", 2: "b"}}, "keys 0 to n-1; of 2 keys these are missing: '1'$"),
        ({"names": {"0": "a", "1": "b"}}, """keys 0 to n-1; no numbers: "'0', '1'"$"""),
        ({"names": {"cat": 0, "dog": 1}}, """no numbers: "'cat', 'dog'"$"""),
        ({"names": "cat"}, "keys 0 to n-1$"),
        ({"names": ["a", None]}, "put quotes around it"),
        ({"train": 5}, "is not a path"),
    ],
)
def test_a_wrong_data_file_is_named(tmp_path, content, message):
    file = write_data(tmp_path, **content)
    with pytest.raises(UserError, match=message) as wrong:
        read_dataset_yaml(file).resolve([])
    assert str(file) in str(wrong.value)


def test_every_field_has_a_help_text():
    assert all(entry.metadata["help"] for entry in fields(TrainOptions) if entry.name != "typed")


def test_typed_flags_are_known_but_no_option():
    options = TrainOptions.from_typed({"epochs": 3, "imgsz": 640})
    assert options.typed == {"epochs", "imgsz"} and options.replace(epochs=4).typed == options.typed
    assert options == TrainOptions(epochs=3) and "typed" not in options.to_dict()
    assert not TrainOptions.from_dict({**options.to_dict(), "typed": ["epochs"]}).typed


@pytest.mark.parametrize(
    "argv, typed, quiet", [([], {}, False), (["-q"], {}, True), (["--quiet", "--seed", "1"], {"seed": 1}, True)]
)
def test_quiet_is_no_option_but_a_setting_of_the_console(argv, typed, quiet, capsys):
    try:
        assert read_flags(TrainOptions, argv, prog="train.py", description="Train.") == typed
        console.info("for the curious")
        assert bool(capsys.readouterr().out) is not quiet
    finally:
        console.begin_program()


def test_the_help_is_grouped_by_theme():
    assert {entry.metadata["group"] for entry in flag_fields(TrainOptions)} == {*GROUPS} - {"detection"}
    text = parser().format_help()
    places = [text.index(f"\n{theme}:\n") for theme in GROUPS if theme != "detection"]
    assert places == sorted(places)
    assert places[0] < text.rindex("--data DATA") < places[1] < text.rindex("--freeze FREEZE") < places[2]
    assert "(default 0.0)" in text and "(default 640)" in text
