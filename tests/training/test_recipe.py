"""Recipes: which values they settle, what outranks them, and what is wrong in a file."""

from pathlib import Path

import pytest
import yaml
from tiny_training import train_flags

import train
from utils.checkpoint import read_checkpoint
from utils.config import Hyperparameters, TrainOptions
from utils.errors import UserError
from utils.training import recipe
from utils.training.recipe import Facts, apply_recipe, choose_file, read_recipe, settle, settle_search

SCRATCH, TUNING = Facts("scratch", 500, 2000), Facts("weights", 500, 2000)
NESTED = """
lr0: 0.1
cases:
- {images_below: 501, steps_below: 2000, lrf: 0.5}
- {images_below: 501, steps_from: 2000, lrf: 0.6, why: enough steps}
scratch:
  why: from nothing
  lr0: 0.2
  cases:
  - {images_from: 500, mixup: 0.5}
  - {images_from: 501, mixup: 0.6}
"""


@pytest.mark.parametrize(
    "facts, values, reasons",
    [
        (SCRATCH, {"lr0": 0.2, "lrf": 0.6, "mixup": 0.5}, ["from nothing", "enough steps"]),
        (TUNING, {"lr0": 0.1, "lrf": 0.6}, ["enough steps"]),
        (SCRATCH._replace(steps=1999), {"lr0": 0.2, "lrf": 0.5, "mixup": 0.5}, ["from nothing"]),
        (SCRATCH._replace(images=501), {"lr0": 0.2, "mixup": 0.6}, ["from nothing"]),
        (TUNING._replace(images=10**6), {"lr0": 0.1}, []),
    ],
)
def test_sections_apply_to_the_runs_that_they_name(facts, values, reasons):
    assert settle(yaml.safe_load(NESTED), facts) == (values, reasons)


def applied(tmp_path: Path, text: str, weights: str = "", **typed) -> tuple[TrainOptions, Hyperparameters]:
    (tmp_path / "own.yaml").write_text(text)
    options = TrainOptions.from_typed({"recipe": str(tmp_path / "own.yaml"), "epochs": 2, **typed})
    hyp = Hyperparameters.load(options.hyp)
    return apply_recipe(options, hyp, weights=weights, num_images=100)


def test_typed_flags_and_the_typed_file_outrank_a_recipe_and_it_outranks_defaults(tmp_path, capsys):
    text = "optimizer: Muon\ncos_lr: true\nlr0: 0.03\nmuon_lr: 0.05\nwhy: it is small\n"
    options, hyp = applied(tmp_path, text)
    assert (options.optimizer, options.cos_lr, hyp.lr0, hyp.muon_lr) == ("Muon", True, 0.03, 0.05)
    assert hyp.to_dict() == {**Hyperparameters().to_dict(), "lr0": 0.03, "muon_lr": 0.05}
    (tmp_path / "hyp.yaml").write_text("lr0: 0.04\n")
    options, hyp = applied(tmp_path, text, optimizer="SGD", hyp=str(tmp_path / "hyp.yaml"))
    assert (options.optimizer, options.cos_lr, hyp.lr0, hyp.muon_lr) == ("SGD", True, 0.04, 0.05)
    lines = [line for line in capsys.readouterr().out.splitlines() if "ecipe" in line]
    assert len(lines) == 6 and lines[3].endswith("100 images, 14 batches, from scratch; typed, so kept: lr0, optimizer")
    assert lines[4:] == ["Recipe sets cos_lr True, muon_lr 0.05", "Recipe's reasons: it is small"]


def test_yolov5_changes_nothing_and_is_the_default(capsys):
    hyp = Hyperparameters.load("hyp.VOC.yaml", recipe.FOLDER.parent)
    assert TrainOptions.recipe == "yolov5"
    assert apply_recipe(TrainOptions(), hyp, weights="", num_images=10) == (TrainOptions(), hyp)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "images, steps, typed, name",
    [
        (500, 2000, {}, "small"),
        (10**6, 2000, {}, None),  # much data
        (500, 10**6, {}, None),  # many steps
        (500, 2000, {"optimizer": "SGD"}, None),  # the user has a recipe
        (500, 2000, {"hyp": "data/hyps/hyp.VOC.yaml"}, None),
    ],
)
def test_auto_is_small_where_data_and_steps_are_few(images, steps, typed, name):
    found = choose_file(TrainOptions.from_typed({"recipe": "auto", **typed}), Facts("scratch", images, steps))
    assert (found and found.stem) == name


