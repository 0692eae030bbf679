"""Genetic search over hyperparameters. Knows nothing of training: it calls `objective(hyp, generation) -> fitness`.

A generation is one call of the objective. Its hyperparameters depend only on (seed, number) and on the records present
when it begins. So generations run in parallel, none waits for the slowest, and an interrupted search resumes from its
records.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import numpy as np

from utils.errors import UserError

Hyp = Mapping[str, float]
Key = tuple[int, int]  # number of a generation, number of its repeat (0: the search itself)


class Gene(NamedTuple):
    """Search range of a hyperparameter: size of its mutations (0: only inherited), bounds, scale."""

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
MUON_GENES = {  # only in a search with --optimizer Muon
    "muon_lr": Gene(1, 1e-4, 0.2, log=True),
    "muon_momentum": Gene(0.3, 0.6, 0.98),
    "muon_decay": Gene(1, 0.0, 0.1),
}
# Without mutations, and only in a search whose start has another value than the default.
CONSTANTS = {"ema_tau": Gene(0, 1e-3, 1e9), "size_start": Gene(0, 0.1, 1.0)}
CONSTANTS |= dict.fromkeys(("anchor_fit", "head_rows", "ema_decay", "size_epochs"), Gene(0, 0.0, 1.0))
CONSTANTS |= dict.fromkeys(("close_mosaic", "lr_body", "cls_rise"), Gene(0, 0.0, 1e6))
ALL_GENES = GENES | MUON_GENES | CONSTANTS
KEEP_MODEL_ANCHORS = 0.0  # value of `anchors` that keeps the model's own; allowed although it is below the lower bound
FIRST_ANCHORS = 3.0  # value from which the first mutation away from KEEP_MODEL_ANCHORS is made

# Chosen with benchmarks/evolve_search.py, which prints the effect of each.
PARENTS = 6  # number of the best generations that pass on their genes
RECOMBINATION = 1.0  # share of children that draw a parent for each gene; better parents are drawn more often
MUTATION_RATE = 0.25  # share of genes that a mutation changes
MUTATION_SIZE = 0.25  # mean step in parts of the gene's range, or of its logarithm on a log scale
MAX_START_TRIES = 3  # tries of a failing start while others succeed; also the failures that end a search at its start
MAX_FAILURES_IN_A_ROW = 10  # after these any search stops: a full disk must not use up all generations


@dataclass(frozen=True)
class Generation:
    """Record of one generation. `results`: precision, recall, mAP@0.5, mAP@0.5:0.95, then box, obj and cls loss."""

    number: int
    hyp: dict[str, float]
    seed: int  # for the objective
    origin: str  # start, population, mutation (of the start), child, repeat, queue (added by hand to a study)
    parents: tuple[int, ...] = ()
    repeat: int = 0
    status: str = "started"  # started, done, failed, pruned
    fitness: float | None = None  # of a pruned generation: the last one measured
    results: tuple[float, ...] = ()
    epochs: int = 0
    seconds: float = 0.0
    curve: tuple[float, ...] = ()  # fitness after each epoch, if it was measured
    note: str = ""  # the reason of a failure and the path of the log

    @property
    def key(self) -> Key:
        return self.number, self.repeat

    @property
    def final_fitness(self) -> float:
        """Fitness of a generation that is done."""
        assert self.fitness is not None, self
        return self.fitness


Propose = Callable[[Key, Sequence[Generation]], Generation]  # (key, all other records) -> generation to start


@dataclass(frozen=True)
class Outcome:
    """Result of an objective that returns more than the bare fitness."""

    fitness: float | None
    status: str = "done"
    results: tuple[float, ...] = ()
    epochs: int = 0
    curve: tuple[float, ...] = ()
    note: str = ""


Objective = Callable[..., float | Outcome]  # (hyp: dict, generation: int); repeats add the keyword repeat=k


# ---- proposing hyperparameters ---------------------------------------------------------------------------------------


def check_hyp(hyp: Hyp, source: str) -> None:
    """Raise UserError, naming `source`, if `hyp` lacks a hyperparameter or has one that is unknown or out of bounds."""
    missing = [key for key in GENES if key not in hyp and key != "anchors"]
    if missing:
        raise UserError(
            f"{source}: lacks {', '.join(missing)}; evolution needs every hyperparameter, "
            "data/hyps/hyp.scratch-low.yaml has them all"
        )
    for key, value in hyp.items():
        if key not in ALL_GENES:
            raise UserError(f"{source}: {key} is no hyperparameter that evolution knows")
        low, high = ALL_GENES[key].low, ALL_GENES[key].high
        if not low <= value <= high and (key, value) != ("anchors", KEEP_MODEL_ANCHORS):
            raise UserError(f"{source}: {key}: {value} is outside the bounds of evolution, {low} to {high}")


def run_seed(seed: int, number: int, repeat: int = 0) -> int:
    """Return the seed of a generation's training. Each repeat has a different one."""
    return int(np.random.SeedSequence([seed, number, repeat]).generate_state(1)[0]) % 2**31


