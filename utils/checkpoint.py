"""What a checkpoint holds; write, read, strip.

A checkpoint is a dict of tensors, numbers, strings, lists and dicts: `torch.load(weights_only=True)` reads it where
this project cannot be imported. Two kinds: `train` (the full state of a run) and `weights` (a model for use, float16).
"""

import copy
import itertools
import pickle
import struct
import sys
import zipfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils.errors import UserError
from utils.files import atomic_write, check_archive
from utils.runtime import rng_state, set_rng_state

SCHEMA = 1  # raise it when the layout changes, and add a function to UPGRADES that lifts the layout before
UPGRADES: dict[int, Any] = {}
PLAIN = (str, int, float, bool, type(None))  # besides tensors, dicts, lists and tuples


class TrainState:
    """Everything a run must not lose. Members with a `state_dict` carry their own; the rest are plain values.

    epoch: epochs finished; step: batches finished in the present epoch; iteration: in the whole run; means: of the
    present epoch's losses; best_fitness: of the EMA weights; class_maps: mAP by class of the last validation. The
    state is written between optimizer steps, when no gradient waits: so it holds none.

    `good` is not part of the state: a snapshot of it at the epoch's start, for a run whose numbers go bad.
    """

    def __init__(self, model: nn.Module, **members: Any):
        self.model, self.members = model, members
        self.epoch = self.step = self.iteration = 0
        self.means: list[float] | torch.Tensor = []  # (3,) on the device while training: reading it would wait
        self.best_fitness = -1.0
        self.class_maps: list[float] = []
        self.good: dict[str, Any] | None = None

    PLAIN = ("epoch", "step", "iteration", "means", "best_fitness", "class_maps")

    def state_dict(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in self.PLAIN}
        values |= {
            "means": torch.as_tensor(self.means).tolist(),
            "rng": rng_state(),
            "model": describe_model(self.model),
        }
        return values | {name: member.state_dict() for name, member in self.members.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over `state` in place. Raises UserError when it belongs to another model."""
        try:
            self.model.load_state_dict(state["model"]["state_dict"])
            for name, member in self.members.items():
                member.load_state_dict(state[name])
            self._check_plain(state)
            for name in self.PLAIN:
                setattr(self, name, copy.copy(state[name]))
            set_rng_state(state["rng"])
        except (LookupError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"the checkpoint does not fit this run: {reason}; start anew with --weights") from error

    def _check_plain(self, state: dict[str, Any]) -> None:
        """Raise ValueError where a plain value is of another kind than this state's."""
        lists = {"means": (0, 3), "class_maps": (0, len(self.class_maps or state["class_maps"]))}
        for name in ("epoch", "step", "iteration"):
            if type(state[name]) is not int or state[name] < 0:
                raise ValueError(f"{name} is not a count")
        for name, lengths in lists.items():
            value = state[name]
            if not isinstance(value, list) or len(value) not in lengths or not all(type(v) is float for v in value):
                raise ValueError(f"{name} is not a list of {lengths[-1]} numbers")
        if type(state["best_fitness"]) is not float:
            raise ValueError("best_fitness is not a number")


def describe_model(model: nn.Module) -> dict[str, Any]:
    """The model as plain types: its YAML, names and state."""
    return {"yaml": copy.deepcopy(model.yaml), "names": dict(model.names), "state_dict": model.state_dict()}


def snapshot(value: Any) -> Any:
    """A copy of nested dicts and lists with their tensors on the CPU, which later training does not change."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: snapshot(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(snapshot(entry) for entry in value)
    assert type(value) in PLAIN, f"a checkpoint of a {type(value)} could not be read again"
    return value


def is_finite(content: dict[str, Any]) -> bool:
    """Whether the weights and the EMA in a state hold neither NaN nor infinity."""
    parts = [content[name]["state_dict"] for name in ("model", "ema") if name in content]
    tensors = [value for part in parts for value in part.values() if value.is_floating_point()]
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def write_checkpoint(path: str | Path, content: dict[str, Any], kind: str = "train") -> None:
    """Write `content` with schema and kind, atomically. Raises OSError (disk full, no right to write)."""
    with atomic_write(path) as file:
        torch.save({"anchorage": SCHEMA, "kind": kind, **content}, file)


class CheckpointWriter:
    """Writes snapshots in a thread of its own, one after the other, so that training does not wait for the disk.

    A file that cannot be written (disk full, read-only folder) costs one warning: what was there before stays.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._waiting: list[Future] = []
        self._for_use: dict[Path, tuple[dict[str, Any], Future]] = {}
        self.unwritten: dict[Path, dict[str, Any]] = {}  # weights for use that still have to be; known after `wait`
        self._held: dict[Path, dict[str, Any]] = {}  # of `unwritten` those that were never tried
        self.failed = False  # whether anything handed over last could not be written; known after `wait`

    def submit(self, content: dict[str, Any], *, full: list[Path], stripped: list[Path]) -> None:
        """Write the weights of `content` for use to the files `stripped`, then the whole of it to `full`, in order.

        Weights for use that could not be written before are tried again: no later epoch may be as good. Non-finite
        weights are never written. At most one earlier snapshot is kept waiting in memory.
        """
        self.wait()
        if not is_finite(content):
            print("WARNING not saved: the weights hold NaN or infinity; the checkpoints before stay", file=sys.stderr)
            self.failed = True
            return
        self._held = {}
        for path in stripped:
            self.unwritten[path] = stripped_content(content)
        for path, weights in self.unwritten.items():
            self._for_use[path] = weights, self._thread.submit(_write, path, weights, "weights")
        self._waiting = [self._thread.submit(_write, path, content, "train") for path in full]

    def hold(self, content: dict[str, Any], stripped: list[Path]) -> None:
        """Weights for use that the next submission is to write."""
        self.wait()
        if is_finite(content):
            self._held = dict.fromkeys(stripped, snapshot(stripped_content(content)))
            self.unwritten |= self._held

    def wait(self) -> None:
        """Until everything handed over is on the disk, or has `failed`."""
        if self._waiting or self._for_use:
            written = all([task.result() for task in self._waiting])
            self.unwritten = {path: weights for path, (weights, task) in self._for_use.items() if not task.result()}
            self.failed = not written or bool(self.unwritten)
        self._waiting, self._for_use = [], {}

    def close(self) -> None:
        self.wait()
        for path, weights in self._held.items():  # the run has ended otherwise than by a save
            _write(path, weights, "weights")
        self._thread.shutdown()


def _write(path: Path, content: dict[str, Any], kind: str) -> bool:
    """Whether the file could be written; if not, a line says why."""
    try:
        write_checkpoint(path, content, kind)
        return True
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        reason = getattr(error.__context__ if isinstance(error.__context__, OSError) else error, "strerror", None)
        reason = reason or (str(error) or type(error).__name__).splitlines()[0]
        print(f"WARNING {path} could not be written: {reason}; the one before stays, training goes on", file=sys.stderr)
        return False


class NotOurs(UserError):
    """The file is damaged, or another program's."""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The dict of one of our own checkpoints, on the CPU, upgraded to the present schema.

    Nothing in the file is executed, and it cannot unfold to more than its size. Raises UserError for anything that is
    not such a file.
    """
    if not Path(path).exists():
        raise UserError(f"{path}: no such file")
    try:
        check_archive(path, contents=True)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGE as error:
        reason = f" ({error})" if isinstance(error, zipfile.BadZipFile) else ""
        raise NotOurs(f"{path}: not a whole checkpoint of this project{reason}") from error
    check_extent(content, path)
    if not isinstance(content, dict) or not isinstance(content.get("anchorage"), int):
        raise NotOurs(f"{path}: not a checkpoint of this project")
    if content["anchorage"] > SCHEMA:
        raise UserError(f"{path}: written by a newer version (schema {content['anchorage']}); update this project")
    while content["anchorage"] < SCHEMA:
        content = UPGRADES[content["anchorage"]](content)
    return content


DAMAGE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    struct.error,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    ArithmeticError,
    MemoryError,
)
MAX_PARTS = 1_000_000  # values in a checkpoint, counted as often as they are named


def check_extent(content: Any, path: str | Path) -> None:
    """Raise UserError where a part is named again and again, or a tensor is larger than what is stored of it."""
    visited, waiting = itertools.count(1), [content]
    while waiting:
        value = waiting.pop()
        if next(visited) > MAX_PARTS:
            raise UserError(f"{path}: refused: the file unfolds to many times its size")
        if isinstance(value, torch.Tensor):
            if value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise UserError(
                    f"{path}: refused: a tensor of shape {tuple(value.shape)} is larger than what is stored"
                )
        elif isinstance(value, dict):
            waiting += value.keys()
            waiting += value.values()
        elif isinstance(value, (list, tuple, set, frozenset)):
            waiting += value


def stripped_content(content: dict[str, Any]) -> dict[str, Any]:
    """The model of a training state for use: EMA weights in half precision, nothing that only training needs."""
    weights = content.get("ema", content["model"])["state_dict"]
    half = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    kept = {key: content[key] for key in ("epoch", "metrics", "options", "hyp") if key in content}
    return {"model": {**content["model"], "state_dict": half}, **kept}
