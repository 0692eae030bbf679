"""Store of an evolution in an Optuna study, so that several machines work on one search.

A generation is a trial, and our genetic step is the study's sampler. Optuna's dashboards and plots work on the study.
Hyperparameters are the trial's parameters, the fitness is its value, the curve its intermediate values, and all else
its user attributes. One of those is a sign of life, which changes with every heartbeat. A machine is dead
if several heartbeats of others pass without a new sign. So no clock counts, and no time without the database.

Each generation counts once, whichever machine dies. The k-th trial that is no retry is generation k, and trials beyond
the last generation are surplus. A lost trial gets a retry, of which the oldest live one counts. Every machine derives
that from the trials alone.
"""

import itertools
import re
import socket
import threading
import time
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from utils.addresses import remove_credentials
from utils.console import warn
from utils.errors import UserError
from utils.evolution.csv_store import move_aside, read_table, write_table
from utils.evolution.optuna_storage import load_optuna, open_storage, outage_errors
from utils.evolve import ALL_GENES, KEEP_MODEL_ANCHORS, Generation, Key, Propose

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

T = TypeVar("T")

RETRY = "retry of"  # user attribute of a trial that replaces a lost one: the position of its generation
HEARTBEAT = 30  # seconds
GRACE = 120  # seconds of heartbeats of others without a sign of life, after which a machine counts as dead
LAST_HEARTBEAT = 5  # seconds to wait at the end for one that is being sent
OUTAGE_PAUSES = (1, 5, 15, 30, 60, 120, 180, 180)  # seconds between tries when the storage does not answer