def round_digits(value: float) -> float:
    """Round to five significant digits, so that files show exactly the value that was used."""
    return float(f"{value:.5g}")


def mutate(hyp: Hyp, rng: np.random.Generator) -> dict[str, float]:
    """Return a copy of `hyp` with at least one gene changed.

    Each step is normally distributed and scaled by the gene's gain. One random factor scales all steps.
    """
    movable = np.array([ALL_GENES[key].gain > 0 for key in hyp])
    if not movable.any():
        return dict(hyp)
    child = dict(hyp)
    while child == hyp:  # no gene was drawn, or the bounds undid every step
        drawn = movable & (rng.random(len(hyp)) < MUTATION_RATE)
        steps = rng.standard_normal(len(hyp)) * MUTATION_SIZE * 2 * rng.random()
        child = {
            key: _step(key, value, float(step)) if moves else value
            for (key, value), step, moves in zip(hyp.items(), steps, drawn)
        }
    return child


def _step(key: str, value: float, step: float) -> float:
    """Move `value` of gene `key` by `step` gains of its range and clip it to the bounds."""
    gain, low, high, log = ALL_GENES[key]
    if key == "anchors" and value == KEEP_MODEL_ANCHORS:
        value = FIRST_ANCHORS
    moved = value * (high / low) ** (gain * step) if log else value + (high - low) * gain * step
    return min(max(round_digits(moved), low), high)


def best_first(records: Iterable[Generation]) -> list[Generation]:
    """Return the generations that are done, best fitness first. Ties go to the earlier one."""
    done = [record for record in records if record.status == "done"]
    return sorted(done, key=lambda record: (-record.final_fitness, record.number))


def rank_weights(count: int) -> np.ndarray:
    """Return the probability of each of the `count` best to be drawn as a parent: falling with the rank, sum 1."""
    weights = np.log(count + 0.5) - np.log(np.arange(1, count + 1))
    return weights / weights.sum()


def breed(records: Iterable[Generation], rng: np.random.Generator) -> tuple[dict[str, float], tuple[int, ...]]:
    """Return a mutated child of the best generations and the numbers of its parents.

    `records` must hold at least one generation that is done. Each gene is drawn from one of several parents: dominant
    recombination (Beyer and Schwefel, Evolution strategies, Natural Computing 1, 2002). It combines the good genes of
    different parents and dilutes winners that were only lucky.
    """
    parents = best_first(records)[:PARENTS]
    weights = rank_weights(len(parents))
    keys = list(parents[0].hyp)
    if rng.random() < RECOMBINATION:
        chosen = rng.choice(len(parents), len(keys), p=weights)
    else:
        chosen = np.full(len(keys), rng.choice(len(parents), p=weights))
    hyp = {key: parents[index].hyp[key] for key, index in zip(keys, chosen)}
    return mutate(hyp, rng), tuple(sorted({parents[index].number for index in chosen}))


