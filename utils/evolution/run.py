"""Run of an evolution: the run folder, the store, the trainings and the report that `utils.evolve.evolve` is given."""

import sys
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from utils.cli import to_flags
from utils.console import info, result, warn
from utils.errors import UserError
from utils.evolution.csv_store import CsvStore, lock_search
from utils.evolution.optuna_store import StudyStore
from utils.evolution.plan import Plan
from utils.evolution.report import Report
from utils.evolution.trainings import Trainings
from utils.evolution.verdict import Repeats, Verdict, candidates, judge
from utils.evolve import Generation, Hyp, falls_behind, run_generations, run_seed
from utils.files import read_yaml, write_yaml
from utils.metrics import Fitness
from utils.schedule import EarlyStopping
from utils.temporary_files import remove_stale

REPEATS = 2  # further seeds for each of the best
MAX_REPEATED = 4  # the best three and the start

FileStore = CsvStore | StudyStore


@dataclass(frozen=True)
class EvolutionRun:
    """Open run of an evolution. `trainings` is the objective of the search, `store` keeps its generations."""

    plan: Plan
    store: FileStore
    report: Report
    trainings: Trainings

    def on_end(self, generation: Generation) -> None:
        """Report a generation that has ended."""
        self.report.on_end(generation, self.store.records())

    def repeat_best(self, records: Sequence[Generation]) -> Verdict:
        """Train the best generations and the start again under other seeds. Return and report the winner."""
        ranked = candidates(records)
        with closing(open_repeats_store(self.plan)) as store:
            repeats = run_repeats(self.plan, ranked, store, self.report)
            verdict = judge(records, repeats)
            self.report.finish(verdict, records, repeats)
        return verdict


@contextmanager
def open_run(plan: Plan) -> Generator[EvolutionRun]:
    """Open the run folder and its store, new or to be resumed. Ctrl-C inside ends the program with exit code 130.

    Raise UserError if another process uses the folder, or if it holds an evolution with other settings.
    """
    plan.folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        if not plan.options.evolve_storage:
            stack.enter_context(closing(lock_search(plan.folder)))
            remove_stale(plan.folder)
        check_same_settings(plan)
        report = stack.enter_context(Report(plan))
        try:
            store = stack.enter_context(closing(open_search_store(plan)))
            begin_report(plan, store, report)
            trainings = build_trainings(plan, store, report, validated=plan.options.evolve_prune)
            stack.callback(trainings.close)
            yield EvolutionRun(plan, store, report, trainings)
        except KeyboardInterrupt:
            result(f"\nStopped. Finished generations are saved: type the same command to resume {plan.folder}")
            sys.exit(130)


def begin_report(plan: Plan, store: FileStore, report: Report) -> None:
    """Warn of damaged rows that were skipped, print what is about to run, and open the progress bar."""
    for message in store.messages:
        warn(message)
    info(
        f"Evolving {len(plan.start)} hyperparameters of {plan.options.hyp} over {plan.options.evolve} generations, "
        f"{len(plan.devices)} at a time ({', '.join(plan.devices)})"
    )
    report.begin(store.records(), REPEATS * min(MAX_REPEATED, plan.options.evolve))


def run_repeats(plan: Plan, ranked: dict[int, Generation], store: FileStore, report: Report) -> list[Generation]:
    """Run each of `ranked` under REPEATS other seeds, unless the store has the run already. Return those runs."""
    wanted = [(number, repeat) for repeat in range(1, REPEATS + 1) for number in ranked]
    ended = [record for record in store.records() if record.key in wanted and record.status != "started"]
    report.begin_repeats(len(ranked), len(wanted), len(ended))
    with closing(build_trainings(plan, store, report, validated=False)) as trainings:
        run_generations(
            trainings,
            store,
            wanted,
            Repeats(ranked, plan.options.seed).propose,
            workers=len(plan.devices),
            on_end=report.on_repeat,
            cancel=trainings.cancel,
        )
    return [record for record in store.records() if record.key in wanted and record.status != "started"]


# ---- stores


