"""The state that a training begins with, fresh or taken over from the run that it goes on with, and goes back to."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils.checkpoint import snapshot
from utils.config import Hyperparameters, TrainOptions
from utils.ema import ModelEMA
from utils.errors import UserError
from utils.optim import build_optimizer, scaled_weight_decay
from utils.schedule import EarlyStopping, accumulation
from utils.training.nan_guard import PATIENCE, SEARCHING_PATIENCE, NanGuard
from utils.training.reproducibility import report_differences
from utils.training.resume import HARMLESS, read_start, was_finished
from utils.training.run_state import TrainState
from utils.training.startup import Request


def build_state(
    model: nn.Module, options: TrainOptions, hyp: Hyperparameters, autocast: torch.dtype | None, resumed: dict | None
) -> TrainState:
    """Optimizer, EMA, scaler and early stop around `model`, as the checkpoint `resumed` left them if there is one."""
    accumulate = accumulation(options.batch_size, options.nbs)
    decay = scaled_weight_decay(hyp.weight_decay, options.batch_size, accumulate, options.nbs)
    optimizer = build_optimizer(model, options.optimizer, hyp.lr0, hyp.momentum, decay)
    if options.optimizer != "SGD" and hyp.lr0 >= 0.01:
        print(f"WARNING --optimizer {options.optimizer} with lr0 {hyp.lr0}: 0.001 is usual; set lr0 in the --hyp file")
    decays = [group["weight_decay"] for group in optimizer.param_groups]
    scaler = torch.amp.GradScaler(next(model.parameters()).device.type, enabled=autocast == torch.float16)
    guard = NanGuard(model, SEARCHING_PATIENCE if scaler.is_enabled() else PATIENCE)
    state = TrainState(
        model,
        ema=ModelEMA(model),
        optimizer=optimizer,
        scaler=scaler,
        guard=guard,
        stopper=EarlyStopping(options.patience),
    )
    state.class_maps = [0.0] * model.num_classes
    if resumed:
        state.load_state_dict(fitting_state(resumed, options, optimizer, scaler))
        for group, decay in zip(optimizer.param_groups, decays):  # options may have changed it
            group["weight_decay"] = decay
    return state


def fitting_state(
    resumed: dict, options: TrainOptions, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> dict:
    """`resumed` without the parts that mean nothing to another optimizer, or to a precision without a scaler."""
    fresh = {}
    if resumed["options"].get("optimizer") != options.optimizer:
        fresh["optimizer"] = optimizer.state_dict()
    if bool(resumed.get("scaler")) != scaler.is_enabled():
        fresh["scaler"] = scaler.state_dict()
    return {**resumed, **fresh}


def begin_again(state: TrainState, request: Request, options: TrainOptions, around: dict[str, Any]) -> dict | None:
    """Say what is another than before; returns the state at the start of the present epoch, where that was kept.

    Raises UserError for a run that is over.
    """
    checkpoint = Path(options.resume)
    report_differences(request.resumed.get("surroundings"), around)
    if is_over(state, options) and request.folder is None and was_finished(checkpoint, state.epoch):
        raise UserError(f"{checkpoint}: stopped early after {state.epoch} epochs; add --patience to go on")
    start = read_start(checkpoint, request.resumed)
    return start if start and is_same_run(start, state, request, options, around) else None


def is_same_run(
    start: dict, state: TrainState, request: Request, options: TrainOptions, around: dict[str, Any]
) -> bool:
    """Whether the run goes on as it was begun: else its state at the epoch's start does not fit what it is now."""
    before = TrainOptions.from_dict(request.resumed["options"]).to_dict()
    changed = {key for key, value in options.to_dict().items() if before[key] != value} - HARMLESS - {"resume"}
    return (
        not changed
        and "hyp" not in request.typed
        and steps_before(request) == around["steps_per_epoch"]
        and bool(start.get("scaler")) == state.members["scaler"].is_enabled()
    )


def steps_before(request: Request) -> int | None:
    """Steps of an epoch in the run that is gone on with."""
    around = request.resumed.get("surroundings")
    return around.get("steps_per_epoch") if isinstance(around, dict) else None


def is_over(state: TrainState, options: TrainOptions) -> bool:
    """Whether all epochs are done, or fitness has stood still for long enough."""
    stopped = not options.noval and state.members["stopper"].is_over(state.epoch - 1)
    return state.epoch >= options.epochs or stopped


def go_back(run: Any, good: dict) -> None:
    """Return to the state at the epoch's start (or, if unknown, where the run was taken up), at a lower rate."""
    guard = run.guard
    if guard.exhausted:
        raise UserError(
            f"the loss is not finite, also after {guard.rollbacks} returns to a good state at lower rates; "
            "try a lower lr0 in the --hyp file, --amp off, and look for damaged labels or pictures"
        )
    counts = guard.state_dict()
    run.state.load_state_dict(snapshot(good))  # an optimizer goes on in the tensors that it is given
    guard.load_state_dict(counts)
    guard.mark_rollback()
    print(
        "WARNING the numbers went bad (NaN or infinity, several steps in a row): back to the state at the epoch's "
        f"start, learning rates x {guard.lr_factor}"
    )


def describe_weights(run: Any) -> dict[str, Any]:
    return {"model": {"state_dict": run.model.state_dict()}, "ema": run.ema.state_dict()}