@dataclass(frozen=True)
class Search:
    """Rule that proposes generation k: the start first, then the population, then children of the best.

    A start that failed is tried again, because every gain is measured against it. Where others succeed it is tried
    MAX_START_TRIES times at most.
    """

    start: Hyp
    seed: int = 0
    population: Sequence[Hyp] = ()

    def propose(self, key: Key, records: Sequence[Generation]) -> Generation:
        """Return the generation `key` to start. `records` holds all others, those that are running too."""
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


# ---- pruning ---------------------------------------------------------------------------------------------------------

MIN_CURVES = 4  # with fewer curves to compare with, nothing is pruned
PRUNE_WARMUP = 0.3  # share of the epochs in which nothing is pruned: rankings still change (benchmarks/evolve_prune.py)


def falls_behind(curve: Sequence[float], others: Sequence[Sequence[float]], epochs: int) -> bool:
    """Return True if the best fitness of `curve` so far is below the median of `others` at the same epoch.

    This is the median rule of Golovin et al., Google Vizier (KDD 2017). It suits generations that share one schedule.
    """
    epoch = len(curve)
    if epoch < max(2, PRUNE_WARMUP * epochs) or epoch >= epochs:
        return False
    best = [max(other[:epoch]) for other in others if len(other) >= epoch]
    return len(best) >= MIN_CURVES and max(curve) < statistics.median(best)


# ---- running ---------------------------------------------------------------------------------------------------------


class Store(Protocol):
    """Place where generations are kept and assigned to workers: see MemoryStore, CsvStore and StudyStore."""

    def records(self) -> list[Generation]:
        """Return every generation that has ended and every one that a process is running."""
        ...

    def claim(self, wanted: Sequence[Key], propose: Propose) -> Generation | None:
        """Take one of `wanted`: an abandoned one first, then a new one. Return None if there is none to take now."""
        ...

    def finish(self, generation: Generation) -> bool:
        """Keep a generation that has ended. Return False if another process took it over meanwhile."""
        ...

    def release(self) -> None:
        """Give up the generations that were claimed here and have not ended."""
        ...

    def close(self) -> None:
        """Free what is open. The store is not used afterwards."""
        ...


@dataclass
class MemoryStore:
    """Store in memory, which ends with the process."""

    kept: dict[Key, Generation] = field(default_factory=dict)
    abandoned: list[Generation] = field(default_factory=list)  # started by an earlier process, and not ended

    def records(self) -> list[Generation]:
        return sorted(self.kept.values(), key=lambda record: record.key)

    def claim(self, wanted: Sequence[Key], propose: Propose) -> Generation | None:
        abandoned = next((record for record in self.abandoned if record.key in wanted), None)
        if abandoned:
            self.abandoned.remove(abandoned)
            self.kept[abandoned.key] = abandoned
            return abandoned
        key = next((key for key in wanted if key not in self.kept), None)
        if key is None:
            return None
        self.kept[key] = propose(key, self.records())
        return self.kept[key]

    def finish(self, generation: Generation) -> bool:
        self.kept[generation.key] = generation
        return True

    def release(self) -> None:
        self.kept = {key: record for key, record in self.kept.items() if record.status != "started"}

    def close(self) -> None:
        pass  # nothing is open


def do_nothing(*_: object) -> None:
    """Ignore an event: the default of callbacks."""


def run_generations(
    objective: Objective,
    store: Store,
    wanted: Sequence[Key],
    propose: Propose,
    *,
    workers: int = 1,
    on_end: Callable[[Generation], object] = do_nothing,
    cancel: Callable[[], object] = do_nothing,
    poll_seconds: float = 5.0,
) -> None:
    """Call the objective until all of `wanted` are in the store, in `workers` threads.

    `on_end` gets each generation that ended here. `cancel` is called when an error or Ctrl-C ends the search. An
    objective that raises has failed, and the search continues. Raise UserError if the first MAX_START_TRIES or any
    MAX_FAILURES_IN_A_ROW generations fail.
    """
    running: dict[Future[Generation], Generation] = {}
    failures = 0
    pool = ThreadPoolExecutor(workers, thread_name_prefix="generation")
    try:
        while True:
            while len(running) < workers and (started := store.claim(wanted, propose)):
                running[pool.submit(_attempt, objective, started)] = started
            if not running and is_complete(store.records(), wanted):
                return
            if not running:  # other machines run what is missing
                time.sleep(poll_seconds)
            for future in wait(running, timeout=poll_seconds, return_when=FIRST_COMPLETED).done if running else ():
                ended = future.result()
                del running[future]
                failures = failures + 1 if ended.status == "failed" else 0
                if store.finish(ended):
                    on_end(ended)
                _check_failures(store.records(), failures, ended)
    except BaseException:
        cancel()
        pool.shutdown(cancel_futures=True)
        store.release()
        raise
    finally:
        pool.shutdown()


