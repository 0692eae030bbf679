"""Genetic search on functions of the hyperparameters, without any training."""

import statistics
import threading
import time
from dataclasses import asdict, fields

import numpy as np
import pytest

from benchmarks import evolve_search
from utils.config import Hyperparameters
from utils.errors import UserError
from utils.evolve import (
    ALL_GENES,
    GENES,
    MAX_START_TRIES,
    Generation,
    MemoryStore,
    Outcome,
    Search,
    best_first,
    breed,
    check_hyp,
    evolve,
    falls_behind,
    mutate,
    rank_weights,
    run_generations,
    run_seed,
)

START = {**Hyperparameters().to_dict(), "anchors": 0.0}


def closeness(hyp, generation=0):
    """Return a fitness that is best at lr0 0.03 and mixup 0.4. The start has 0.01 and 0."""
    return 1 - abs(np.log10(hyp["lr0"] / 0.03)) - abs(hyp["mixup"] - 0.4)


def record(number, fitness, status="done", origin="child", **rest):
    hyp = dict(START, lr0=0.01 + number / 1000)
    return Generation(number, hyp, number, origin, status=status, fitness=fitness, **rest)


# ---- genes and bounds


def test_every_hyperparameter_is_a_gene_and_the_start_lies_inside_the_bounds():
    assert set(GENES) == set(START)
    assert set(ALL_GENES) == {entry.name for entry in fields(Hyperparameters)}
    check_hyp(START, "start")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"lr0": 0.2}, "mine.yaml: lr0: 0.2 is outside the bounds of evolution, 1e-05 to 0.1"),
        ({"momentum": 0.5}, "mine.yaml: momentum: 0.5 is outside"),
        ({"anchors": 1.0}, "mine.yaml: anchors: 1.0 is outside"),  # 0 keeps the model's own, 2 is the least number
        ({"speed": 1.0}, "mine.yaml: speed is no hyperparameter"),
    ],
)
def test_a_start_out_of_bounds_is_named(change, message):
    with pytest.raises(UserError, match=message):
        check_hyp({**START, **change}, "mine.yaml")


def test_a_start_that_lacks_keys_is_named():
    with pytest.raises(UserError, match="mine.yaml: lacks lr0, mixup; evolution needs every hyperparameter"):
        check_hyp({key: value for key, value in START.items() if key not in ("lr0", "mixup", "anchors")}, "mine.yaml")


def test_mutations_stay_in_bounds_and_change_only_genes_with_a_gain():
    rng, start, children = np.random.default_rng(0), asdict(Hyperparameters()), []
    for _ in range(500):
        children.append(mutate(start, rng))
        check_hyp(children[-1], "child")
    for name, gene in ALL_GENES.items():
        moved = [child[name] for child in children if child[name] != start[name]]
        assert (0.05 < len(moved) / 500 < 0.4) == (gene.gain > 0), name
    assert all(child != start for child in children)


def test_a_gene_of_zero_can_leave_zero():
    rng = np.random.default_rng(0)
    assert max(mutate(START, rng)["degrees"] for _ in range(100)) > 1


def test_a_mutation_can_leave_the_models_own_anchors():
    rng = np.random.default_rng(0)
    values = {mutate(START, rng)["anchors"] for _ in range(200)}
    assert 0.0 in values and all(value == 0 or 2 <= value <= 10 for value in values) and len(values) > 10


def test_steps_grow_with_the_gain_and_the_range():
    rng = np.random.default_rng(1)
    children = [mutate(START, rng) for _ in range(3000)]
    spread = {
        name: statistics.pstdev(child[name] for child in children if child[name] != START[name])
        for name in ("momentum", "hsv_h", "hsv_v")
    }
    assert spread["momentum"] / 0.38 < 0.6 * spread["hsv_v"] / 0.9  # gain 0.3 against 1
    assert spread["hsv_h"] < 0.2 * spread["hsv_v"]  # range 0.1 against 0.9


def test_values_have_five_digits():
    child = mutate(START, np.random.default_rng(3))
    assert all(value == float(f"{value:.5g}") for value in child.values())


# ---- parents


def test_children_take_each_gene_from_one_of_the_best(monkeypatch):
    monkeypatch.setattr("utils.evolve.mutate", lambda hyp, rng: hyp)
    records = [
        Generation(n, dict.fromkeys(START, float(n)), n, "child", status="done", fitness=n / 100) for n in range(20)
    ]
    hyp, parents = breed(records, np.random.default_rng(0))
    assert set(hyp.values()) <= {19.0, 18.0, 17.0, 16.0, 15.0, 14.0} and len(set(hyp.values())) > 2
    assert set(parents) == {int(value) for value in hyp.values()}


def test_the_best_gives_most_and_weights_sum_to_one():
    weights = rank_weights(6)
    assert weights.sum() == pytest.approx(1) and (np.diff(weights) < 0).all() and (weights > 0).all()


