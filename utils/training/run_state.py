"""Training state."""

import copy
from typing import Any

import torch
from torch import nn

from utils.checkpoint import describe_model
from utils.device import get_rng_state, set_rng_state
from utils.errors import UserError


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
            "rng": get_rng_state(),
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
