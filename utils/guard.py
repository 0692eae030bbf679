"""Numbers gone bad: a non-finite loss or gradient never reaches the weights."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

PATIENCE = 5  # bad steps in a row before the run goes back
SEARCHING_PATIENCE = 25  # while a GradScaler looks for its scale, each halving costs a step
MAX_RETURNS = 3
SLOWER = 0.5  # factor on the learning rates at each return


class Guard:
    """Decides for each optimizer step whether it may be taken, and when the run must go back to a good state.

    Counts live in the state: `skipped` steps in all, `in_a_row`, `returns` to a good state, and `rate`, the factor that
    returns have left on the learning rates.
    """

    def __init__(self, model: nn.Module, patience: int = PATIENCE):
        self.patience = patience
        self.skipped = self.in_a_row = self.returns = 0
        self.rate = 1.0
        self._buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        self._good = [buffer.clone() for buffer in self._buffers]

    @torch.no_grad()
    def admit(self, norm: Tensor) -> bool:
        """Whether a step with this gradient norm (0-dim) may be taken; if not, it is counted.

        Batch statistics that a bad batch has spoiled are put back to those of the last good step.
        """
        if bool(torch.isfinite(norm)):
            self.in_a_row = 0
            torch._foreach_copy_(self._good, self._buffers)
            return True
        self.skipped += 1
        self.in_a_row += 1
        torch._foreach_copy_(self._buffers, self._good)
        return False

    @property
    def must_return(self) -> bool:
        return self.in_a_row >= self.patience

    def note_return(self) -> None:
        """The run went back: from here on at a lower rate."""
        self.in_a_row = 0
        self.returns += 1
        self.rate *= SLOWER

    @property
    def exhausted(self) -> bool:
        return self.returns >= MAX_RETURNS

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "in_a_row": self.in_a_row, "returns": self.returns, "rate": self.rate}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the counts; the present batch statistics count as good."""
        self.skipped, self.in_a_row, self.returns = state["skipped"], state["in_a_row"], state["returns"]
        self.rate = state["rate"]
        torch._foreach_copy_(self._good, self._buffers)


def poison(total: Tensor) -> Tensor:
    """`total` with NaN gradients where it is not finite: so that its step, and with several processes everyone's, shows it.

    A factor and not a choice between two branches: the gradient of the branch not chosen would be 0 times NaN.
    """
    return total * torch.where(torch.isfinite(total.detach()), 1.0, float("nan"))
