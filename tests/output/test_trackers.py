"""Experiment trackers with their real packages: runs that are killed, servers that go away, evolutions.

Each is tested where its package is installed: pip install ".[loggers]". MLflow's server runs on this machine, the
others are in their offline modes.
"""

import json
import os
import socket
import struct
import subprocess
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from tiny_training import train_flags

from utils.results_csv import COLUMNS

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 300.0  # seconds, on a busy machine
PACKAGES = {"comet": "comet_ml"}

pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore"),  # those of the packages are not ours
]

# A module that Python imports at its start: notes every connection and every name that is looked up.
NOTE_CONNECTIONS = """
import os, socket

def note(text):
    with open(os.environ["NOTES"], "a") as file:
        file.write(f"{text}\\n")

look_up = socket.getaddrinfo

def getaddrinfo(host, *rest, **named):
    note(host)
    return look_up(host, *rest, **named)

class Socket(socket.socket):
    def connect(self, address):
        if isinstance(address, tuple):
            note(address[0])
        return super().connect(address)

socket.getaddrinfo, socket.socket = getaddrinfo, Socket
"""


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.1)


class Server:
    """MLflow's server, which can be stopped and started again on the same port and data."""

    def __init__(self, folder: Path):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.folder, self.address = folder, f"http://127.0.0.1:{self.port}"
        folder.mkdir()
        self.start()

    def start(self) -> None:
        words = f"-m mlflow server --host 127.0.0.1 --port {self.port} --workers 1 --artifacts-destination artifacts"
        words += " --backend-store-uri sqlite:///data.db"
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # seven processes fewer
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *words.split()],
                cwd=self.folder,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until(self.answers)

    def answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        os.killpg(self.process.pid, 9)
        self.process.wait()


