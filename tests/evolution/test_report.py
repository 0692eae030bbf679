"""Report of an evolution: the files and lines that people read."""

import errno
import os
from pathlib import Path

import pytest
import yaml

from utils.config import TrainOptions
from utils.errors import UserError
from utils.evolution.plan import make_plan
from utils.evolution.report import Report, format_duration, summary_line, write_best, write_population
from utils.evolution.verdict import Verdict
from utils.evolve import PARENTS, Generation

BEST = Generation(
    3, {"lr0": 0.1, "anchors": 0.0}, 7, "child", (1, 2), 0, "done", 0.5, (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
)
START = Generation(0, {"lr0": 0.01, "anchors": 0.0}, 7, "start", status="done", fitness=0.25)


@pytest.mark.parametrize(
    "seconds, text", [(0, "0 s"), (42, "42 s"), (450, "7.5 min"), (3 * 3600 + 720, "3.2 h"), (2.1 * 86400, "2.1 days")]
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    "verdict, line",
    [
        (
            Verdict(BEST, 0.5, None, None, None, None),
            "generation 3, fitness 0.5; the start failed, so there is no gain",
        ),
        (Verdict(START, 0.25, 0.25, 0.0, 0.1, False), "the start itself, fitness 0.25: nothing better was found"),
        (Verdict(BEST, 0.5, 0.25, 0.25, None, None), "gain +0.25 on fresh seeds; nothing was repeated"),
        (
            Verdict(BEST, 0.5, 0.25, 0.25, 0.1, True),
            "0.5 against 0.25 of the start; gain +0.25 on fresh seeds, larger than",
        ),
        (
            Verdict(BEST, 0.5, 0.25, 0.01, 0.1, False),
            "not larger than the noise between seeds (standard deviation 0.1)",
        ),
    ],
)
def test_summary_line(verdict, line):
    assert line in summary_line(verdict) and "\n" not in summary_line(verdict)


def test_the_best_file_holds_the_values_and_says_how_they_were_found(tmp_path):
    write_best(tmp_path / "best.yaml", BEST, [START, BEST], "python train.py --evolve=2", "the summary")
    text = (tmp_path / "best.yaml").read_text()
    assert yaml.safe_load(text) == {"lr0": 0.1}  # the model keeps its own anchors
    assert "# Best generation: 3 (child of 1 2), seed 7, fitness 0.5\n# Last generation: 3, 2 in all\n" in text
    assert "# the summary\n# Found with: python train.py --evolve=2\n" in text


def test_the_population_file_holds_the_parents_best_first(tmp_path):
    records = [Generation(k, {"lr0": 0.01 * (k + 1)}, 0, "child", status="done", fitness=0.1 * k) for k in range(8)]
    write_population(tmp_path / "population.yaml", records)
    content = yaml.safe_load((tmp_path / "population.yaml").read_text())
    assert list(content)[:2] == ["gen7number0", "gen6number1"] and len(content) == PARENTS


def test_a_full_disk_ends_no_search_and_is_reported_at_its_end(tmp_path, monkeypatch, capsys):
    given = {"device": "cpu", "evolve": 2, "evolve_population": "", "noplots": True, "project": str(tmp_path)}
    plan = make_plan(TrainOptions.from_typed({**given, "name": "."}), Path("train.py"))

    def replace(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Report(plan) as report:
        report.begin([], 0)
        with monkeypatch.context() as full:
            full.setattr("os.replace", replace)
            report.on_end(BEST, [BEST])
        assert "hyp_evolve.yaml could not be written: No space left on device" in capsys.readouterr().err
        report.on_end(START, [BEST, START])  # no better one, but the best is not written yet
        assert yaml.safe_load((tmp_path / "hyp_evolve.yaml").read_text()) == {"lr0": 0.1}
        monkeypatch.setattr("os.replace", replace)
        with pytest.raises(UserError, match="hyp_evolve.yaml could not be written, also at the end: No space left"):
            report.finish(Verdict(BEST, 0.5, 0.25, 0.25, None, None), [BEST, START], [])
    said = capsys.readouterr().out
    assert "Best: generation 3, fitness 0.5" in said and "Results saved" not in said
