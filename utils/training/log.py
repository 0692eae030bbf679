"""What a training says and leaves behind: progress, results, checkpoints."""

import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from utils.cli import detect_command
from utils.loading.dataset import Batch
from utils.metrics import Metrics
from utils.schedule import Rates
from utils.training.progress_table import header, memory_used, progress_line
from utils.training.run_folder import RunFolder
from utils.training.signals import EXIT_CODE

PICTURED_BATCHES = 3  # training batches drawn into the run folder


class RunLog:
    """Progress, results and checkpoints of a run; on ranks other than 0 its twin is silent."""

    def __init__(self, run: Any, folder: RunFolder):
        self.run, self.folder, self.bar = run, folder, None
        self.started, self.first_epoch = time.monotonic(), run.state.epoch
        self.skipped = run.guard.skipped
        options, labels = run.options, run.data.train.labels
        begins = run.state.iteration == 0 and not options.score_only  # from here on there is something to resume
        if begins:
            folder.keep_interrupted_run()
        folder.describe(options.to_dict(), run.hyp.to_dict(), labels, run.data.names)
        amp = str(run.autocast).removeprefix("torch.") if run.autocast else "off"
        print(
            f"Image size {options.imgsz}, batch {options.batch_size}, {run.train_loader.readers}, "
            f"mixed precision {amp}\nLogging to {folder.path}\nTraining for {options.epochs} epochs..."
        )
        if begins:
            folder.forget_earlier_run()
            self.save(None)

    def start_epoch(self, epoch: int) -> None:
        print("\n" + header())
        self.bar = tqdm(
            total=len(self.run.train_loader),
            initial=self.run.state.step,
            mininterval=0.5,
            bar_format="{l_bar}{bar:10}{r_bar}",
        )

    def batch_done(self, step: int, batch: Batch, means: Tensor, size: int) -> None:
        state, last = self.run.state, step + 1 == len(self.run.train_loader)
        if self.bar.update() or last or step == 0:  # reading the losses waits for the device: only when they are shown
            line = progress_line(
                state.epoch,
                self.run.options.epochs,
                memory_used(means.device),
                means.tolist(),
                len(batch.targets),
                size,
            )
            self.bar.set_description_str(line, refresh=last)
        if state.iteration < PICTURED_BATCHES:
            self.folder.picture_batch(state.iteration, batch, self.run.data.names)
        if last:
            self.bar.close()

    def close(self) -> None:
        """The progress bar ends here, however far it is, so that a line of its own can follow."""
        if self.bar is not None:
            self.bar.close()

    def epoch_done(self, epoch: int, losses: list[float], metrics: Metrics | None, rates: Rates) -> None:
        scores = [0.0] * 4 if metrics is None else [metrics.precision, metrics.recall, metrics.map50, metrics.map]
        val_losses = [0.0] * 3 if metrics is None else list(metrics.losses)
        if self.run.guard.skipped > self.skipped:
            self.skipped = self.run.guard.skipped
            print(
                f"WARNING {self.skipped} optimizer steps so far were left out: loss or gradients were not finite"
                + (" (a few are usual while float16's scale is searched)" if self.run.scaler.is_enabled() else "")
            )
        self.folder.results.write(epoch, losses, scores, val_losses, [rates.lr_bias, rates.lr_weight, rates.lr_norm])

    def save(self, metrics: Metrics | None, improved: bool = False) -> None:
        run = self.run
        if not run.options.score_only:
            self.folder.save(
                self._content(metrics), start=run.state.good, best=improved, period=run.options.save_period
            )

    def hold_best(self, metrics: Metrics) -> None:
        """The best epoch so far, where only the last is to be saved: best.pt is this one all the same."""
        if not self.run.options.score_only:
            self.folder.hold_best(self._content(metrics))

    def _content(self, metrics: Metrics | None) -> dict[str, Any]:
        run = self.run
        return {
            **run.state.state_dict(),
            "options": {**run.options.to_dict(), "resume": False},
            "hyp": run.hyp.to_dict(),
            "surroundings": run.surroundings,
            "metrics": {} if metrics is None else {"map50": float(metrics.map50), "map": float(metrics.map)},
        }

    def training_over(self) -> Path:
        """best.pt, once everything is written."""
        hours = (time.monotonic() - self.started) / 3600
        self.folder.finish()
        print(
            f"\n{self.run.state.epoch - self.first_epoch} epochs completed in {hours:.3f} hours.\n"
            f"Validating {self.folder.best}..."
        )
        return self.folder.best

    def say_next(self) -> None:
        print(
            f"Results saved to {self.folder.path}\nNext: {detect_command([self.folder.best], [self.run.options.imgsz])}"
        )
        self.folder.mark_end(self.run.state.state_dict())


class SilentLog:
    """What ranks other than 0 have in place of a RunLog."""

    def __getattr__(self, name: str) -> Callable:
        return lambda *args, **named: None


def say_how_to_go_on(signal: str, folder: RunFolder) -> int:
    """Print how to go on after `signal`; returns the exit code."""
    saved = folder.is_saved()
    state = "the state is saved" if saved else "the state could NOT be saved, only that of an earlier save is there"
    print(f"\nInterrupted ({signal}), {state}. Go on with: python train.py --resume {shlex.quote(str(folder.path))}")
    return EXIT_CODE if saved else 1
