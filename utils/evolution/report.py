"""Report of an evolution: progress, estimated time, hyp_evolve.yaml, charts, and the summary at the end."""

import shlex
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml

from utils.console import info, progress_bar, result, shows_bars, warn
from utils.evolution.plan import Plan
from utils.evolution.plots import plot_evolve, plot_evolve_progress
from utils.evolution.verdict import Verdict
from utils.evolve import ALL_GENES, KEEP_MODEL_ANCHORS, PARENTS, Generation, Hyp, Key, best_first
from utils.files import atomic_write, write_yaml
from utils.metrics import Fitness
from utils.output.plotter import Plotter
from utils.pending_files import require_written
from utils.results_csv import RESULTS

DRAW_EVERY = 60.0  # seconds


class Progress:
    """Progress bar over trainings, or one line per training where no bar is drawn. `done` are finished already."""

    def __init__(self, title: str, total: int, done: int, best: str):
        self.title, self.total, self.done = title, total, min(done, total)
        self.bar = progress_bar(total=total, initial=self.done, desc=title, unit="run", leave=shows_bars())
        self.bar.set_postfix_str(best)

    def advance_to(self, done: int, best: str) -> None:
        """Show the number of trainings that are done, and the best fitness so far."""
        self.done = done
        self.bar.update(done - self.bar.n)
        self.bar.set_postfix_str(best)
        if not shows_bars():
            info(f"{self.title}: {done} of {self.total}, {best or 'none has succeeded yet'}")

    def close(self) -> None:
        self.bar.close()


