"""Muon: SGD that replaces the gradients of convolution kernels by their orthogonalised momentum.

The method is that of K. Jordan et al. (Muon, 2024). A kernel's Nesterov momentum is a matrix D = U S V^T of outputs
by inputs. Its polar factor U V^T takes its place, so all directions of the matrix learn at one rate. Decoupled weight
decay and the scale follow Liu et al. (arXiv 2502.16982). Polar Express (Amsel et al., arXiv 2505.16932) approximates
the polar factor by odd polynomials of degree 5. Each is the best one for the range of the singular values before it.
Here they are five, for singular values from 0.002 of the Frobenius norm.

Letters in shapes: N kernels of one shape, O outputs, I inputs (of a group, in a grouped convolution). As a matrix, a
kernel has R = O rows and C = I * kh * kw columns.
"""

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from utils.fused_sgd import FusedSGD

KERNELS = "kernel"  # name of the group of parameters that is orthogonalised
MIN_OUTPUTS = 8
MARGIN = 1.01  # singular values are kept this factor below 1, so that rounding does not take them out of range
COEFFICIENTS = (  # of x, x^3 and x^5 in each step
    (8.4267878027688, -24.936134041638887, 18.49249286275303),
    (4.1116473867102314, -3.0591296365202307, 0.5749535461374841),
    (3.714569579346977, -2.7781246039612584, 0.5429390720491298),
    (2.7819504728217446, -2.074927177447773, 0.46350076019414077),
    (1.993145151756598, -1.3758135078444973, 0.38778703559875927),
)
STEPS = tuple((a / MARGIN, b / MARGIN**3, c / MARGIN**5) for a, b, c in COEFFICIENTS)


def find_kernels(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of `model` that Muon orthogonalises.

    These are kernels of convolutions with at least 8 outputs, except for those of the head (`model.head`).
    """
    head = getattr(model, "head", None)
    excluded = {id(parameter) for parameter in head.parameters()} if isinstance(head, nn.Module) else set()
    return [
        parameter
        for parameter in model.parameters()
        if parameter.ndim == 4 and len(parameter) >= MIN_OUTPUTS and id(parameter) not in excluded
    ]


def to_matrix(kernel: Tensor) -> Tensor:
    """Return a kernel (O, I, kh, kw) as a matrix (R, C). The columns are in the order of a channels-last kernel."""
    return kernel.permute(0, 2, 3, 1).flatten(1)


def to_kernel(matrix: Tensor, shape: torch.Size) -> Tensor:
    """Return the kernel of this shape that `to_matrix` made the matrix of."""
    inputs, height, width = shape[1:]
    return matrix.unflatten(1, (height, width, inputs)).permute(0, 3, 1, 2)


def polar_factor(matrix: Tensor) -> Tensor:
    """Return the polar factor of one matrix (R, C), at least in float32: the plain twin of `polar_factors`."""
    if len(matrix) > matrix.shape[1]:
        return polar_factor(matrix.mT).mT
    x = matrix if matrix.dtype == torch.float64 else matrix.float()
    x = x / (MARGIN * torch.linalg.matrix_norm(x) + 1e-7)
    for a, b, c in STEPS:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def polar_factors(matrices: Tensor, *, coarse: bool = False) -> Tensor:
    """Return the polar factors of matrices (N, R, C), at least in float32. Those of zeros are zeros.

    Singular values above 0.002 of the matrix's Frobenius norm end between 0.95 and 1.03. Smaller ones end lower.
    With `coarse`, products of large matrices are in bfloat16, and each entry is off by about 1 % of the largest.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return polar_factors(matrices.mT, coarse=coarse).mT
    x = matrices if matrices.dtype == torch.float64 else matrices.float()
    x = x / (MARGIN * torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True) + 1e-7)
    _, R, C = x.shape
    if coarse and (R >= 256 or (R >= 128 and C <= 2 * R)):  # smaller or longer ones gain nothing
        return _apply_steps(x.bfloat16()).float()
    return _apply_steps(x) if 2 * C < 3 * R else _apply_steps_to_gram(x)


