"""Genetic search over hyperparameters. Knows nothing of training: it calls `objective(hyp, generation) -> fitness`.

A generation is one call of the objective. What the next one tries depends on (seed, number) and on the records that are
there when it begins, and on nothing else: so any number of them run at once, none waits for the slowest, and a search
that was cut off goes on from its records.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from utils.errors import UserError

Hyp = Mapping[str, float]
Key = tuple[int, int]  # number of a generation, and of its repeat: 0 for the search itself


class Gene(NamedTuple):
    """A hyperparameter's place in the search: size of its mutations (0: only inherited), bounds, and its scale."""

    gain: float
    low: float
    high: float
    log: bool = False  # steps are ratios


GENES = {
    "lr0": Gene(1, 1e-5, 0.1, log=True),
    "lrf": Gene(1, 0.01, 1.0, log=True),
    "momentum": Gene(0.3, 0.6, 0.98),
    "weight_decay": Gene(1, 0.0, 0.001),
    "warmup_epochs": Gene(1, 0.0, 5.0),
    "warmup_momentum": Gene(1, 0.0, 0.95),
    "warmup_bias_lr": Gene(1, 0.0, 0.2),
    "box": Gene(1, 0.02, 0.2, log=True),
    "cls": Gene(1, 0.2, 4.0, log=True),
    "cls_pw": Gene(1, 0.5, 2.0, log=True),
    "obj": Gene(1, 0.2, 4.0, log=True),
    "obj_pw": Gene(1, 0.5, 2.0, log=True),
    "iou_t": Gene(0, 0.1, 0.7),
    "anchor_t": Gene(1, 2.0, 8.0, log=True),
    "anchors": Gene(2, 2.0, 10.0),
    "fl_gamma": Gene(0, 0.0, 2.0),
    "hsv_h": Gene(1, 0.0, 0.1),
    "hsv_s": Gene(1, 0.0, 0.9),
    "hsv_v": Gene(1, 0.0, 0.9),
    "degrees": Gene(1, 0.0, 45.0),
    "translate": Gene(1, 0.0, 0.9),
    "scale": Gene(1, 0.0, 0.9),
    "shear": Gene(1, 0.0, 10.0),
    "perspective": Gene(0, 0.0, 0.001),
    "flipud": Gene(1, 0.0, 1.0),
    "fliplr": Gene(0, 0.0, 1.0),
    "mosaic": Gene(1, 0.0, 1.0),
    "mixup": Gene(1, 0.0, 1.0),
    "copy_paste": Gene(1, 0.0, 1.0),
}
KEEP_MODEL_ANCHORS = 0.0  # value of `anchors` that keeps the model's own; outside the gene's bounds, and allowed
FIRST_ANCHORS = 3.0  # where a mutation begins that leaves the model's own anchors

# Chosen with benchmarks/evolve_search.py, which prints what each of them is worth.
PARENTS = 6  # the best so far that pass on their genes
RECOMBINATION = 1.0  # share of children that take each gene from a parent of its own, the better ones more often
MUTATED = 0.25  # share of genes that a mutation touches
STEP = 0.25  # mean size of a mutation in parts of the gene's range (of its logarithm where the scale is)
MAX_START_TRIES = (
    3  # tries of the start where others succeed; failures after which a search that has no success gives up
)
MAX_FAILURES_IN_A_ROW = (
    10  # failures in a row after which any search stops: a full disk must not use up all generations
)


@dataclass(frozen=True)
class Generation:
    """What is known of one generation. `results`: precision, recall, mAP@0.5, mAP@0.5:0.95, box, obj and cls loss."""

    number: int
    hyp: dict[str, float]
    seed: int  # for the objective
    origin: str  # start, population, mutation (of the start), child, repeat
    parents: tuple[int, ...] = ()
    repeat: int = 0
    status: str = "started"  # started, done, failed, pruned
    fitness: float | None = None  # of a pruned one: the last that was seen
    results: tuple[float, ...] = ()
    epochs: int = 0
    seconds: float = 0.0
    curve: tuple[float, ...] = ()  # fitness after each epoch, where it was measured
    note: str = ""  # why it failed, where its log is

    @property
    def key(self) -> Key:
        return self.number, self.repeat


Propose = Callable[[Key, Sequence[Generation]], Generation]  # what to start, given all other records