class StudyStore:
    """Store in the study `name` behind `url`. `file` is its evolve.csv.

    settings: what all machines must have in common. heartbeat, grace: see HEARTBEAT and GRACE.
    """

    def __init__(
        self,
        url: str,
        name: str,
        names: Sequence[str],
        file: Path,
        *,
        settings: Mapping[str, Any] | None = None,
        heartbeat: float = HEARTBEAT,
        grace: float = GRACE,
    ):
        self.optuna = load_optuna()
        self.names, self.file, self.grace = list(names), file, grace
        self.messages: list[str] = []
        self.wanted: Sequence[Key] = ()
        self.propose: Propose | None = None
        self.proposed: dict[int, Generation] = {}  # by number of the trial
        self.owned: dict[Key, Trial] = {}  # trials that run here
        self.last_signs: dict[int, tuple[object, int]] = {}  # by trial: sign of life, heartbeats since it changed
        self.heartbeat, self.signs = heartbeat, itertools.count(1)
        self.lock = threading.Lock()
        self.outages = outage_errors()
        self.storage, self.closed = open_storage(url), threading.Event()
        self.heart = threading.Thread(target=self._send_heartbeats, daemon=True, name="heartbeat")
        try:
            self.study = self._open_study(url, name, {**(settings or {}), "hyperparameters": self.names})
            self._keep_unknown_rows()
        except BaseException:
            self.close()
            raise
        self.heart.start()

    def _open_study(self, url: str, name: str, settings: dict[str, Any]) -> "Study":
        """Create or load the study. Raise UserError if the storage does not answer or has other settings."""
        try:
            study = self.optuna.create_study(
                storage=self.storage,
                study_name=name,
                direction="maximize",
                sampler=_make_sampler(self),
                load_if_exists=True,
                pruner=self.optuna.pruners.NopPruner(),
            )
            _check_same_settings(study, settings)
        except self.outages as error:
            raise UserError(
                f"--evolve-storage {remove_credentials(url)} does not answer ({type(error).__name__}): "
                "type the same command when it does"
            ) from error
        return study

    def close(self) -> None:
        """Stop the heartbeats, and close the connections to a database."""
        self.closed.set()
        if self.heart.is_alive():
            self.heart.join(LAST_HEARTBEAT)  # it may hold a connection
        engine = getattr(self.storage, "engine", None)
        if engine is not None:
            with suppress(*self.outages):
                self.storage.remove_session()
                engine.dispose()

    def _keep_unknown_rows(self) -> None:
        """Keep an evolve.csv with generations that the study lacks: its database may have been lost."""
        try:
            rows = {record.key for record in read_table(self.file, self.names).records}
            lost = len(rows - {record.key for record in self.records()})
        except UserError:
            lost = 1
        if lost:
            move_aside(self.file, f"holds {lost} generations that --evolve-storage lacks")

    # ---- assigning generations

    def claim(self, wanted: Sequence[Key], propose: Propose) -> Generation | None:
        """Take one of `wanted`: a lost one first, then a new one. Return None if there is none to take now."""
        self.wanted, self.propose = wanted, propose
        started = self._retry_on_outage(self._claim)
        if started:
            self._write()
        return started

    def _claim(self) -> Generation | None:
        started = None
        while started is None:
            self._fail_stale_trials()
            attempts = self._attempts()
            for position, trials in enumerate(attempts[: len(self.wanted)]):
                if not _valid_trial(trials):
                    self._enqueue_retry(position, trials)
            needed = self._attempts()[: len(self.wanted)]
            waiting = any(trial.state.name == "WAITING" for trials in needed for trial in trials)
            if len(needed) == len(self.wanted) and not waiting:
                return None
            started = self._start_trial()
        return started

    def _trials(self) -> "list[FrozenTrial]":
        return self.study.get_trials(deepcopy=False)

    def _attempts(self) -> "list[list[FrozenTrial]]":
        """Return, for each generation in the order of `wanted`, its trial and the retries of it."""
        trials = self._trials()
        attempts = [[trial] for trial in trials if RETRY not in trial.user_attrs]
        for trial in trials:
            if RETRY in trial.user_attrs:
                attempts[trial.user_attrs[RETRY]].append(trial)
        return attempts

    def _enqueue_retry(self, position: int, lost: "Sequence[FrozenTrial]") -> None:
        """Queue the generation again, with its hyperparameters if a lost trial had them already."""
        last = next((trial for trial in reversed(lost) if "seed" in trial.user_attrs), None)
        params = dict(last.params) if last else {}
        plan = {"plan": {key: last.user_attrs[key] for key in ("seed", "origin", "parents")}} if last else {}
        self.study.enqueue_trial(params, user_attrs={RETRY: position, **plan})

    def _start_trial(self) -> Generation | None:
        """Start a trial. Return None if it turns out not to be needed."""
        with _no_warnings():  # Optuna calls some of this experimental
            trial = self.study.ask()
        attempts = self._attempts()
        position = _position_of(trial.number, attempts)
        valid = _valid_trial(attempts[position])
        if position >= len(self.wanted) or valid is None or valid.number != trial.number:
            self._fail(trial)
            return None
        key, started = self.wanted[position], []
        with self.lock:
            self.owned[key] = trial  # gets heartbeats from here on
        try:
            self._if_still_owned(lambda: started.append(self._record_start(trial, key)))
        finally:
            if not started:  # lost, or an outage: without heartbeats it counts as dead, and is tried again
                with self.lock:
                    del self.owned[key]
        return started[0] if started else None

    def _record_start(self, trial: "Trial", key: Key) -> Generation:
        """Write the hyperparameters and attributes of a started generation into the study."""
        hyp = {name: trial.suggest_float(name, *_bounds(name)) for name in self.names}
        started = self._started_generation(trial, key, hyp)
        attributes = {
            "generation": key[0],
            "repeat": key[1],
            "origin": started.origin,
            "parents": list(started.parents),
            "host": socket.gethostname(),
            "seed": started.seed,  # last: it marks the trial as complete
        }
        for name, value in attributes.items():
            trial.set_user_attr(name, value)
        return started

    def _started_generation(self, trial: "Trial", key: Key, hyp: dict[str, float]) -> Generation:
        proposed = self.proposed.pop(trial.number, None)
        plan = trial.user_attrs.get("plan")
        if plan:  # a retry
            return Generation(key[0], hyp, plan["seed"], plan["origin"], tuple(plan["parents"]), key[1])
        if proposed is None:  # the user queued this trial with all its parameters
            assert self.propose is not None
            proposed = self.propose(key, self._records())
            return Generation(key[0], hyp, proposed.seed, "queue", (), key[1])
        return Generation(key[0], hyp, proposed.seed, proposed.origin, proposed.parents, key[1])

    def sample(self, number: int) -> dict[str, float]:
        """Return the hyperparameters that the genetic step proposes for this trial, none if it is not needed."""
        position = _position_of(number, self._attempts())
        if self.propose is None or position >= len(self.wanted):
            return {}
        self.proposed[number] = self.propose(self.wanted[position], self._records())
        return self.proposed[number].hyp

    # ---- records and results

    def records(self) -> list[Generation]:
        """Return every generation that has ended and every one that a machine is running."""
        return self._retry_on_outage(self._records)

    def _records(self) -> list[Generation]:
        valid = (_valid_trial(trials) for trials in self._attempts())
        found = [self._to_record(trial) for trial in valid if trial is not None and "seed" in trial.user_attrs]
        return sorted(found, key=lambda record: record.key)

    def _to_record(self, trial: "FrozenTrial") -> Generation:
        attributes = trial.user_attrs
        status = {"COMPLETE": "done", "PRUNED": "pruned", "FAIL": "failed"}.get(trial.state.name, "started")
        curve = tuple(trial.intermediate_values[epoch] for epoch in sorted(trial.intermediate_values))
        return Generation(
            number=attributes["generation"],
            hyp={name: trial.params[name] for name in self.names},
            seed=attributes["seed"],
            origin=attributes["origin"],
            parents=tuple(attributes["parents"]),
            repeat=attributes["repeat"],
            status=status,
            fitness=trial.value if status == "done" else curve[-1] if status == "pruned" and curve else None,
            results=tuple(attributes.get("results", ())),
            epochs=attributes.get("epochs", 0),
            seconds=attributes.get("seconds", 0.0),
            curve=curve,
            note=attributes.get("note", ""),
        )

    def report(self, key: Key, epoch: int, fitness: float) -> None:
        """Store the fitness of a running generation after `epoch` epochs."""
        with self.lock:
            trial = self.owned.get(key)
        if trial:
            with suppress(*self.outages):  # finish() stores what is missing
                self._if_still_owned(lambda: trial.report(fitness, epoch))

    def finish(self, generation: Generation) -> bool:
        """Store a generation that has ended. Return False if another machine took it over meanwhile."""
        kept = self._retry_on_outage(lambda: self._finish(generation))
        with self.lock:
            self.owned.pop(generation.key, None)
        self._write()
        return kept

    def release(self) -> None:
        """Fail the trials that run here, so that other machines need not wait for the missing heartbeat."""
        with self.lock:
            trials, self.owned = list(self.owned.values()), {}
        with suppress(*self.outages):  # then the missing heartbeat does it
            for trial in trials:
                self._fail(trial)

    def _finish(self, generation: Generation) -> bool:
        trial = self.owned[generation.key]
        attributes = {
            "results": list(generation.results),
            "epochs": generation.epochs,
            "seconds": generation.seconds,
            "note": generation.note,
            **({"status": "failed"} if generation.status == "failed" else {}),
        }
        known = self.storage.get_trial(trial._trial_id).intermediate_values
        state = {"done": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}[generation.status]

        def write() -> None:
            for name, value in attributes.items():
                trial.set_user_attr(name, value)
            for epoch, value in enumerate(generation.curve, 1):
                if epoch not in known:
                    trial.report(value, epoch)

        values = generation.fitness if generation.status == "done" else None
        if self._if_still_owned(write):
            self._end_trial(trial, state, values)
        # An answer may have been lost in an outage: only the study knows. Other machines end our trials as failed only.
        ended = self.storage.get_trial(trial._trial_id)
        return ended.state.name == state and (state != "FAIL" or "status" in ended.user_attrs)

    def _end_trial(self, trial: "Trial | FrozenTrial", state: str, values: float | None = None) -> bool:
        """End a trial in this state of Optuna's. Return False if it had ended already."""
        ended = self.optuna.trial.TrialState[state]
        return self._if_still_owned(lambda: self.study.tell(trial.number, values=values, state=ended))

    def _fail(self, trial: "Trial | FrozenTrial") -> bool:
        return self._end_trial(trial, "FAIL")

    def _retry_on_outage(self, act: Callable[[], T]) -> T:
        """Return the result of `act`. During an outage of the storage, try again until it answers or Ctrl-C ends it."""
        for pause in itertools.chain(OUTAGE_PAUSES, itertools.repeat(OUTAGE_PAUSES[-1])):
            try:
                return act()
            except self.outages as error:
                now = time.strftime("%H:%M:%S")  # a later outage is another warning
                warn(f"{now}: --evolve-storage does not answer ({type(error).__name__}). Trying again in {pause} s.")
                time.sleep(pause)
        raise AssertionError("the loop has no end")

    def _if_still_owned(self, act: Callable[[], object]) -> bool:
        """Call `act`. Return False if the trial is no longer ours: another machine may have declared us dead."""
        try:
            act()
        except (RuntimeError, ValueError) as error:
            if not re.search("already finished|Cannot tell a", str(error)):  # Optuna's words for a finished trial
                raise
            return False
        return True

    def _write(self) -> None:
        """Write evolve.csv, a copy for people. A full disk costs a warning."""
        ended = [record for record in self.records() if record.status != "started"]
        try:
            write_table(self.file, self.names, ended)
        except OSError as error:
            warn(f"{self.file} could not be written: {error.strerror}. The study has everything; trying again later.")

    # ---- signs of life

    def _send_heartbeats(self) -> None:
        while not self.closed.wait(self.heartbeat):
            try:
                with self.lock:
                    trials = list(self.owned.values())
                for trial in trials:
                    self._send_heartbeat(trial)
                self._watch_others()
            except Exception as error:  # the next one may succeed; if none does, other machines take over
                warn(f"no heartbeat to --evolve-storage: {type(error).__name__}")

    def _send_heartbeat(self, trial: "Trial") -> None:
        self._if_still_owned(lambda: trial.set_user_attr("alive", next(self.signs)))

    def _watch_others(self) -> None:
        """Count our heartbeats since the last sign of life of each trial that runs elsewhere."""
        with self.lock:
            ours = {trial.number for trial in self.owned.values()}
        running = [trial for trial in self._trials() if trial.state.name == "RUNNING" and trial.number not in ours]
        signs: dict[int, tuple[object, int]] = {}
        for trial in running:
            sign = (trial.user_attrs.get("alive"), "seed" in trial.user_attrs)
            before, count = self.last_signs.get(trial.number, (None, 0))
            signs[trial.number] = (sign, count + 1 if sign == before else 0)
        self.last_signs = signs

    def _fail_stale_trials(self) -> None:
        """Fail the trials of machines that are gone."""
        stale = {number for number, (_, count) in self.last_signs.items() if count * self.heartbeat > self.grace}
        for trial in self._trials() if stale else []:
            if trial.number in stale and trial.state.name == "RUNNING":
                self._fail(trial)


