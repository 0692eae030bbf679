"""A model over several processes or GPUs."""

import torch
from torch import nn

from utils.config import TrainOptions
from utils.distributed import Distributed


def wrap_model(model: nn.Module, options: TrainOptions, distributed: Distributed, *, static: bool) -> nn.Module:
    """The model in its parallel wrapper. static: every parameter gets a gradient in every step."""
    several, on_gpu = distributed.world_size > 1, distributed.device.type == "cuda"
    if options.sync_bn and not (several and on_gpu):
        print("WARNING --sync-bn has no effect: it needs several processes with a GPU each (torchrun)")
    if options.sync_bn and several and on_gpu:
        synchronise_batch_norm(model)
    elif several:
        print(
            f"Batch statistics are those of each process's {options.batch_size // distributed.world_size} pictures"
            + ("; --sync-bn takes them over all" if on_gpu else "")
        )
    wrapped = distributed.wrap(model, static_graph=static)
    if several:
        warm_up_ddp_buckets(wrapped, smallest_size(model), distributed.device)
    return wrapped


def synchronise_batch_norm(model: nn.Module) -> None:
    """Let all batch norms below the top take their statistics over all processes, in place.

    A batch norm that is a layer of the model's YAML keeps what the model wrote on it (its place, where its input is).
    """
    before = dict(model.named_modules(remove_duplicate=False))
    nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for name, layer in model.named_modules(remove_duplicate=False):
        if layer is not before[name]:
            for key in vars(before[name]).keys() - vars(layer).keys():
                setattr(layer, key, getattr(before[name], key))


def smallest_size(model: nn.Module) -> int:
    """Side of a picture that is enough for a pass."""
    return 2 * max(int(model.stride.max()), 32)


def warm_up_ddp_buckets(wrapped: nn.Module, size: int, device: torch.device) -> None:
    """One pass forward and backward over nothing, which leaves no trace in the model.

    DistributedDataParallel arranges its buckets in the first pass, which must exchange gradients. Sums in another
    order round otherwise: after this every pass adds up alike, also the first one of a resumed run.
    """
    wrapped.eval()  # batch statistics stay as they are
    _, raw = wrapped(torch.zeros(1, 3, size, size, device=device))
    sum(level.sum() for level in raw).backward()
    wrapped.zero_grad(set_to_none=True)
