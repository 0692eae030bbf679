"""`train.py --evolve`: what the command line asks for, the search with real trainings, and what it leaves behind."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from utils.config import Hyperparameters, TrainOptions
from utils.errors import UserError
from utils.evolve import Generation, Hyp, Key, Search, Store, best_first, carry_out, check_hyp, falls_behind, run_seed
from utils.evolve_report import Report, load_individuals
from utils.evolve_store import CsvStore, alone_in
from utils.evolve_study import StudyStore, without_password
from utils.evolve_verdict import Repeats, Verdict, candidates, judge
from utils.evolve_workers import Trainings, typed_flags
from utils.files import find_file, read_yaml, write_yaml
from utils.runtime import ROOT, select_device

REPEATS = 2  # further seeds for each of the best
PROJECT = "runs/evolve"
# What may differ between two commands on one evolution; everything else decides what its fitness means.
FREE = {"evolve", "device", "workers", "project", "name", "exist_ok", "resume", "cache", "nosave", "noval", "noplots",
        "save_period", "local_rank", "score_only", "evolve_population", "resume_evolve", "evolve_workers", "evolve_storage",
        "evolve_timeout", "evolve_prune"}  # fmt: skip
# What every training gets its own value of, or must not get.
OVERRIDDEN = FREE - {"workers", "cache"} | {"hyp", "seed", "amp"} - {"amp"}


@dataclass(frozen=True)
class Plan:
    """An evolution as asked for."""

    options: TrainOptions
    typed: frozenset[str]
    script: Path  # train.py
    folder: Path
    start: dict[str, float]
    population: list[Hyp]
    devices: list[str]  # one per worker

    @property
    def wanted(self) -> list[Key]:
        return [(number, 0) for number in range(self.options.evolve)]


def run_evolution(options: TrainOptions, typed: frozenset[str], script: Path) -> Verdict:
    """Search, repeat the best, and leave evolve.csv, hyp_evolve.yaml and the pictures in the run folder."""
    plan = read_plan(options, typed, script)
    with ExitStack() as stack:
        if not options.evolve_storage:
            stack.enter_context(alone_in(plan.folder))
        agree_on_settings(plan)
        store = open_store(plan, "evolve", plan.options.name)
        report = stack.enter_context(Report(plan.folder, len(plan.wanted), len(plan.devices), options, command_line(plan)))
        report.begin(store.records(), store.messages)
        trainings = build_trainings(plan, store, report)
        search = Search(plan.start, options.seed, plan.population)
        carry_out(trainings, store, plan.wanted, search.propose, workers=len(plan.devices),
                  watch=lambda generation: report.ended(generation, store.records()), cancel=trainings.cancel)
        again = repeat_the_best(plan, store, trainings, report)
        verdict = judge(_of_this_search(plan, store), again)
        report.close_with(verdict, _of_this_search(plan, store), again)
        return verdict


def repeat_the_best(plan: Plan, store: Store, trainings: Trainings, report: Report) -> list[Generation]:
    """Train the best three and the start under two other seeds each; returns those that ended."""
    ranked = candidates(_of_this_search(plan, store))
    if not ranked:
        raise UserError(f"none of the {len(plan.wanted)} generations succeeded; their logs: {plan.folder / 'generations'}")
    wanted = [(number, repeat) for repeat in range(1, REPEATS + 1) for number in ranked]
    repeats = open_store(plan, "evolve_repeats", f"{plan.options.name}-repeats-{len(plan.wanted)}")
    report.repeating(len(ranked), wanted, repeats.records())
    trainings.judged, trainings.report = False, repeats.report if isinstance(repeats, StudyStore) else None
    carry_out(trainings, repeats, wanted, Repeats(ranked, plan.options.seed).propose, workers=len(plan.devices),
              watch=lambda generation: report.ended(generation, []), cancel=trainings.cancel)
    return [record for record in repeats.records() if record.key in wanted and record.status != "started"]
