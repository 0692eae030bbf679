"""What an evolution says and leaves for people: bar, estimate, hyp_evolve.yaml, pictures, the closing words."""

import shlex
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from tqdm import tqdm

from utils.evolution.csv_store import RESULTS
from utils.evolution.plots import plot_evolve, plot_evolve_progress
from utils.evolution.verdict import Verdict
from utils.evolve import GENES, KEEP_MODEL_ANCHORS, PARENTS, Generation, Hyp, Key, best_first
from utils.files import atomic_write, write_yaml
from utils.output.plotter import Plotter

DRAW_EVERY = 60.0  # seconds


class Report:
    """Told of everything that happens in a search of `total` generations on `workers`; a context manager.

    typed: the command line of the search. to_train: one that lacks but `--hyp` to train with what is found.
    """

    def __init__(
        self, folder: Path, total: int, workers: int, epochs: int, *, typed: str, to_train: str, pictures: bool = True
    ):
        self.folder, self.total, self.workers, self.epochs = folder, total, workers, epochs
        self.typed, self.to_train, self.pictures = typed, to_train, pictures
        self.records: list[Generation] = []  # what was there when a generation ended last
        self.repeats_to_come = 0
        self.estimated = False
        self.first_epoch: dict[Key, float] = {}
        self.drawn = -DRAW_EVERY
        self.bar: tqdm | None = None
        self.plotter = Plotter(tqdm.write)
        self.lock = threading.Lock()

    def __enter__(self) -> "Report":
        return self

    def __exit__(self, *_) -> None:
        self.plotter.close()
        if self.bar is not None:
            self.bar.close()

    # ---- while it runs

    def begin(self, records: Sequence[Generation], repeats_to_come: int) -> None:
        """Say what is there already, open the bar, and estimate the time where trainings were measured."""
        self.records, self.repeats_to_come = list(records), repeats_to_come
        finished = [record for record in records if record.status != "started"]
        if finished:
            left = sum(record.status == "started" for record in records)
            under_way = f", {left} under way" if left else ""
            print(f"Going on after {len(finished)} of {self.total} generations{under_way}")
        self._open_bar("generations", self.total, len(finished))
        seconds = [record.seconds for record in finished if record.status == "done"]
        if seconds:
            self._estimate(float(np.mean(seconds)))

    def _open_bar(self, title: str, total: int, done: int) -> None:
        if self.bar is not None:
            self.bar.close()
        self.bar = tqdm(total=total, initial=min(done, total), desc=title, unit="run", dynamic_ncols=True)
        self._show_best()

    def on_epoch(self, key: Key, epochs: int, seconds: float) -> None:
        """A training has done so many epochs after so many seconds (called from the workers' threads)."""
        with self.lock:
            if epochs == 1:
                self.first_epoch[key] = seconds
            elif epochs > 1 and key in self.first_epoch:
                first = self.first_epoch.pop(key)
                self._estimate(first + (seconds - first) / (epochs - 1) * (self.epochs - 1))

    def _estimate(self, each: float) -> None:
        """The line with the time in all, once."""
        if self.estimated:
            return
        self.estimated = True
        finished = sum(record.status != "started" for record in self.records)
        runs = max(self.total - finished, 0) + self.repeats_to_come
        total = each * -(-runs // self.workers)
        until = time.strftime("%a %d %b %H:%M", time.localtime(time.time() + total))
        repeats = f"{self.repeats_to_come} of them to repeat the best"
        tqdm.write(
            f"Estimated: {runs} trainings of {duration(each)} ({repeats} under other seeds), "
            f"{self.workers} at a time: {duration(total)} in all, until {until}"
        )

    def ended(self, generation: Generation, records: Sequence[Generation]) -> None:
        """A generation of the search has ended; `records` are all there are."""
        improved = generation.status == "done" and best_first(records)[0].key == generation.key
        with self.lock:
            self.records = list(records)
        self._tell_failure(generation)
        self.bar.update(sum(record.status != "started" for record in records) - self.bar.n)
        self._show_best()
        if generation.status == "done":
            self._estimate(generation.seconds)
        if improved:
            write_best(self.folder / "hyp_evolve.yaml", generation, records, self.typed)
            write_population(self.folder / "evolve_population.yaml", records)
        if time.monotonic() - self.drawn > DRAW_EVERY:
            self.draw(records)

    def repeating(self, ranked: int, wanted: int, done: int) -> None:
        tqdm.write(f"Repeating {ranked} generations (the best and the start) under other seeds: was it luck?")
        self._open_bar("repeats", wanted, done)

    def repeated(self, generation: Generation) -> None:
        self._tell_failure(generation)
        self.bar.update()

    def _tell_failure(self, generation: Generation) -> None:
        if generation.status == "failed":
            tqdm.write(f"generation {generation.number} failed after {duration(generation.seconds)}: {generation.note}")

    def _show_best(self) -> None:
        ranked = best_first(self.records)
        if ranked:
            self.bar.set_postfix_str(f"best {ranked[0].fitness:.4g} (generation {ranked[0].number})", refresh=True)

    def draw(
        self, records: Sequence[Generation], repeats: Sequence[Generation] = (), winner: int | None = None
    ) -> None:
        """Both pictures, in the background."""
        done = [record for record in records if record.status == "done"]
        if not self.pictures or not done:
            return
        names = list(done[0].hyp)
        values = np.array([[record.hyp[name] for name in names] for record in done])  # (N, K)
        best = best_first(done)[0].number if winner is None else winner
        start = next((k for k, record in enumerate(done) if record.origin == "start"), None)
        self.plotter.submit(
            plot_evolve,
            names,
            values,
            np.array([record.fitness for record in done]),
            self.folder / "evolve.png",
            start=start,
            best=next(k for k, record in enumerate(done) if record.number == best),
            logarithmic=[name for name in names if GENES[name].log],
        )
        ended = [record for record in records if record.status != "started"]
        self.plotter.submit(
            plot_evolve_progress,
            np.array([record.number for record in ended]),
            np.array([np.nan if record.fitness is None else record.fitness for record in ended]),
            [record.status for record in ended],
            self.folder / "evolve_progress.png",
            start=None if start is None else done[start].fitness,
            repeats=[(record.number, record.fitness) for record in repeats if record.status == "done"],
            winner=winner,
        )
        self.drawn = time.monotonic()

    # ---- at the end

    def finish(self, verdict: Verdict, records: Sequence[Generation], repeats: Sequence[Generation]) -> None:
        """Write the winner, draw, and say what was found and how to train with it."""
        file = self.folder / "hyp_evolve.yaml"
        write_best(file, verdict.winner, records, self.typed, summary_line(verdict))
        write_population(self.folder / "evolve_population.yaml", records)
        self.draw(records, repeats, verdict.winner.number)
        self.__exit__()
        counts = {word: sum(record.status == word for record in records) for word in ("done", "pruned", "failed")}
        ends = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
        seconds = sum(record.seconds for record in [*records, *repeats])
        print(
            f"{len(records)} generations ({ends}) and {len(repeats)} repeats, {duration(seconds)} of training\n"
            f"{summary_line(verdict)}\nResults saved to {self.folder}\n"
            f"Train with it: {self.to_train} --hyp {shlex.quote(str(file))}"
        )


def summary_line(verdict: Verdict) -> str:
    """One line: who won, and whether the gain is more than luck."""
    winner = verdict.winner
    best = f"Best: generation {winner.number}, fitness {verdict.fitness:.4g}"
    if verdict.start is None:
        return f"{best}; the start failed, so there is no gain to tell"
    if winner.origin == "start":
        return f"Best: the start itself, fitness {verdict.fitness:.4g}: nothing better was found"
    line = f"{best} against {verdict.start:.4g} of the start; gain {verdict.gain:+.4g} on fresh seeds"
    if verdict.noise is None:
        return f"{line}; nothing was repeated, so nobody knows the noise between seeds"
    word = "larger than" if verdict.significant else "not larger than"
    return f"{line}, {word} the noise between seeds (standard deviation {verdict.noise:.2g})"


def duration(seconds: float) -> str:
    """`42 s`, `7.5 min`, `3.2 h`, `2.1 days`."""
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds / 86400:.3g} days"


