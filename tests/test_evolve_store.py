"""Where generations are kept: evolve.csv, and an Optuna study that several machines share."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import pytest

from utils.config import Hyperparameters
from utils.errors import UserError
from utils.evolve import Generation, Outcome, Search, evolve
from utils.evolve_store import RESULTS, CsvStore, alone_in, append, columns, read_individuals, read_table
from utils.evolve_study import StudyStore, without_password

ROOT = Path(__file__).resolve().parents[1]
START = {**Hyperparameters().to_dict(), "anchors": 0.0}
NAMES = list(START)


def closeness(hyp, generation=0):
    fitness = 1 - abs(hyp["lr0"] - 0.03) - abs(hyp["mixup"] - 0.4)
    return Outcome(fitness, results=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7), epochs=3)


def keys(records):
    return [record.number for record in records if record.status != "started"]


EXAMPLE = Generation(7, dict(START, lr0=0.0123456789, mixup=1 / 3), 123456789, "child", (1, 2), 0, "pruned",
                     0.123456789, (0.1, 0.2, 1 / 7, 0.4, 0.5, 0.6, 0.7), 12, 34.5, (0.1, 0.12345678),
                     "log: a, b \"c\" d")  # fmt: skip


# ---- evolve.csv


@pytest.mark.parametrize("record", [
    EXAMPLE,
    Generation(0, START, 0, "start", status="failed", note="exit status 1: out of memory\nsecond line"),
    Generation(0, START, 0, "start", status="done", fitness=0.0),
    Generation(0, START, 0, "start"),
], ids=["pruned", "failed", "bare", "started"])
def test_a_record_reads_back_as_it_was(tmp_path, record):
    append(tmp_path / "evolve.csv", NAMES, record)
    (read,), messages = read_table(tmp_path / "evolve.csv", NAMES)
    assert messages == []
    assert read == Generation(**{**record.__dict__, "note": " ".join(record.note.split())})


def test_the_columns_people_know_come_first_and_stand_under_each_other(tmp_path):
    for number in range(3):
        append(tmp_path / "evolve.csv", NAMES, Generation(number, START, 5, "child", (0,), status="done", fitness=0.5))
    head, *rows = (tmp_path / "evolve.csv").read_text().splitlines()
    own = "generation repeat status fitness seed origin parents epochs seconds curve note"
    assert [cell.strip() for cell in head.split(",")] == [*RESULTS, *NAMES, *own.split()]
    assert {len(cell) for line in (head, *rows) for cell in line.split(",")} == {20}


def test_the_same_search_again_goes_on(tmp_path):
    evolve(closeness, START, 5, store=CsvStore(tmp_path, NAMES))
    calls = []
    result = evolve(lambda hyp, generation: calls.append(generation) or closeness(hyp), START, 9,
                    store=CsvStore(tmp_path, NAMES))
    assert calls == [5, 6, 7, 8] and keys(result.records) == list(range(9))
    whole = evolve(closeness, START, 9)
    assert [record.hyp for record in whole.records] == [record.hyp for record in result.records]


def test_what_was_started_and_not_finished_is_started_again_as_it_was(tmp_path):
    store = CsvStore(tmp_path, NAMES)
    search = Search(START)
    wanted = [(number, 0) for number in range(4)]
    first, second = store.claim(wanted, search.propose), store.claim(wanted, search.propose)
    store.finish(Generation(**{**second.__dict__, "status": "done", "fitness": 0.5}))  # and then the power went
    again = CsvStore(tmp_path, NAMES)
    assert again.claim(wanted, search.propose) == first
    assert again.claim(wanted, search.propose).number == 2
    assert [record.number for record in again.records()] == [0, 1, 2]


def test_a_finished_row_is_on_the_disk_before_anything_else_happens(tmp_path):
    store = CsvStore(tmp_path, NAMES)
    seen = []
    evolve(lambda hyp, generation: seen.append(len(read_table(store.file, NAMES)[0])) or 0.5, START, 4, store=store)
    assert seen == [0, 1, 2, 3]


@pytest.mark.parametrize("damage, reason", [
    (lambda row: row[:100], "cells where there should be"),  # cut off by a power cut
    (lambda row: row.replace("done", "doen"), "status 'doen' is none of"),
    (lambda row: row.replace("      0.01,", "      abc,", 1), "lr0 'abc' is not a number"),
    (lambda row: row.replace("      0.01,", "      5000,", 1), "lr0: 5000.0 is outside the bounds"),
    (lambda row: row.replace("      0.01,", "       nan,", 1), "lr0 'nan' is not a number"),
    (lambda row: row.replace("done", "failed"), "a generation that is failed with fitness '0.5'"),
    (lambda row: "\x00\x17\xff" + row, "left out"),
    (lambda row: row + "\n" + row, "generation 1 stands there already"),
], ids=["cut", "status", "text", "bounds", "nan", "fitness", "bytes", "twice"])
def test_damaged_rows_are_shown_and_the_good_ones_kept(tmp_path, damage, reason):
    file = tmp_path / "evolve.csv"
    for number in range(3):
        append(file, NAMES, Generation(number, START, 0, "child", status="done", fitness=0.5))
    lines = file.read_text().splitlines()
    lines[2] = damage(lines[2])
    file.write_text("\n".join(lines) + "\n")
    store = CsvStore(tmp_path, NAMES)
    assert len(store.messages) == 1 and reason in store.messages[0] and store.messages[0].startswith(f"{file}:")
    assert {0, 2} <= set(keys(store.records()))
    before = file.read_text()
    evolve(closeness, START, 4, store=store)
    assert file.read_text().startswith(before)  # nothing that somebody may want to repair is thrown away
    again = CsvStore(tmp_path, NAMES)
    assert keys(again.records()) == [0, 1, 2, 3] and len(again.messages) == 1


def test_a_row_cut_off_at_the_end_costs_no_other_row(tmp_path):
    file = tmp_path / "evolve.csv"
    append(file, NAMES, Generation(0, START, 0, "start", status="done", fitness=0.5))
    with open(file, "a") as stream:
        stream.write("                 0.1,     ")  # killed in the middle of a write
    append(file, NAMES, Generation(1, START, 0, "child", status="done", fitness=0.6))
    records, messages = read_table(file, NAMES)
    assert keys(records) == [0, 1] and len(messages) == 1


def test_a_table_of_other_hyperparameters_is_refused(tmp_path):
    append(tmp_path / "evolve.csv", NAMES, Generation(0, START, 0, "start", status="done", fitness=0.5))
    with pytest.raises(UserError, match=r"evolve.csv: not the table .* \(without: nothing; in addition: anchors\)"):
        CsvStore(tmp_path, [name for name in NAMES if name != "anchors"])
    (tmp_path / "evolve.csv").write_text("a, b\n1, 2\n")
    with pytest.raises(UserError, match="give another --name"):
        CsvStore(tmp_path, NAMES)


def test_two_processes_in_one_folder_are_kept_apart(tmp_path):
    with alone_in(tmp_path):
        script = (f"from pathlib import Path\nfrom utils.evolve_store import alone_in\n"
                  f"with alone_in(Path({str(tmp_path)!r})): print('in')")
        other = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
        assert "in\n" not in other.stdout and f"is being evolved by process {os.getpid()} on" in other.stderr
    with alone_in(tmp_path):  # free again
        pass


# ---- individuals to begin with


def test_individuals_of_a_population_file(tmp_path):
    (tmp_path / "p.yaml").write_text("gen3number0: {lr0: 0.02}\ngen3number1: {lr0: 0.03}\n")
    assert list(read_individuals(tmp_path / "p.yaml").values()) == [{"lr0": 0.02}, {"lr0": 0.03}]


def test_individuals_are_the_best_rows_of_a_table(tmp_path):
    for number, score in enumerate((0.1, 0.5, 0.3)):
        hyp, results = dict(START, lr0=0.01 * (number + 1)), (0, 0, score, score, 0, 0, 0)
        append(tmp_path / "evolve.csv", NAMES,
               Generation(number, hyp, 0, "child", status="done", fitness=score, results=results))
    append(tmp_path / "evolve.csv", NAMES, Generation(3, START, 0, "child", status="failed"))
    assert [values["lr0"] for values in read_individuals(tmp_path / "evolve.csv").values()] == [0.02, 0.03, 0.01]


def test_individuals_of_a_table_by_another_program(tmp_path):
    """Seven results, then hyperparameters, and no columns of ours."""
    rows = ["0.5, 0.5, 0.2, 0.1, 1, 1, 1, 0.02, 0.1", "0.5, 0.5, 0.3, 0.2, 1, 1, 1, 0.03, 0.2", "broken"]
    (tmp_path / "evolve.csv").write_text("\n".join([", ".join(columns(["lr0", "mixup"])[:9]), *rows]))
    found = list(read_individuals(tmp_path / "evolve.csv").values())
    assert found == [{"lr0": 0.03, "mixup": 0.2}, {"lr0": 0.02, "mixup": 0.1}]


@pytest.mark.parametrize("name, text, message", [
    ("absent.yaml", None, "--resume_evolve .*absent.yaml: no such file"),
    ("p.yaml", "lr0: 0.1\n", "p.yaml: lr0: expected hyperparameters `key: value`, found 0.1"),
    ("e.csv", "a, b\n1, 2\n", "--resume_evolve .*e.csv: no row with metrics and hyperparameters"),
    ("e.csv", "", "no row with metrics"),
])
def test_a_bad_file_of_individuals_is_named(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_individuals(tmp_path / name)


# ---- the Optuna study


@pytest.fixture
def optuna():
    return pytest.importorskip("optuna", reason="the optional extra `evolve` (optuna) is not installed")


def study(url, folder, **settings):
    return StudyStore(str(url), "exp", NAMES, folder / "evolve.csv", heartbeat=1, grace=2, **settings)


@pytest.fixture(params=["journal", pytest.param("sqlite", marks=pytest.mark.slow)])
def url(request, optuna, tmp_path):
    return tmp_path / "exp.journal" if request.param == "journal" else f"sqlite:///{tmp_path}/exp.db"


def test_a_search_in_a_study_finds_what_the_same_search_in_memory_finds(url, tmp_path):
    found, expected = evolve(closeness, START, 8, store=study(url, tmp_path)), evolve(closeness, START, 8)
    assert [(r.number, r.hyp, r.seed, r.parents, r.origin) for r in found.records] == [
        (r.number, r.hyp, r.seed, r.parents, r.origin) for r in expected.records]
    rows, messages = read_table(tmp_path / "evolve.csv", NAMES)
    assert keys(rows) == list(range(8)) and not messages
    assert [row.fitness for row in rows] == [record.fitness for record in found.records]


def test_a_study_is_gone_on_with_and_keeps_every_sort_of_end(url, tmp_path):
    def objective(hyp, generation):
        if generation == 1:
            raise RuntimeError("no memory")
        return Outcome(0.2, "pruned", curve=(0.1, 0.2), epochs=2) if generation == 2 else closeness(hyp)

    evolve(objective, START, 4, store=study(url, tmp_path))
    records = evolve(closeness, START, 6, store=study(url, tmp_path)).records
    assert [record.status for record in records] == ["done", "failed", "pruned", "done", "done", "done"]
    assert records[1].note == "RuntimeError: no memory"
    assert (records[2].curve, records[2].fitness, records[2].epochs) == ((0.1, 0.2), 0.2, 2)


def test_optunas_own_tools_understand_the_study(optuna, tmp_path):
    store = study(tmp_path / "exp.journal", tmp_path)
    evolve(lambda hyp, generation: Outcome(closeness(hyp).fitness, curve=(0.1, 0.2)), START, 6, store=store)
    trials = store.study.trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 6
    assert set(trials[0].params) == set(NAMES) and trials[0].intermediate_values == {1: 0.1, 2: 0.2}
    assert store.study.best_value == max(record.fitness for record in store.records())
    assert type(store.study.sampler).__name__ == "GeneticSampler"


def test_the_curve_is_in_the_study_while_a_generation_runs(optuna, tmp_path):
    store = study(tmp_path / "exp.journal", tmp_path)

    def objective(hyp, generation):
        store.report((generation, 0), 1, 0.25)
        assert store.study.trials[generation].intermediate_values == {1: 0.25}
        return Outcome(0.5, curve=(0.25, 0.5))

    assert evolve(objective, START, 2, store=store).records[1].curve == (0.25, 0.5)


def test_generations_of_a_machine_that_died_are_done_by_another(url, tmp_path):
    dead = study(url, tmp_path)
    started = [dead.claim([(number, 0) for number in range(6)], Search(START).propose) for _ in range(2)]
    dead.own.clear()  # no heartbeat from here on, as after kill -9
    begin = time.monotonic()
    result = evolve(closeness, START, 6, store=study(url, tmp_path), patience=0.2)
    assert time.monotonic() - begin > 1.5  # it has to be missed first
    assert keys(result.records) == list(range(6))
    assert [result.records[k].hyp for k in (0, 1)] == [record.hyp for record in started]


def test_what_is_released_is_taken_up_at_once(url, tmp_path):
    """As Ctrl-C does: nobody waits for a heartbeat that will not come."""
    stopped = study(url, tmp_path)
    started = stopped.claim([(0, 0), (1, 0)], Search(START).propose)
    stopped.release()
    again = study(url, tmp_path).claim([(0, 0), (1, 0)], Search(START).propose)
    assert (again.key, again.hyp, again.seed, again.origin) == (started.key, started.hyp, started.seed, started.origin)


def test_a_machine_that_was_only_slow_does_not_count_twice(url, tmp_path):
    slow = study(url, tmp_path)
    started = slow.claim([(0, 0), (1, 0)], Search(START).propose)
    trial = slow.own.pop((0, 0))  # its heartbeat fails for a while
    result = evolve(closeness, START, 2, store=study(url, tmp_path), patience=0.2)
    slow.own[(0, 0)] = trial
    assert not slow.finish(Generation(**{**started.__dict__, "status": "done", "fitness": 9.0}))
    assert keys(slow.records()) == [0, 1] and [r.fitness for r in slow.records()] == [r.fitness for r in result.records]


def test_a_generation_too_many_is_nobodys(url, tmp_path):
    """Two machines ask for the last one at the same moment: the second finds that it is not needed."""
    store = study(url, tmp_path)
    evolve(closeness, START, 3, store=store)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # heartbeats outside of Study.optimize
        store.study.ask()
    assert keys(study(url, tmp_path).records()) == [0, 1, 2]
    assert keys(evolve(closeness, START, 5, store=study(url, tmp_path), patience=0.2).records) == [0, 1, 2, 3, 4]


def test_other_settings_are_refused(url, tmp_path):
    study(url, tmp_path, settings={"data": "a.yaml", "epochs": 3})
    study(url, tmp_path, settings={"data": "a.yaml", "epochs": 3})
    with pytest.raises(UserError, match="the study exp was begun with epochs 3, not 5"):
        study(url, tmp_path, settings={"data": "a.yaml", "epochs": 5})


@pytest.mark.parametrize("bad, message", [
    ("sqlite:////nowhere/x.db", "--evolve-storage sqlite:////nowhere/x.db: "),
    ("/nowhere/x.journal", "--evolve-storage /nowhere/x.journal: there is no folder /nowhere"),
    ("nosuch://u:secret@h/db", r"--evolve-storage nosuch://u:\*\*\*@h/db"),
])
def test_a_storage_that_cannot_be_opened_is_one_line_without_the_password(optuna, tmp_path, bad, message):
    with pytest.raises(UserError, match=message) as wrong:
        study(bad, tmp_path)
    assert "secret" not in str(wrong.value) and "\n" not in str(wrong.value)


def test_without_optuna_one_line_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match="--evolve-storage needs Optuna: pip install 'optuna>=4'"):
        study(tmp_path / "x.journal", tmp_path)


def test_passwords_are_hidden():
    assert without_password("postgresql://me:geheim@host:5432/db") == "postgresql://me:***@host:5432/db"
    assert without_password("sqlite:///a.db") == "sqlite:///a.db"


# ---- two processes on a real PostgreSQL server

WORKER = """
import sys, time
from pathlib import Path
from utils.config import Hyperparameters
from utils.evolve import Outcome, evolve
from utils.evolve_study import StudyStore