@dataclass(frozen=True)
class Outcome:
    """What an objective may return in place of the bare fitness."""

    fitness: float | None
    status: str = "done"
    results: tuple[float, ...] = ()
    epochs: int = 0
    curve: tuple[float, ...] = ()
    note: str = ""


# ---- what to try -----------------------------------------------------------------------------------------------------


def check_hyp(hyp: Hyp, source: str) -> None:
    """UserError naming `source`, key, value and bounds where `hyp` lacks a hyperparameter or has one out of bounds."""
    missing = [key for key in GENES if key not in hyp and key != "anchors"]
    if missing:
        raise UserError(
            f"{source}: lacks {', '.join(missing)}; evolution needs every hyperparameter, "
            "data/hyps/hyp.scratch-low.yaml has them all"
        )
    for key, value in hyp.items():
        if key not in GENES:
            raise UserError(f"{source}: {key} is no hyperparameter that evolution knows")
        low, high = GENES[key].low, GENES[key].high
        if not low <= value <= high and (key, value) != ("anchors", KEEP_MODEL_ANCHORS):
            raise UserError(f"{source}: {key}: {value} is outside the bounds of evolution, {low} to {high}")


def run_seed(seed: int, number: int, repeat: int = 0) -> int:
    """Seed of a generation's training, another one for each of its repeats."""
    return int(np.random.SeedSequence([seed, number, repeat]).generate_state(1)[0]) % 2**31


def rounded(value: float) -> float:
    """Five significant digits: what files show is what was used."""
    return float(f"{value:.5g}")


def mutate(hyp: Hyp, rng: np.random.Generator) -> dict[str, float]:
    """`hyp` with at least one gene moved, each by a normal step of its gain; one random size is common to the steps."""
    movable = np.array([GENES[key].gain > 0 for key in hyp])
    if not movable.any():
        return dict(hyp)
    child = dict(hyp)
    while child == hyp:  # no gene was drawn, or a bound stopped those that were
        touched = movable & (rng.random(len(hyp)) < MUTATED)
        steps = rng.standard_normal(len(hyp)) * STEP * 2 * rng.random()
        child = {
            key: _moved(key, value, step) if moves else value
            for (key, value), step, moves in zip(hyp.items(), steps.tolist(), touched.tolist())
        }
    return child


def _moved(key: str, value: float, step: float) -> float:
    """`value` of gene `key` moved by `step` gains of its range, inside its bounds."""
    gain, low, high, log = GENES[key]
    if key == "anchors" and value == KEEP_MODEL_ANCHORS:
        value = FIRST_ANCHORS
    if log:
        moved = value * (high / low) ** (gain * step)
    else:
        moved = value + (high - low) * gain * step
    return min(max(rounded(moved), low), high)


def best_first(records: Iterable[Generation]) -> list[Generation]:
    """The finished generations, best fitness first; of equal ones the earlier."""
    done = [record for record in records if record.status == "done"]
    return sorted(done, key=lambda record: (-record.fitness, record.number))


def rank_weights(count: int) -> np.ndarray:
    """Shares of the `count` best in the next child, falling with the rank; sum 1."""
    weights = np.log(count + 0.5) - np.log(np.arange(1, count + 1))
    return weights / weights.sum()


def breed(records: Iterable[Generation], rng: np.random.Generator) -> tuple[dict[str, float], tuple[int, ...]]:
    """A mutated child of the best, and the numbers of its parents. `records` must hold a finished generation.

    Each gene comes from one of several parents, drawn anew: the dominant recombination of Beyer and Schwefel, Evolution
    strategies (Natural Computing 1, 2002). What is good in one and in another meet, and lucky winners are diluted.
    """
    parents = best_first(records)[:PARENTS]
    weights = rank_weights(len(parents))
    keys = list(parents[0].hyp)
    if rng.random() < RECOMBINATION:
        chosen = rng.choice(len(parents), len(keys), p=weights)
    else:
        chosen = np.full(len(keys), rng.choice(len(parents), p=weights))
    hyp = {key: parents[index].hyp[key] for key, index in zip(keys, chosen.tolist())}
    return mutate(hyp, rng), tuple(sorted({parents[index].number for index in chosen.tolist()}))


