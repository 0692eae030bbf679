"""Verdict on a search: the best generations and the start run again under other seeds, to separate gain from luck."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from utils.evolve import Generation, Key, best_first, run_seed


@dataclass(frozen=True)
class Repeats:
    """Rule that proposes the same hyperparameters again under other seeds. `ranked`: generations by number."""

    ranked: Mapping[int, Generation]
    seed: int = 0

    def propose(self, key: Key, records: Sequence[Generation]) -> Generation:
        number, repeat = key
        hyp, seed = dict(self.ranked[number].hyp), run_seed(self.seed, number, repeat)
        return Generation(number, hyp, seed, "repeat", (number,), repeat)


def candidates(records: Sequence[Generation], top: int = 3) -> dict[int, Generation]:
    """Return the generations to repeat, by number: the `top` best with different hyperparameters, and the start."""
    chosen: dict[int, Generation] = {}
    for record in best_first(records):
        if len(chosen) < top and all(record.hyp != other.hyp for other in chosen.values()):
            chosen[record.number] = record
    starts = [record for record in best_first(records) if record.origin == "start"]
    return chosen | {record.number: record for record in starts[:1]}


class Verdict(NamedTuple):
    """Winner over several seeds, compared with the start."""

    winner: Generation
    fitness: float  # mean over its seeds
    start: float | None  # mean of the start over its seeds; None if the start never succeeded
    gain: float | None  # winner minus start on fresh seeds; the seed used for selection is biased upward
    noise: float | None  # standard deviation of the fitness between seeds; None if nothing was repeated
    significant: bool | None  # the gain is larger than twice its own standard error


def judge(records: Sequence[Generation], repeats: Sequence[Generation]) -> Verdict:
    """Find the repeated generation with the best mean fitness. Without repeats, take the best single run."""
    ranked = candidates(records)
    fresh = {
        number: [r.final_fitness for r in repeats if r.number == number and r.status == "done"] for number in ranked
    }
    values = {number: [record.final_fitness, *fresh[number]] for number, record in ranked.items()}
    means = {number: statistics.fmean(group) for number, group in values.items()}
    winner = max(ranked.values(), key=lambda record: (means[record.number], -record.number))
    noise = _pooled_deviation(list(values.values()))
    start = next((record for record in ranked.values() if record.origin == "start"), None)
    if start is None:
        return Verdict(winner, means[winner.number], None, None, noise, None)
    own = fresh[winner.number] or values[winner.number]
    gain = 0.0 if winner is start else statistics.fmean(own) - means[start.number]
    error = None if noise is None else noise * (1 / len(own) + 1 / len(values[start.number])) ** 0.5
    significant = None if error is None else gain > 2 * error
    return Verdict(winner, means[winner.number], means[start.number], gain, noise, significant)


def _pooled_deviation(groups: Sequence[Sequence[float]]) -> float | None:
    """Return the standard deviation inside groups of repeats, None if nothing was repeated."""
    freedom = sum(len(group) - 1 for group in groups)
    squares = sum((value - statistics.fmean(group)) ** 2 for group in groups for value in group)
    return (squares / freedom) ** 0.5 if freedom > 0 else None
