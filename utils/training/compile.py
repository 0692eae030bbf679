"""`--compile`: the model through torch.compile, where that proves faster on real batches."""

import copy
import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import nn

from utils.loading.dataset import Batch
from utils.loading.prefetch import prefetch
from utils.timing import now

SMALL_BATCH = 16  # up to here a GPU waits for the CPU to start its kernels: a recorded graph of them helps
WARM_UP = 3  # passes over the batches, the first of which compiles
ROUNDS = 5

BATCHES = 2  # that it is tried on

Learn = Callable[[Any, Batch], Any]  # forward and backward of a run's model over one batch


def compile_if_faster(run: Any, learn: Learn) -> Any:
    """The Run with its model compiled, if passes over its next batches are faster then; its state stays as it is."""
    if run.wrapped is not run.model:
        print("WARNING --compile has no effect over several GPUs or processes")
        return run
    run.train_loader.set_epoch(run.state.epoch)
    batches = list(islice(prefetch(run.train_loader, run.distributed.device), BATCHES))
    varying = run.options.multi_scale or run.options.rect
    compiled = compile_model(run.model, batch_size=len(batches[0].images), varying=varying)
    trial = replace(run, wrapped=compiled, loss=copy.copy(run.loss))  # the loss balances its levels as it goes
    trial.set_modes()

    def pass_over(model: nn.Module, batch: Batch) -> None:
        compiled.replayed = False  # unless it is called
        learn(replace(trial, wrapped=model), batch)

    chosen = choose_faster(run.model, compiled, pass_over, batches)
    if chosen is not compiled:
        compiled.discard()
    return replace(run, wrapped=chosen)


class Compiled(nn.Module):
    """`module` compiled for batches of so many pictures, itself for any other, as the last of an epoch often is.

    To compile for that one too would take longer than it ever saves. batch_size None: compiled for all. graphs: a GPU
    replays a recording, which writes gradients where the last replay did, also those that wait to be summed up: what
    comes out of it is copied.
    """

    def __init__(self, module: nn.Module, *, batch_size: int | None, graphs: bool) -> None:
        super().__init__()
        self.module, self.batch_size, self.replayed = module, batch_size, False
        self.compiled = torch.compile(
            module, mode="reduce-overhead" if graphs else None, dynamic=None if batch_size is None else False
        )
        parameters = [parameter for parameter in module.parameters() if graphs and parameter.requires_grad]
        self.hooks = [parameter.register_hook(self._copied) for parameter in parameters]

    def _copied(self, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.clone() if self.replayed else gradient

    def forward(self, images: torch.Tensor) -> Any:
        self.replayed = self.batch_size in (None, len(images))
        return self.compiled(images) if self.replayed else self.module(images)

    def discard(self) -> None:
        """Leave nothing of this at the module, nor in memory: torch.compile's own notes keep recordings alive."""
        for hook in self.hooks:
            hook.remove()
        self.compiled = self.module
        torch.compiler.reset()
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def compile_model(model: nn.Module, *, batch_size: int, varying: bool) -> Compiled:
    """`model` compiled; its weights, state and names stay those of `model`. varying: pictures of many sizes."""
    graphs = next(model.parameters()).device.type == "cuda" and batch_size <= SMALL_BATCH and not varying
    return Compiled(model, batch_size=None if varying else batch_size, graphs=graphs)


def choose_faster(model: nn.Module, compiled: nn.Module, learn: Learn, batches: Sequence[Any]) -> nn.Module:
    """`compiled` where `learn` takes less time with it than with `model`, else `model`; a line says so.

    Buffers are put back afterwards, and gradients dropped.
    """
    try:
        with restore_buffers(model):
            plain, fast = best_times_alternating(
                [lambda batch, side=side: learn(side, batch) for side in (model, compiled)],
                batches,
                next(model.parameters()).device,
            )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # no compiler, an operation that it does not know: all sorts of types
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
        print(f"--compile is left out: it fails here ({type(error).__name__}: {reason[:200]})")
        return model
    verdict = "used" if fast < plain else "left out"
    print(f"--compile is {verdict}: a pass takes {1000 * fast:.1f} ms with it, {1000 * plain:.1f} ms without")
    return compiled if fast < plain else model


@contextmanager
def restore_buffers(model: nn.Module) -> Iterator[None]:
    """Afterwards the buffers are those of before, and there are no gradients."""
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in kept:
                buffer.copy_(before)
        model.zero_grad(set_to_none=True)


def best_times_alternating(
    sides: Sequence[Callable[[Any], Any]], batches: Sequence[Any], device: torch.device
) -> list[float]:
    """Least time that each side takes for a batch, over rounds where all have their turn: other programs only add."""
    best = [float("inf")] * len(sides)
    for number in range(WARM_UP + ROUNDS):
        for k, side in enumerate(sides):
            start = now(device)
            for batch in batches:
                side(batch)
            if number >= WARM_UP:
                best[k] = min(best[k], (now(device) - start) / len(batches))
    return best
