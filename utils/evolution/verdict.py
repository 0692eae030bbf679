"""Was it luck? The best generations are repeated under other seeds, and so is the start they are compared with."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from utils.evolve import Generation, Key, best_first, run_seed


@dataclass(frozen=True)
class Repeats:
    """The same hyperparameters once more under other seeds, to tell a gain from luck."""

    of: Mapping[int, Generation]
    seed: int = 0

    def propose(self, key: Key, records: Sequence[Generation]) -> Generation:
        number, repeat = key
        hyp, seed = dict(self.of[number].hyp), run_seed(self.seed, number, repeat)
        return Generation(number, hyp, seed, "repeat", (number,), repeat)


def candidates(records: Sequence[Generation], top: int = 3) -> dict[int, Generation]:
    """The generations to repeat: the `top` best with different hyperparameters, and the start."""
    chosen: dict[int, Generation] = {}
    for record in best_first(records):
        if len(chosen) < top and all(record.hyp != other.hyp for other in chosen.values()):
            chosen[record.number] = record
    starts = [record for record in best_first(records) if record.origin == "start"]
    return chosen | {record.number: record for record in starts[:1]}


class Verdict(NamedTuple):
    """The winner over several seeds, against the start."""

    winner: Generation
    fitness: float  # mean over its seeds
    start: float | None  # mean of the start over its seeds; None where the start never succeeded
    gain: float | None  # of the winner's fresh seeds over the start: the seed it was chosen by would flatter it
    noise: float | None  # standard deviation of the fitness from seed to seed
    significant: bool | None  # whether the gain is larger than twice its own standard error


def judge(records: Sequence[Generation], repeats: Sequence[Generation]) -> Verdict:
    """Who won: of the repeated generations the one with the best mean. Without repeats the best single run."""
    ranked = candidates(records)
    fresh = {number: [r.fitness for r in repeats if r.number == number and r.status == "done"] for number in ranked}
    values = {number: [record.fitness, *fresh[number]] for number, record in ranked.items()}
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
    """Standard deviation inside groups of repeats; None where nothing was repeated."""
    freedom = sum(len(group) - 1 for group in groups)
    squares = sum((value - statistics.fmean(group)) ** 2 for group in groups for value in group)
    return (squares / freedom) ** 0.5 if freedom > 0 else None
