"""Runs of `train.py --evolve`: the trainings they start, the faults they survive, the files they write."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

import train
from utils.cli import to_flags
from utils.config import Hyperparameters, TrainOptions
from utils.errors import UserError
from utils.evolution.csv_store import read_table
from utils.evolution.plan import make_plan
from utils.evolution.run import build_trainings
from utils.evolve import GENES, MemoryStore

ROOT = Path(__file__).resolve().parents[2]
STUB = ROOT / "tests" / "evolve_stub.py"
NAMES = list(GENES)
CLI = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from utils.cli import SuggestingParser, add_flags
from utils.config import TrainOptions
from utils.errors import run
from utils.evolution.plan import make_plan
from train import search_hyperparameters
given = vars(add_flags(SuggestingParser(prog="train.py"), TrainOptions).parse_args())
run(lambda: search_hyperparameters(make_plan(TrainOptions.from_typed(given), Path({str(STUB)!r}))))
"""


def options(folder, **settings):
    return {"project": str(folder), "device": "cpu", "evolve": 6, "epochs": 3, "evolve_workers": 2, "workers": 0,
            "evolve_population": "", "noplots": True, **settings}  # fmt: skip


def evolve(folder, **settings):
    """Run an evolution of stub trainings in this process. Return its verdict."""
    given = options(folder, **settings)
    return train.search_hyperparameters(make_plan(TrainOptions.from_typed(given), STUB))


def start_cli(folder, **settings):
    words = to_flags(options(folder, **settings))
    with open(folder / "output", "a") as output:
        return subprocess.Popen(
            [sys.executable, "-c", CLI, *words],
            stdout=output,
            stderr=subprocess.STDOUT,
            # background jobs of a shell inherit SIGINT ignored, and Python keeps it so
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )


def set_behaviour(folder, text):
    (folder / "exp").mkdir(parents=True, exist_ok=True)
    (folder / "exp" / "behaviour").write_text(text)


def rows_of(folder, name="evolve"):
    return read_table(folder / "exp" / f"{name}.csv", NAMES)[0]


