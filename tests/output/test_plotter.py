"""Background thread that draws: in order, and a failure costs one warning."""

import threading

import numpy as np

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


def test_a_failed_chart_costs_one_warning(tmp_path, capsys):
    with Plotter() as plotter:
        plotter.submit(plots.plot_results, tmp_path / "absent.csv", tmp_path / "results.png")
        plotter.submit(plots.plot_confusion, np.eye(3), {0: "a", 1: "b"}, file=tmp_path / "confusion.png")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("WARNING: plot_results was not drawn") and "absent.csv" in line
    assert (tmp_path / "confusion.png").exists()
