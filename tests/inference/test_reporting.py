"""Console table, drawings and files of an evaluation."""

import pytest
from known_model import FOUND, LABELS, NAMES, Answers, batches, make_batch

from utils import console
from utils.inference.evaluate import evaluate
from utils.inference.reporting import ConsoleTable, DetectionFiles, Drawings


def evaluate_rows(rows, loader=None, **settings):
    return evaluate(Answers(rows), batches() if loader is None else loader, **settings)


@pytest.mark.parametrize(
    "settings, first_words",
    [
        ({}, ["Class", "all"]),
        ({"verbose": True}, ["Class", "all", "dark", "bright"]),
        ({"final": True}, ["Class", "all"]),
    ],
)
def test_table(settings, first_words, capsys):
    evaluate_rows(FOUND, observers=[ConsoleTable(NAMES, **settings)])
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == first_words and err == ""


@pytest.mark.parametrize("final", [False, True])
def test_quiet_leaves_the_final_table_only(final, capsys):
    console.begin_program(quiet=True)
    try:
        evaluate_rows(FOUND, observers=[ConsoleTable(NAMES, final=final)])
    finally:
        console.begin_program()
    assert bool(capsys.readouterr().out) == final


def test_the_bar_is_cleared_before_the_table(capsys, monkeypatch):
    monkeypatch.setattr("utils.console.shows_bars", lambda: True)
    evaluate_rows(FOUND, observers=[ConsoleTable(NAMES)])
    err = capsys.readouterr().err
    assert "Validating" in err and err.endswith("\r")


def test_drawings(tmp_path):
    loader = [make_batch([0], LABELS) for _ in range(5)]
    evaluate_rows(FOUND, loader, observers=[Drawings(tmp_path, NAMES)])
    files = {file.name for file in tmp_path.iterdir()}
    assert files == {
        *(f"val_batch{number}_{kind}.jpg" for number in range(3) for kind in ("labels", "pred")),
        *("confusion_matrix.png", "P_curve.png", "R_curve.png", "F1_curve.png", "PR_curve.png"),
    }


def test_nothing_found_has_no_curves(tmp_path):
    evaluate_rows({0: [], 1: [], 2: []}, observers=[Drawings(tmp_path, NAMES)])
    assert not list(tmp_path.glob("*_curve.png")) and (tmp_path / "confusion_matrix.png").is_file()


def test_writers_get_pixels_of_the_original():
    class Writer:
        def __init__(self):
            self.found = []

        def write(self, detections):
            self.found.append(detections)

    writers = [Writer(), Writer()]
    rows = {0: [(5.0, 5, 20, 20, 0.9, 0)]}
    evaluate_rows(rows, [make_batch([0], LABELS)], observers=[DetectionFiles(writers)])
    for writer in writers:
        (found,) = writer.found
        assert (found.path, found.shape, found.input_shape) == ("/data/0.jpg", (100, 200), (31, 50))
        assert found.names == NAMES and len(found) == 1
        assert found.rows.tolist() == [pytest.approx((20, 8, 80, 68, 0.9, 0))]