class Report:
    """Observer of an evolution: prints, draws and writes what people read. It is a context manager."""

    def __init__(self, plan: Plan):
        self.plan, self.folder, self.total = plan, plan.folder, plan.options.evolve
        self.records: list[Generation] = []  # all records at the last end of a generation
        self.repeats_to_come = 0
        self.estimated = self.unwritten = False
        self.best_file = self.folder / "hyp_evolve.yaml"
        self.first_epoch: dict[Key, float] = {}  # seconds of the first epoch
        self.drawn = -DRAW_EVERY
        self.progress: Progress | None = None
        self.plotter = Plotter()
        self.lock = threading.Lock()

    def __enter__(self) -> "Report":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Finish the charts that are submitted, and the progress bar."""
        self.plotter.close()
        if self.progress is not None:
            self.progress.close()

    # ---- during the search

    def begin(self, records: Sequence[Generation], repeats_to_come: int) -> None:
        """Print what is resumed, open the progress bar, and estimate the time if trainings were timed before."""
        self.records, self.repeats_to_come = list(records), repeats_to_come
        ended = [record for record in records if record.status != "started"]
        if ended:
            running = len(records) - len(ended)
            info(f"Resuming after {len(ended)} of {self.total} generations" + f", {running} running" * bool(running))
        self._open_progress("generations", self.total, len(ended))
        seconds = [record.seconds for record in ended if record.status == "done"]
        if seconds:
            self._estimate(float(np.mean(seconds)))

    def _open_progress(self, title: str, total: int, done: int) -> Progress:
        if self.progress is not None:
            self.progress.close()
        self.progress = Progress(title, total, done, self._best())
        return self.progress

    def on_epoch(self, key: Key, epochs: int, seconds: float) -> None:
        """Estimate the time from a training that has done `epochs` epochs in `seconds`. Called from worker threads."""
        with self.lock:
            if epochs == 1:
                self.first_epoch[key] = seconds
            elif epochs > 1 and key in self.first_epoch:
                first = self.first_epoch.pop(key)
                self._estimate(first + (seconds - first) / (epochs - 1) * (self.plan.options.epochs - 1))

    def _estimate(self, seconds_each: float) -> None:
        """Print the estimated total time, once."""
        if self.estimated:
            return
        self.estimated = True
        ended = sum(record.status != "started" for record in self.records)
        runs, workers = max(self.total - ended, 0) + self.repeats_to_come, len(self.plan.devices)
        total = seconds_each * -(-runs // workers)
        until = time.strftime("%a %d %b %H:%M", time.localtime(time.time() + total))
        repeats = f"{self.repeats_to_come} of them to repeat the best"
        info(
            f"Estimated: {runs} trainings of {format_duration(seconds_each)} ({repeats} under other seeds), "
            f"{workers} at a time: {format_duration(total)} in all, until {until}"
        )

    def on_end(self, generation: Generation, records: Sequence[Generation]) -> None:
        """Report a generation of the search that has ended. `records` holds all generations."""
        improved = generation.status == "done" and best_first(records)[0].key == generation.key
        self.unwritten = self.unwritten or improved
        with self.lock:
            self.records = list(records)
        self._report_failure(generation)
        assert self.progress is not None
        self.progress.advance_to(sum(record.status != "started" for record in records), self._best())
        if generation.status == "done":
            self._estimate(generation.seconds)
        if self.unwritten:
            self._write(best_first(records)[0], records)
        if time.monotonic() - self.drawn > DRAW_EVERY:
            self.draw(records)

    def _write(self, best: Generation, records: Sequence[Generation], summary: str = "") -> OSError | None:
        """Write the files with the best hyperparameters. Return the error if that fails: the next call tries again."""
        try:
            write_best(self.best_file, best, records, self.plan.search_command, summary)
            write_population(self.folder / "evolve_population.yaml", records)
        except OSError as error:
            warn(f"{self.best_file} could not be written: {error.strerror}. The search continues and tries again.")
            return error
        self.unwritten = False
        return None

    def begin_repeats(self, ranked: int, total: int, done: int) -> None:
        """Announce the repeats of `ranked` generations, `done` of `total` trainings finished already."""
        info(f"Repeating {ranked} generations (the best and the start) under other seeds: was it luck?")
        self._open_progress("repeats", total, done)

    def on_repeat(self, generation: Generation) -> None:
        """Report a repeat that has ended."""
        self._report_failure(generation)
        assert self.progress is not None
        self.progress.advance_to(self.progress.done + 1, self._best())

    def _report_failure(self, generation: Generation) -> None:
        if generation.status == "failed":
            duration = format_duration(generation.seconds)
            info(f"generation {generation.number} failed after {duration}: {generation.note}")

    def _best(self) -> str:
        ranked = best_first(self.records)
        return f"best {ranked[0].fitness:.4g} (generation {ranked[0].number})" if ranked else ""

    def draw(
        self, records: Sequence[Generation], repeats: Sequence[Generation] = (), winner: int | None = None
    ) -> None:
        """Draw both charts in the background."""
        done = [record for record in records if record.status == "done"]
        if self.plan.options.noplots or not done:
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
            logarithmic=[name for name in names if ALL_GENES[name].log],
            measure=Fitness.parse(self.plan.options.fitness),
        )
        ended = [record for record in records if record.status != "started"]
        self.plotter.submit(
            plot_evolve_progress,
            np.array([record.number for record in ended]),
            np.array([np.nan if record.fitness is None else record.fitness for record in ended]),
            [record.status for record in ended],
            self.folder / "evolve_progress.png",
            start=None if start is None else done[start].fitness,
            repeats=[(record.number, record.final_fitness) for record in repeats if record.status == "done"],
            winner=winner,
        )
        self.drawn = time.monotonic()

    # ---- at the end

    def finish(self, verdict: Verdict, records: Sequence[Generation], repeats: Sequence[Generation]) -> None:
        """Write the winner, draw the charts, and print the result and the command that trains with it.

        Raise UserError instead of the latter if a file could not be written.
        """
        summary = summary_line(verdict)
        failure = self._write(verdict.winner, records, summary)
        self.draw(records, repeats, verdict.winner.number)
        self.close()
        counts = {word: sum(record.status == word for record in records) for word in ("done", "pruned", "failed")}
        ends = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
        seconds = sum(record.seconds for record in [*records, *repeats])
        result(
            f"{len(records)} generations ({ends}) and {len(repeats)} repeats, {format_duration(seconds)} of training",
            summary,
        )
        missing = {self.best_file: str(failure.strerror)} if failure else {}
        require_written(missing | self.plotter.unwritten, ", then type the same command")
        result(
            f"Results saved to {self.folder}",
            f"Train with it: {self.plan.training_command} --hyp {shlex.quote(str(self.best_file))}",
        )


def summary_line(verdict: Verdict) -> str:
    """Return one line: the winner, and whether its gain is more than luck."""
    winner = verdict.winner
    best = f"Best: generation {winner.number}, fitness {verdict.fitness:.4g}"
    if verdict.start is None or verdict.gain is None:
        return f"{best}; the start failed, so there is no gain to report"
    if winner.origin == "start":
        return f"Best: the start itself, fitness {verdict.fitness:.4g}: nothing better was found"
    line = f"{best} against {verdict.start:.4g} of the start; gain {verdict.gain:+.4g} on fresh seeds"
    if verdict.noise is None:
        return f"{line}; nothing was repeated, so the noise between seeds is unknown"
    word = "larger than" if verdict.significant else "not larger than"
    return f"{line}, {word} the noise between seeds (standard deviation {verdict.noise:.2g})"


def format_duration(seconds: float) -> str:
    """Return `42 s`, `7.5 min`, `3.2 h` or `2.1 days`."""
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds / 86400:.3g} days"


def to_hyp_file(hyp: Hyp) -> dict[str, float]:
    """Return the content of a hyperparameter file: without `anchors` if the model keeps its own."""
    return {key: value for key, value in hyp.items() if key != "anchors" or value != KEEP_MODEL_ANCHORS}


def write_best(file: Path, best: Generation, records: Sequence[Generation], command: str, summary: str = "") -> None:
    """Write the best hyperparameters as a file for `--hyp`. Comments say how they were found."""
    ended = [record for record in records if record.status != "started"]
    results = best.results or (float("nan"),) * len(RESULTS)
    head = [
        "Anchorage hyperparameter evolution",
        f"Best generation: {best.number} ({best.origin}{' of ' if best.parents else ''}"
        f"{' '.join(map(str, best.parents))}), seed {best.seed}, fitness {best.fitness:.5g}",
        f"Last generation: {max(record.number for record in ended)}, {len(ended)} in all",
        ", ".join(f"{name:>20}" for name in RESULTS),
        ", ".join(f"{value:20.5g}" for value in results),
        *([summary] if summary else []),
        f"Found with: {command}",
    ]
    text = "".join(f"# {line}\n" for line in head) + "\n" + yaml.safe_dump(to_hyp_file(best.hyp), sort_keys=False)
    with atomic_write(file) as stream:
        stream.write(text.encode())


def write_population(file: Path, records: Sequence[Generation]) -> None:
    """Write the current parents as a file for `--resume_evolve` of another search."""
    write_yaml(
        file,
        {
            f"gen{record.number}number{rank}": to_hyp_file(record.hyp)
            for rank, record in enumerate(best_first(records)[:PARENTS])
        },
    )
