"""`--compile`: torch.compile for a run's model, if that proves faster on real batches."""

import copy
import gc
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from utils import console
from utils.detector import as_module
from utils.loading.dataset import Batch
from utils.loading.prefetch import prefetch
from utils.timing import now
from utils.training.run import Run

SMALL_BATCH = 16  # up to this size a GPU waits for the CPU to launch kernels, and a CUDA graph helps
WARM_UP = 3  # passes over the batches before the measurement; the first one compiles
ROUNDS = 5
BATCHES = 2  # number of batches to measure on
MAX_REASON = 200  # characters of an error message

ForwardBackward = Callable[[Run, Batch], Any]


def compile_if_faster(run: Run, forward_backward: ForwardBackward) -> Run:
    """Return the Run with its model compiled if that makes passes over its next batches faster. Its state is kept."""
    if run.wrapped is not run.model:
        console.warn("--compile has no effect with several GPUs or processes. Omit it.")
        return run
    run.train_loader.set_epoch(run.progress.epoch)
    batches = list(islice(prefetch(run.train_loader, run.distributed.device), BATCHES))
    varying = run.options.multi_scale or run.options.rect or run.hyp.size_start < 1
    model = as_module(run.model)
    compiled = compile_model(model, batch_size=len(batches[0].images), varying=varying)
    trial = replace(run, wrapped=compiled, loss=copy.copy(run.loss))  # a copy, as the loss updates its level weights
    trial.train_mode()

    def pass_over(wrapped: nn.Module, batch: Batch) -> None:
        compiled.replayed = False  # set again if `compiled` is called
        forward_backward(replace(trial, wrapped=wrapped), batch)

    chosen = choose_faster(model, compiled, pass_over, batches)
    if chosen is not compiled:
        compiled.discard()
    return replace(run, wrapped=chosen)


class Compiled(nn.Module):
    """`module` compiled for batches of `batch_size` images, and uncompiled for other sizes.

    The last batch of an epoch is often smaller. Compiling for it takes longer than it ever saves.
    batch_size: None compiles for all sizes.
    graphs: a GPU replays a CUDA graph. Each replay writes gradients to the same memory, also if earlier ones are still
    to be accumulated, so hooks copy them.
    """

    def __init__(self, module: nn.Module, *, batch_size: int | None, graphs: bool) -> None:
        super().__init__()
        self.module, self.batch_size, self.replayed = module, batch_size, False
        self.compiled: Callable[[Tensor], Any] = torch.compile(
            module, mode="reduce-overhead" if graphs else None, dynamic=None if batch_size is None else False
        )
        parameters = [parameter for parameter in module.parameters() if graphs and parameter.requires_grad]
        self.hooks = [parameter.register_hook(self._copy_if_replayed) for parameter in parameters]

    def _copy_if_replayed(self, gradient: Tensor) -> Tensor:
        return gradient.clone() if self.replayed else gradient

    def forward(self, images: Tensor) -> Any:
        """Return what `module` returns for images (B, 3, H, W)."""
        self.replayed = self.batch_size in (None, len(images))
        return self.compiled(images) if self.replayed else self.module(images)

    def discard(self) -> None:
        """Remove the hooks, and free the CUDA graphs, which caches of torch.compile keep alive."""
        for hook in self.hooks:
            hook.remove()
        self.compiled = self.module
        torch.compiler.reset()
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def compile_model(model: nn.Module, *, batch_size: int, varying: bool) -> Compiled:
    """Return `model` compiled, with the same weights, state and names. varying: image sizes change between batches."""
    graphs = next(model.parameters()).device.type == "cuda" and batch_size <= SMALL_BATCH and not varying
    return Compiled(model, batch_size=None if varying else batch_size, graphs=graphs)


def choose_faster(
    model: nn.Module, compiled: nn.Module, pass_over: Callable[[nn.Module, Any], Any], batches: Sequence[Any]
) -> nn.Module:
    """Return `compiled` if `pass_over` takes less time with it than with `model`, else `model`. Print the times.

    Afterwards the buffers are restored, and gradients are None.
    """
    device = next(model.parameters()).device
    sides = [lambda batch, side=side: pass_over(side, batch) for side in (model, compiled)]
    try:
        with restore_buffers(model):
            plain, fast = best_times_alternating(sides, batches, device)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # no compiler, an unsupported operation: exceptions of many types
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
        console.info(f"--compile is ignored: it fails here ({type(error).__name__}: {reason[:MAX_REASON]})")
        return model
    verdict = "used" if fast < plain else "ignored"
    console.info(f"--compile is {verdict}: a pass takes {1000 * fast:.1f} ms with it, {1000 * plain:.1f} ms without")
    return compiled if fast < plain else model


@contextmanager
def restore_buffers(model: nn.Module) -> Generator[None]:
    """Restore the buffers of `model` at the end of the block, and drop its gradients."""
    saved = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in saved:
                buffer.copy_(before)
        model.zero_grad(set_to_none=True)


def best_times_alternating(
    sides: Sequence[Callable[[Any], Any]], batches: Sequence[Any], device: torch.device
) -> list[float]:
    """Return the best time per batch of each side in seconds, measured in alternation.

    The best, because other programs can only add to it.
    """
    best = [float("inf")] * len(sides)
    for number in range(WARM_UP + ROUNDS):
        for k, side in enumerate(sides):
            start = now(device)
            for batch in batches:
                side(batch)
            if number >= WARM_UP:
                best[k] = min(best[k], (now(device) - start) / len(batches))
    return best
