"""Store in an Optuna study: each generation counts once, whichever machine dies."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

import pytest

from utils.config import Hyperparameters
from utils.errors import UserError
from utils.evolution import optuna_store
from utils.evolution.csv_store import read_table
from utils.evolution.optuna_storage import open_storage
from utils.evolution.optuna_store import StudyStore
from utils.evolve import Generation, Outcome, Search, evolve

ROOT = Path(__file__).resolve().parents[2]
START = {**Hyperparameters().to_dict(), "anchors": 0.0}
NAMES = list(START)


def closeness(hyp, generation=0):
    fitness = 1 - abs(hyp["lr0"] - 0.03) - abs(hyp["mixup"] - 0.4)
    return Outcome(fitness, results=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7), epochs=3)


def keys(records):
    return [record.number for record in records if record.status != "started"]


@pytest.fixture
def optuna():
    return pytest.importorskip("optuna", reason="the optional extra `evolve` (optuna) is not installed")


OPEN: list[StudyStore] = []


@pytest.fixture(autouse=True)
def stop_heartbeats():
    yield
    while OPEN:
        OPEN.pop().close()


def study(url, folder, **settings):
    settings = {"heartbeat": 1, "grace": 2, **settings}
    OPEN.append(StudyStore(str(url), "exp", NAMES, folder / "evolve.csv", **settings))
    return OPEN[-1]


@pytest.fixture(params=["journal", pytest.param("sqlite", marks=pytest.mark.slow)])
def url(request, optuna, tmp_path):
    return tmp_path / "exp.journal" if request.param == "journal" else f"sqlite:///{tmp_path}/exp.db"


def test_a_search_in_a_study_finds_what_the_same_search_in_memory_finds(url, tmp_path):
    found, expected = evolve(closeness, START, 8, store=study(url, tmp_path)), evolve(closeness, START, 8)
    assert [(r.number, r.hyp, r.seed, r.parents, r.origin) for r in found.records] == [
        (r.number, r.hyp, r.seed, r.parents, r.origin) for r in expected.records
    ]
    rows, messages = read_table(tmp_path / "evolve.csv", NAMES)
    assert keys(rows) == list(range(8)) and not messages
    assert [row.fitness for row in rows] == [record.fitness for record in found.records]


def test_a_study_resumes_and_keeps_every_status(url, tmp_path):
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


def test_generations_of_a_dead_machine_are_run_by_another(url, tmp_path):
    dead = study(url, tmp_path)
    started = [dead.claim([(number, 0) for number in range(6)], Search(START).propose) for _ in range(2)]
    dead.owned.clear()  # no heartbeat from here on, as after kill -9
    begin = time.monotonic()
    result = evolve(closeness, START, 6, store=study(url, tmp_path), poll_seconds=0.2)
    assert time.monotonic() - begin > 1.5  # its heartbeat must be missing for a while first
    assert keys(result.records) == list(range(6))
    assert [result.records[k].hyp for k in (0, 1)] == [record.hyp for record in started]


def test_a_released_generation_is_claimed_at_once(url, tmp_path):
    """Ctrl-C releases: no machine waits for the missing heartbeat."""
    stopped = study(url, tmp_path)
    started = stopped.claim([(0, 0), (1, 0)], Search(START).propose)
    stopped.release()
    again = study(url, tmp_path).claim([(0, 0), (1, 0)], Search(START).propose)
    assert (again.key, again.hyp, again.seed, again.origin) == (started.key, started.hyp, started.seed, started.origin)


def test_a_machine_that_was_only_slow_does_not_count_twice(url, tmp_path):
    slow = study(url, tmp_path)
    started = slow.claim([(0, 0), (1, 0)], Search(START).propose)
    trial = slow.owned.pop((0, 0))  # its heartbeat fails for a while
    result = evolve(closeness, START, 2, store=study(url, tmp_path), poll_seconds=0.2)
    slow.owned[(0, 0)] = trial
    assert not slow.finish(Generation(**{**started.__dict__, "status": "done", "fitness": 9.0}))
    assert keys(slow.records()) == [0, 1] and [r.fitness for r in slow.records()] == [r.fitness for r in result.records]


@pytest.fixture
def small_pauses(monkeypatch):
    monkeypatch.setattr("utils.evolution.optuna_store.OUTAGE_PAUSES", (0, 0.01))


class Outages:
    """Calls of `function` that fail: those of these numbers, before or after they have done their work."""

    def __init__(self, function, numbers, error, *, after):
        self.function, self.numbers, self.error, self.after, self.calls = function, numbers, error, after, 0

    def __call__(self, *args, **named):
        self.calls += 1
        fails = self.calls in self.numbers
        if fails and not self.after:
            raise self.error
        returned = self.function(*args, **named)
        if fails:
            raise self.error
        return returned


@pytest.mark.parametrize("after", [False, True], ids=["not done", "answer lost"])
@pytest.mark.parametrize("method", ["set_trial_user_attr", "set_trial_state_values", "create_new_trial", "get_trial"])
def test_a_database_may_go_away_at_any_moment(url, tmp_path, monkeypatch, small_pauses, method, after):
    store = study(url, tmp_path, heartbeat=0.05, grace=0.1)
    storage = store.study._storage
    error = store.outages[0]("password=secret")
    outages = Outages(getattr(storage, method), range(2, 40, 9), error, after=after)
    monkeypatch.setattr(storage, method, outages)
    records = evolve(closeness, START, 3, store=store, poll_seconds=0.05).records
    assert outages.calls > 2 and keys(records) == list(range(3)) and {record.status for record in records} == {"done"}
    rows, messages = read_table(tmp_path / "evolve.csv", NAMES)
    assert keys(rows) == list(range(3)) and not messages


def test_an_outage_is_no_sign_that_others_are_dead(optuna, tmp_path, monkeypatch, small_pauses):
    """No machine can send a heartbeat then, and clocks go on."""
    one, two = (study(tmp_path / "exp.journal", tmp_path, heartbeat=0.05, grace=0.3) for _ in range(2))
    wanted = [(0, 0), (1, 0)]
    started = one.claim(wanted, Search(START).propose)
    time.sleep(0.2)
    with monkeypatch.context() as outage:

        def set_trial_user_attr(*_):
            raise OSError("no answer")

        for store in (one, two):
            outage.setattr(store.study._storage, "set_trial_user_attr", set_trial_user_attr)
            outage.setattr(store.study._storage, "get_all_trials", set_trial_user_attr)
        time.sleep(0.6)
    assert two.claim(wanted, Search(START).propose).number == 1
    assert one.finish(Generation(**{**started.__dict__, "status": "done", "fitness": 0.5}))


def test_a_full_disk_neither_ends_a_search_nor_damages_its_journal(optuna, tmp_path, monkeypatch, small_pauses):
    store = study(tmp_path / "exp.journal", tmp_path, heartbeat=0.05, grace=0.1)
    fsync, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) in (30, 80):
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", full)
    assert keys(evolve(closeness, START, 2, store=store, poll_seconds=0.05).records) == [0, 1]
    monkeypatch.undo()
    assert len(calls) > 80
    assert keys(study(tmp_path / "exp.journal", tmp_path).records()) == [0, 1]


def test_a_table_outlives_the_loss_of_its_database(optuna, tmp_path):
    evolve(closeness, START, 2, store=study(tmp_path / "exp.journal", tmp_path))
    before = (tmp_path / "evolve.csv").read_text()
    evolve(closeness, START, 1, store=study(tmp_path / "exp.journal", tmp_path))  # the same study: nothing to keep
    assert not (tmp_path / "evolve_replaced.csv").exists()
    (tmp_path / "exp.journal").unlink()
    evolve(closeness, START, 1, store=study(tmp_path / "exp.journal", tmp_path))
    assert (tmp_path / "evolve_replaced.csv").read_text() == before


def test_a_surplus_trial_is_no_generation(url, tmp_path):
    """Two machines claim the last generation at the same moment: the second trial is not needed."""
    store = study(url, tmp_path)
    evolve(closeness, START, 3, store=store)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # heartbeats outside of Study.optimize
        store.study.ask()
    assert keys(study(url, tmp_path).records()) == [0, 1, 2]
    assert keys(evolve(closeness, START, 5, store=study(url, tmp_path), poll_seconds=0.2).records) == [0, 1, 2, 3, 4]


def test_other_settings_are_refused(url, tmp_path):
    study(url, tmp_path, settings={"data": "a.yaml", "epochs": 3})
    study(url, tmp_path, settings={"data": "a.yaml", "epochs": 3})
    with pytest.raises(UserError, match="the study exp was begun with epochs 3, not 5"):
        study(url, tmp_path, settings={"data": "a.yaml", "epochs": 5})


def test_closing_waits_for_a_heartbeat_on_its_way(optuna, tmp_path, monkeypatch):
    """The connection of a heartbeat that comes back after the others were closed would stay open."""
    began, ended = threading.Event(), threading.Event()
    monkeypatch.setattr(StudyStore, "_watch_others", lambda self: (began.set(), time.sleep(0.3), ended.set()))
    store = study(tmp_path / "exp.journal", tmp_path, heartbeat=0.01)
    assert began.wait(30)
    store.close()
    assert ended.is_set()


@pytest.mark.slow
def test_a_refused_study_leaves_no_connection_open(optuna, tmp_path, monkeypatch):
    url, opened = f"sqlite:///{tmp_path}/exp.db", []
    study(url, tmp_path, settings={"epochs": 3})
    monkeypatch.setattr(optuna_store, "open_storage", lambda url: opened.append(open_storage(url)) or opened[-1])
    with pytest.raises(UserError, match="begun with epochs 3"):
        study(url, tmp_path, settings={"epochs": 5})
    assert opened[0].engine.pool.checkedin() == opened[0].engine.pool.checkedout() == 0


@pytest.mark.parametrize(
    "bad, message",
    [
        ("sqlite:////nowhere/x.db", "--evolve-storage sqlite:////nowhere/x.db: "),
        ("/nowhere/x.journal", "--evolve-storage /nowhere/x.journal: there is no folder /nowhere"),
        ("nosuch://u:secret@h/db", "--evolve-storage nosuch://h/db: "),
        ("postgresql://h/db?user=u&password=secret", "--evolve-storage postgresql://h/db: "),
        ("postgresql://u:open/secret@localhost:1/db", "--evolve-storage postgresql://localhost:1/db: "),
        ("postgresql://u:open@secret@localhost:1/db", "--evolve-storage postgresql://localhost:1/db: "),
        ("u:secret@h/db", "--evolve-storage h/db: there is no folder"),
    ],
)
def test_a_storage_that_cannot_be_opened_is_one_line_without_the_password(optuna, tmp_path, bad, message):
    with pytest.raises(UserError, match=message) as wrong:
        study(bad, tmp_path)
    assert "secret" not in str(wrong.value) and "\n" not in str(wrong.value)


def test_without_optuna_one_line_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match="--evolve-storage needs Optuna: pip install 'optuna>=4'"):
        study(tmp_path / "x.journal", tmp_path)


# ---- two processes on a real PostgreSQL server

WORKER = """
import sys, time
from pathlib import Path
from utils.config import Hyperparameters
from utils.evolve import Outcome, evolve
from utils.evolution import optuna_store
from utils.evolution.optuna_storage import open_storage
from utils.evolution.optuna_store import StudyStore