@dataclass(frozen=True)
class Search:
    """What generation k tries: 0 the start, then the population, then children of the best.

    A start that failed is tried again, because every comparison is made with it; not without end where others succeed.
    """

    start: Hyp
    seed: int = 0
    population: Sequence[Hyp] = ()

    def propose(self, key: Key, records: Sequence[Generation]) -> Generation:
        """The generation `key` as it is to be started. `records`: all others, the started ones too."""
        number, _ = key
        starts = [record.status for record in records if record.origin == "start"]
        succeeded = any(record.status == "done" for record in records)
        rng = np.random.default_rng([self.seed, number])
        parents: tuple[int, ...] = ()
        if not {"started", "done"} & set(starts) and (len(starts) < MAX_START_TRIES or not succeeded):
            hyp, origin = dict(self.start), "start"
        elif 1 <= number <= len(self.population):
            individual = self.population[number - 1]
            hyp, origin = {key: individual.get(key, value) for key, value in self.start.items()}, "population"
        elif succeeded:
            (hyp, parents), origin = breed(records, rng), "child"
        else:
            hyp, origin = mutate(self.start, rng), "mutation"
        return Generation(number, hyp, run_seed(self.seed, number), origin, parents)


# ---- when to stop one early ------------------------------------------------------------------------------------------

MIN_CURVES = 4  # curves of others below which nothing is stopped
PRUNE_WARMUP = (
    0.3  # share of the epochs in which nothing is stopped: rankings change there (benchmarks/evolve_prune.py)
)


def falls_behind(curve: Sequence[float], others: Sequence[Sequence[float]], epochs: int) -> bool:
    """Whether the best fitness of `curve` so far is under the median of what `others` had by the same epoch.

    The median rule of Golovin et al., Google Vizier (KDD 2017), on generations that all train under one schedule.
    """
    epoch = len(curve)
    if epoch < max(2, PRUNE_WARMUP * epochs) or epoch >= epochs:
        return False
    best = [max(other[:epoch]) for other in others if len(other) >= epoch]
    return len(best) >= MIN_CURVES and bool(max(curve) < statistics.median(best))


# ---- doing it --------------------------------------------------------------------------------------------------------


class Store(Protocol):
    """Where the generations are kept, and who takes which: see CsvStore and StudyStore."""

    def records(self) -> list[Generation]:
        """Every finished generation, and every started one that somebody is at."""

    def claim(self, wanted: Sequence[Key], propose: Propose) -> Generation | None:
        """Take one of `wanted`: first what was started and left, then a new one. None: nothing to do now."""

    def finish(self, generation: Generation) -> bool:
        """Keep a finished generation for good. False where somebody else took it over meanwhile."""

    def release(self) -> None:
        """Let go of what was claimed here and will not be finished."""

    def close(self) -> None:
        """After the last use."""


@dataclass
class MemoryStore:
    """A Store that lives as long as the process."""

    kept: dict[Key, Generation] = field(default_factory=dict)
    left: list[Generation] = field(default_factory=list)  # started by an earlier process, and not finished

    def records(self) -> list[Generation]:
        return sorted(self.kept.values(), key=lambda record: record.key)

    def claim(self, wanted: Sequence[Key], propose: Propose) -> Generation | None:
        left = next((record for record in self.left if record.key in wanted), None)
        if left:
            self.left.remove(left)
        key = next((key for key in wanted if key not in self.kept), None)
        if left is None and key is None:
            return None
        started = left or propose(key, self.records())
        self.kept[started.key] = started
        return started

    def finish(self, generation: Generation) -> bool:
        self.kept[generation.key] = generation
        return True

    def release(self) -> None:
        self.kept = {key: record for key, record in self.kept.items() if record.status != "started"}

    def close(self) -> None:
        pass  # nothing is open


