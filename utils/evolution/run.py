"""`train.py --evolve`: from the command line to a search with real trainings."""

import shlex
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from utils.config import Hyperparameters, TrainOptions
from utils.device import select_device
from utils.errors import UserError
from utils.evolution.csv_store import CsvStore, lock_folder, read_individuals
from utils.evolution.optuna_store import StudyStore, without_password
from utils.evolution.report import Report
from utils.evolution.trainings import Trainings, to_flags
from utils.evolution.verdict import Repeats, Verdict, candidates, judge
from utils.evolve import (
    GENES,
    KEEP_MODEL_ANCHORS,
    Generation,
    Hyp,
    Key,
    Search,
    check_hyp,
    falls_behind,
    run_generations,
    run_seed,
)
from utils.files import ROOT, read_yaml, write_yaml

REPEATS = 2  # further seeds for each of the best
PROJECT = "runs/evolve"
POPULATION_SHARE = 8  # the project's own files are tried as one in so many generations, unless the user names a folder
# Each training has these of its own, or must not have them.
PER_TRAINING_FLAGS = {"hyp", "seed", "device", "workers", "project", "name", "exist_ok", "resume", "nosave", "noval", "noplots",
       "save_period", "score_only", "evolve", "evolve_population", "resume_evolve", "evolve_workers", "evolve_storage",
       "evolve_timeout", "evolve_prune"}  # fmt: skip
# What may change when the same evolution goes on, or differ between machines: it does not touch the meaning of fitness.
FLAGS_THAT_MAY_CHANGE = PER_TRAINING_FLAGS - {"hyp", "seed"} | {"cache", "local_rank"}


