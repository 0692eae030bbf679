"""Loggers of `--log`: what they are sent, once each, and that none of them costs a training.

tests/output/test_trackers.py has the real services.
"""

import io
import json
import os
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
from tiny_training import train_flags

import train
from utils.config import LOGGERS
from utils.output import tracker_process, trackers
from utils.results_csv import COLUMNS
from utils.training import loggers

ROW = "1,2,3,4,5,6,7,8,9,10,11,12,13"


def write_results(folder: Path, epochs: int) -> None:
    """Write a results.csv of the first epochs, padded as ours are."""
    rows = [",".join(f"{name:>20}" for name in COLUMNS), *(f"{epoch:>20},{ROW}" for epoch in range(epochs))]
    (folder / "results.csv").write_text("\n".join(rows) + "\n")


class Notes(trackers.Tracker):
    """Tracker that notes its calls. It fails while `is_down`."""

    is_down = False

    def __init__(self, start, record):
        self.id, self.begun_with, self.notes = record.id or "new", record.id, []

    def log(self, epoch, values):
        if Notes.is_down:
            raise ConnectionError("no server")
        assert list(values) == list(COLUMNS[1:]) and values["x/lr2"] == 13
        self.notes.append(epoch)

    def log_image(self, file, epoch):
        self.notes.append((file.name, epoch))

    def log_weights(self, file):
        self.notes.append(file.name)


@pytest.fixture
def make_sender(tmp_path, monkeypatch):
    """Return a function that makes the sender of a run in tmp_path to Notes."""
    monkeypatch.setitem(trackers.TRACKERS, "mlflow", Notes)

    def make(*, resumed=False, stale=None) -> tracker_process.Sender:
        start = trackers.Start("mlflow", str(tmp_path), "run", "", {}, resumed, stale or {}, 1.0)
        return tracker_process.Sender(start, lambda place: None)

    return make


def test_the_tools_are_those_of_the_flag():
    assert tuple(trackers.TRACKERS) == LOGGERS


def test_a_folder_without_files_sends_nothing(make_sender):
    sender = make_sender()
    sender.send()
    assert sender.tracker.notes == []


def test_each_row_and_image_is_sent_once(make_sender, tmp_path):
    sender = make_sender()
    write_results(tmp_path, 2)
    (tmp_path / "labels.jpg").touch()
    sender.send()
    sender.send()
    write_results(tmp_path, 3)
    os.utime(tmp_path / "labels.jpg", (1, 1))  # drawn again
    sender.send(weights=("weights/best.pt",))
    assert sender.tracker.notes == [0, 1, ("labels.jpg", 1), 2, ("labels.jpg", 2), "best.pt"]


def test_what_a_tracker_missed_is_sent_when_it_is_back(make_sender, tmp_path, monkeypatch):
    sender = make_sender()
    write_results(tmp_path, 2)
    monkeypatch.setattr(Notes, "is_down", True)
    with pytest.raises(ConnectionError):
        sender.send()
    monkeypatch.setattr(Notes, "is_down", False)
    write_results(tmp_path, 3)
    sender.send()
    assert sender.tracker.notes == [0, 1, 2]


def test_a_resumed_run_continues_where_the_record_ends(make_sender, tmp_path):
    """Epochs that a killed run had logged after its last checkpoint are repeated, and are not logged again."""
    write_results(tmp_path, 3)
    first = make_sender()
    first.send()
    write_results(tmp_path, 5)
    second = make_sender(resumed=True)
    second.send()
    assert second.tracker.begun_with == "new" and second.tracker.notes == [3, 4]


def test_a_run_that_is_not_resumed_begins_from_scratch(make_sender, tmp_path):
    write_results(tmp_path, 3)
    (tmp_path / "labels.jpg").touch()
    make_sender().send()
    sender = make_sender(stale=trackers.list_files(tmp_path))  # --exist-ok: they are those of the earlier run
    sender.send()
    assert sender.tracker.begun_with == "" and sender.tracker.notes == []
    time.sleep(0.01)
    write_results(tmp_path, 1)
    sender.send()
    assert sender.tracker.notes == [0]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"other": 1}'])
def test_a_damaged_record_counts_as_none(make_sender, tmp_path, text):
    trackers.record_file(tmp_path, "mlflow").write_text(text)
    assert make_sender(resumed=True).record == trackers.Record()


