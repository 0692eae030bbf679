"""Going on with a run: which one, what changes by the flags typed, and what is no longer exact because of it."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from utils.checkpoint import ForeignCheckpoint, read_checkpoint
from utils.config import TrainOptions
from utils.errors import UserError

# Flags that leave the bytes of the weights alone. `epochs` is another run by intention, and the list says it.
HARMLESS = frozenset("data workers cache save_minutes save_period nosave noplots project name exist_ok".split())
PLACE = frozenset(("project", "name", "exist_ok"))  # of no effect where a run goes on in its own folder
FIXED = ("cfg", "weights")  # these made the model, which is in the checkpoint
START = "epoch-start.pt"  # beside last.pt while a run is within an epoch
HALF = "last-half.pt"  # beside last.pt when the run has ended


def find_run(resume: str | bool, project: str) -> Path:
    """The checkpoint to go on from: the named file or run folder, or the newest last.pt below `project`."""
    if resume is not True:
        path = Path(resume)
        checkpoint = path
        if path.is_dir():
            checkpoint = next(
                (file for file in (path / "weights" / "last.pt", path / "last.pt") if file.is_file()),
                path / "weights" / "last.pt",
            )
        if not checkpoint.is_file():
            raise UserError(f"--resume {resume}: no checkpoint {checkpoint}")
        return checkpoint
    candidates = list(Path(project).rglob("weights/last.pt"))
    if not candidates:
        raise UserError(f"--resume: no run with a checkpoint below {project}; name one: --resume {project}/exp")
    return max(candidates, key=lambda file: file.stat().st_mtime)


def run_folder(checkpoint: Path) -> Path | None:
    """The run folder that a checkpoint lies in; None for one that lies elsewhere."""
    checkpoint = checkpoint.resolve()
    return checkpoint.parents[1] if checkpoint.parent.name == "weights" else None


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The whole state of a run. UserError for a file of another kind, or one that lacks a part."""
    try:
        content = read_checkpoint(checkpoint)
    except ForeignCheckpoint as error:
        raise UserError(f"--resume {error}; of a run of YOLOv5 a new one can start: --weights {checkpoint}") from error
    if content.get("kind") == "weights":
        raise UserError(f"--resume {checkpoint}: holds weights only; resume from last.pt, or start with --weights")
    parts = [content.get(name) for name in ("options", "hyp", "model")]
    if not all(isinstance(part, dict) for part in parts) or not isinstance(parts[2].get("yaml"), dict):
        raise UserError(f"--resume {checkpoint}: not the state of a run; start anew with --weights {checkpoint}")
    return content


def changed_options(content: Mapping[str, Any], checkpoint: Path, given: Mapping[str, Any]) -> TrainOptions:
    """Options of the run with those `given` now in their place; each change is printed."""
    stored = TrainOptions.from_dict(content["options"], str(checkpoint))
    if folder := run_folder(checkpoint):
        aside = [f"--name {given['name']}"] if given.get("name", stored.name) not in (stored.name, folder.name) else []
        if not folder.is_relative_to(Path(given.get("project", folder)).resolve()):
            aside.append(f"--project {given['project']}")
        if aside:
            print(f"resume: {' and '.join(aside)} left aside: the run goes on in {folder}")
        given = {key: value for key, value in given.items() if key not in PLACE}
    changes = {key: value for key, value in given.items() if getattr(stored, key) != value}
    for key in FIXED:
        if key in changes:
            raise UserError(
                f"--resume goes on with the model of {checkpoint}: leave --{key} out, "
                f"or start a new run with --weights {checkpoint}"
            )
    for key, value in changes.items():
        print(f"resume: --{key.replace('_', '-')} {getattr(stored, key)} -> {value}")
    inexact = sorted(set(changes) - HARMLESS)
    if inexact:
        print(f"resume: from here on the run differs from one that never stopped ({', '.join(inexact)})")
    return stored.replace(**given, resume=str(checkpoint))


def read_start(checkpoint: Path, state: Mapping[str, Any]) -> dict[str, Any] | None:
    """The state at the start of the epoch that `state` is within, where it was kept beside the checkpoint."""
    try:
        start = read_checkpoint(checkpoint.with_name(START))
        return start if start["kind"] == "train" and start["epoch"] == state["epoch"] and state["step"] else None
    except (UserError, KeyError):
        return None


def was_finished(checkpoint: Path, epoch: int) -> bool:
    """Whether the run ended after `epoch` epochs with everything done that follows the last of them."""
    try:
        return read_checkpoint(checkpoint.with_name(HALF)).get("epoch") == epoch
    except UserError:
        return False


def unfinished(checkpoint: Path) -> int | None:
    """How many epochs a run had done when it was interrupted; None where there is none, or none that had begun."""
    if not checkpoint.is_file():
        return None
    content = read_checkpoint(checkpoint)
    epoch, begun = content.get("epoch"), content.get("kind") == "train" and content.get("iteration")
    return epoch if begun and not was_finished(checkpoint, epoch) else None


def refuse_if_done(checkpoint: Path, epoch: Any, epochs: int, typed: Collection[str]) -> None:
    """UserError where a run of so many `epochs` has nothing left to do after `epoch` of them."""
    if not isinstance(epoch, int) or epoch < epochs:
        return
    if was_finished(checkpoint, epoch):
        raise UserError(f"{checkpoint}: all {epoch} epochs are done; add --epochs {2 * epoch} to go on")
    if epoch > epochs and "epochs" in typed:
        raise UserError(
            f"--resume {checkpoint} --epochs {epochs}: {epoch} epochs are done already, and --epochs "
            f"counts from the first: --epochs {epoch + epochs}, for instance"
        )


def rescaled(step: int, epoch: int, before: Any, now: int) -> tuple[int, int]:
    """Step within the epoch and iteration in the run, when an epoch has `now` steps where it had `before`."""
    if not isinstance(before, int) or before < 1 or before == now:
        return step, epoch * now + step
    step = min(round(step / before * now), now)
    return step, epoch * now + step
