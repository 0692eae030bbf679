"""Numbers gone bad: a non-finite loss or gradient never reaches the weights."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

PATIENCE = 5  # bad steps in a row before the run goes back
SEARCHING_PATIENCE = 25  # while a GradScaler looks for its scale, each halving costs a step
MAX_ROLLBACKS = 3
ROLLBACK_LR_FACTOR = 0.5  # factor on the learning rates at each return


class AsyncCount:
    """A count on the device as it is now, copied without waiting."""

    def __init__(self, count: Tensor):
        self._copy = count.to("cpu", non_blocking=True, copy=True)
        self._arrival = torch.cuda.current_stream(count.device).record_event() if count.is_cuda else None

    def read(self) -> int:
        """The count, once the device has got as far as it was when the copy was asked for."""
        if self._arrival is not None:
            self._arrival.synchronize()
        return int(self._copy)


class NanGuard:
    """Decides for each optimizer step whether it may be taken, and when the run must go back to a good state.

    The decision falls on the device of the model. `is_async`, as on a GPU, nobody waits for it there: `allow_step` returns a
    tensor, and `needs_rollback` speaks of the step before. Else both are known at once.

    Counts live in the state: `skipped` steps in all, `in_a_row`, `returns` to a good state, and `rate`, the factor that
    returns have left on the learning rates. Reading the first two waits for the device.
    """

    def __init__(self, model: nn.Module, patience: int = PATIENCE, is_async: bool | None = None):
        self.patience, self.rollbacks, self.lr_factor = patience, 0, 1.0
        self._buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        self._good = self._statistics()
        self.is_async = self._good.is_cuda if is_async is None else is_async
        self._counts = torch.zeros(2, dtype=torch.int64, device=self._good.device)  # skipped, in a row
        self._seen = self._newest = AsyncCount(self._counts[1])

    def _statistics(self) -> Tensor:
        """All of them in one new row: two kernels see to them, however many layers there are."""
        return torch.cat([buffer.flatten() for buffer in self._buffers])

    @torch.no_grad()
    def allow_step(self, norm: Tensor) -> bool | Tensor:
        """Whether a step with this gradient norm (0-dim) may be taken; if not, it is counted. 0-dim bool where `is_async`.

        Batch statistics that a bad batch has spoiled are put back to those of the last good step.
        """
        good = torch.isfinite(norm)
        self._good = torch.where(good, self._statistics(), self._good)
        parts = self._good.split([buffer.numel() for buffer in self._buffers])
        torch._foreach_copy_(self._buffers, [part.view_as(buffer) for part, buffer in zip(parts, self._buffers)])
        self._counts += ~good
        self._counts[1] *= ~good
        before, self._newest = self._newest, AsyncCount(self._counts[1])
        self._seen = before if self.is_async else self._newest
        return good if self.is_async else bool(good)

    @property
    def needs_rollback(self) -> bool:
        return self._seen.read() >= self.patience

    def sync(self) -> None:
        """From here until the next step `needs_rollback` speaks of the last one, and waits for it."""
        self._seen = self._newest

    @property
    def skipped(self) -> int:
        return int(self._counts[0])

    @property
    def consecutive(self) -> int:
        return int(self._counts[1])

    def mark_rollback(self) -> None:
        """The run went back: from here on at a lower rate."""
        self._count(self.skipped, 0)
        self.rollbacks += 1
        self.lr_factor *= ROLLBACK_LR_FACTOR

    def _count(self, skipped: int, in_a_row: int) -> None:
        self._counts = torch.tensor([skipped, in_a_row], device=self._counts.device)
        self._seen = self._newest = AsyncCount(self._counts[1])

    @property
    def exhausted(self) -> bool:
        return self.rollbacks >= MAX_ROLLBACKS

    def state_dict(self) -> dict[str, Any]:
        return {
            "skipped": self.skipped,
            "in_a_row": self.consecutive,
            "returns": self.rollbacks,
            "rate": self.lr_factor,
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the counts; the present batch statistics count as good."""
        self._count(state["skipped"], state["in_a_row"])
        self.rollbacks, self.lr_factor = state["returns"], state["rate"]
        self._good = self._statistics()


def propagate_nan(total: Tensor) -> Tensor:
    """`total` with NaN gradients where it is not finite, so that its step, with several processes everyone's, shows it.

    A factor and not a choice between two branches: the gradient of the branch not chosen would be 0 times NaN.
    """
    return total * torch.where(torch.isfinite(total.detach()), 1.0, float("nan"))