@dataclass(frozen=True)
class Plan:
    """An evolution as asked for."""

    options: TrainOptions
    typed: frozenset[str]
    script: Path  # train.py
    folder: Path
    start: dict[str, float]
    population: list[dict[str, float]]
    devices: list[str]  # one word per worker

    @property
    def wanted(self) -> list[Key]:
        return [(number, 0) for number in range(self.options.evolve)]

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the meaning of fitness, in plain types."""
        values = {key: value for key, value in self.options.to_dict().items() if key not in FLAGS_THAT_MAY_CHANGE}
        return {**values, "hyp": dict(self.start)}

    @property
    def flags(self) -> list[str]:
        """What the user typed that is for every training."""
        return to_flags({key: getattr(self.options, key) for key in sorted(self.typed - PER_TRAINING_FLAGS)})

    @property
    def line(self) -> str:
        """The command to train with what was found: as the generations were, on all of the pictures."""
        return format_command(self.options, self.typed - PER_TRAINING_FLAGS - {"evolve_fraction"}, self.script)


def format_command(options: TrainOptions, names: Iterable[str], script: Path) -> str:
    """The command line with the options of these names, for people: no password of a database in it."""
    values = {name: getattr(options, name) for name in sorted(names)}
    if "evolve_storage" in values:
        values["evolve_storage"] = without_password(options.evolve_storage)
    return shlex.join(["python", script.name, *to_flags(values)])


def run_evolution(options: TrainOptions, typed: frozenset[str], script: Path) -> Verdict:
    """Search, repeat the best, and leave evolve.csv, hyp_evolve.yaml and the pictures in the run folder.

    The same command again goes on where it stopped. Raises UserError for whatever the user can put right.
    """
    plan = make_plan(options, typed, script)
    plan.folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        if not options.evolve_storage:
            stack.enter_context(lock_folder(plan.folder))
        check_same_settings(plan)
        report = stack.enter_context(
            Report(
                plan.folder,
                options.evolve,
                len(plan.devices),
                options.epochs,
                typed=format_command(options, typed, script),
                to_train=plan.line,
                pictures=not options.noplots,
            )
        )
        try:
            store = stack.enter_context(closing(open_store(plan, "evolve", plan.options.name)))
            return _search(plan, store, report)
        except KeyboardInterrupt:
            print(f"\nStopped. Nothing that was finished is lost: the same command goes on from {plan.folder}")
            sys.exit(130)


def _search(plan: Plan, store: CsvStore | StudyStore, report: Report) -> Verdict:
    print(*store.messages, sep="\n", end="\n" * bool(store.messages))
    print(
        f"Evolving {len(plan.start)} hyperparameters of {plan.options.hyp} over {plan.options.evolve} generations, "
        f"{len(plan.devices)} at a time ({', '.join(plan.devices)})"
    )
    report.begin(store.records(), REPEATS * min(4, plan.options.evolve))
    trainings = build_trainings(plan, store, report)
    search = Search(plan.start, plan.options.seed, plan.population)
    run_generations(
        trainings,
        store,
        plan.wanted,
        search.propose,
        workers=len(plan.devices),
        watch=lambda generation: report.ended(generation, store.records()),
        cancel=trainings.cancel,
    )
    records = [record for record in store.records() if record.status != "started"]
    ranked = candidates(records)
    if not ranked:
        raise UserError(f"none of the {len(records)} generations succeeded; logs: {plan.folder / 'generations'}")
    repeats = repeat(plan, ranked, report)
    verdict = judge(records, repeats)
    report.finish(verdict, records, repeats)
    return verdict


def repeat(plan: Plan, ranked: dict[int, Generation], report: Report) -> list[Generation]:
    """Train the best and the start again under other seeds; returns those runs."""
    with closing(open_store(plan, "evolve_repeats", f"{plan.options.name}-repeats-{plan.options.evolve}")) as store:
        return _repeat(plan, ranked, store, report)


def _repeat(
    plan: Plan, ranked: dict[int, Generation], store: CsvStore | StudyStore, report: Report
) -> list[Generation]:
    wanted = [(number, again) for again in range(1, REPEATS + 1) for number in ranked]
    done = [record for record in store.records() if record.key in wanted and record.status != "started"]
    report.repeating(len(ranked), len(wanted), len(done))
    trainings = build_trainings(plan, store, report, validated=False)
    run_generations(
        trainings,
        store,
        wanted,
        Repeats(ranked, plan.options.seed).propose,
        workers=len(plan.devices),
        watch=report.repeated,
        cancel=trainings.cancel,
    )
    return [record for record in store.records() if record.key in wanted and record.status != "started"]


def open_store(plan: Plan, file: str, study: str) -> CsvStore | StudyStore:
    if not plan.options.evolve_storage:
        return CsvStore(plan.folder, list(plan.start), file)
    return StudyStore(
        plan.options.evolve_storage, study, list(plan.start), plan.folder / f"{file}.csv", settings=plan.settings
    )


def check_same_settings(plan: Plan) -> None:
    """UserError where the folder holds an evolution under other settings: its fitness means another thing."""
    file = plan.folder / "opt.yaml"
    before = read_yaml(file) if file.is_file() else {}
    for key, value in sorted(plan.settings.items(), key=lambda entry: isinstance(entry[1], dict)):
        # flags first: one of them, such as --noautoanchor, may be why the values to start from differ
        if key in before and before[key] != value:
            difference = _difference(key, before[key], value)
            raise UserError(
                f"{plan.folder} was evolved with {difference}: fitness would mean another thing; "
                "type what you typed then, or give another --name"
            )
    write_yaml(file, {**plan.options.to_dict(), "evolve_storage": "", **plan.settings})


def _difference(key: str, before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        name = next(name for name in {**before, **now} if before.get(name) != now.get(name))
        return f"{name} {before.get(name)} to start from, not {now.get(name)} (--hyp)"
    return f"--{key.replace('_', '-')} {before}, not {now}"


# ---- the trainings ---------------------------------------------------------------------------------------------------


def build_trainings(
    plan: Plan, store: CsvStore | StudyStore, report: Report, validated: bool | None = None
) -> Trainings:
    """The objective. `validated`: whether every epoch is validated; without it as `--evolve-prune` says."""
    options = plan.options
    validated = options.evolve_prune if validated is None else validated

    def stop(hyp: Hyp, curve: Sequence[float]) -> bool:
        others = [record.curve for record in report.records if record.curve]
        return hyp != plan.start and falls_behind(
            curve, others, options.epochs
        )  # every gain is measured against the start

    def on_epoch(number: int, repeat: int, epochs: int, seconds: float, fitness: float | None) -> None:
        report.on_epoch((number, repeat), epochs, seconds)
        if fitness is not None and isinstance(store, StudyStore):
            store.report((number, repeat), epochs, fitness)

    def command(hyp: Path, folder: Path, number: int, repeat: int, device: str) -> list[str]:
        sharing = plan.devices.count(device)
        own = {"hyp": hyp, "seed": run_seed(options.seed, number, repeat), "device": device, "project": folder.parent,
               "name": folder.name, "exist_ok": True, "noplots": True, "score_only": True, "noval": not validated,
               "workers": -(-options.workers // sharing)}  # fmt: skip
        return [sys.executable, str(plan.script), *plan.flags, *to_flags(own)]

    shared_cpu = len(plan.devices) > 1 and plan.devices[0] == "cpu"
    return Trainings(
        command, plan.folder / "generations", devices=plan.devices, limit=options.evolve_timeout * 60, validated=validated,
        threads=max(1, torch.get_num_threads() // len(plan.devices)) if shared_cpu else 0,
        lasted=[record.seconds for record in store.records() if record.status == "done"], stop=stop, on_epoch=on_epoch,
    )  # fmt: skip


# ---- what was asked for ----------------------------------------------------------------------------------------------


def make_plan(options: TrainOptions, typed: frozenset[str], script: Path) -> Plan:
    """Everything that can be wrong is found here, before anything is written."""
    if options.batch_size == -1:
        raise UserError("--batch-size -1 with --evolve: every generation would find another one; give a number")
    name = Path(options.cfg or options.weights or "exp").stem if options.name == "cfg" else options.name
    folder = Path(options.project if "project" in typed else PROJECT) / name
    start = read_start(options)
    words = [str(device.index) if device.type == "cuda" else device.type for device in select_device(options.device)]
    devices = [words[number % len(words)] for number in range(options.evolve_workers or len(words))]
    population = read_population(options, typed, start)
    return Plan(options.replace(name=name), typed, script.resolve(), folder, start, population, devices)


def read_start(options: TrainOptions) -> dict[str, float]:
    """Every gene's value in `--hyp`; `anchors` is one unless `--noautoanchor`."""
    file = Hyperparameters.find(options.hyp, ROOT, ROOT / "data" / "hyps")
    given = read_yaml(file)
    values = Hyperparameters.from_dict(given, str(file)).to_dict()
    check_hyp({key: value for key, value in values.items() if key in given}, str(file))
    return {key: values.get(key, KEEP_MODEL_ANCHORS) for key in GENES if key != "anchors" or not options.noautoanchor}


