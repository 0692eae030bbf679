"""Dry run of a search: what all its trainings take, from the estimate of one of them."""

from collections.abc import Mapping
from typing import Any

from utils import console
from utils.evolution.plan import PER_TRAINING_FLAGS, Plan
from utils.evolution.run import MAX_REPEATED, REPEATS
from utils.training.dry_run import DryRun, describe_time


def flags_of_a_training(typed: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """Return the flags of a dry run of the first training of a search that was typed as `typed`."""
    passed = {key: value for key, value in typed.items() if key not in PER_TRAINING_FLAGS - {"hyp"}}
    device = plan.devices[0]
    return {
        **passed,
        "device": device,
        "project": str(plan.folder),
        "name": "generations",
        "noplots": True,
        "score_only": True,
        "noval": not plan.options.evolve_prune,
        "workers": -(-plan.options.workers // plan.devices.count(device)),
        "dry_run": True,
    }


def report_search(plan: Plan, found: DryRun) -> None:
    """Print the time of a whole search, of which `found` is the first training."""
    generations = plan.options.evolve
    repeats = REPEATS * min(MAX_REPEATED, generations)
    rounds = -(-generations // len(plan.devices)) + -(-repeats // len(plan.devices))
    times = [describe_time(rounds * each) for each in (found.seconds, found.seconds_low, found.seconds_high)]
    at_a_time = f", {len(plan.devices)} at a time" if len(plan.devices) > 1 else ""
    shared = len(plan.devices) > len(set(plan.devices))
    console.result(
        f"The search: {times[0]}, between {times[1]} and {times[2]}, for {generations} trainings and {repeats} repeats "
        f"of the best{at_a_time}; the start of each comes on top"
        + (f". Trainings that share {plan.devices[0]} slow each other down, which is not measured" if shared else ""),
        f"It writes {plan.folder}: tables, plots, and a folder for each training with results.csv and its log",
    )
