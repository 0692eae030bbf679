"""Observers of evaluate(): their order, errors, and which process they watch."""

import pytest
from known_model import FOUND, Answers, Share, batches

from utils.inference.evaluate import evaluate
from utils.inference.observer import EvaluationObserver, StopHook


def evaluate_rows(rows, **settings):
    return evaluate(Answers(rows), batches(), **settings)


class Recorder(EvaluationObserver):
    """EvaluationObserver that notes its calls."""

    def __init__(self, calls, failing=""):
        self.calls, self.failing = calls, failing

    def note(self, *call):
        self.calls.append(call)
        if call[0] == self.failing:
            raise ValueError(call[0])

    def __enter__(self):
        self.note("enter")
        return self

    def __exit__(self, kind, error, trace):
        self.note("exit", kind)

    def on_start(self, num_batches):
        self.note("start", num_batches)

    def before_batch(self):
        self.note("before")

    def on_batch(self, evaluated):
        self.note("batch", evaluated.number, [one.path for one in evaluated.detections], len(evaluated.rows))

    def on_end(self, metrics):
        self.note("end", metrics.images)


def test_observers_are_called_in_order():
    calls = []
    evaluate_rows(FOUND, observers=[Recorder(calls), EvaluationObserver()])
    first, second = ["/data/0.jpg", "/data/1.jpg"], ["/data/2.jpg"]
    assert calls == [
        *[("enter",), ("start", 2), ("before",), ("batch", 0, first, 2), ("before",), ("batch", 1, second, 1)],
        *[("end", 3), ("exit", None)],
    ]


@pytest.mark.parametrize("failing", ["start", "before", "batch", "end"])
def test_an_error_in_an_observer_closes_all_of_them(failing):
    calls = []
    with pytest.raises(ValueError, match=failing):
        evaluate_rows(FOUND, observers=[Recorder(calls), Recorder(calls, failing)])
    assert calls[-2:] == [("exit", ValueError)] * 2


def test_observers_watch_rank_0_only():
    calls = []
    evaluate_rows(FOUND, observers=[Recorder(calls)], distributed=Share(1, {}, complete=False))
    assert calls == []


def test_the_stop_hook_is_called_before_the_first_reading_and_before_each_batch():
    calls = []

    def stop():
        calls.append(1)
        if len(calls) == 3:
            raise InterruptedError

    evaluated = []
    with pytest.raises(InterruptedError):
        evaluate_rows(FOUND, observers=[StopHook(stop), Recorder(evaluated)])
    assert [call[0] for call in evaluated] == ["enter", "start", "before", "batch", "exit"]
