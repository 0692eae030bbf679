"""One training run: start-up, state, checkpoints, resume, run folder, log, NaN guard, signals, DDP."""