@contextmanager
def _no_warnings() -> Generator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _check_same_settings(study: "Study", settings: dict[str, Any]) -> None:
    """Raise UserError if the study began with other settings: its fitness means something else."""
    theirs = study.user_attrs.get("settings")
    if theirs is None:
        study.set_user_attr("settings", settings)
    elif other := [key for key in settings if settings[key] != theirs.get(key)]:
        key = other[0]
        raise UserError(
            f"the study {study.study_name} was begun with {key} {theirs.get(key)}, not {settings[key]}: "
            "type the same command on every machine, or give another --name"
        )


def _position_of(number: int, attempts: "list[list[FrozenTrial]]") -> int:
    """Return the position of the generation that the trial of this number belongs to."""
    return next(k for k, trials in enumerate(attempts) if any(trial.number == number for trial in trials))


def _valid_trial(trials: "Sequence[FrozenTrial]") -> "FrozenTrial | None":
    """Return the trial that counts among those for one generation, None if all are lost.

    A failed trial without `status` was lost with its machine, or was not needed. A finished one without `seed` is not
    ours.
    """
    for trial in trials:
        attributes, state = trial.user_attrs, trial.state.name
        if state in ("WAITING", "RUNNING") or ("seed" in attributes and (state != "FAIL" or "status" in attributes)):
            return trial
    return None


def _bounds(name: str) -> tuple[float, float]:
    low = KEEP_MODEL_ANCHORS if name == "anchors" else ALL_GENES[name].low
    return low, ALL_GENES[name].high


def _make_sampler(store: StudyStore) -> "BaseSampler":
    """Return the genetic step as a sampler of Optuna's. The class is made here because Optuna may be absent."""
    optuna = load_optuna()

    class GeneticSampler(optuna.samplers.BaseSampler):
        def infer_relative_search_space(self, study: "Study", trial: "FrozenTrial") -> "dict[str, BaseDistribution]":
            return {name: optuna.distributions.FloatDistribution(*_bounds(name)) for name in store.names}

        def sample_relative(
            self, study: "Study", trial: "FrozenTrial", search_space: "dict[str, BaseDistribution]"
        ) -> dict[str, float]:
            return store.sample(trial.number)

        def sample_independent(
            self, study: "Study", trial: "FrozenTrial", param_name: str, param_distribution: Any
        ) -> float:
            proposed = store.proposed.get(trial.number)
            return proposed.hyp[param_name] if proposed else _bounds(param_name)[0]

    return GeneticSampler()