def test_failed_and_pruned_generations_are_no_parents():
    records = [record(0, 0.3), record(1, None, "failed"), record(2, 0.9, "pruned"), record(3, None, "started")]
    assert [r.number for r in best_first(records)] == [0]
    assert breed(records, np.random.default_rng(0))[1] == (0,)


# ---- order of proposals


def test_the_order_is_start_population_children():
    others = [dict(START, lr0=0.02), {"lr0": 0.05}]  # what an individual lacks is the start's
    result = evolve(closeness, START, 6, population=others)
    assert [r.origin for r in result.records] == ["start", "population", "population", "child", "child", "child"]
    assert result.records[0].hyp == START and result.records[2].hyp == dict(START, lr0=0.05)


def test_a_search_is_a_function_of_its_seed():
    a, b, c = (evolve(closeness, START, 30, seed=seed) for seed in (1, 1, 2))
    assert [(r.hyp, r.seed, r.parents) for r in a.records] == [(r.hyp, r.seed, r.parents) for r in b.records]
    assert a.records[5].hyp != c.records[5].hyp


def test_every_generation_has_a_seed_of_its_own_and_each_repeat_another():
    seeds = {run_seed(0, number, repeat) for number in range(100) for repeat in range(3)} | {run_seed(1, 0)}
    assert len(seeds) == 301 and all(0 <= seed < 2**31 for seed in seeds)


def test_the_best_is_never_worse_than_the_start_and_improves():
    result = evolve(closeness, START, 100)
    assert result.fitness == max(r.fitness for r in result.records) == closeness(result.hyp)
    assert closeness(START) + 0.5 < result.fitness <= 1


def test_a_resumed_search_equals_an_uninterrupted_one():
    store = MemoryStore()
    evolve(closeness, START, 10, store=store)
    whole, resumed = evolve(closeness, START, 25), evolve(closeness, START, 25, store=store)
    assert [r.hyp for r in resumed.records] == [r.hyp for r in whole.records]


@pytest.mark.parametrize("search", ["random", "random, scaled", "single parent", "no recombination"])
def test_ours_finds_more_than_the_others(search):
    """The benchmark with a third of its evaluations, on its hardest and its noisiest function."""
    ours, other = (
        np.mean(
            [
                evolve_search.run(evolve_search.SEARCHES[title], name, seed, 100)
                for name in ("rotated", "noisy")
                for seed in range(6)
            ]
        )
        for title in ("ours", search)
    )
    assert ours > other


# ---- failures


def test_a_generation_that_raises_fails_with_its_reason_and_the_search_continues():
    def objective(hyp, generation):
        if generation % 3 == 1:
            raise RuntimeError("CUDA out of memory")
        return closeness(hyp)

    result = evolve(objective, START, 12)
    assert [r.status for r in result.records] == ["done", "failed", "done"] * 4
    assert result.records[1].note == "RuntimeError: CUDA out of memory" and result.records[1].fitness is None


@pytest.mark.parametrize("fitness", [float("nan"), float("inf")])
def test_a_fitness_that_is_not_finite_is_a_failure(fitness):
    result = evolve(lambda hyp, generation: fitness if generation == 2 else 0.5, START, 4)
    assert [r.status for r in result.records] == ["done", "done", "failed", "done"]


def test_a_failed_start_is_tried_again():
    result = evolve(lambda hyp, generation: 1 / generation, START, 4)  # divides by zero in generation 0
    assert [(r.origin, r.status) for r in result.records[:2]] == [("start", "failed"), ("start", "done")]
    assert result.records[2].origin == "child"


def test_a_start_that_always_fails_is_tried_three_times():
    others, starts, one_is_done, enough = [], [], threading.Event(), threading.Event()

    def objective(hyp, generation):
        if hyp == START:
            starts.append(generation)
            if len(starts) == MAX_START_TRIES:
                enough.set()
            assert one_is_done.wait(20)
            raise RuntimeError("CUDA out of memory")
        others.append(generation)
        if len(others) == 2:  # the first of them is in the records
            one_is_done.set()
        if len(others) > 2:  # else they could use up the search while the thread of the start wakes up
            assert enough.wait(20)
        return closeness(hyp)

    result = evolve(objective, START, 12, workers=2)
    assert [r.origin for r in result.records].count("start") == MAX_START_TRIES
    assert sum(r.status == "done" for r in result.records) == 12 - MAX_START_TRIES


@pytest.mark.parametrize(
    "failed, others, origin",
    [
        (MAX_START_TRIES - 1, [record(8, 0.3)], "start"),  # once more
        (MAX_START_TRIES, [record(8, 0.3)], "child"),  # enough
        (MAX_START_TRIES, [], "start"),  # nothing has succeeded: the cause may be fixed by now
    ],
)
def test_number_of_tries_of_the_start(failed, others, origin):
    records = [record(number, None, "failed", origin="start") for number in range(failed)]
    assert Search(START).propose((9, 0), [*records, *others]).origin == origin