def open_search_store(plan: Plan) -> FileStore:
    return _open_store(plan, "evolve", plan.options.name)


def open_repeats_store(plan: Plan) -> FileStore:
    return _open_store(plan, "evolve_repeats", f"{plan.options.name}-repeats-{plan.options.evolve}")


def _open_store(plan: Plan, table: str, study: str) -> FileStore:
    """Open `table`.csv in the run folder, or the study in the database of `--evolve-storage`."""
    names, url = list(plan.start), plan.options.evolve_storage
    if not url:
        return CsvStore(plan.folder, names, table)
    return StudyStore(url, study, names, plan.folder / f"{table}.csv", settings=plan.settings)


def check_same_settings(plan: Plan) -> None:
    """Raise UserError if the folder holds an evolution with other settings: its fitness means something else."""
    file = plan.folder / "opt.yaml"
    before = read_yaml(file) if file.is_file() else {}
    for key, value in sorted(plan.settings.items(), key=lambda entry: isinstance(entry[1], dict)):
        # flags first: one of them, such as --noautoanchor, may be why the values to start from differ
        if key in before and before[key] != value:
            raise UserError(
                f"{plan.folder} was evolved with {_difference(key, before[key], value)}: fitness would mean "
                "something else; type what you typed then, or give another --name"
            )
    write_yaml(file, {**plan.options.to_dict(), "evolve_storage": "", **plan.settings})


def _difference(key: str, before: object, now: object) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        name = next(name for name in {**before, **now} if before.get(name) != now.get(name))
        return f"{name} {before.get(name)} to start from, not {now.get(name)} (--hyp)"
    return f"--{key.replace('_', '-')} {before}, not {now}"


# ---- the objective


def build_trainings(plan: Plan, store: FileStore, report: Report, *, validated: bool) -> Trainings:
    """Build the objective of the search or of the repeats. `validated`: validate after every epoch."""
    options = plan.options

    def stop(hyp: Hyp, curve: Sequence[float]) -> bool:
        others = [record.curve for record in report.records if record.curve]
        # every gain is measured against the start, so that always runs to its end
        return hyp != plan.start and falls_behind(curve, others, options.epochs)

    def is_complete(fitnesses: Sequence[float]) -> bool:
        early_stop = EarlyStopping(options.patience if validated else 0, options.min_delta)
        stopped = [early_stop.update(epoch, fitness) for epoch, fitness in enumerate(fitnesses)]
        return len(fitnesses) >= options.epochs or stopped[-1]

    def on_epoch(number: int, repeat: int, epochs: int, seconds: float, fitness: float | None) -> None:
        report.on_epoch((number, repeat), epochs, seconds)
        if fitness is not None and isinstance(store, StudyStore):
            store.report((number, repeat), epochs, fitness)

    def command(hyp: Path, folder: Path, number: int, repeat: int, device: str) -> list[str]:
        own = {
            "hyp": hyp,
            "seed": run_seed(options.seed, number, repeat),
            "device": device,
            "project": folder.parent,
            "name": folder.name,
            "exist_ok": True,
            "noplots": True,
            "score_only": True,
            "noval": not validated,
            "workers": -(-options.workers // plan.devices.count(device)),
            "log_project": plan.log_project if options.log else None,
        }
        return [sys.executable, str(plan.script), *plan.training_flags, *to_flags(own)]

    trainings = Trainings(
        command,
        plan.folder / "generations",
        devices=plan.devices,
        limit=options.evolve_timeout * 60,
        is_complete=is_complete,
        validated=validated,
        threads=threads_per_training(plan.devices),
        durations=[record.seconds for record in store.records() if record.status == "done"],
        stop=stop,
        on_epoch=on_epoch,
    )
    trainings.measure = Fitness.parse(options.fitness)
    return trainings


def threads_per_training(devices: Sequence[str]) -> int:
    """Return the number of threads of each training on the CPU, the same for all, or 0 to let PyTorch choose."""
    if devices[0] != "cpu":
        return 0
    return max(1, torch.get_num_threads() // len(devices))
