"""Resuming a run: which checkpoint, what the flags typed now change, and what is no longer exact because of it."""

import hashlib
import json
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from utils.checkpoint import ForeignCheckpoint, read_checkpoint
from utils.config import TrainOptions
from utils.console import info, warn
from utils.errors import UserError
from utils.files import read_yaml

# Flags that do not change a byte of the weights. `epochs` does, by intention, so the user sees it.
FLAGS_WITHOUT_EFFECT_ON_WEIGHTS = frozenset(
    """
    data workers cache save_minutes save_period nosave noplots project name exist_ok log log_project log_weights
    """.split()
)
FLAGS_OF_THE_FOLDER = frozenset(("project", "name", "exist_ok"))  # without effect if a run continues in its own folder
FLAGS_OF_THE_MODEL = ("cfg", "weights")  # cannot change: the model is in the checkpoint
FLAGS_NEVER_EDITED = FLAGS_OF_THE_FOLDER | {*FLAGS_OF_THE_MODEL, "resume", "hyp"}  # in opt.yaml; hyp is a dict there
UNEDITED = "unedited"  # key of opt.yaml with the digest of all others
EPOCH_START_FILE = "epoch-start.pt"  # beside last.pt while a run is within an epoch
LAST_HALF_FILE = "last-half.pt"  # beside last.pt when the run has ended


def find_checkpoint(resume: str | bool, project: str) -> Path:
    """Return the checkpoint to resume: the named file or that of the named run, or the newest last.pt in `project`."""
    if isinstance(resume, str):
        path = Path(resume)
        checkpoint = path
        if path.is_dir():
            candidates = (path / "weights" / "last.pt", path / "last.pt")
            checkpoint = next((file for file in candidates if file.is_file()), candidates[0])
        if not checkpoint.is_file():
            raise UserError(f"--resume {resume}: no checkpoint {checkpoint}{offer_other_state(checkpoint)}")
        return checkpoint
    found = Path(project).rglob("weights/last.pt")
    candidates = [file for file in found if not any(part[0] == "." for part in file.relative_to(project).parts)]
    if not candidates:
        raise UserError(f"--resume: no run with a checkpoint below {project}; name one: --resume {project}/exp")
    return max(candidates, key=lambda file: file.stat().st_mtime)


def run_folder_of(checkpoint: Path) -> Path | None:
    """Return the run folder that a checkpoint is in, or None if it is elsewhere."""
    checkpoint = checkpoint.resolve()
    return checkpoint.parents[1] if checkpoint.parent.name == "weights" else None


def offer_other_state(checkpoint: Path) -> str:
    """Return a clause that names the newest other state of a run whose checkpoint is damaged or gone, "" if none is."""
    weights = checkpoint.parent
    found = []
    for file in [
        weights / EPOCH_START_FILE,
        *weights.glob("epoch[0-9]*.pt"),
        *weights.parent.glob("interrupted*/weights/last.pt"),
    ]:
        try:
            content = read_checkpoint(file)
        except UserError:
            continue
        epoch = content.get("epoch")
        if file != checkpoint and content.get("kind") == "train" and "options" in content and isinstance(epoch, int):
            found.append((epoch, file))
    if not found:
        return ""
    epoch, file = max(found)
    return f"; a state after {epoch} epochs is whole: --resume {shlex.quote(str(file))}"


def resume_advice(folder: Path) -> str:
    """Return the end of a message about checkpoints that are missing."""
    return f", then type python train.py --resume {shlex.quote(str(folder))}"


def read_run_state(checkpoint: Path) -> dict[str, Any]:
    """Return the whole state of a run. Raises UserError for a file of another kind, or one that lacks a part."""
    try:
        content = read_checkpoint(checkpoint)
    except ForeignCheckpoint as error:
        if other := offer_other_state(checkpoint):
            raise UserError(f"--resume {error}{other}") from error
        raise UserError(f"--resume {error}; a run of YOLOv5 can start a new one: --weights {checkpoint}") from error
    if content.get("kind") == "weights":
        raise UserError(f"--resume {checkpoint}: holds weights only; resume from last.pt, or start with --weights")
    parts = [content.get(name) for name in ("options", "hyp", "model")]
    if not all(isinstance(part, dict) for part in parts) or not isinstance(content["model"].get("yaml"), dict):
        raise UserError(f"--resume {checkpoint}: not the state of a run; start a new run with --weights {checkpoint}")
    return content


# ---- settings


