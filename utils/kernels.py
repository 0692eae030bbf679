"""Speed tricks of the recipe, each beside a plain twin: the function of the same name that ends in `_reference`.

Callers use the functions without that ending. Those take the twins if the environment variable ANCHORAGE_PLAIN is 1.
A test compares each pair.
Letters in shapes: B batch, A anchors per level, H W rows and columns, C classes or channels, R rows. A row is a pair of
a target and an anchor in one cell.
"""

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.multiprocessing import reductions
from torch.nn import functional as F

from utils.environment import plain_twins_requested
from utils.fused_sgd import FusedSGD

FAST = not plain_twins_requested()  # False: every function below is its plain twin


# ---- the loss --------------------------------------------------------------------------------------------------------


def gather_predictions(
    prediction: Tensor, image: Tensor, anchor: Tensor, row: Tensor, column: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the rows (R, 5+C) of predictions (B, A, H, W, 5+C) at four indices (R,), and all objectness logits.

    The logits are (B, A, H, W), as a copy of their own.
    """
    if FAST:
        return GatherPredictions.apply(prediction, image, anchor, row, column)
    return gather_predictions_reference(prediction, image, anchor, row, column)


def gather_predictions_reference(
    prediction: Tensor, image: Tensor, anchor: Tensor, row: Tensor, column: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the same by two index operations."""
    return prediction[image, anchor, row, column], prediction[..., 4]


class _GatherContext(FunctionCtx):
    layout: Tensor  # on the device `meta`: shape, type and strides of the predictions
    saved_tensors: tuple[Tensor, ...]


class GatherPredictions(torch.autograd.Function):
    """Both parts of `gather_predictions` with a single gradient tensor.

    Each of the two index operations would make a gradient of the size of the predictions, nearly all zeros. Filling
    and adding these took most of the time of the whole loss. This gradient has the strides of the predictions, so the
    head's convolution uses it without a copy.
    """

    @staticmethod
    def forward(ctx: _GatherContext, prediction: Tensor, *cells: Tensor) -> tuple[Tensor, Tensor]:
        ctx.layout = torch.empty_like(prediction, device="meta")
        ctx.save_for_backward(*cells)
        return prediction[cells], prediction[..., 4].clone(memory_format=torch.contiguous_format)

    @staticmethod
    def backward(ctx: _GatherContext, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, objectness = gradients
        gradient = torch.zeros_like(ctx.layout, device=objectness.device)
        gradient[..., 4] = objectness
        image, anchor, row, column = ctx.saved_tensors
        # The memory order of a channels-last convolution. A GPU would copy a tensor that is not contiguous.
        target, cells = gradient.permute(0, 2, 3, 1, 4), [image, row, column, anchor]
        if not target.is_contiguous():
            target, cells = gradient, [image, anchor, row, column]
        # As index_put_, but unsafe: it skips the check of the indices, which is about 70 kernels a step on a GPU.
        torch.ops.aten._index_put_impl_(target, cells, rows, accumulate=True, unsafe=True)
        return gradient, None, None, None, None


def scatter_last(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Return zeros (size,) with each of `values` (R,) at its `index` (R,).

    The last of several values at one index wins. Their positions decide, not the order of writes, so every device gives
    the same answer.
    """
    if not FAST:
        return scatter_last_reference(values, index, size)
    position = torch.arange(len(index), device=index.device)
    winner = torch.full((size,), -1, device=index.device)
    winner.scatter_reduce_(0, index, position, "amax")
    return torch.cat((values, values.new_zeros(1)))[winner]  # -1 is the zero at the end


def scatter_last_reference(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Return the same by a dict of each index's last position."""
    last = {place: position for position, place in enumerate(index.tolist())}
    target = values.new_zeros(size)
    target[list(last)] = values[list(last.values())]
    return target


def to_device(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Move tensors, all on one device, to another without a sync.

    Tensors of one type are copied together, from pinned memory to a GPU.
    """
    if not FAST or all(tensor.device == device for tensor in tensors):
        return to_device_reference(tensors, device)
    moved: dict[int, Tensor] = {}
    for dtype in {tensor.dtype for tensor in tensors}:
        places = [place for place, tensor in enumerate(tensors) if tensor.dtype is dtype]
        block = torch.cat([tensors[place].flatten() for place in places])
        block = (block.pin_memory() if device.type == "cuda" else block).to(device, non_blocking=True)
        for place, part in zip(places, block.split([tensors[place].numel() for place in places]), strict=True):
            moved[place] = part.view(tensors[place].shape)
    return [moved[place] for place in range(len(tensors))]


def to_device_reference(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Move the same, one copy per tensor."""
    return [tensor.to(device) for tensor in tensors]


# ---- the blocks ------------------------------------------------------------------------------------------------------


def silu(x: Tensor) -> Tensor:
    """Return x sigmoid(x). Without gradients x is overwritten; with them PyTorch would copy x first."""
    return F.silu(x, inplace=FAST and not torch.is_grad_enabled())


def concat_channels(maps: Sequence[Tensor]) -> Tensor:
    """Return feature maps (B, C, H, W) joined along their channels."""
    if FAST and maps[0].device.type == "cpu" and torch.is_grad_enabled() and not torch.jit.is_tracing():
        return ConcatChannels.apply(*maps)
    return concat_channels_reference(maps)


def concat_channels_reference(maps: Sequence[Tensor]) -> Tensor:
    """Return the same by torch.cat."""
    return torch.cat(tuple(maps), dim=1)


class _ConcatContext(FunctionCtx):
    widths: list[int]  # channels of each map
    needs_input_grad: tuple[bool, ...]


class ConcatChannels(torch.autograd.Function):
    """Concatenation along channels whose gradients are contiguous maps, not slices of the channels of a wider one.

    On a CPU, operations on slices of up to 32 channels take eight times as long.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(*maps: Tensor) -> Tensor:
        return torch.cat(maps, dim=1)

    @staticmethod
    def setup_context(ctx: _ConcatContext, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.widths = [part.shape[1] for part in inputs]

    @staticmethod
    def backward(ctx: _ConcatContext, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        parts = gradient.split(ctx.widths, dim=1)
        if not gradient.is_contiguous(memory_format=torch.channels_last):
            return parts
        return tuple(
            part.contiguous(memory_format=torch.channels_last) if needed else None
            for part, needed in zip(parts, ctx.needs_input_grad, strict=True)
        )

    @staticmethod
    def jvp(ctx: _ConcatContext, *grad_inputs: Tensor) -> Tensor:
        return torch.cat(grad_inputs, dim=1)


# ---- the optimizer step ----------------------------------------------------------------------------------------------


def fused_setting(parameters: Iterable[Tensor]) -> dict[str, bool]:
    """Return the optimizer argument for one kernel over all tensors, empty where PyTorch has none.

    A loop over 180 tensors costs several times as much. The twin is an optimizer without the argument.
    """
    devices = {parameter.device.type for parameter in parameters}
    return {"fused": True} if FAST and len(devices) == 1 and devices <= {"cpu", "cuda"} else {}


def build_sgd(
    groups: list[dict[str, Any]],
    *,
    lr: float,
    momentum: float,
    kinds: tuple[type[FusedSGD], type[torch.optim.SGD]] = (FusedSGD, torch.optim.SGD),
) -> torch.optim.SGD:
    """Return SGD with Nesterov momentum over groups of parameters (`params`). `kinds` are the fast one and its twin."""
    parameters = [parameter for group in groups for parameter in group["params"]]
    fused = fused_setting(parameters)
    kind = kinds[0] if fused and len({parameter.dtype for parameter in parameters}) == 1 else kinds[1]
    return kind(groups, lr=lr, momentum=momentum, nesterov=True, **fused)


def can_skip_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether the optimizer's kernel reads by itself whether to skip a step. RMSProp has no such kernel."""
    return FAST and bool(optimizer.defaults.get("fused"))


def step_unless_skipped(optimizer: torch.optim.Optimizer, allowed: Tensor) -> None:
    """Take a step if `allowed` (0-dim bool on the device), without a sync. The twin is an `if`.

    The kernels read two attributes of the optimizer, which GradScaler sets for them.
    """
    attributes = {"grad_scale": None, "found_inf": (~allowed).float()}
    vars(optimizer).update(attributes)
    try:
        optimizer.step()
    finally:
        for name in attributes:
            delattr(optimizer, name)


# ---- batch statistics ------------------------------------------------------------------------------------------------


def decides_on_device(tensor: Tensor) -> bool:
    """Return whether decisions about the tensor stay on its device, a GPU, where reading one would be a sync."""
    return FAST and tensor.is_cuda


def copy_tensors(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copy each source into its target, in one kernel for all of them. At least one is needed."""
    if FAST:
        torch._foreach_copy_(targets, sources)
    else:
        copy_tensors_reference(targets, sources)


def copy_tensors_reference(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copy each source into its target."""
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


# ---- the moving average ----------------------------------------------------------------------------------------------

Slot = tuple[dict[str, Any], str]  # a module's table of parameters or buffers, and a name in it


def interpolate_state_reference(target: nn.Module, source: nn.Module, share: float | Tensor) -> None:
    """Move each floating-point entry of target's state_dict by `share` of the way to source's, shared ones once."""
    own, other = target.state_dict(keep_vars=True), source.state_dict(keep_vars=True)
    assert own.keys() == other.keys(), "the models differ in layout"
    pairs = {id(mine): (mine, other[name]) for name, mine in own.items()}
    for mine, theirs in pairs.values():
        if mine.is_floating_point():
            mine.lerp_(theirs.to(mine), float(share))


class StateInterpolator:
    """`interpolate_state_reference` in a few kernels for all tensors, with the lists of tensors found once."""

    def __init__(self, target: nn.Module):
        self.target = target
        self._own = _float_slots(target)
        self._source: nn.Module | None = None
        self._theirs: list[Slot] = []
        self._matching: list[Tensor] = []  # tensors of both models, found to have the same types and devices

    def move(self, source: nn.Module, share: float | Tensor) -> None:
        """Move the target by `share`. A 0-dim tensor on the device needs no sync."""
        if not FAST:
            interpolate_state_reference(self.target, source, share)
            return
        own, theirs = self._tensors(source)
        if isinstance(share, Tensor):
            steps = torch._foreach_sub(theirs, own)
            torch._foreach_mul_(steps, share.float())
            torch._foreach_add_(own, steps)
        else:
            torch._foreach_lerp_(own, theirs, share)

    def _tensors(self, source: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        """Return the tensors of the target, and those of the source in the same types and on the same devices."""
        if source is not self._source:
            self._source, self._theirs = source, _float_slots(source)
            assert [name for _, name in self._theirs] == [name for _, name in self._own], "the models differ in layout"
        own = [table[name] for table, name in self._own]
        theirs = [table[name] for table, name in self._theirs]
        known = len(self._matching) == 2 * len(own) and all(map(operator.is_, own + theirs, self._matching))
        if not known or not _match(theirs[0], own[0]):  # Module.to changes the type within the same parameters
            self._matching = own + theirs if all(map(_match, theirs, own)) else []
            theirs = [their.to(device=mine.device, dtype=mine.dtype) for their, mine in zip(theirs, own, strict=True)]
        return own, theirs


def _float_slots(model: nn.Module) -> list[Slot]:
    """Return the slots of the floating-point entries of the state_dict, each tensor once.

    Slots and not tensors: a buffer may be replaced (new anchors, a change of device) between two calls.
    """
    slots: list[Slot] = []
    seen = set()
    for module in model.modules():
        persistent = {k: v for k, v in module._buffers.items() if k not in module._non_persistent_buffers_set}
        for table, names in ((module._parameters, module._parameters), (module._buffers, persistent)):
            for name in names:
                tensor = table[name]
                if tensor is not None and tensor.is_floating_point() and id(tensor) not in seen:
                    seen.add(id(tensor))
                    slots.append((table, name))
    return slots


def _match(tensor: Tensor, other: Tensor) -> bool:
    return tensor.dtype is other.dtype and tensor.device == other.device


# ---- data workers ----------------------------------------------------------------------------------------------------


def free_shared_cache() -> None:
    """Drop PyTorch's records of shared memory that this process has passed on. The twin does nothing.

    PyTorch drops them only when there are 128. Until then they lie between large arrays on the heap, which grows with
    each batch as no freed block is large enough.
    """
    cache = getattr(reductions, "shared_cache", None)
    free = getattr(cache, "free_dead_references", None)
    if FAST and cache is not None and free is not None:  # private names: without them, memory grows a little longer
        with cache.lock:
            free()
