"""A run's model over several processes or GPUs: the wrapper, synchronised batch norm, DDP's warm-up."""

import torch
from torch import Tensor, nn

from utils import console
from utils.config import TrainOptions
from utils.detector import Detector, as_module
from utils.distributed import Distributed


def wrap_model(model: Detector, options: TrainOptions, distributed: Distributed, *, static: bool) -> nn.Module:
    """Return the model in its parallel wrapper, or itself. static: every parameter gets a gradient in every step."""
    module, several = as_module(model), distributed.world_size > 1
    on_gpu = distributed.device.type == "cuda"
    if options.sync_bn and not (several and on_gpu):
        console.warn("--sync-bn has no effect with fewer than two processes on GPUs. Start with torchrun, or omit it.")
    if options.sync_bn and several and on_gpu:
        synchronise_batch_norm(module)
    elif several:
        per_process = options.batch_size // distributed.world_size
        advice = "; --sync-bn computes them over all processes" if on_gpu else ""
        console.info(f"Batch statistics are those of each process's {per_process} images{advice}")
    wrapped = distributed.wrap(module, static_graph=static)
    if several:
        side = smallest_size(model)
        warm_up_ddp_buckets(wrapped, (model.pixels.channels, side, side), distributed.device)
    return wrapped


def synchronise_batch_norm(model: nn.Module) -> None:
    """Let all batch norms inside `model` compute their statistics over all processes, in place.

    A batch norm that is a layer of the YAML keeps what the model wrote on it: its index and the layers that it reads.
    """
    before = dict(model.named_modules(remove_duplicate=False))
    nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for name, layer in model.named_modules(remove_duplicate=False):
        if layer is not before[name]:
            for key in vars(before[name]).keys() - vars(layer).keys():
                setattr(layer, key, getattr(before[name], key))


def smallest_size(model: Detector) -> int:
    """Return the side in pixels of an image that is large enough for a pass."""
    return 2 * max(int(model.stride.max()), 32)


def warm_up_ddp_buckets(wrapped: nn.Module, shape: tuple[int, int, int], device: torch.device) -> None:
    """Run one dummy step on an image of `shape` (C, H, W), so that DDP fixes its gradient buckets.

    The model is unchanged. DDP arranges its buckets in the first pass that exchanges gradients. Another arrangement
    sums in another order and rounds otherwise. After this, all passes sum in the same order, also the first one of a
    resumed run.
    """
    wrapped.eval()  # batch statistics stay as they are
    _, raw = wrapped(torch.zeros(1, *shape, device=device))
    total = sum(level.sum() for level in raw)
    assert isinstance(total, Tensor)  # there are levels
    total.backward()
    wrapped.zero_grad(set_to_none=True)