def for_training(hyp: Hyp) -> dict[str, float]:
    """As in the files that come with the project: no `anchors` where the model keeps its own."""
    return {key: value for key, value in hyp.items() if key != "anchors" or value != KEEP_MODEL_ANCHORS}


def write_best(file: Path, best: Generation, records: Sequence[Generation], typed: str, verdict: str = "") -> None:
    """The best values as a file for `--hyp`, with how they were found in its comments."""
    finished = [record for record in records if record.status != "started"]
    results = best.results or (float("nan"),) * len(RESULTS)
    head = [
        "Anchorage hyperparameter evolution",
        f"Best generation: {best.number} ({best.origin}{' of ' if best.parents else ''}"
        f"{' '.join(map(str, best.parents))}), seed {best.seed}, fitness {best.fitness:.5g}",
        f"Last generation: {max(record.number for record in finished)}, {len(finished)} in all",
        ", ".join(f"{name:>20}" for name in RESULTS),
        ", ".join(f"{value:20.5g}" for value in results),
        *([verdict] if verdict else []),
        f"Found with: {typed}",
    ]  # fmt: skip
    text = "".join(f"# {line}\n" for line in head) + "\n" + yaml.safe_dump(for_training(best.hyp), sort_keys=False)
    with atomic_write(file) as stream:
        stream.write(text.encode())


def write_population(file: Path, records: Sequence[Generation]) -> None:
    """The present parents, as a file for `--resume_evolve` of another search."""
    write_yaml(
        file,
        {
            f"gen{record.number}number{rank}": for_training(record.hyp)
            for rank, record in enumerate(best_first(records)[:PARENTS])
        },
    )