def run_generations(
    objective: Callable,
    store: Store,
    wanted: Sequence[Key],
    propose: Propose,
    *,
    workers: int = 1,
    watch: Callable[[Generation], None] = lambda generation: None,
    cancel: Callable[[], None] = lambda: None,
    patience: float = 5.0,
) -> None:
    """Call the objective until all of `wanted` are in the store, `workers` at a time; a free worker waits for nobody.

    `watch` is told of each one that ended here, `cancel` is called when an error or Ctrl-C ends it all. An objective
    that raises has failed, and the search goes on; UserError after the first three or any ten in a row.
    """
    running: dict[Future, Generation] = {}
    failures = 0
    pool = ThreadPoolExecutor(workers, thread_name_prefix="generation")
    try:
        while True:
            while len(running) < workers and (started := store.claim(wanted, propose)):
                running[pool.submit(_attempt, objective, started)] = started
            if not running and is_complete(store.records(), wanted):
                return
            if not running:  # other machines are at the rest
                time.sleep(patience)
            for future in wait(running, timeout=patience, return_when=FIRST_COMPLETED).done if running else ():
                finished = future.result()
                del running[future]
                failures = failures + 1 if finished.status == "failed" else 0
                if store.finish(finished):
                    watch(finished)
                _give_up(store.records(), failures, finished)
    except BaseException:
        cancel()
        pool.shutdown(cancel_futures=True)
        store.release()
        raise
    finally:
        pool.shutdown()


def is_complete(records: Iterable[Generation], wanted: Sequence[Key]) -> bool:
    return set(wanted) <= {record.key for record in records if record.status != "started"}


def _attempt(objective: Callable, started: Generation) -> Generation:
    """The generation as it ended."""
    begin = time.monotonic()
    extra = {"repeat": started.repeat} if started.repeat else {}
    try:
        outcome = objective(dict(started.hyp), started.number, **extra)
        if not isinstance(outcome, Outcome):
            outcome = Outcome(float(outcome))
        if outcome.fitness is not None and not np.isfinite(outcome.fitness):
            note = f"fitness is {outcome.fitness} {outcome.note}"
            outcome = replace(outcome, fitness=None, status="failed", note=note)
    except Exception as error:  # whatever it was: one generation is lost, not the search
        outcome = Outcome(None, "failed", note=f"{type(error).__name__}: {error}")
    return replace(
        started,
        seconds=round(time.monotonic() - begin, 1),
        status=outcome.status,
        fitness=outcome.fitness,
        results=outcome.results,
        epochs=outcome.epochs,
        curve=outcome.curve,
        note=outcome.note,
    )


def _give_up(records: Sequence[Generation], failures: int, last: Generation) -> None:
    """UserError after too many `failures` in a row."""
    if failures >= MAX_START_TRIES and not any(record.status in ("done", "pruned") for record in records):
        raise UserError(f"the first {failures} generations all failed, the last with: {last.note}")
    if failures >= MAX_FAILURES_IN_A_ROW:
        raise UserError(
            f"{failures} generations in a row failed, the last with: {last.note}; "
            "when that is put right, the same command goes on"
        )


class Evolved(NamedTuple):
    """The best hyperparameters, their fitness, and every generation."""

    hyp: dict[str, float]
    fitness: float
    records: list[Generation]


def evolve(
    objective: Callable[..., Any],
    hyp: Hyp,
    generations: int = 300,
    *,
    seed: int = 0,
    workers: int = 1,
    population: Sequence[Hyp] = (),
    store: Store | None = None,
    **settings: Any,
) -> Evolved:
    """Search from `hyp` for the hyperparameters with the highest fitness in `generations` calls of the objective.

    objective(hyp: dict, generation: int) returns a fitness or an Outcome; it runs in `workers` threads. `population`:
    further hyperparameters to try first, what one lacks is `hyp`'s. `store` keeps the generations (default: in memory).
    Raises UserError when `hyp` lacks a hyperparameter, has one out of bounds, or when nothing succeeds.
    """
    if generations < 1 or workers < 1:
        raise UserError(f"evolution needs at least 1 generation and 1 worker, not {generations} and {workers}")
    check_hyp(hyp, "start")
    for number, individual in enumerate(population, 1):
        check_hyp({**hyp, **individual}, f"individual {number}")
    store = MemoryStore() if store is None else store
    search = Search(hyp, seed, population)
    wanted = [(number, 0) for number in range(generations)]
    run_generations(objective, store, wanted, search.propose, workers=workers, **settings)
    records = [record for record in store.records() if record.status != "started"]
    ranked = best_first(records)
    if not ranked:
        raise UserError(f"none of the {generations} generations succeeded; the last: {records[-1].note}")
    return Evolved(dict(ranked[0].hyp), ranked[0].fitness, records)
