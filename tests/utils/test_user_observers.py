"""Observers that a program passes in: one that raises is reported once and dropped, and nothing else changes."""

import pytest
import torch
from tiny_training import train_flags

import train
import val
from utils.checkpoint import read_checkpoint
from utils.errors import UserError
from utils.inference.observer import EvaluationObserver
from utils.training.observer import Observer
from utils.user_observers import UserObservers, as_observers


class Recorder(Observer):
    """Observer that notes the events of a training, and draws random numbers."""

    def __init__(self):
        self.events = []

    def on_start(self, run):
        self.events.append("start")

    def on_batch(self, run, report):
        torch.rand(3)
        self.events.append(f"batch {report.step}")

    def on_epoch(self, run, report):
        self.events.append(f"epoch {report.epoch}")
        self.metrics = report.metrics

    def on_checkpoint(self, run, report):
        assert report.file.is_file()
        self.events.append(f"{report.file.name} {report.epoch}")

    def on_end(self, run):
        self.events.append("end")


class Raising:
    """Observer without a base class, whose first batch fails."""

    def __init__(self):
        self.calls = 0

    def on_batch(self, *_):
        self.calls += 1
        raise OSError("out of paper")


def test_without_observers_nothing_happens():
    UserObservers().call("on_start")


def test_methods_that_are_absent_are_skipped(capsys):
    UserObservers([object()]).call("on_start")
    assert capsys.readouterr().err == ""


def test_an_observer_of_a_training_changes_nothing_and_may_fail(tiny_data, tiny_cfg, tmp_path, capsys):
    """Events come in order, also after another observer has failed. Weights and random numbers stay."""
    recorder, raising = Recorder(), Raising()
    for name, observers in (("with", [raising, recorder]), ("without", ())):
        train.main(train_flags(tiny_data, tiny_cfg, tmp_path, "--noplots", "--name", name), observers)
    batches = ["batch 0", "batch 1", "batch 2"]
    assert [event for event in recorder.events if not event.startswith(("last", "best"))] == [
        *("start", *batches, "epoch 0", *batches, "epoch 1", "end")
    ]
    assert {"last.pt 0", "last.pt 1", "best.pt 1", "last.pt 2"} <= set(recorder.events)
    assert recorder.metrics.images == 8
    assert raising.calls == 1
    error = capsys.readouterr().err
    assert error.count("Raising.on_batch raised OSError: out of paper (line ") == 1
    states = [read_checkpoint(tmp_path / name / "weights" / "last.pt") for name in ("with", "without")]
    assert torch.equal(states[0]["rng"]["cpu"], states[1]["rng"]["cpu"])
    weights = [state["model"]["state_dict"] for state in states]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_an_observer_of_a_validation_may_fail(tiny_data, tiny_cfg, tmp_path, capsys):
    class Counter(EvaluationObserver):
        def __init__(self):
            self.images = 0

        def on_batch(self, evaluated):
            self.images += len(evaluated.detections)

        def on_end(self, metrics):
            self.metrics = metrics

    train.main(train_flags(tiny_data, tiny_cfg, tmp_path, "--noplots", epochs=1))
    counter, raising = Counter(), Raising()
    weights = str(tmp_path / "run" / "weights" / "best.pt")
    flags = ["--weights", weights, "--data", str(tiny_data), "--imgsz", "64", "--batch-size", "4", "--workers", "0"]
    metrics = val.main([*flags, "--device", "cpu", "--project", str(tmp_path / "val")], [raising, counter])
    assert counter.metrics is metrics and counter.images == 8 and raising.calls == 1
    assert "Raising.on_batch raised OSError" in capsys.readouterr().err


def test_an_evolution_takes_no_observers(tiny_data, tiny_cfg, tmp_path):
    flags = train_flags(tiny_data, tiny_cfg, tmp_path, "--evolve", "2")
    with pytest.raises(UserError, match="observers watch one training"):
        train.main(flags, [Recorder()])


@pytest.mark.parametrize("given", ["my_observer", ["my_observer"], [list], None])
def test_what_cannot_observe_is_an_error(given):
    with pytest.raises(UserError, match="observers: .* is not an object with methods such as on_epoch"):
        as_observers(given)


def test_one_observer_needs_no_list():
    one = object()
    assert as_observers(one) == as_observers([one]) == as_observers((one,)) == [one] and as_observers(()) == []
