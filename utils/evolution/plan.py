"""Plan of an evolution: the command line, checked and resolved before anything is written."""

import shlex
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from utils.addresses import remove_credentials
from utils.cli import to_flags
from utils.config import Hyperparameters, TrainOptions
from utils.console import info
from utils.device import select_device
from utils.errors import UserError
from utils.evolution.csv_store import read_individuals
from utils.evolve import CONSTANTS, GENES, KEEP_MODEL_ANCHORS, MUON_GENES, Hyp, check_hyp
from utils.files import ROOT, read_yaml
from utils.metrics import Fitness

PROJECT = "runs/evolve"
POPULATION_SHARE = 8  # one generation in 8 tries one of the project's own hyperparameter files by default
# Flags that each training gets its own value of, or must not get.
PER_TRAINING_FLAGS = frozenset(
    """
    hyp seed device workers project name exist_ok resume nosave noval noplots save_period score_only evolve
    evolve_population resume_evolve evolve_workers evolve_storage evolve_timeout evolve_prune log_project dry_run
    """.split()
)
# Flags that may differ when an evolution is resumed, or between machines: they do not change the meaning of fitness.
FLAGS_THAT_MAY_CHANGE = PER_TRAINING_FLAGS - {"hyp", "seed"} | {"cache", "local_rank", "threads", "log", "log_weights"}


@dataclass(frozen=True)
class Plan:
    """Resolved settings of an evolution."""

    options: TrainOptions
    script: Path  # the program of each training: train.py
    folder: Path
    start: dict[str, float]  # value of each hyperparameter in the search
    population: list[dict[str, float]]
    devices: list[str]  # one per worker
    search_command: str  # the command line as it was typed

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that define the meaning of fitness, in plain types."""
        values = {key: value for key, value in self.options.to_dict().items() if key not in FLAGS_THAT_MAY_CHANGE}
        return {**values, "hyp": dict(self.start)}

    @property
    def training_flags(self) -> list[str]:
        """Typed flags that are passed to every training."""
        return to_flags({name: getattr(self.options, name) for name in sorted(self.options.typed - PER_TRAINING_FLAGS)})

    @property
    def log_project(self) -> str:
        """Project of the experiment trackers in which each training is a run."""
        return self.options.log_project or f"{self.folder.parent.name}-{self.folder.name}"

    @property
    def training_command(self) -> str:
        """Command line that trains like the generations did, on all images. It lacks only `--hyp`."""
        names = self.options.typed - PER_TRAINING_FLAGS - {"evolve_fraction"}
        return format_command(self.options, names, self.script)


def format_command(options: TrainOptions, names: Iterable[str], script: Path) -> str:
    """Return the command line with the options of these names, without a database's credentials."""
    values = {name: getattr(options, name) for name in sorted(names)}
    if "evolve_storage" in values:
        values["evolve_storage"] = remove_credentials(options.evolve_storage)
    return shlex.join(["python", script.name, *to_flags(values)])


def make_plan(
    options: TrainOptions, script: Path, hyp: Hyperparameters | None = None, typed: TrainOptions | None = None
) -> Plan:
    """Check and resolve the options of an evolution. Raise UserError for any mistake. Nothing is written.

    It starts from `hyp`, or else from the file `--hyp`. `typed` are the options before a recipe settled some of them.
    """
    if options.batch_size == -1:
        raise UserError("--batch-size -1 with --evolve: every generation would find another one; give a number")
    name = Path(options.cfg or options.weights or "exp").stem if options.name == "cfg" else options.name
    start = read_start(options, hyp)
    devices = assign_devices(options)
    return Plan(
        options=options.replace(name=name),
        script=script.resolve(),
        folder=Path(options.project if "project" in options.typed else PROJECT) / name,
        start=start,
        population=read_population(options, start),
        devices=devices,
        search_command=format_command(typed or options, (typed or options).typed, script),
    )


def assign_devices(options: TrainOptions) -> list[str]:
    """Return the `--device` word of each worker, the devices in turn."""
    words = [str(device.index) if device.type == "cuda" else device.type for device in select_device(options.device)]
    return [words[number % len(words)] for number in range(options.evolve_workers or len(words))]


def read_start(options: TrainOptions, hyp: Hyperparameters | None = None) -> dict[str, float]:
    """Return the value of every gene in `hyp`, or else in `--hyp`.

    `anchors` is a gene unless `--noautoanchor` is given. Those of Muon are genes with `--optimizer Muon` only. The
    schedules that the file sets stay as they are in all generations.
    """
    file = Hyperparameters.find(options.hyp, ROOT, ROOT / "data" / "hyps")
    given = read_yaml(file)
    values = asdict(hyp or Hyperparameters.from_dict(given, str(file)))
    changed = {key for key, value in values.items() if value != getattr(Hyperparameters, key)}
    check_hyp({key: value for key, value in values.items() if key in {*given, *changed}}, str(file))
    constants = [key for key in CONSTANTS if key in changed]
    genes = [*GENES, *(MUON_GENES if options.optimizer == "Muon" else ()), *constants]
    return {key: values[key] for key in genes if key != "anchors" or not options.noautoanchor}


def read_population(options: TrainOptions, start: Hyp) -> list[dict[str, float]]:
    """Read hyperparameters to try first besides the start: from `--resume_evolve`, else `--evolve_population`."""
    if options.resume_evolve:
        individuals = read_individuals(Path(options.resume_evolve), measure=Fitness.parse(options.fitness))
    elif not options.evolve_population:
        return []
    else:
        individuals = {str(file): read_yaml(file) for file in _population_files(options)}
    population: list[dict[str, float]] = []
    for source, values in individuals.items():
        individual = _complete_individual(source, values, start, options.hyp)
        if individual != start and individual not in population:
            population.append(individual)
    chosen = options.resume_evolve or "evolve_population" in options.typed
    return population if chosen else population[: options.evolve // POPULATION_SHARE]


def _complete_individual(source: str, values: dict[str, Any], start: Hyp, start_file: str) -> dict[str, float]:
    """Check the hyperparameters of one individual and take missing ones from the start."""
    Hyperparameters.from_dict(values, source)
    absent = [key for key in start if key not in values and key not in {"anchors", *MUON_GENES, *CONSTANTS}]
    if absent:
        info(f"{source}: lacks {', '.join(absent)}; taken from {start_file}")
    complete = {**start, "anchors": KEEP_MODEL_ANCHORS, **values}
    individual = {key: float(complete[key]) for key in start}
    check_hyp(individual, source)
    return individual


def _population_files(options: TrainOptions) -> list[Path]:
    name = options.evolve_population
    folders = [folder for folder in (Path(name), ROOT / name) if folder.is_dir()]
    files = sorted(folders[0].glob("*.y*ml")) if folders else []
    if not files and "evolve_population" in options.typed:
        raise UserError(f"--evolve_population {name}: no folder with hyperparameter files (*.yaml)")
    return files
