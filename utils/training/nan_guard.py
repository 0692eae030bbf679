"""NaN guard: keep non-finite losses and gradients out of the weights."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from utils.kernels import copy_tensors, decides_on_device

PATIENCE = 5  # consecutive non-finite steps before a rollback
SEARCHING_PATIENCE = 25  # the same while a GradScaler searches its scale: each halving costs a step
MAX_ROLLBACKS = 3
ROLLBACK_LR_FACTOR = 0.5  # of the learning rates at each rollback


class AsyncCount:
    """Value of a counter on the device, copied to the CPU without a sync."""

    def __init__(self, count: Tensor):
        self._copy = count.to("cpu", non_blocking=True, copy=True)
        self._copied = torch.cuda.current_stream(count.device).record_event() if count.is_cuda else None

    def read(self) -> int:
        """Return the value. On a GPU, wait until the copy has arrived."""
        if self._copied is not None:
            self._copied.synchronize()
        return int(self._copy)


class NonFiniteError(Exception):
    """Several consecutive optimizer steps, or the weights after them, were NaN or infinite."""


class NanGuard:
    """Decision for each optimizer step whether it is taken, and whether the run has to roll back.

    On a GPU the decision stays on the device (`is_async`): `allow_step` returns a tensor and `needs_rollback` lags one
    step. On a CPU both are immediate.

    Counts: `skipped` steps in all and `consecutive` ones, `rollbacks`, and `lr_factor`, by which rollbacks have lowered
    the learning rates. Reading the first two needs a sync.
    """

    def __init__(self, model: nn.Module, patience: int = PATIENCE, is_async: bool | None = None):
        self.patience, self.rollbacks, self.lr_factor = patience, 0, 1.0
        self._buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        self._good_statistics = self._read_statistics()
        self.is_async = decides_on_device(self._good_statistics) if is_async is None else is_async
        self._set_counts(0, 0)

    def _read_statistics(self) -> Tensor:
        """Return the batch statistics in one new row. So two kernels handle them, however many layers there are."""
        return torch.cat([buffer.flatten() for buffer in self._buffers])

    def _set_counts(self, skipped: int, consecutive: int) -> None:
        self._counts = torch.tensor([skipped, consecutive], device=self._good_statistics.device)
        self._seen = self._newest = AsyncCount(self._counts[1])

    @torch.no_grad()
    def allow_step(self, norm: Tensor) -> bool | Tensor:
        """Return True if a step with this gradient norm (0-dim) is taken, as a 0-dim tensor if `is_async`.

        If not, count it and restore the batch statistics of the last good step.
        """
        good = torch.isfinite(norm)
        self._good_statistics = torch.where(good, self._read_statistics(), self._good_statistics)
        parts = self._good_statistics.split([buffer.numel() for buffer in self._buffers])
        copy_tensors(self._buffers, [part.view_as(buffer) for part, buffer in zip(parts, self._buffers, strict=True)])
        self._counts += ~good
        self._counts[1] *= ~good
        previous, self._newest = self._newest, AsyncCount(self._counts[1])
        self._seen = previous if self.is_async else self._newest
        return good if self.is_async else bool(good)

    @property
    def needs_rollback(self) -> bool:
        """True after `patience` consecutive non-finite steps."""
        return self._seen.read() >= self.patience

    def sync(self) -> None:
        """Let `needs_rollback` wait for the last step, until the next one."""
        self._seen = self._newest

    @property
    def skipped(self) -> int:
        """Number of steps that were not taken."""
        return int(self._counts[0])

    @property
    def consecutive(self) -> int:
        """Number of steps that were not taken since the last good one."""
        return int(self._counts[1])

    def mark_rollback(self) -> None:
        """Count a rollback and lower the learning rates."""
        self._set_counts(self.skipped, 0)
        self.rollbacks += 1
        self.lr_factor *= ROLLBACK_LR_FACTOR

    @property
    def exhausted(self) -> bool:
        """True if another rollback is one too many."""
        return self.rollbacks >= MAX_ROLLBACKS

    def state_dict(self) -> dict[str, Any]:
        """Return the counts under the keys of the file format."""
        return {
            "skipped": self.skipped,
            "in_a_row": self.consecutive,
            "returns": self.rollbacks,
            "rate": self.lr_factor,
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the counts. The present batch statistics count as good."""
        self._set_counts(state["skipped"], state["in_a_row"])
        self.rollbacks, self.lr_factor = state["returns"], state["rate"]
        self._good_statistics = self._read_statistics()


def propagate_nan(total: Tensor) -> Tensor:
    """Return `total` with NaN gradients if it is not finite, so that its step shows it, on every rank.

    A factor does this. torch.where(finite, total, nan) would give the branch not chosen a gradient of 0 times NaN.
    """
    return total * torch.where(torch.isfinite(total.detach()), 1.0, float("nan"))