def read_population(options: TrainOptions, typed: frozenset[str], start: Hyp) -> list[dict[str, float]]:
    """Hyperparameters to try first besides the start: of `--resume_evolve`, else of `--evolve_population`."""
    if options.resume_evolve:
        individuals = read_individuals(Path(options.resume_evolve))
    elif not options.evolve_population:
        return []
    else:
        individuals = {str(file): read_yaml(file) for file in _population_files(options, typed)}
    population: list[dict[str, float]] = []
    for source, values in individuals.items():
        Hyperparameters.from_dict(values, source)
        absent = [key for key in start if key not in values and key != "anchors"]
        if absent:
            print(f"{source}: lacks {', '.join(absent)}; taken from {options.hyp}")
        whole = {**start, "anchors": KEEP_MODEL_ANCHORS, **values}
        individual = {key: float(whole[key]) for key in start}
        check_hyp(individual, source)
        if individual != start and individual not in population:
            population.append(individual)
    chosen = options.resume_evolve or "evolve_population" in typed
    return population if chosen else population[: options.evolve // POPULATION_SHARE]


def _population_files(options: TrainOptions, typed: frozenset[str]) -> list[Path]:
    name = options.evolve_population
    folders = [folder for folder in (Path(name), ROOT / name) if folder.is_dir()]
    files = sorted(folders[0].glob("*.y*ml")) if folders else []
    if not files and "evolve_population" in typed:
        raise UserError(f"--evolve_population {name}: no folder with hyperparameter files (*.yaml)")
    return files
