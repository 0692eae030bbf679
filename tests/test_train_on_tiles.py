"""Training on tiles: its validation is that of val.py --tile, and best.pt says which tiles it was trained on."""

import re

import pytest
from tiny_training import train_flags

import detect
import train
import val
from models.loading import load_model


def rows_of_all(text: str) -> list[str]:
    """Return the rows of all classes in printed tables, without the confidence."""
    return [re.sub(r" +", " ", row) for row in re.findall(r"^ +all .*?(?=   \(P and R|$)", text, re.MULTILINE)]


def test_training_validates_and_advises_by_tiles(tiny_data, tiny_cfg, tmp_path, capsys):
    words = ["--noplots", "--batch-size", "32", "--tile", "48", "--tile-overlap", "0.25"]
    train.main(train_flags(tiny_data, tiny_cfg, tmp_path, *words, epochs=2))
    output = capsys.readouterr().out
    assert re.search(r"Tiles of 48 px: an epoch has \d+ views: 24 whole images, \d+ tiles with objects", output)
    assert "--imgsz 64 --tile 48 --tile-overlap 0.25" in output
    best = tmp_path / "run" / "weights" / "best.pt"
    assert load_model(best).advice.tile_flags() == "--tile 48 --tile-overlap 0.25"
    tables = rows_of_all(output)

    flags = ["--weights", str(best), "--imgsz", "64", "--device", "cpu", "--project", str(tmp_path)]
    val.main([*flags, "--data", str(tiny_data), "--batch-size", "64", "--tile", "48", "--tile-overlap", "0.25"])
    by_tiles = capsys.readouterr().out
    assert rows_of_all(by_tiles)[0] == tables[-1] and "was trained with" not in by_tiles
    val.main([*flags, "--data", str(tiny_data), "--batch-size", "64"])
    whole = capsys.readouterr().out
    assert rows_of_all(whole)[0] != tables[-1]
    assert "was trained with --tile 48 --tile-overlap 0.25: with these, it looks at tiles too" in whole
    detect.main([*flags, "--source", str(tiny_data.parent / "images" / "val"), "--tile", "64", "--nosave"])
    assert "The model was trained with --tile 48 --tile-overlap 0.25\n" in capsys.readouterr().out


def test_dry_run_counts_the_tiles(tiny_data, tiny_cfg, tmp_path, monkeypatch):
    monkeypatch.setattr("utils.training.dry_run.ENOUGH_SECONDS", 0.0)
    found = {}
    for tile in (0, 48):
        words = ["--tile", str(tile), "--dry-run"]
        found[tile] = train.start(train_options(train_flags(tiny_data, tiny_cfg, tmp_path, *words))).dry_run
    assert found[48].steps > 3 * found[0].steps
    assert found[48].validation_seconds > found[0].validation_seconds


def train_options(words: list[str]) -> dict:
    return train.parse_args(words)


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--image-weights", "--quad", "--multi-scale"])
def test_tiles_go_with_other_ways_to_draw_images(tiny_data, tiny_cfg, tmp_path, flag):
    words = ["--noplots", "--noval", "--tile", "48", "--batch-size", "32", flag]
    train.main(train_flags(tiny_data, tiny_cfg, tmp_path, *words, epochs=1))
    assert len((tmp_path / "run" / "results.csv").read_text().splitlines()) == 2
