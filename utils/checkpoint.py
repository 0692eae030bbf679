"""What a checkpoint holds; write, read, strip.

A checkpoint is a dict of tensors, numbers, strings, lists and dicts: `torch.load(weights_only=True)` reads it where
this project cannot be imported. Two kinds: `train` (the full state of a run) and `weights` (a model for use, float16).
"""

import copy
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils.errors import UserError
from utils.files import atomic_write
from utils.runtime import rng_state, set_rng_state

SCHEMA = 1  # raise it when the layout changes, and add a function to UPGRADES that lifts the layout before
UPGRADES: dict[int, Any] = {}


class TrainState:
    """Everything a run must not lose. Members with a `state_dict` carry their own; the rest are plain values.

    epoch: epochs finished; iteration: batches finished over the whole run; best_fitness: of the EMA weights.
    """

    def __init__(self, model: nn.Module, ema: Any, optimizer: Any, scaler: Any, stopper: Any):
        self.members = {"ema": ema, "optimizer": optimizer, "scaler": scaler, "stopper": stopper}
        self.model = model
        self.epoch = 0
        self.iteration = 0
        self.best_fitness = -1.0
        self.class_maps: list[float] = []  # mAP by class of the last validation, for --image-weights

    def state_dict(self) -> dict[str, Any]:
        values = {"epoch": self.epoch, "iteration": self.iteration, "best_fitness": self.best_fitness,
                  "class_maps": self.class_maps, "rng": rng_state(), "model": describe_model(self.model)}
        return values | {name: member.state_dict() for name, member in self.members.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over `state` in place. Raises UserError when it belongs to another model."""
        try:
            self.model.load_state_dict(state["model"]["state_dict"])
            for name, member in self.members.items():
                member.load_state_dict(state[name])
        except (KeyError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"the checkpoint does not fit this run: {reason}; start anew with --weights") from error
        self.epoch, self.iteration = state["epoch"], state["iteration"]
        self.best_fitness, self.class_maps = state["best_fitness"], state["class_maps"]
        set_rng_state(state["rng"])


def describe_model(model: nn.Module) -> dict[str, Any]:
    """The model as plain types: its YAML, names and state."""
    return {"yaml": copy.deepcopy(model.yaml), "names": dict(model.names), "state_dict": model.state_dict()}


def write_checkpoint(path: str | Path, content: dict[str, Any], kind: str = "train") -> None:
    """Write `content` with schema and kind, atomically. Raises OSError (disk full, no right to write)."""
    with atomic_write(path) as file:
        torch.save({"anchorage": SCHEMA, "kind": kind, **content}, file)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The dict of one of our own checkpoints, on the CPU, upgraded to the present schema.

    Nothing in the file is executed. Raises UserError for anything that is not such a file.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, OSError, ValueError, KeyError,
            AttributeError, TypeError, IndexError) as error:
        raise UserError(f"{path}: not a whole checkpoint of this project") from error
    if not isinstance(content, dict) or not isinstance(content.get("anchorage"), int):
        raise UserError(f"{path}: not a checkpoint of this project")
    if content["anchorage"] > SCHEMA:
        raise UserError(f"{path}: written by a newer version (schema {content['anchorage']}); update this project")
    while content["anchorage"] < SCHEMA:
        content = UPGRADES[content["anchorage"]](content)
    return content


def strip_checkpoint(source: str | Path, target: str | Path) -> None:
    """Write the model of `source` for use: EMA weights in half precision, without the state of training."""
    content = read_checkpoint(source)
    model = content["model"]
    weights = content["ema"]["state_dict"] if "ema" in content else model["state_dict"]
    half = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    kept = {key: content[key] for key in ("epoch", "metrics", "options", "hyp") if key in content}
    write_checkpoint(target, {"model": {**model, "state_dict": half}, **kept}, kind="weights")
