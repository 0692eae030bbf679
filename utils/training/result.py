"""Result of a training, for programs that call it."""

from dataclasses import dataclass
from pathlib import Path

from utils.config import TrainOptions
from utils.metrics import Metrics
from utils.training.dry_run import DryRun


@dataclass(frozen=True)
class TrainResult:
    """A finished training, or a dry run of one."""

    options: TrainOptions  # as used, with the defaults filled in
    metrics: Metrics | None  # of the last validation; None after a dry run
    save_dir: Path | None  # run folder; None on ranks other than 0, and after a dry run
    dry_run: DryRun | None = None  # estimates of `--dry-run`

    @property
    def best(self) -> Path | None:
        """File of the best epoch's weights, None if there is none."""
        return self._weights("best.pt")

    @property
    def last(self) -> Path | None:
        """File of the last epoch's weights, None if there is none."""
        return self._weights("last.pt")

    def _weights(self, name: str) -> Path | None:
        file = None if self.save_dir is None else self.save_dir / "weights" / name
        return file if file is not None and file.is_file() else None