def mark_unedited(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of opt.yaml: `settings` and a digest that shows whether they were edited later."""
    return {**settings, UNEDITED: _digest(settings)}


def _digest(settings: Mapping[str, Any]) -> str:
    values = {key: value for key, value in settings.items() if key != UNEDITED}
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


def edited_flags(folder: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was edited in opt.yaml and hyp.yaml of a run, as if it was typed. `content` is its checkpoint."""
    settings = _read_settings(folder / "opt.yaml")
    stored = TrainOptions.from_dict(content["options"]).to_dict()
    changes: dict[str, Any] = {}
    if settings and settings.get(UNEDITED) != _digest(settings):
        changes = {key: value for key, value in settings.items() if value != stored.get(key, value)}
        unknown = settings.keys() - stored.keys() - {UNEDITED, "hyp", "save_dir"} - content["options"].keys()
        ignored = sorted((changes.keys() & FLAGS_NEVER_EDITED - {"hyp"}) | unknown)
        if settings.get("hyp") != content["hyp"]:
            ignored.append("hyp (hyp.yaml counts)")
        if ignored:
            warn(f"{folder / 'opt.yaml'} was edited, but these are not taken: {', '.join(ignored)}.")
        changes = {key: value for key, value in changes.items() if key not in FLAGS_NEVER_EDITED}
        TrainOptions.from_dict({**stored, **changes}, str(folder / "opt.yaml"))
        if changes:
            info(f"resume: {folder / 'opt.yaml'} was edited, which counts like typed flags")
    hyp = _read_settings(folder / "hyp.yaml")
    if hyp and hyp != settings.get("hyp") and hyp != content["hyp"]:
        info(f"resume: {folder / 'hyp.yaml'} was edited, which counts like --hyp")
        changes["hyp"] = str(folder / "hyp.yaml")
    return changes


def _read_settings(file: Path) -> dict[str, Any]:
    """Return the content of opt.yaml or hyp.yaml, {} without a file, or with a warning if it is damaged."""
    try:
        return read_yaml(file) if file.is_file() else {}
    except UserError as error:
        warn(f"{error}. The settings of the checkpoint count.")
        return {}


def resumed_options(content: Mapping[str, Any], checkpoint: Path, typed: Mapping[str, Any]) -> TrainOptions:
    """Return the stored options of a run with the flags typed now in their place. Print each change."""
    stored = TrainOptions.from_dict(content["options"], str(checkpoint))
    changes = dict(typed)
    if folder := run_folder_of(checkpoint):
        _report_ignored_flags(folder, stored, typed)
        changes = {key: value for key, value in changes.items() if key not in FLAGS_OF_THE_FOLDER}
    else:  # a file from elsewhere never chooses a folder to write into
        stored = stored.replace(**{key: getattr(TrainOptions, key) for key in FLAGS_OF_THE_FOLDER})
    changed = {key: value for key, value in changes.items() if getattr(stored, key) != value}
    if "time" in changed:
        raise UserError(
            f"--resume keeps the {stored.epochs} epochs that {checkpoint} was settled to: omit --time, or give --epochs"
        )
    if "recipe" in changed:
        raise UserError(
            f"--resume keeps what the recipe of {checkpoint} settled: omit --recipe, and type the flags to change"
        )
    if "split" in changed:
        raise UserError(f"--resume keeps the split of {checkpoint}: omit --split, or start a new run")
    for key in FLAGS_OF_THE_MODEL:
        if key in changed:
            raise UserError(
                f"--resume keeps the model of {checkpoint}: omit --{key}, or start a new run with "
                f"--weights {checkpoint}"
            )
    for key, value in changed.items():
        info(f"resume: --{key.replace('_', '-')} {getattr(stored, key)} -> {value}")
    inexact = sorted(set(changed) - FLAGS_WITHOUT_EFFECT_ON_WEIGHTS)
    if inexact:
        info(f"resume: from here on the run differs from one that never stopped ({', '.join(inexact)})")
    return stored.replace(**changes, resume=str(checkpoint), typed=frozenset(typed))


def _report_ignored_flags(folder: Path, stored: TrainOptions, typed: Mapping[str, Any]) -> None:
    """Print which of --name and --project are ignored, since the run continues in `folder`."""
    known = (stored.name, folder.name)
    ignored = [f"--name {typed['name']}"] if typed.get("name", stored.name) not in known else []
    if not folder.is_relative_to(Path(typed.get("project", folder)).resolve()):
        ignored.append(f"--project {typed['project']}")
    if ignored:
        info(f"resume: {' and '.join(ignored)} ignored: the run continues in {folder}")


def read_epoch_start(checkpoint: Path, state: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the state at the start of the epoch that `state` is within, or None if it was not kept."""
    try:
        start = read_checkpoint(checkpoint.with_name(EPOCH_START_FILE))
        return start if start["kind"] == "train" and start["epoch"] == state["epoch"] and state["step"] else None
    except (UserError, KeyError):
        return None


def was_finished(checkpoint: Path, epoch: int) -> bool:
    """Return True if the run ended after `epoch` epochs, and the final validation too was done."""
    try:
        return read_checkpoint(checkpoint.with_name(LAST_HALF_FILE)).get("epoch") == epoch
    except UserError:
        return False


def epochs_of_interrupted_run(checkpoint: Path) -> int | None:
    """Return how many epochs an interrupted run had done, or None if there is no such run or it had not begun."""
    if not checkpoint.is_file():
        return None
    content = read_checkpoint(checkpoint)
    epoch, begun = content.get("epoch"), content.get("kind") == "train" and content.get("iteration")
    return epoch if begun and isinstance(epoch, int) and not was_finished(checkpoint, epoch) else None


def reject_finished_run(checkpoint: Path, epoch: Any, epochs: int, typed: Collection[str]) -> None:
    """Raise UserError if a run of `epochs` epochs has nothing left to do after `epoch` of them."""
    if not isinstance(epoch, int) or epoch < epochs:
        return
    if was_finished(checkpoint, epoch):
        raise UserError(f"{checkpoint}: all {epoch} epochs are done; add --epochs {2 * epoch} to continue")
    if epoch > epochs and "epochs" in typed:
        raise UserError(
            f"--resume {checkpoint} --epochs {epochs}: {epoch} epochs are done already, and --epochs "
            f"counts from the first: --epochs {epoch + epochs}, for instance"
        )


def rescale_step(step: int, epoch: int, before: Any, now: int) -> tuple[int, int]:
    """Return step within the epoch and iteration of the run, if an epoch has `now` steps instead of `before`."""
    if isinstance(before, int) and before >= 1 and before != now:
        step = min(round(step / before * now), now)
    return step, epoch * now + step