@pytest.mark.parametrize("file", sorted(recipe.FOLDER.glob("*.yaml")), ids=lambda file: file.stem)
def test_own_recipes_are_valid(file):
    content = read_recipe(file)
    assert settle(content, SCRATCH)[0] and settle(content, TUNING)[0]


def test_the_recipe_of_small_data_differs_by_start():
    (from_scratch, _), (from_weights, _) = (
        settle(read_recipe(recipe.FOLDER / "small.yaml"), start) for start in (SCRATCH, TUNING)
    )
    assert from_scratch["muon_lr"] > from_weights["muon_lr"]
    assert from_weights["head_rows"] == 1 and "head_rows" not in from_scratch


@pytest.mark.parametrize(
    "text, message",
    [
        ("lr_0: 1", "unknown hyperparameter lr_0; did you mean lr0"),
        ("scratch: {optimiser: SGD}", "own.yaml: scratch: unknown hyperparameter optimiser"),
        ("scratch: 3", "own.yaml: scratch: 3 is not a section with keys"),
        ("cases: {lr0: 1}", "own.yaml: cases: {'lr0': 1} is not a list"),
        ("cases: [{images_below: many}]", "own.yaml: cases: images_below: 'many' is not a number of images"),
        ("weights: {cases: [{steps_from: -1}]}", "weights: cases: steps_from: -1 is not a number of steps"),
        ("images_below: 3", "own.yaml: images_below: conditions belong in an entry of cases"),
        ("auto: {image_below: 3}", "own.yaml: auto: unknown condition image_below; did you mean images_below"),
        ("auto: [1]", "own.yaml: auto: [1] is not a section with keys"),
        ("cos_lr: 1", "option cos_lr: 1 is not of the type of False"),
        ("momentum: 3", "own.yaml: momentum: 3 is outside 0 to 0.9999"),
        ("anchors: 3", "own.yaml: anchors: a recipe cannot set their number; give a --hyp file with it"),
    ],
)
def test_mistakes_in_a_recipe_name_file_and_key(tmp_path, text, message):
    with pytest.raises(UserError) as error:
        applied(tmp_path, text)
    assert message in str(error.value)


def test_an_unknown_recipe_gets_the_nearest_name():
    with pytest.raises(UserError, match="--recipe smalls: neither a file nor one of .*; did you mean small"):
        choose_file(TrainOptions(recipe="smalls"), SCRATCH)


def test_a_search_gives_its_trainings_the_settled_values():
    options = TrainOptions.from_typed({"recipe": "small", "epochs": 2})
    found, hyp = settle_search(options, Hyperparameters(), weights="", num_images=100)
    assert (found.recipe, found.optimizer, found.cos_lr, found.typed) == (
        "yolov5", "Muon", True, {"recipe", "epochs", "optimizer", "cos_lr"},
    )  # fmt: skip
    assert hyp.muon_decay == settle(read_recipe(recipe.FOLDER / "small.yaml"), SCRATCH)[0]["muon_decay"]
    plan = train.make_plan(found, script=Path("train.py"), hyp=hyp, typed=options)
    assert plan.search_command == "python train.py --epochs=2 --recipe=small"  # as it was typed
    assert plan.start["muon_decay"] == hyp.muon_decay and "--recipe=yolov5" in plan.training_flags


def test_a_run_writes_what_was_settled_and_a_resumed_run_reads_only_that(tiny_data, tiny_cfg, tmp_path, monkeypatch):
    file = tmp_path / "own.yaml"
    file.write_text("optimizer: Muon\nscratch: {muon_lr: 0.03, close_mosaic: 1}\n")
    train.main([*train_flags(tiny_data, tiny_cfg, tmp_path, "--noplots", "--recipe", str(file), epochs=1)])
    run = tmp_path / "run"
    hyp, options = (yaml.safe_load((run / name).read_text()) for name in ("hyp.yaml", "opt.yaml"))
    assert (hyp["muon_lr"], hyp["close_mosaic"], options["optimizer"]) == (0.03, 1.0, "Muon")
    file.write_text("optimizer: SGD\nscratch: {muon_lr: 0.3}\n")
    with pytest.raises(UserError, match="--resume keeps what the recipe of .* settled: omit --recipe"):
        train.main(["--resume", str(run), "--epochs", "2", "--recipe", "small"])
    train.main(["--resume", str(run), "--epochs", "2", "--recipe", str(file)])
    content = read_checkpoint(run / "weights" / "last.pt")
    assert (content["options"]["optimizer"], content["hyp"]["muon_lr"], content["epoch"]) == ("Muon", 0.03, 2)
