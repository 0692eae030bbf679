"""Console log of a training: messages, the progress bar of an epoch, what to type next."""

import shlex
import time
from collections.abc import Callable
from pathlib import Path

from utils import console
from utils.cli import detect_command
from utils.errors import UserError, one_line
from utils.image_size import describe_size
from utils.inference.nms_settings import VAL_NMS
from utils.training.observer import EpochReport, Observer, StepReport
from utils.training.progress_table import header, memory_used, progress_line
from utils.training.run import Run
from utils.training.signals import EXIT_CODE


class RunLog(Observer):
    """Log of a run on the console. `locate` returns the path of its folder, which may be renamed."""

    def __init__(self, locate: Callable[[], Path]):
        self.locate, self._started = locate, time.monotonic()
        self._first_epoch = self._skipped = 0  # of this part of the run
        self._bar: console.ProgressBar | None = None

    def on_start(self, run: Run) -> None:
        """Print the main settings."""
        self._first_epoch, self._skipped = run.progress.epoch, run.nan_guard.skipped
        amp = str(run.autocast).removeprefix("torch.") if run.autocast else "off"
        size, readers = describe_size(run.options.imgsz), run.train_loader.readers
        console.info(
            f"Image size {size}, batch {run.options.batch_size}, {readers}, mixed precision {amp}",
            f"Logging to {self.locate()}",
            f"Training for {run.options.epochs} epochs...",
        )
        VAL_NMS.with_room(run.data.val.most_labels, "an image of the validation split has")  # for its line

    def on_epoch_start(self, run: Run) -> None:
        """Print the column titles and open the progress bar."""
        self.close()
        console.info("", header())
        self._bar = console.progress_bar(
            total=len(run.train_loader), initial=run.progress.step, bar_format="{l_bar}{bar:10}{r_bar}"
        )

    def on_batch(self, run: Run, report: StepReport) -> None:
        """Advance the bar, or where none can be drawn, print one line at the end of the epoch."""
        bar, last = self._bar, report.step + 1 == len(run.train_loader)
        assert bar is not None, "on_epoch_start opens it"
        # Reading the losses forces a sync: only when they are shown.
        if bar.update() or last or report.step == 0:
            line = progress_line(
                run.progress.epoch,
                run.options.epochs,
                memory_used(report.means.device),
                report.means.tolist(),
                len(report.batch.targets),
                report.size,
            )
            bar.set_description_str(line, refresh=last)
        if last:
            self.close()

    def on_epoch(self, run: Run, report: EpochReport) -> None:
        """Warn of optimizer steps that were skipped since the last warning."""
        if run.nan_guard.skipped > self._skipped:
            self._skipped = run.nan_guard.skipped
            usual = "; a few are usual while float16's scale is searched" if run.scaler.is_enabled() else ""
            console.warn(f"skipped {self._skipped} optimizer steps so far (NaN or infinite loss or gradients){usual}.")

    def on_trained(self, run: Run) -> None:
        """Print how long the training took."""
        hours = (time.monotonic() - self._started) / 3600
        console.info("", f"{run.progress.epoch - self._first_epoch} epochs completed in {hours:.3f} hours.")

    def on_end(self, run: Run) -> None:
        """Print where the results are, and what to type next."""
        if run.options.score_only:
            return
        path = self.locate()
        command = detect_command([path / "weights" / "best.pt"], run.options.imgsz)
        if run.options.tile:
            command += f" --tile {run.options.tile} --tile-overlap {run.options.tile_overlap:g}"
        console.result(f"Results saved to {path}", f"Next: {command}")

    def close(self) -> None:
        """Close the progress bar, finished or not, so that a message can follow on a line of its own."""
        if self._bar is not None:
            self._bar.close()


def print_stop(reason: Exception, folder: Path | None, *, saved: bool) -> int:
    """Print why a run stopped and how to resume it in `folder`. Return the exit code.

    `reason` is Interrupted by a signal, or UnreadableData. Without a folder (`--score-only`) nothing can be resumed.
    """
    if folder is None:
        end, code = "--score-only saves no state", 1
    else:
        state = "the state is saved" if saved else "the state could NOT be saved, only that of an earlier save is there"
        command = f"python train.py --resume {shlex.quote(str(folder))}"
        end, code = f"{state}. Resume with: {command}", EXIT_CODE if saved else 1
    if isinstance(reason, UserError):
        console.error(f"error: {one_line(str(reason))}; {end}")
    else:
        console.result("", f"Interrupted ({reason}), {end}")
    return code
