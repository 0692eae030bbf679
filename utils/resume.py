"""Going on with a run: which one, what changes by the flags typed, and what is no longer exact because of it."""

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from utils.checkpoint import NotOurs, read_checkpoint
from utils.config import TrainOptions
from utils.errors import UserError
from utils.labels import LabelIndex
from utils.runtime import Distributed

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
    except NotOurs as error:
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


def fingerprint(*arrays: np.ndarray) -> str:
    text = hashlib.sha256()
    for array in arrays:
        text.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return text.hexdigest()[:16]


def name_contents(train: LabelIndex, validation: LabelIndex) -> dict[str, str]:
    """Names what is trained and measured on: sizes of the pictures in their order, and their labels. Not the pixels,
    which would all have to be read."""
    return {
        "data": fingerprint(train.shapes, train.labels, train.offsets),
        "polygons": fingerprint(train.points, train.segment_offsets),
        "validation": fingerprint(validation.shapes, validation.labels, validation.offsets),
    }


def surroundings(
    group: Distributed, contents: Mapping[str, str], precision: torch.dtype | None, steps_per_epoch: int
) -> dict[str, Any]:
    """All that the bytes of a run depend on besides its options and its state. precision: that of autocast, if any."""
    device = group.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "processes": group.world_size,
        "device": name,
        "torch": str(torch.__version__),
        **contents,
        "threads": torch.get_num_threads() if device.type == "cpu" else 0,
        "steps_per_epoch": steps_per_epoch,
        "precision": str(precision or torch.float32).removeprefix("torch."),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "opencv": cv2.__version__,
        "numpy": np.__version__,
    }


REASONS = {
    "processes": "the batches are the same, but sums are rounded in another order, batch statistics are of others' "
    "shares",
    "device": "other kernels round otherwise",
    "threads": "sums are rounded in another order; OMP_NUM_THREADS sets it",
    "torch": "another version may round otherwise",
    "data": "other pictures or labels than before: the order of the pictures is another one",
    "polygons": "other outlines than before",
    "validation": "other pictures or labels to measure on: another epoch may be the best",
    "precision": "what --amp auto means here",
    "cpu": "with other instructions sums are rounded in another order",
    "opencv": "another version may decode and resize otherwise",
    "numpy": "another version may draw and round otherwise",
}


def report_differences(before: Any, now: Mapping[str, Any]) -> None:
    """A line for everything around the run that is another than before, and therefore no longer exact.

    What an earlier version of this project did not note is taken to be as it was.
    """
    before = before if isinstance(before, dict) else {}
    for key, reason in REASONS.items():
        if key in before and before[key] != now[key]:
            print(f"resume: {key} {before[key]} -> {now[key]}: no longer exact to the bit ({reason})")


def rescaled(step: int, epoch: int, before: Any, now: int) -> tuple[int, int]:
    """Step within the epoch and iteration in the run, when an epoch has `now` steps where it had `before`."""
    if not isinstance(before, int) or before < 1 or before == now:
        return step, epoch * now + step
    step = min(round(step / before * now), now)
    return step, epoch * now + step
