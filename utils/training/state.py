"""Training state: build its members, restore them from a checkpoint."""

from pathlib import Path
from typing import Any

import torch

from utils.config import Hyperparameters, TrainOptions
from utils.console import warn
from utils.detector import Detector, as_module
from utils.ema import ModelEMA
from utils.errors import UserError
from utils.metrics import DEFAULT_FITNESS
from utils.optim import GROUP_SETTINGS, MuonSettings, build_optimizer, scaled_weight_decay
from utils.schedule import accumulation
from utils.training.nan_guard import PATIENCE, SEARCHING_PATIENCE, NanGuard
from utils.training.reproducibility import report_differences
from utils.training.resume import FLAGS_WITHOUT_EFFECT_ON_WEIGHTS, read_epoch_start, rescale_step, was_finished
from utils.training.run import Run
from utils.training.startup import Launch


def make_optimizer(
    model: Detector, options: TrainOptions, hyp: Hyperparameters, autocast: torch.dtype | None = None
) -> torch.optim.Optimizer:
    """Return the optimizer of a run, with weight decay scaled to the images of an optimizer step.

    Muon computes in bfloat16 where `autocast` does, since that is fast there. Raises UserError for Muon with an lr0 of
    0, since its rate follows that of the weights.
    """
    accumulate = accumulation(options.batch_size, options.nbs)
    decay, muon_decay = (
        scaled_weight_decay(value, options.batch_size, accumulate, options.nbs)
        for value in (hyp.weight_decay, hyp.muon_decay)
    )
    if options.optimizer == "Muon" and not hyp.lr0:
        raise UserError("lr0: 0: --optimizer Muon follows its schedule; give a small one, such as 1e-6")
    if options.optimizer in ("Adam", "AdamW") and hyp.lr0 >= 0.01:
        warn(f"--optimizer {options.optimizer} with lr0 {hyp.lr0}: 0.001 is usual; set lr0 in the --hyp file")
    muon = MuonSettings(hyp.muon_lr, hyp.muon_momentum, muon_decay, coarse=autocast == torch.bfloat16)
    body_factor = hyp.lr_body if options.weights else 1.0  # `weights` is empty in a run from scratch
    return build_optimizer(as_module(model), options.optimizer, hyp.lr0, hyp.momentum, decay, muon, body_factor)


def make_ema(model: Detector, hyp: Hyperparameters) -> ModelEMA:
    """Return the EMA of a run's weights, which starts as a copy of them."""
    return ModelEMA(as_module(model), hyp.ema_decay, hyp.ema_tau)


def make_nan_guard(model: Detector, scaler: torch.amp.GradScaler) -> NanGuard:
    """Return the NaN guard of a run. It tolerates more skipped steps while a GradScaler searches for its scale."""
    return NanGuard(as_module(model), SEARCHING_PATIENCE if scaler.is_enabled() else PATIENCE)


def restore(run: Run, launch: Launch) -> None:
    """Load the checkpoint of `launch` into `run`, and report what is no longer exact.

    Raises UserError if the checkpoint does not fit, or if early stopping has ended the run.
    """
    checkpoint = launch.checkpoint
    assert checkpoint is not None
    groups = run.optimizer.param_groups
    settings = [{key: group[key] for key in GROUP_SETTINGS if key in group} for group in groups]
    run.load_state_dict(fitting_state(checkpoint, run))
    for group, values in zip(run.optimizer.param_groups, settings):  # flags may have changed them
        group.update(values)
    run.epoch_start = run.distributed.on_main(lambda: check_resume(run, launch, checkpoint))
    progress, steps = run.progress, len(run.train_loader)
    before = previous_steps_per_epoch(checkpoint)
    progress.step, progress.iteration = rescale_step(progress.step, progress.epoch, before, steps)


def fitting_state(checkpoint: dict[str, Any], run: Run) -> dict[str, Any]:
    """Return `checkpoint` with fresh state for another optimizer, fitness, or precision with or without a scaler."""
    fresh: dict[str, Any] = {}
    if checkpoint["options"].get("optimizer") != run.options.optimizer:
        fresh["optimizer"] = run.optimizer.state_dict()
    if checkpoint["options"].get("fitness", DEFAULT_FITNESS) != run.options.fitness:  # the best so far is of another
        fresh |= {"stopper": run.early_stop.state_dict(), "best_fitness": run.progress.best_fitness}
    if bool(checkpoint.get("scaler")) != run.scaler.is_enabled():
        fresh["scaler"] = run.scaler.state_dict()
    return {**checkpoint, **fresh}


def check_resume(run: Run, launch: Launch, checkpoint: dict[str, Any]) -> dict[str, Any] | None:
    """Report what changed since the checkpoint. Return the state at the start of the epoch, if it was kept and fits.

    Raises UserError for a run that early stopping has ended.
    """
    file = Path(str(run.options.resume))
    report_differences(checkpoint.get("surroundings"), run.environment)
    if run.is_finished() and launch.folder is None and was_finished(file, run.progress.epoch):
        raise UserError(f"{file}: stopped early after {run.progress.epoch} epochs; add --patience to continue")
    start = read_epoch_start(file, checkpoint)
    return start if start and continues_unchanged(run, checkpoint, start) else None


def continues_unchanged(run: Run, checkpoint: dict[str, Any], start: dict[str, Any]) -> bool:
    """Return True if nothing is changed that makes the state at the start of the epoch unfit for the run."""
    before = TrainOptions.from_dict(checkpoint["options"]).to_dict()
    changed = {key for key, value in run.options.to_dict().items() if before[key] != value}
    return (
        changed <= FLAGS_WITHOUT_EFFECT_ON_WEIGHTS | {"resume"}
        and "hyp" not in run.options.typed
        and previous_steps_per_epoch(checkpoint) == run.environment["steps_per_epoch"]
        and bool(start.get("scaler")) == run.scaler.is_enabled()
    )


def previous_steps_per_epoch(checkpoint: dict[str, Any]) -> int | None:
    """Return the number of steps in an epoch before the run was resumed, or None if it is unknown."""
    environment = checkpoint.get("surroundings")
    return environment.get("steps_per_epoch") if isinstance(environment, dict) else None