def is_complete(records: Iterable[Generation], wanted: Sequence[Key]) -> bool:
    return set(wanted) <= {record.key for record in records if record.status != "started"}


def _attempt(objective: Objective, started: Generation) -> Generation:
    """Call the objective. Return the generation with its outcome."""
    begin = time.monotonic()
    extra = {"repeat": started.repeat} if started.repeat else {}
    try:
        returned = objective(dict(started.hyp), started.number, **extra)
        outcome = returned if isinstance(returned, Outcome) else Outcome(float(returned))
        if outcome.fitness is not None and not np.isfinite(outcome.fitness):
            note = f"fitness is {outcome.fitness} {outcome.note}"
            outcome = replace(outcome, fitness=None, status="failed", note=note)
    except Exception as error:  # any error costs one generation, not the search
        outcome = Outcome(None, "failed", note=f"{type(error).__name__}: {error}")
    return replace(started, seconds=round(time.monotonic() - begin, 1), **vars(outcome))


def _check_failures(records: Sequence[Generation], failures: int, last: Generation) -> None:
    """Raise UserError after too many `failures` in a row."""
    if failures >= MAX_START_TRIES and not any(record.status in ("done", "pruned") for record in records):
        raise UserError(f"the first {failures} generations all failed, the last with: {last.note}")
    if failures >= MAX_FAILURES_IN_A_ROW:
        raise UserError(
            f"{failures} generations in a row failed, the last with: {last.note}; "
            "fix the cause, then type the same command to resume"
        )


class Evolved(NamedTuple):
    """Result of a search: the best hyperparameters, their fitness, and every generation that ended."""

    hyp: dict[str, float]
    fitness: float
    records: list[Generation]


def evolve(
    objective: Objective,
    hyp: Hyp,
    generations: int = 300,
    *,
    seed: int = 0,
    workers: int = 1,
    population: Sequence[Hyp] = (),
    store: Store | None = None,
    on_end: Callable[[Generation], object] = do_nothing,
    cancel: Callable[[], object] = do_nothing,
    poll_seconds: float = 5.0,
) -> Evolved:
    """Search from `hyp` for the hyperparameters with the highest fitness, in `generations` calls of the objective.

    objective(hyp: dict, generation: int) returns a fitness or an Outcome; it runs in `workers` threads.
    population: hyperparameters to try first; missing keys are taken from `hyp`.
    store: keeps the generations, and resumes those that it holds (default: in memory).
    on_end, cancel, poll_seconds: see run_generations.
    Raise UserError if `hyp` lacks a hyperparameter or has one out of bounds, or if nothing succeeds.
    """
    if generations < 1 or workers < 1:
        raise UserError(f"evolution needs at least 1 generation and 1 worker, not {generations} and {workers}")
    check_hyp(hyp, "start")
    for number, individual in enumerate(population, 1):
        check_hyp({**hyp, **individual}, f"individual {number}")
    store = MemoryStore() if store is None else store
    propose = Search(hyp, seed, population).propose
    wanted = [(number, 0) for number in range(generations)]
    run_generations(
        objective, store, wanted, propose, workers=workers, on_end=on_end, cancel=cancel, poll_seconds=poll_seconds
    )
    records = [record for record in store.records() if record.status != "started"]
    ranked = best_first(records)
    if not ranked:
        raise UserError(f"none of the {len(records)} generations succeeded; the last: {records[-1].note}")
    return Evolved(dict(ranked[0].hyp), ranked[0].final_fitness, records)