def test_three_failures_at_the_start_end_the_search_with_the_reason():
    calls = []

    def objective(hyp, generation):
        calls.append(generation)
        raise RuntimeError("no such data set")

    with pytest.raises(UserError, match="the first 3 generations all failed, the last with: RuntimeError: no such"):
        evolve(objective, START, 100)
    assert len(calls) == 3


def test_ten_failures_in_a_row_end_any_search():
    """A full disk must not use up hundreds of generations in seconds."""
    calls = []

    def objective(hyp, generation):
        calls.append(generation)
        if generation > 3:
            raise OSError("no space left on device")
        return closeness(hyp)

    with pytest.raises(UserError, match="10 generations in a row failed, the last with: OSError: no space left"):
        evolve(objective, START, 100)
    assert len(calls) == 14


@pytest.mark.parametrize("settings", [{"generations": 0}, {"workers": 0}])
def test_counts_below_one_are_refused(settings):
    with pytest.raises(UserError, match="at least 1 generation and 1 worker"):
        evolve(closeness, START, **settings)


def test_an_error_outside_the_objective_cancels_what_runs():
    """The store fails, as with Ctrl-C: the running objective is cancelled, and the error is raised."""

    class Broken(MemoryStore):
        def finish(self, generation):
            raise OSError("disk full")

    ended = threading.Event()

    def objective(hyp, generation):
        if generation == 1:
            ended.wait(20)
        return 0.1

    with pytest.raises(OSError, match="disk full"):
        run_generations(objective, Broken(), [(0, 0), (1, 0)], Search(START).propose, workers=2, cancel=ended.set)
    assert ended.is_set()


# ---- parallel workers


def test_selection_does_not_wait_for_the_slowest():
    """One generation takes as long as all others together. The other worker does all of those meanwhile."""
    order, release = [], threading.Event()

    def objective(hyp, generation):
        if generation == 1:
            assert release.wait(20)
        order.append(generation)
        if len(order) == 9:
            release.set()
        return closeness(hyp)

    result = evolve(objective, START, 10, workers=2)
    assert order[-1] == 1 and sorted(order) == list(range(10)) and len(result.records) == 10


def test_workers_run_in_parallel():
    running, most, lock = 0, 0, threading.Lock()

    def objective(hyp, generation):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        with lock:
            running -= 1
        return 0.5

    evolve(objective, START, 12, workers=3)
    assert most == 3


# ---- pruning

MIDDLING = [tuple(np.linspace(0, top, 20)) for top in (0.3, 0.4, 0.5, 0.6, 0.7)]  # the median reaches 0.5


@pytest.mark.parametrize(
    "curve, others, stops",
    [
        ((), MIDDLING, False),
        (np.linspace(0, 0.4, 20)[:5], MIDDLING, False),  # too early
        (np.linspace(0, 0.4, 20)[:6], MIDDLING, True),  # below the median at the same epoch
        (np.linspace(0, 0.6, 20)[:6], MIDDLING, False),  # above it
        (np.linspace(0, 0.5, 20)[:10], MIDDLING, False),  # at it
        (np.linspace(0, 0.4, 20)[:10], MIDDLING[:3], False),  # too few to compare with
        (np.linspace(0, 0.4, 20)[:10], [c[:9] for c in MIDDLING], False),  # none has come as far
        (np.linspace(0, 0.4, 20), MIDDLING, False),  # it is at its last epoch
        ((0.0, 0.9, *[0.0] * 6), MIDDLING, False),  # the best so far counts, not a dip
    ],
)
def test_a_generation_below_the_median_is_pruned(curve, others, stops):
    assert falls_behind(curve, others, 20) == stops


def test_an_outcome_carries_results_and_curve():
    outcome = Outcome(0.5, results=(0.1,) * 7, epochs=3, curve=(0.1, 0.3, 0.5))
    kept = evolve(lambda hyp, generation: outcome, START, 1).records[0]
    assert (kept.fitness, kept.epochs, kept.curve, kept.results) == (0.5, 3, (0.1, 0.3, 0.5), (0.1,) * 7)


def test_pruning_saves_a_third_of_recorded_epochs_and_keeps_the_winner():
    """Curves of 24 complete generations on the built-in data, in their original order and in others."""
    from benchmarks import evolve_prune

    curves = evolve_prune.read_curves(evolve_prune.RECORDED[0])
    orders = [np.random.default_rng(number).permutation(len(curves)) for number in range(10)]
    assert len(curves) == 24 and {len(curve) for curve in curves} == {10}
    for workers in (1, 2):
        for some in ([np.arange(24)], orders):
            saved, kept, lost = evolve_prune.measure(curves, workers, some)
            assert saved >= 0.35 and kept == 1 and lost == 0