def started_trainings(folder):
    """Read name, device, seed and fraction of each training that the stub started."""
    return [line.split() for line in (folder / "exp" / "started").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Run an evolution of 12 generations of four epochs each, two at a time."""
    folder = tmp_path_factory.mktemp("evolution")
    return folder, evolve(folder, evolve=12, epochs=4, noplots=False)


# ---- files and lines


@pytest.mark.slow
def test_all_files_are_written_and_each_generation_counts_once(finished):
    folder, _ = finished
    names = ["evolve.csv", "hyp_evolve.yaml", "evolve.png", "evolve_progress.png", "evolve_population.yaml",
             "evolve_repeats.csv", "opt.yaml"]  # fmt: skip
    assert not [name for name in names if not (folder / "exp" / name).stat().st_size]
    rows = rows_of(folder)
    assert [row.number for row in sorted(rows, key=lambda row: row.number)] == list(range(12))
    assert {row.status for row in rows} == {"done"} and {row.epochs for row in rows} == {4}


@pytest.mark.slow
def test_fitness_is_the_projects_fitness_of_the_last_epoch(finished):
    for row in rows_of(finished[0]):
        assert row.fitness == pytest.approx(0.1 * row.results[2] + 0.9 * row.results[3], abs=1e-5)


@pytest.mark.slow
def test_the_best_three_and_the_start_ran_again_under_two_other_seeds(finished):
    folder, verdict = finished
    repeats, rows = rows_of(folder, "evolve_repeats"), rows_of(folder)
    best = sorted(rows, key=lambda row: -row.fitness)[:3]
    expected = {row.number for row in best} | {0}
    assert sorted((row.number, row.repeat) for row in repeats) == sorted((n, k) for n in expected for k in (1, 2))
    assert len({row.seed for row in [*repeats, *rows]}) == len(repeats) + len(rows)
    by_number = {row.number: row.hyp for row in rows}
    assert all(row.hyp == by_number[row.number] for row in repeats)
    assert verdict.winner.number in expected and verdict.start is not None


@pytest.mark.slow
def test_trainings_got_their_seed_device_and_hyperparameters(finished):
    folder, _ = finished
    seeds = {name: seed for name, device, seed, _ in started_trainings(folder) if device == "cpu"}
    for row in rows_of(folder):
        assert seeds[f"{row.number:04d}"] == str(row.seed)
        used = Hyperparameters.load(folder / "exp" / "generations" / f"{row.number:04d}" / "hyp.yaml")
        assert {**used.to_dict(), "anchors": used.anchors} == pytest.approx(row.hyp)


@pytest.mark.slow
def test_the_best_file_is_a_hyp_file_that_says_how_it_was_found(finished):
    folder, verdict = finished
    file = folder / "exp" / "hyp_evolve.yaml"
    hyp = Hyperparameters.load(file)
    assert {**hyp.to_dict(), "anchors": hyp.anchors} == pytest.approx(verdict.winner.hyp)
    text = file.read_text()
    for words in (
        f"# Best generation: {verdict.winner.number} (",
        "# Last generation: 11, 12 in all",
        "metrics/mAP_0.5:0.95",
        "noise between seeds",
        "# Found with: python evolve_stub.py --device=cpu "
        "--epochs=4 --evolve=12 --evolve-population= --evolve-workers=2",
    ):
        assert words in text


@pytest.mark.slow
def test_the_charts_are_drawn(finished):
    import cv2

    for name, least in (("evolve.png", 1000), ("evolve_progress.png", 600)):
        image = cv2.imread(str(finished[0] / "exp" / name))
        assert min(image.shape[:2]) >= least * 0.9 and image.std() > 20


@pytest.mark.slow
def test_trainings_keep_no_large_files(finished):
    left = [path for path in (finished[0] / "exp" / "generations").rglob("*") if path.is_file()]
    assert {path.name for path in left} == {"hyp.yaml", "results.csv", "train.log"}


@pytest.mark.slow
def test_the_same_command_resumes_and_repeats_nothing(finished, capsys):
    folder, verdict = finished
    trainings = len(started_trainings(folder))
    assert evolve(folder, evolve=12, epochs=4) == verdict and len(started_trainings(folder)) == trainings
    out = capsys.readouterr().out
    assert "Resuming after 12 of 12 generations" in out
    assert "Train with it: python evolve_stub.py --epochs=4 --hyp " in out
    evolve(folder, evolve=14, epochs=4)
    assert [row.number for row in sorted(rows_of(folder), key=lambda row: row.number)] == list(range(14))


@pytest.mark.slow
def test_the_start_and_the_closing_lines(tmp_path, capsys):
    verdict = evolve(tmp_path, evolve=3)
    streams = capsys.readouterr()
    assert (
        "Evolving 29 hyperparameters of data/hyps/hyp.scratch-low.yaml over 3 generations, 2 at a time" in streams.out
    )
    assert re.search(
        r"Estimated: [89] trainings of [\d.]+ s \(6 of them .* 2 at a time: [\d.]+ (s|min) in all, until", streams.out
    )
    assert f"generation {verdict.winner.number}" in streams.out or "the start itself" in streams.out
    assert re.search(r"generations: 3 of 3, best 0\.\d+ \(generation \d\)\n", streams.out)  # no terminal: lines, no bar
    assert "%" not in streams.err


@pytest.mark.slow
def test_a_terminal_gets_a_bar(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    evolve(tmp_path, evolve=3)
    streams = capsys.readouterr()
    assert "generations: 100%" in streams.err and "best 0." in streams.err and "generations: 3 of 3" not in streams.out


@pytest.mark.slow
def test_another_search_can_start_from_the_results(finished, tmp_path):
    for source in ("evolve.csv", "evolve_population.yaml"):
        evolve(tmp_path / source, evolve=3, resume_evolve=str(finished[0] / "exp" / source))
        rows = {row.number: row for row in rows_of(tmp_path / source)}
        best = max(rows_of(finished[0]), key=lambda row: row.fitness)
        assert rows[1].origin == "population" and rows[1].hyp == pytest.approx(best.hyp)


# ---- faults


@pytest.mark.slow
def test_crash_kill_and_missing_results_are_failed_generations_with_their_log(tmp_path, capsys):
    set_behaviour(tmp_path, "1 crash\n2 killed\n3 silent\n")
    evolve(tmp_path, evolve=6)
    rows = {row.number: row for row in rows_of(tmp_path)}
    assert [rows[k].status for k in range(6)] == ["done", "failed", "failed", "failed", "done", "done"]
    assert "RuntimeError: CUDA out of memory" in rows[1].note and "exit status 1" in rows[1].note
    assert "exit status 137 (killed, probably out of memory)" in rows[2].note
    assert "no results.csv: Training silent" in rows[3].note
    for k in (1, 2, 3):
        log = Path(rows[k].note.split("log: ")[1])
        assert log.is_file() and rows[k].fitness is None
    assert "generation 1 failed after" in capsys.readouterr().out


@pytest.mark.slow
def test_a_hung_training_is_ended_at_the_time_limit_with_all_its_processes(tmp_path):
    set_behaviour(tmp_path, "2 hang\n")
    evolve(tmp_path, evolve=4, evolve_timeout=0.25)  # minutes; a stub takes seconds to start on a busy machine
    rows = {row.number: row for row in rows_of(tmp_path)}
    assert rows[2].status == "failed" and "took longer than 0.25 minutes (--evolve-timeout)" in rows[2].note
    assert 14 < rows[2].seconds < 60 and rows[2].epochs == 1
    assert not processes_of(tmp_path)


def processes_of(folder):
    """List the command lines of live processes that name `folder`."""
    found = subprocess.run(["ps", "-ewwo", "stat=,args="], capture_output=True, text=True).stdout.splitlines()
    return [line for line in found if str(folder) in line and not line.startswith("Z")]


@pytest.mark.slow
def test_when_all_fail_one_line_says_why(tmp_path):
    set_behaviour(tmp_path, "".join(f"{k} crash\n" for k in range(10)))
    with pytest.raises(UserError, match="the first 3 generations all failed, .*: exit status 1: RuntimeError: CUDA"):
        evolve(tmp_path, evolve_workers=1)
    set_behaviour(tmp_path, "")  # fixed: the same command resumes, with the start first
    evolve(tmp_path, evolve_workers=1)
    assert [row.status for row in rows_of(tmp_path)] == ["failed"] * 3 + ["done"] * 3
    assert rows_of(tmp_path)[3].origin == "start"


@pytest.mark.slow
def test_killed_three_times_it_ends_with_every_generation_once(tmp_path):
    total = 24
    for kill in range(3):
        process = start_cli(tmp_path, evolve=total, epochs=8)
        try:
            wait_for(lambda least=5 * (kill + 1): len(rows_of(tmp_path)) >= least, process)
            finished = {row.number: row for row in rows_of(tmp_path)}
            process.send_signal(signal.SIGKILL)
            process.wait()
        finally:
            process.kill()
        wait_for(lambda: not processes_of(tmp_path))  # no training outlives it
        kept = {row.number: row for row in rows_of(tmp_path)}
        assert finished.items() <= kept.items() and len(kept) < total
    process = start_cli(tmp_path, evolve=total, epochs=8)
    assert process.wait(240) == 0, (tmp_path / "output").read_text()[-2000:]
    rows = rows_of(tmp_path)
    assert sorted(row.number for row in rows) == list(range(total)) and {row.status for row in rows} == {"done"}
    start = next(row for row in rows if row.origin == "start")
    assert start.number == 0 and max(row.fitness for row in rows) >= start.fitness
    started, _ = read_table(tmp_path / "exp" / "evolve_started.csv", NAMES)
    plans = {row.number: row for row in started}
    assert all((row.hyp, row.seed) == (plans[row.number].hyp, plans[row.number].seed) for row in rows)


def wait_for(condition, process=None, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timeout"
        assert process is None or process.poll() is None, "the process ended too early"
        time.sleep(0.05)


@pytest.mark.slow
def test_ctrl_c_ends_it_cleanly_and_says_how_to_resume(tmp_path):
    process = start_cli(tmp_path, evolve=40)
    try:
        wait_for(lambda: len(rows_of(tmp_path)) >= 2, process)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    finally:
        process.kill()
    out = (tmp_path / "output").read_text()
    assert f"type the same command to resume {tmp_path}" in out and "Traceback" not in out
    assert {row.status for row in rows_of(tmp_path)} == {"done"} and not processes_of(tmp_path)


@pytest.mark.slow
def test_a_second_process_in_the_folder_is_refused(tmp_path):
    process = start_cli(tmp_path, evolve=40)
    try:
        wait_for(lambda: (tmp_path / "exp" / "evolve.csv").is_file(), process)
        with pytest.raises(UserError, match=f"is being evolved by process {process.pid} on .*--evolve-storage"):
            evolve(tmp_path, evolve=40)
    finally:
        process.kill()
        process.wait()


# ---- pruning and a part of the data


@pytest.mark.slow
def test_pruning_stops_generations_below_the_median_and_records_their_curve(tmp_path):
    verdict = evolve(tmp_path, evolve=16, epochs=10, evolve_prune=True)
    rows = rows_of(tmp_path)
    pruned = [row for row in rows if row.status == "pruned"]
    assert pruned and {row.status for row in rows} == {"done", "pruned"}
    assert all(row.epochs == len(row.curve) < 10 for row in pruned) and verdict.winner.status == "done"
    assert all(len(row.curve) == 10 for row in rows if row.status == "done")
    assert {row.status for row in rows_of(tmp_path, "evolve_repeats")} == {"done"}  # repeats are never stopped


@pytest.mark.slow
def test_trainings_get_the_fraction_of_the_data(tmp_path):
    evolve(tmp_path, evolve=1, evolve_fraction=0.25)
    assert {fraction for *_, fraction in started_trainings(tmp_path)} == {"0.25"}


# ---- bad input


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"hyp": "absent.yaml"}, "--hyp absent.yaml: no such file"),
        ({"hyp": "{partial}"}, "partial.yaml: lacks momentum, .* data/hyps/hyp.scratch-low.yaml has them all"),
        ({"hyp": "{high}"}, "high.yaml: lr0: 0.5 is outside the bounds of evolution, 1e-05 to 0.1"),
        ({"batch_size": -1}, "--batch-size -1 with --evolve"),
        ({"device": "7"}, "--device 7: this machine has"),
        ({"evolve_population": "absent"}, "--evolve_population absent: no folder with hyperparameter files"),
        ({"resume_evolve": "absent.yaml"}, "--resume_evolve absent.yaml: no such file"),
        ({"resume_evolve": "{population}"}, "population.yaml: one: box: 0.5 is outside the bounds of evolution"),
        ({"resume_evolve": "{text}"}, "text.yaml: one: lr0: 'fast' is not a number"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line_and_writes_nothing(tmp_path, settings, message):
    whole = yaml.safe_load((ROOT / "data" / "hyps" / "hyp.scratch-low.yaml").read_text())
    files = {"partial": {"lr0": 0.01, "lrf": 0.1}, "high": {**whole, "lr0": 0.5},
             "population": {"one": {**whole, "box": 0.5}}, "text": {"one": {**whole, "lr0": "fast"}}}  # fmt: skip
    for name, content in files.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    paths = {name: str(tmp_path / f"{name}.yaml") for name in files}
    settings = {key: value.format(**paths) if isinstance(value, str) else value for key, value in settings.items()}
    with pytest.raises(UserError, match=message) as wrong:
        evolve(tmp_path / "runs", **settings)
    assert "\n" not in str(wrong.value) and not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "change, message",
    [
        ({"epochs": 5}, "was evolved with --epochs 3, not 5: fitness would mean something else; .* --name"),
        ({"hyp": "hyp.scratch-med.yaml"}, "was evolved with lrf 0.01 to start from, not 0.1 \\(--hyp\\)"),
        ({"noautoanchor": True}, "was evolved with --noautoanchor False, not True"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused(tmp_path, change, message):
    evolve(tmp_path, evolve=1)
    with pytest.raises(UserError, match=message):
        evolve(tmp_path, evolve=1, **change)


@pytest.mark.slow
def test_a_damaged_row_costs_a_warning_and_the_generation_runs_again(tmp_path, capsys):
    evolve(tmp_path, evolve=3)
    file = tmp_path / "exp" / "evolve.csv"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:2], lines[2][:50], *lines[3:]]) + "\n")
    evolve(tmp_path, evolve=3)
    assert re.search(r"WARNING: .*evolve.csv:3: skipped: \d+ cells where there should be", capsys.readouterr().err)
    assert sorted(row.number for row in rows_of(tmp_path)) == [0, 1, 2]


@pytest.mark.slow
def test_an_individual_takes_missing_keys_from_the_start_and_says_so(tmp_path, capsys):
    (tmp_path / "p.yaml").write_text("one: {lr0: 0.02}\n")
    evolve(tmp_path, evolve=2, resume_evolve=str(tmp_path / "p.yaml"))
    assert "p.yaml: one: lacks lrf, momentum" in capsys.readouterr().out
    assert {row.number: row.hyp["lr0"] for row in rows_of(tmp_path)} == {0: 0.01, 1: 0.02}


def test_the_start_is_never_stopped_early():
    """All gains are measured against it."""
    given = {"device": "cpu", "evolve": 16, "epochs": 20}
    plan = make_plan(TrainOptions.from_typed(given), ROOT / "train.py")
    others = [SimpleNamespace(curve=(0.5,) * 20) for _ in range(9)]
    stop = build_trainings(plan, MemoryStore(), SimpleNamespace(records=others), validated=True).stop
    assert stop({**plan.start, "lr0": 0.02}, [0.1] * 10) and not stop(dict(plan.start), [0.1] * 10)


@pytest.mark.parametrize(
    "validated, patience, fitnesses, complete",
    [
        (False, 2, (0, 0, 0, 0.5), True),
        (False, 2, (0, 0, 0), False),  # the last row is missing: those before were not validated
        (True, 2, (0.1, 0.2, 0.3), False),
        (True, 2, (0.3, 0.2, 0.1), True),  # stopped early
        (True, 0, (0.3, 0.2, 0.1), False),
        (True, 2, (0.1, 0.2, 0.3, 0.4), True),
    ],
)
def test_results_are_complete_with_the_last_epoch_or_an_early_stop(validated, patience, fitnesses, complete):
    plan = make_plan(TrainOptions.from_typed({"device": "cpu", "epochs": 4, "patience": patience}), STUB)
    trainings = build_trainings(plan, MemoryStore(), SimpleNamespace(records=[]), validated=validated)
    assert trainings.is_complete(fitnesses) is complete


def test_trainings_are_judged_by_the_fitness_of_the_command_line(tmp_path):
    plan = make_plan(TrainOptions.from_typed({"device": "cpu", "fitness": "map50", "min_delta": 0.2}), STUB)
    assert "--fitness=map50" in plan.training_flags and plan.settings["fitness"] == "map50"
    trainings = build_trainings(plan, MemoryStore(), SimpleNamespace(records=[]), validated=True)
    (tmp_path / "results.csv").write_text("epoch, metrics/mAP_0.5, metrics/mAP_0.5:0.95\n99, 0.5, 0.25\n")
    is_complete = trainings.is_complete
    trainings.is_complete = lambda fitnesses: True
    assert trainings._outcome(tmp_path, "").fitness == 0.5
    assert is_complete([0.1] + [0.2] * 100)  # 100 epochs without a gain above 0.2


# ---- real trainings


@pytest.mark.slow
def test_evolve_by_the_command_line_of_train(tiny_data, tiny_cfg, tmp_path, monkeypatch, capsys):
    """Run real trainings: the start, one child, their repeats."""
    monkeypatch.chdir(tmp_path)
    command = ["--data", str(tiny_data), "--cfg", str(tiny_cfg), "--imgsz", "64", "--batch-size", "8", "--epochs", "2",
               "--workers", "0", "--device", "cpu", "--amp", "off", "--evolve_population", "", "--evolve-fraction",
               "0.5", "--evolve", "2", "--evolve-workers", "2"]  # fmt: skip
    verdict = train.main(command)
    folder = tmp_path / "runs" / "evolve" / "exp"
    rows, _ = read_table(folder / "evolve.csv", NAMES)
    assert sorted(row.number for row in rows) == [0, 1] and {row.status for row in rows} == {"done"}
    assert all(0 <= row.fitness <= 1 and row.results[4] > 0 for row in rows) and verdict.noise is not None
    assert len(read_table(folder / "evolve_repeats.csv", NAMES)[0]) == 4
    log = (folder / "generations" / "0000" / "train.log").read_text()
    assert "Model" in log and not (folder / "generations" / "0000" / "weights").exists()
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Train with it: "))
    trained = train.main([*shlex.split(line)[5:], "--noplots"])
    assert np.isfinite(trained.fitness)


def test_torchrun_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for key, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "none"}.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(UserError, match="--evolve starts its own processes: .*, without torchrun"):
        train.main(["--evolve", "--data", "absent.yaml"])


def test_a_mistake_in_the_data_shows_before_anything_starts(tiny_cfg, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--data absent.yaml: no such data set YAML"):
        train.main(["--evolve", "--data", "absent.yaml", "--cfg", str(tiny_cfg), "--device", "cpu"])
    assert not os.listdir(tmp_path)