url, folder, other = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
start = {**Hyperparameters().to_dict(), "anchors": 0.0}

def objective(hyp, generation):
    with open(folder / "calls", "a") as file:
        file.write(f"{generation}\\n")
    while folder.name == "one" or not other.is_file() or len(other.read_text().split()) < 2:
        time.sleep(0.05)  # the one that is killed never ends, the other waits until that one has started
    return Outcome(1 - abs(hyp["lr0"] - 0.03), curve=(0.1, 0.2))

store = StudyStore(url, "exp", list(start), folder / "evolve.csv", heartbeat=1, grace=10)
evolve(objective, start, 16, store=store, workers=2, poll_seconds=0.3)
"""


@pytest.fixture
def postgres(optuna):
    """Start a PostgreSQL server on loopback and yield its URL."""
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
    calls = [folder / "calls" for folder in folders]
    one, two = (
        subprocess.Popen([sys.executable, "-c", WORKER, postgres, str(folder), str(calls[0])], cwd=ROOT)
        for folder in folders
    )  # at the same moment: both find a database without tables
    try:
        deadline = time.monotonic() + 240
        while not calls[0].exists() or len(calls[0].read_text().split()) < 2:
            assert time.monotonic() < deadline and one.poll() is None and two.poll() is None
            time.sleep(0.05)
        one.send_signal(signal.SIGKILL)
        assert two.wait(240) == 0
    finally:
        for process in (one, two):
            process.kill()
            process.wait()
    rows, messages = read_table(folders[1] / "evolve.csv", NAMES)
    assert sorted(keys(rows)) == list(range(16)) and not messages and {row.status for row in rows} == {"done"}
    storage = open_storage(postgres)
    trials = optuna.load_study(study_name="exp", storage=storage).trials
    storage.remove_session(), storage.engine.dispose()
    assert sum(trial.state.name == "COMPLETE" for trial in trials) == 16
    assert sum(trial.state.name == "FAIL" for trial in trials) >= 2  # the trials of the dead one
    begun, done = ([int(word) for word in file.read_text().split()] for file in calls)
    assert len(begun) == 2 and set(begun) <= set(done) and sorted(done) == list(range(16))