@pytest.fixture
def server(tmp_path) -> Iterator[Server]:
    pytest.importorskip("mlflow")
    server = Server(tmp_path / "server")
    yield server
    server.stop()


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    """Return variables with which no tool leaves this machine, or writes outside of tmp_path."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(NOTE_CONNECTIONS)
    (tmp_path / "comet").mkdir()
    own = {
        "PYTHONPATH": str(tmp_path / "site"),
        "NOTES": str(tmp_path / "connections"),
        "HOME": str(tmp_path),
        "OMP_NUM_THREADS": "1",
        "WANDB_MODE": "offline",
        "CLEARML_OFFLINE_MODE": "1",
        "COMET_START_ONLINE": "0",
        "COMET_OFFLINE_DIRECTORY": str(tmp_path / "comet"),
        "TRACKIO_DIR": str(tmp_path / "trackio"),
    }
    return {**os.environ, **own}


def start(words: list[str], folder: Path, environment: dict[str, str]) -> subprocess.Popen:
    with open(folder / "log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *words], cwd=folder, env=environment, stdout=log, stderr=log
        )


def record(run: Path, tool: str) -> dict:
    try:
        return json.loads((run / f"log-{tool}.json").read_text())
    except FileNotFoundError:
        return {"id": "", "epoch": -1}


# ---- what each tool has: epochs by column


def read_tensorboard(run: Path, folder: Path) -> dict[str, list[int]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run)).Reload()
    return {name: [event.step for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def read_wandb(run: Path, folder: Path) -> dict[str, list[int]]:
    """Read the records of all parts of an offline run: blocks of 32 KiB with checksum, length and kind of each."""
    from wandb.proto.wandb_internal_pb2 import Record

    found: dict[str, list[int]] = {}
    for file in sorted(folder.glob(f"wandb/*{record(run, 'wandb')['id']}/*.wandb")):
        data, position, part = file.read_bytes(), 7, b""
        while position + 7 <= len(data):
            if 32768 - position % 32768 < 7:
                position += 32768 - position % 32768
                continue
            _, length, kind = struct.unpack("<IHB", data[position : position + 7])
            part += data[position + 7 : position + 7 + length]
            position += 7 + length
            if kind in (1, 4):  # whole, or its last part
                items = {"/".join(i.nested_key) or i.key: i.value_json for i in Record.FromString(part).history.item}
                for name in items.keys() & set(COLUMNS):
                    if name != "epoch":
                        found.setdefault(name, []).append(int(items["epoch"]))
                part = b""
    return found


def read_comet(run: Path, folder: Path) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    archives = sorted(folder.glob(f"comet/{record(run, 'comet')['id']}*.zip"), key=lambda file: file.stat().st_mtime)
    for file in archives:
        with zipfile.ZipFile(file) as archive:
            messages = [json.loads(line) for line in archive.read("messages.json").splitlines()]
        for metric in [one["payload"]["metric"] for one in messages if one["type"] == "metric_msg"]:
            if metric["metricName"] in COLUMNS:
                found.setdefault(metric["metricName"], []).append(metric["step"])
    return found


def read_clearml(run: Path, folder: Path) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    (file,) = folder.glob(f".clearml/cache/offline/{record(run, 'clearml')['id']}*.zip")
    with zipfile.ZipFile(file) as archive:
        events = [event for line in archive.read("metrics.jsonl").splitlines() for event in json.loads(line)]
    for event in events:
        if event["type"] == "training_stats_scalar":
            found.setdefault(f"{event['metric']}/{event['variant']}", []).append(event["iter"])
    return found


def read_trackio(run: Path, folder: Path) -> dict[str, list[int]]:
    script = "import json, sys, trackio; print(json.dumps(trackio.SQLiteStorage.get_logs('anchorage', sys.argv[1])))"
    words = [sys.executable, "-c", script, record(run, "trackio")["id"]]
    environment = {**os.environ, "TRACKIO_DIR": str(folder / "trackio")}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, list[int]] = {}
    for row in json.loads(done.stdout.splitlines()[-1]):
        for name in row.keys() & set(COLUMNS):
            found.setdefault(name, []).append(row["step"])
    return found


def read_mlflow(run: Path, folder: Path) -> dict[str, list[int]]:
    import mlflow

    client = mlflow.MlflowClient((folder / "address").read_text())
    found, metrics = record(run, "mlflow")["id"], COLUMNS[1:]
    return {name: [point.step for point in client.get_metric_history(found, name)] for name in metrics}


READERS = {
    "tensorboard": read_tensorboard,
    "wandb": read_wandb,
    "comet": read_comet,
    "clearml": read_clearml,
    "trackio": read_trackio,
    "mlflow": read_mlflow,
}


@pytest.mark.parametrize("tool", READERS)
def test_a_killed_run_is_continued_without_a_gap_or_a_step_twice(
    tool, tiny_data, tiny_cfg, tmp_path, environment, request
):
    if find_spec(PACKAGES.get(tool, tool)) is None:
        pytest.skip(f"{tool} is not installed")
    if tool == "mlflow":
        environment["MLFLOW_TRACKING_URI"] = request.getfixturevalue("server").address
        (tmp_path / "address").write_text(environment["MLFLOW_TRACKING_URI"])
    run = tmp_path / "run"
    flags = train_flags(tiny_data, tiny_cfg, tmp_path, "--noplots", "--log", tool, epochs=1000)
    process = start(flags, tmp_path, environment)
    wait_until(lambda: record(run, tool)["epoch"] >= 1)
    process.kill()
    process.wait()
    time.sleep(8)  # the process of the tracker ends by itself
    first = record(run, tool)
    epochs = len((run / "results.csv").read_text().splitlines()) + 2
    assert start(["--resume", str(run), "--epochs", str(epochs)], tmp_path, environment).wait(PATIENCE) == 0
    assert record(run, tool)["id"] == first["id"] and record(run, tool)["epoch"] == epochs - 1
    assert READERS[tool](run, tmp_path) == {name: list(range(epochs)) for name in COLUMNS[1:]}
    notes = tmp_path / "connections"
    assert set(notes.read_text().split() if notes.exists() else ()) <= {"127.0.0.1"}


def test_a_server_that_goes_away_costs_a_line_and_gets_its_rows_later(
    server, tiny_data, tiny_cfg, tmp_path, environment
):
    environment.update(MLFLOW_TRACKING_URI=server.address, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
    (tmp_path / "address").write_text(server.address)
    run, log = tmp_path / "run", tmp_path / "log"
    flags = train_flags(tiny_data, tiny_cfg, tmp_path, "--noplots", "--log", "mlflow", epochs=60)
    process = start(flags, tmp_path, environment)
    wait_until(lambda: record(run, "mlflow")["epoch"] >= 1)
    server.stop()
    wait_until(lambda: "The training continues" in log.read_text() or process.poll() is not None)
    server.start()
    assert process.wait(PATIENCE) == 0
    assert log.read_text().count("WARNING: --log mlflow") == 1
    assert read_mlflow(run, tmp_path) == {name: list(range(60)) for name in COLUMNS[1:]}


def test_a_run_has_its_settings_images_and_weights_in_mlflow(server, tiny_data, tiny_cfg, tmp_path, environment):
    import mlflow

    environment["MLFLOW_TRACKING_URI"] = server.address
    flags = train_flags(tiny_data, tiny_cfg, tmp_path, "--log", "mlflow", "--log-weights", "--log-project", "mine")
    assert start(flags, tmp_path, environment).wait(PATIENCE) == 0
    client = mlflow.MlflowClient(server.address)
    (found,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    params = found.data.params
    assert found.info.status == "FINISHED" and found.info.run_name == "run"
    assert (params["hyp/lr0"], params["epochs"], params["imgsz"]) == ("0.01", "2", "64")
    assert params["version/torch"] and params["command"].startswith("python train.py ")
    images = {Path(file.path).name for file in client.list_artifacts(found.info.run_id, "images")}
    assert {"results.png", "labels.jpg", "train_batch0.jpg", "val_batch0_pred.jpg", "PR_curve.png"} <= images
    weights = {Path(file.path).name for file in client.list_artifacts(found.info.run_id, "weights")}
    assert weights == {"best.pt", "last.pt"}


def test_each_generation_is_a_run_of_one_experiment(server, tiny_data, tiny_cfg, tmp_path, environment):
    import mlflow

    environment["MLFLOW_TRACKING_URI"] = server.address
    flags = train_flags(tiny_data, tiny_cfg, tmp_path, "--log", "mlflow", "--evolve", "2", epochs=1)
    assert start(flags, tmp_path, environment).wait(PATIENCE) == 0, (tmp_path / "log").read_text()
    client = mlflow.MlflowClient(server.address)
    experiment = client.get_experiment_by_name(f"{tmp_path.name}-run")
    runs = client.search_runs([experiment.experiment_id])
    names = Counter(run.info.run_name.split("-")[0] for run in runs)
    settings = {tuple(sorted(item for item in run.data.params.items() if item[0].startswith("hyp/"))) for run in runs}
    assert names.keys() == {"0000", "0001"} and len(settings) == 2
    assert {run.info.status for run in runs} == {"FINISHED"}
