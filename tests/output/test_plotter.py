"""Background thread that draws: in order, and a failure costs one warning."""

import errno
import os
import threading

import numpy as np
import pytest

from utils.output import plots
from utils.output.plotter import Plotter


def test_plotter_draws_in_one_other_thread_in_order():
    seen = []
    with Plotter() as plotter:
        for i in range(5):
            plotter.submit(lambda i: seen.append((i, threading.current_thread().name)), i)
    assert [i for i, _ in seen] == list(range(5))
    assert {name for _, name in seen} == {"plots_0"}
    assert not any(thread.name.startswith("plots") for thread in threading.enumerate())


@pytest.mark.parametrize("failures, missing", [(3, 0), (9, 1)], ids=["room at the end", "no room"])
def test_a_chart_that_cannot_be_written_is_drawn_again_at_the_end(tmp_path, monkeypatch, capsys, failures, missing):
    original, left = os.replace, [None] * failures

    def replace(source, target):
        if str(target).endswith("a.png") and left:
            left.pop()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with Plotter() as plotter:
        for name in "ab":
            plotter.submit(plots.plot_confusion, np.eye(3), {0: "a", 1: "b"}, file=tmp_path / f"{name}.png")
        plotter.finish()
    assert plotter.unwritten == dict.fromkeys([tmp_path / "a.png"][:missing], "No space left on device")
    assert (tmp_path / "a.png").exists() is not bool(missing) and (tmp_path / "b.png").exists()
    assert capsys.readouterr().err.count("a.png could not be written: No space left on device") == 1


def test_a_failed_chart_costs_one_warning(tmp_path, capsys):
    with Plotter() as plotter:
        plotter.submit(plots.plot_results, tmp_path / "absent.csv", tmp_path / "results.png")
        plotter.submit(plots.plot_confusion, np.eye(3), {0: "a", 1: "b"}, file=tmp_path / "confusion.png")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("WARNING: plot_results was not drawn") and "absent.csv" in line
    assert (tmp_path / "confusion.png").exists()