def _apply_steps(x: Tensor) -> Tensor:
    """Apply the steps to x (N, R, C), R <= C, one after the other: 5 (R + 2 C) R^2 multiplications."""
    for a, b, c in STEPS:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _apply_steps_to_gram(x: Tensor) -> Tensor:
    """Apply the steps by products of R x R matrices: (17 R + 2 C) R^2 multiplications, fewer for long rows.

    Each step multiplies x by a polynomial P of its Gram matrix, which becomes P gram P. This needs float32: in
    bfloat16, rounding makes eigenvalues of nearly singular Gram matrices negative, and the steps then diverge.
    """
    gram, product = x @ x.mT, None
    for number, (a, b, c) in enumerate(STEPS, 1):
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal(dim1=1, dim2=2).add_(a)
        product = polynomial if product is None else polynomial @ product
        if number < len(STEPS):
            gram = polynomial @ (gram @ polynomial)
    assert product is not None
    return product @ x


def update_scale(shape: torch.Size) -> float:
    """Return the factor on the polar factor of a kernel (O, I, kh, kw): sqrt(R / C), at least 1."""
    return math.sqrt(max(1.0, shape[0] / math.prod(shape[1:])))


class Muon(torch.optim.SGD):
    """SGD, and Muon in the group named `kernel`, one kernel at a time as in the paper.

    That group's momentum `muon_momentum` averages gradients: M <- m M + (1 - m) G. Its orthogonalised Nesterov
    direction becomes the gradient of SGD without momentum, whose weight decay is thereby decoupled.
    """

    def __init__(self, *args: Any, **settings: Any):
        super().__init__(*args, **settings)
        self._step_supports_amp_scaling = False  # GradScaler.step must unscale: the momentum adds up gradients

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["name"] == KERNELS:
                kernels = [parameter for parameter in group["params"] if parameter.grad is not None]
                self._orthogonalize(kernels, group["muon_momentum"], coarse=group["coarse"])
        super().step()
        return loss

    def _orthogonalize(self, kernels: list[Tensor], momentum: float, *, coarse: bool) -> None:
        """Update the momentum of `kernels`, and replace their gradients. `coarse` ones are for the fast twin only."""
        skip = getattr(self, "found_inf", None)  # see utils.kernels.step_unless_skipped
        for kernel in kernels:
            gradient, average = kernel.grad, self._average(kernel)
            assert gradient is not None
            updated = average.lerp(gradient, 1 - momentum)
            direction = updated.lerp(gradient, 1 - momentum)
            average.copy_(updated if skip is None else torch.where(skip > 0, average, updated))
            gradient.copy_(update_scale(kernel.shape) * polar_factor(direction.flatten(1)).view(kernel.shape))

    def _average(self, kernel: Tensor) -> Tensor:
        """Return the momentum of a kernel, zeros at first."""
        state = self.state[kernel]
        if state.get("momentum_buffer") is None:
            state["momentum_buffer"] = torch.zeros_like(kernel)
        return state["momentum_buffer"]


class FusedMuon(Muon, FusedSGD):
    """Muon over batches of kernels of the same shape. All parameters have one type and one device."""

    def _orthogonalize(self, kernels: list[Tensor], momentum: float, *, coarse: bool) -> None:
        if not kernels:
            return
        gradients = [kernel.grad for kernel in kernels if kernel.grad is not None]
        averages = [self._average(kernel) for kernel in kernels]
        self._update_averages(averages, gradients, momentum)
        directions = torch._foreach_lerp(averages, gradients, 1 - momentum)
        by_shape: dict[torch.Size, list[int]] = defaultdict(list)
        for index, kernel in enumerate(kernels):
            by_shape[kernel.shape].append(index)
        for shape, indices in by_shape.items():
            matrices = torch.stack([to_matrix(directions[index]) for index in indices])  # (N, R, C)
            updates = polar_factors(matrices, coarse=coarse) * update_scale(shape)
            torch._foreach_copy_(
                [gradients[index] for index in indices], [to_kernel(update, shape) for update in updates]
            )

    def _update_averages(self, averages: list[Tensor], gradients: list[Tensor], momentum: float) -> None:
        """Move each average towards its gradient, in one kernel that skips a step by itself.

        It is a step of gradient descent on (average - gradient)^2 / 2 with the rate 1 - momentum.
        """
        torch._fused_sgd_(
            averages,
            gradients,
            [],
            weight_decay=1.0,
            momentum=0.0,
            lr=1 - momentum,
            dampening=0.0,
            nesterov=False,
            maximize=True,
            is_first_step=False,
            found_inf=getattr(self, "found_inf", None),
        )