def read_scalars(folder: Path) -> dict[str, list[int]]:
    """Return the steps of each scalar in TensorBoard's files, by its own reader."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {name: [event.step for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_a_run_is_logged_once_and_its_continuation_too(tiny_data, tiny_cfg, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tracker_process, "LAST_SECONDS", 60.0)  # on a busy machine
    train.main(train_flags(tiny_data, tiny_cfg, tmp_path, "--noplots", "--log", "tensorboard"))
    folder = tmp_path / "run"
    assert f"Logging to tensorboard: tensorboard --logdir {folder}" in capsys.readouterr().out
    assert read_scalars(folder) == {name: [0, 1] for name in COLUMNS[1:]}
    record = json.loads((folder / "log-tensorboard.json").read_text())
    trackers.record_file(folder, "tensorboard").write_text(json.dumps({**record, "epoch": 0}))  # killed before it
    train.main(["--resume", str(folder), "--epochs", "4"])
    assert read_scalars(folder) == {name: [0, 1, 2, 3] for name in COLUMNS[1:]}

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    content = EventAccumulator(str(folder)).Reload().PluginTagToContent("hparams")["_hparams_/session_start_info"]
    shown = HParamsPluginData.FromString(content).session_start_info.hparams
    assert shown["hyp/lr0"].number_value == 0.01 and shown["epochs"].number_value == 2
    assert shown["command"].string_value.startswith("python train.py --amp=off --batch-size=8 ")
    assert shown["version/torch"].string_value


FAKE = """
def set_experiment(*_):
    pass

def start_run(**_):
    {}
"""


def test_what_is_absent_fails_or_hangs_costs_a_line(tiny_data, tiny_cfg, tmp_path, monkeypatch, capsys):
    """The training ends as it does without loggers, a second after the deadline of one that hangs."""
    for package, body in (("mlflow", "import time; time.sleep(3600)"), ("clearml", "raise ImportError('broken')")):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(FAKE.format(body) if package == "mlflow" else body)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = {"mlflow": object(), "clearml": object()}
    monkeypatch.setattr(loggers, "find_spec", found.get)
    monkeypatch.setattr(loggers, "SECONDS", 3.0)
    monkeypatch.setattr(tracker_process, "LAST_SECONDS", 1.0)
    flags = train_flags(tiny_data, tiny_cfg, tmp_path, "--noplots", "--log", "mlflow", "clearml", "wandb", epochs=1)
    assert train.main(flags) is not None
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "--log" in line and "mlflow" not in line][:2] == [
        "WARNING: --log wandb: the package is not installed. Type pip install wandb, or for all tools "
        'pip install ".[loggers]" in the folder of this project',
        "WARNING: --log clearml: ImportError: broken. The training continues, and it is tried again",
    ]
    assert sum("--log mlflow: not everything was logged within 3 s" in line for line in lines) == 1
    assert (tmp_path / "run" / "weights" / "best.pt").is_file()


def test_an_installed_tool_is_not_used_unless_it_is_named(make_run, tiny_cfg, tmp_path, monkeypatch):
    monkeypatch.setattr(loggers, "find_spec", lambda package: object())
    watch = loggers.Loggers(lambda: tmp_path)
    watch.on_start(make_run(tiny_cfg))
    watch.close()
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_cannot_start_costs_a_line(make_run, tiny_cfg, tmp_path, monkeypatch, capsys):
    def refuse(*_, **__):
        raise OSError(11, "too many processes")

    monkeypatch.setattr(loggers, "find_spec", lambda package: object())
    monkeypatch.setattr(loggers.subprocess, "Popen", refuse)
    run, watch = make_run(tiny_cfg), loggers.Loggers(lambda: tmp_path)
    run.options = run.options.replace(log=["mlflow"])
    watch.on_start(run)
    watch.close()
    assert "--log mlflow: no process can be started" in capsys.readouterr().err


@pytest.mark.parametrize(
    "lines, finished",
    [("", False), ('{"fol', False), ('{"end": "interrupted", "weights": []}\n', False),
     ('{"folder": "b"}\n{"end": "finished", "weights": ["c"]}\n', True)],
)  # fmt: skip
def test_a_process_ends_with_its_training(monkeypatch, lines, finished):
    """The end of the pipe, also in the middle of a line, is that of a training that was killed."""
    timers = []
    monkeypatch.setattr(tracker_process.threading, "Timer", lambda seconds, *_: timers.append(seconds) or Mock())
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    inbox = tracker_process.Inbox(trackers.Start("mlflow", "a", "run", "", {}, False, {}, 60.0))
    inbox.run()
    assert inbox.ended.is_set() and inbox.finished is finished
    assert timers == [60.0 if finished else tracker_process.LAST_SECONDS]
    assert (inbox.folder, inbox.weights) == (("b", ("c",)) if finished else ("a", ()))


def test_credentials_are_not_logged(tmp_path, make_run, tiny_cfg):
    run = make_run(tiny_cfg)
    run.options = run.options.replace(data="https://me:secret@host/a.yaml", typed=frozenset(["data"]))
    assert "secret" not in json.dumps(loggers.describe(run)) and loggers.describe(run)["data"] == "https://host/a.yaml"
