"""Generations kept in an Optuna study, so that several machines work on one search; Optuna is an optional extra.

Every generation is a trial, our genetic step is the study's sampler, Optuna's heartbeats find the machines that died,
and its dashboards and plots work on the study. What stands where: hyperparameters are the trial's parameters, the
fitness its value, the curve its intermediate values, and the rest its user attributes.

Each generation counts once, whoever dies: the k-th trial that is no retry is generation k, one past the last is
surplus, and a lost trial gets a retry, of which the oldest that lives counts. Every machine reads that from the trials.
"""

import importlib.util
import re
import socket
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.evolution.csv_store import write_table
from utils.evolve import GENES, KEEP_MODEL_ANCHORS, Generation, Key, Propose

RETRY = "retry of"  # user attribute of a trial that takes the place of a lost one: the position of its generation
HEARTBEAT = 30  # seconds
GRACE = 120  # seconds without a heartbeat after which a machine is taken for dead


def load_optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise UserError("--evolve-storage needs Optuna: pip install 'optuna>=4'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def without_password(url: str) -> str:
    return re.sub(r"(://[^:/@]*):[^@/]*@", r"\1:***@", url)


def open_storage(url: str, heartbeat: int, grace: int) -> Any:
    """The storage behind `url`: a database (sqlite:///file, postgresql://…, mysql://…) or a journal file."""
    optuna = load_optuna()
    if "://" not in url or url.startswith("journal://"):
        file = Path(url.removeprefix("journal://"))
        if not file.absolute().parent.is_dir():
            raise UserError(f"--evolve-storage {url}: there is no folder {file.absolute().parent}")
        from optuna.storages.journal import JournalFileBackend

        return optuna.storages.JournalStorage(JournalFileBackend(str(file)))
    settings = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    for pause in (1, 2, 4, 0):
        try:
            return optuna.storages.RDBStorage(
                _with_driver(url), settings, heartbeat_interval=heartbeat, grace_period=grace
            )
        except ImportError as error:
            raise UserError(
                f"--evolve-storage {without_password(url)}: its driver is absent; "
                "pip install 'psycopg[binary]' (PostgreSQL) or mysqlclient (MySQL)"
            ) from error
        except Exception as error:  # SQLAlchemy and each driver have their own
            reason = without_password(str(error.__cause__ or error).strip().splitlines()[0])
            if not pause or not re.search("duplicate|already exists", reason):  # two machines make the tables at once
                raise UserError(f"--evolve-storage {without_password(url)}: {reason}") from error
            time.sleep(pause)
    raise AssertionError("the last round returns or raises")


def _with_driver(url: str) -> str:
    """`postgresql://` names the driver that is installed."""
    plain = re.match(r"postgres(ql)?://", url)
    if plain and importlib.util.find_spec("psycopg"):
        return "postgresql+psycopg://" + url[plain.end() :]
    return url


class StudyStore:
    """A Store in the study `name` behind `url`; `file` is its evolve.csv. `settings`: what all machines must share."""

    def __init__(
        self,
        url: str,
        name: str,
        names: Sequence[str],
        file: Path,
        *,
        settings: Mapping[str, Any] | None = None,
        heartbeat: int = HEARTBEAT,
        grace: int = GRACE,
    ):
        self.optuna = load_optuna()
        self.names, self.file, self.grace = list(names), file, grace
        self.messages: list[str] = []
        self.wanted: Sequence[Key] = ()
        self.propose: Propose | None = None
        self.proposed: dict[int, Generation] = {}  # by number of the trial
        self.own: dict[Key, Any] = {}  # trials that run here
        self.seen: dict[int, tuple[Any, float]] = {}  # by number of the trial: its sign of life, and since when
        self.lock = threading.Lock()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # heartbeats are called experimental
            self.storage = open_storage(url, heartbeat, grace)
            self.study = self.optuna.create_study(
                storage=self.storage,
                study_name=name,
                direction="maximize",
                sampler=_sampler(self),
                load_if_exists=True,
                pruner=self.optuna.pruners.NopPruner(),
            )
        self._agree(name, {**(settings or {}), "hyperparameters": self.names})
        self.outages = (self.optuna.exceptions.StorageInternalError, OSError)
        self.beats = hasattr(self.storage, "record_heartbeat")
        self.closed = threading.Event()
        threading.Thread(target=self._keep_beating, args=(heartbeat,), daemon=True, name="heartbeat").start()

    def close(self) -> None:
        """Give no more signs of life."""
        self.closed.set()

    def _agree(self, name: str, settings: dict[str, Any]) -> None:
        """UserError where the study was begun with other settings: fitness would mean another thing."""
        theirs = self.study.user_attrs.get("settings")
        if theirs is None:
            self.study.set_user_attr("settings", settings)
        elif other := [key for key in settings if settings[key] != theirs.get(key)]:
            key = other[0]
            raise UserError(
                f"the study {name} was begun with {key} {theirs.get(key)}, not {settings[key]}: "
                "type the same command on every machine, or give another --name"
            )

    # ---- who does what

    def claim(self, wanted: Sequence[Key], propose: Propose) -> Generation | None:
        self.wanted, self.propose = wanted, propose
        return self._retry_on_outage(self._claim)

    def _claim(self) -> Generation | None:
        started = None
        while started is None:
            self._fail_stale_trials()
            places = self._places(self._trials())
            for position, place in enumerate(places[: len(self.wanted)]):
                if not _counting(place):
                    self._retry(position, place)
            needed = self._places(self._trials())[: len(self.wanted)]
            waiting = any(trial.state.name == "WAITING" for place in needed for trial in place)
            if len(needed) == len(self.wanted) and not waiting:
                return None
            started = self._take()
        return started

    def _trials(self) -> list[Any]:
        return self.study.get_trials(deepcopy=False)

    def _places(self, trials: Sequence[Any]) -> list[list[Any]]:
        """For each generation in the order of `wanted` its trial and the retries of it."""
        places = [[trial] for trial in trials if RETRY not in trial.user_attrs]
        for trial in trials:
            if RETRY in trial.user_attrs:
                places[trial.user_attrs[RETRY]].append(trial)
        return places

    def _retry(self, position: int, lost: Sequence[Any]) -> None:
        """Queue the generation again, with its hyperparameters if it had got so far."""
        last = next((trial for trial in reversed(lost) if "seed" in trial.user_attrs), None)
        params = dict(last.params) if last else {}
        plan = {"plan": {key: last.user_attrs[key] for key in ("seed", "origin", "parents")}} if last else {}
        self.study.enqueue_trial(params, user_attrs={RETRY: position, **plan})

    def _take(self) -> Generation | None:
        """Begin a trial. None where it turns out not to be needed."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # heartbeats outside of Study.optimize
            trial = self.study.ask()
        self._beat(trial)
        places = self._places(self._trials())
        position = next(k for k, place in enumerate(places) if any(other.number == trial.number for other in place))
        if position >= len(self.wanted) or _counting(places[position]).number != trial.number:
            self._tell(trial.number, state=self.optuna.trial.TrialState.FAIL)
            return None
        key, begun = self.wanted[position], []
        with self.lock:
            self.own[key] = trial  # its heart beats from here on
        if not self._if_still_owned(lambda: begun.append(self._begin(trial, key))):
            with self.lock:
                del self.own[key]
            return None
        self._write()
        return begun[0]

    def _begin(self, trial: Any, key: Key) -> Generation:
        """Write down what the trial is to try."""
        hyp = {name: trial.suggest_float(name, *_bounds(name)) for name in self.names}
        started = self._started(trial, key, hyp)
        facts = {
            "generation": key[0],
            "repeat": key[1],
            "origin": started.origin,
            "parents": list(started.parents),
            "host": socket.gethostname(),
            "seed": started.seed,
        }  # the seed last: with it the trial is whole
        for name, value in facts.items():
            trial.set_user_attr(name, value)
        return started

    def _started(self, trial: Any, key: Key, hyp: dict[str, float]) -> Generation:
        proposed = self.proposed.pop(trial.number, None)
        plan = trial.user_attrs.get("plan")
        if plan:  # a retry
            return Generation(key[0], hyp, plan["seed"], plan["origin"], tuple(plan["parents"]), key[1])
        if proposed is None:  # all parameters were given, by somebody who put the trial into the queue
            proposed = self.propose(key, self.records())
            return Generation(key[0], hyp, proposed.seed, "queue", (), key[1])
        return Generation(key[0], hyp, proposed.seed, proposed.origin, proposed.parents, key[1])

    def sample(self, number: int) -> dict[str, float]:
        """What the genetic step proposes for the trial of this number; nothing where it will not be needed."""
        places = self._places(self._trials())
        position = next(k for k, place in enumerate(places) if any(other.number == number for other in place))
        if self.propose is None or position >= len(self.wanted):
            return {}
        self.proposed[number] = self.propose(self.wanted[position], self.records())
        return self.proposed[number].hyp

    # ---- what came of it

    def records(self) -> list[Generation]:
        found = []
        for place in self._places(self._trials()):
            trial = _counting(place)
            if trial and "seed" in trial.user_attrs:
                found.append(self._record(trial))
        return sorted(found, key=lambda record: record.key)

    def _record(self, trial: Any) -> Generation:
        seen = trial.user_attrs
        status = {"COMPLETE": "done", "PRUNED": "pruned", "FAIL": "failed"}.get(trial.state.name, "started")
        curve = tuple(trial.intermediate_values[epoch] for epoch in sorted(trial.intermediate_values))
        hyp = {name: trial.params[name] for name in self.names}
        fitness = trial.value if status == "done" else curve[-1] if status == "pruned" and curve else None
        return Generation(
            seen["generation"],
            hyp,
            seen["seed"],
            seen["origin"],
            tuple(seen["parents"]),
            seen["repeat"],
            status,
            fitness,
            tuple(seen.get("results", ())),
            seen.get("epochs", 0),
            seen.get("seconds", 0.0),
            curve,
            seen.get("note", ""),
        )

    def report(self, key: Key, epoch: int, fitness: float) -> None:
        """Fitness of a running generation after `epoch` epochs."""
        with self.lock:
            trial = self.own.get(key)
        try:
            if trial:
                self._if_still_owned(lambda: trial.report(fitness, epoch))
        except self.outages:  # `finish` reports what is missing
            pass

    def finish(self, generation: Generation) -> bool:
        kept = self._retry_on_outage(lambda: self._finish(generation))
        with self.lock:
            self.own.pop(generation.key, None)
        self._retry_on_outage(self._write)
        return kept

    def release(self) -> None:
        """Give up what runs here, so that others need not wait until it is missed."""
        with self.lock:
            trials, self.own = list(self.own.values()), {}
        try:
            for trial in trials:
                self._tell(trial.number, state=self.optuna.trial.TrialState.FAIL)
        except self.outages:  # then it is missed
            pass

    def _finish(self, generation: Generation) -> bool:
        trial = self.own[generation.key]
        facts = {
            "results": list(generation.results),
            "epochs": generation.epochs,
            "seconds": generation.seconds,
            "note": generation.note,
            **({"status": "failed"} if generation.status == "failed" else {}),
        }
        known = self.storage.get_trial(trial._trial_id).intermediate_values
        state = {"done": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}[generation.status]

        def write() -> None:
            for name, value in facts.items():
                trial.set_user_attr(name, value)
            for epoch, value in enumerate(generation.curve, 1):
                if epoch not in known:
                    trial.report(value, epoch)

        return self._if_still_owned(write) and self._tell(
            trial.number,
            values=generation.fitness if generation.status == "done" else None,
            state=self.optuna.trial.TrialState[state],
        )

    def _tell(self, number: int, **outcome: Any) -> bool:
        return self._if_still_owned(lambda: self.study.tell(number, **outcome))

    def _retry_on_outage(self, act: Callable[[], Any]) -> Any:
        """What `act` returns; an outage of the storage is waited for, about ten minutes long."""
        for pause in (1, 5, 15, 30, 60, 120, 180, 180):
            try:
                return act()
            except self.outages as error:
                print(f"WARNING --evolve-storage does not answer ({type(error).__name__}), trying again in {pause} s")
                time.sleep(pause)
        return act()

    def _if_still_owned(self, act: Callable[[], Any]) -> bool:
        """Whether the trial was still ours: another machine may have taken us for dead."""
        try:
            act()
        except (RuntimeError, ValueError) as error:
            if not re.search("already finished|Cannot tell a", str(error)):  # Optuna's words for a finished trial
                raise
            return False
        return True

    def _write(self) -> None:
        finished = [record for record in self.records() if record.status != "started"]
        write_table(self.file, self.names, finished)

    # ---- who is alive

    def _keep_beating(self, interval: int) -> None:
        while not self.closed.wait(interval):
            with self.lock:
                trials = list(self.own.values())
            for trial in trials:
                try:
                    self._beat(trial)
                except Exception as error:  # the next beat may get through; if none does, the others take over
                    print(f"WARNING no heartbeat to --evolve-storage: {type(error).__name__}")

    def _beat(self, trial: Any) -> None:
        """Optuna's own heartbeat; a journal file has none, so there it is an attribute."""
        if self.beats:
            self.storage.record_heartbeat(trial._trial_id)
        else:
            self._if_still_owned(lambda: trial.set_user_attr("alive", time.time()))

    def _fail_stale_trials(self) -> None:
        """Fail the trials of machines that are gone. Optuna does it where it has heartbeats, from the first one on; the
        rest is watched from here, by our own clock."""
        if self.beats:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.optuna.storages.fail_stale_trials(self.study)
        with self.lock:
            ours = {trial.number for trial in self.own.values()}
        now = time.monotonic()
        for trial in self._trials():
            whole = "seed" in trial.user_attrs
            if trial.state.name != "RUNNING" or trial.number in ours or (self.beats and whole):
                continue
            sign = (trial.user_attrs.get("alive"), whole)
            if self.seen.get(trial.number, (None, now))[0] != sign:
                self.seen[trial.number] = (sign, now)
            elif now - self.seen[trial.number][1] > self.grace:
                self._tell(trial.number, state=self.optuna.trial.TrialState.FAIL)


def _counting(trials: Sequence[Any]) -> Any:
    """Of the trials on one generation the one that counts; None where all are lost.

    A failed one without `status` was lost with its machine or not needed, a finished one without `seed` is not ours.
    """
    for trial in trials:
        seen, state = trial.user_attrs, trial.state.name
        if state in ("WAITING", "RUNNING") or ("seed" in seen and (state != "FAIL" or "status" in seen)):
            return trial
    return None


def _bounds(name: str) -> tuple[float, float]:
    low = KEEP_MODEL_ANCHORS if name == "anchors" else GENES[name].low
    return low, GENES[name].high


def _sampler(store: StudyStore) -> Any:
    """The genetic step as a sampler of Optuna's; the class is made here because Optuna may be absent."""
    optuna = load_optuna()

    class GeneticSampler(optuna.samplers.BaseSampler):
        def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
            return {name: optuna.distributions.FloatDistribution(*_bounds(name)) for name in store.names}

        def sample_relative(self, study: Any, trial: Any, search_space: dict[str, Any]) -> dict[str, float]:
            return store.sample(trial.number)

        def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> float:
            proposed = store.proposed.get(trial.number)
            return proposed.hyp[param_name] if proposed else param_distribution.low

    return GeneticSampler()
