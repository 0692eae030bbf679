"""CPU threads of a training: chosen at the start by what other programs leave free, or again at each epoch."""

import torch

from utils.config import EACH_EPOCH, TrainOptions
from utils.console import info
from utils.distributed import Distributed
from utils.environment import processes_on_this_machine, threads_requested
from utils.machine import measure_free_threads
from utils.training.observer import Observer
from utils.training.run import Run


class Threads(Observer):
    """Number of threads that the model computes with.

    A number that is typed, or stored in a resumed run, counts first, then OMP_NUM_THREADS, then what is free. PyTorch's
    number stays on a GPU, if several processes share the machine, and for a checkpoint that stores none.
    """

    def __init__(self, options: TrainOptions, group: Distributed, *, resumed: bool):
        self.most = torch.get_num_threads()
        self.is_chosen = group.device.type == "cpu" and processes_on_this_machine() == 1
        if options.threads > 0 and (self.is_chosen or "threads" in options.typed):
            torch.set_num_threads(options.threads)
        elif options.threads == EACH_EPOCH:
            info("--threads auto chooses again at each epoch: no two runs are the same to the bit")
        elif not options.threads and self.is_chosen and not resumed and not threads_requested():
            self._choose()

    def _choose(self) -> None:
        """Set the number of threads by what is free now, and print it if it has changed."""
        threads = min(self.most, measure_free_threads())
        if threads != torch.get_num_threads():
            torch.set_num_threads(threads)
            info(f"{threads} of {self.most} threads: others use the processors too (--threads {self.most} takes all)")

    def on_epoch_start(self, run: Run) -> None:
        """Choose again with `--threads auto`."""
        if run.options.threads == EACH_EPOCH and self.is_chosen:
            self._choose()
            run.environment["threads"] = torch.get_num_threads()

    def close(self) -> None:
        """Set the number back, for what the process does next."""
        if torch.get_num_threads() != self.most:
            torch.set_num_threads(self.most)