url, folder = sys.argv[1], Path(sys.argv[2])
start = {**Hyperparameters().to_dict(), "anchors": 0.0}

def objective(hyp, generation):
    with open(folder / "calls", "a") as file:
        file.write(f"{generation}\\n")
    time.sleep(0.6)
    return Outcome(1 - abs(hyp["lr0"] - 0.03), curve=(0.1, 0.2))

store = StudyStore(url, "exp", list(start), folder / "evolve.csv", heartbeat=1, grace=3)
evolve(objective, start, 16, store=store, workers=2, patience=0.3)
"""


@pytest.fixture
def postgres(optuna):
    """The URL of a server of our own on loopback."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    programs = shutil.which("initdb") or next(map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb")), None)
    if programs is None:
        pytest.skip("no PostgreSQL server on this machine (Debian: apt-get install postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="anchorage-pg-"))
    server = folder / "data"
    server.mkdir()
    user = {"user": "nobody"} if os.geteuid() == 0 else {}  # the server refuses to run as root
    if user:
        for path in (folder, server):
            shutil.chown(path, "nobody")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    control = [str(Path(programs).resolve().with_name("pg_ctl")), "-D", str(server), "-w"]
    settings = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
    quiet = {"cwd": "/", "capture_output": True, "text": True, "timeout": 120, **user}
    initdb = [str(Path(programs).resolve()), "-D", str(server), "-U", "anchorage", "-A", "trust", "--no-sync"]
    made = subprocess.run(initdb, **quiet)
    silent = {**quiet, "capture_output": False, "stdout": subprocess.DEVNULL}  # the server would keep a pipe open
    started = subprocess.run([*control, "-l", str(server / "log"), "-o", settings, "start"], **silent)
    if made.returncode or started.returncode:
        pytest.skip(f"PostgreSQL does not start here: {made.stderr[-200:]}")
    try:
        yield f"postgresql://anchorage@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], **quiet)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_two_processes_on_postgresql_one_killed_count_every_generation_once(postgres, optuna, tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    one, two = (subprocess.Popen([sys.executable, "-c", WORKER, postgres, str(folder)], cwd=ROOT) for folder in folders)
    try:
        deadline = time.monotonic() + 60
        while not (folders[0] / "calls").exists() or len((folders[0] / "calls").read_text().split()) < 4:
            assert time.monotonic() < deadline and one.poll() is None
            time.sleep(0.05)
        one.send_signal(signal.SIGKILL)
        assert two.wait(120) == 0
    finally:
        for process in (one, two):
            process.kill()
            process.wait()
    rows, messages = read_table(folders[1] / "evolve.csv", NAMES)
    assert sorted(keys(rows)) == list(range(16)) and not messages and {row.status for row in rows} == {"done"}
    trials = optuna.load_study(study_name="exp", storage=postgres.replace("postgresql:", "postgresql+psycopg:")).trials
    assert sum(trial.state.name == "COMPLETE" for trial in trials) == 16
    assert sum(trial.state.name == "FAIL" for trial in trials) >= 1  # what the dead one was at
    again = {int(word) for word in (folders[1] / "calls").read_text().split()}
    begun = {int(word) for word in (folders[0] / "calls").read_text().split()}
    assert begun & again and begun | again == set(range(16))
