"""State of the process that a run changes: threads, generators, cuDNN's mode, the current GPU, how processes start."""

import multiprocessing
import random
from collections.abc import Generator
from contextlib import contextmanager

import cv2
import numpy as np
import torch

from utils.errors import Stopped


@contextmanager
def unchanged_process() -> Generator[None]:
    """Restore the state of the process at the end, for a caller that goes on. SystemExit becomes Stopped.

    Programs that end with their run need no such care.
    """
    cv2_threads, torch_threads = cv2.getNumThreads(), torch.get_num_threads()
    python, numpy, tensors = random.getstate(), np.random.get_state(), torch.get_rng_state()
    start_method = multiprocessing.get_start_method(
        allow_none=True
    )  # progress bars and data workers choose the default
    cudnn = torch.backends.cudnn
    mode = cudnn.deterministic, cudnn.benchmark
    gpus = (torch.cuda.current_device(), torch.cuda.get_rng_state_all()) if torch.cuda.is_initialized() else None
    try:
        yield
    except SystemExit as end:
        raise Stopped(f"the run was stopped (exit code {end.code}); the lines above say how to resume it") from None
    finally:
        multiprocessing.set_start_method(start_method, force=True)
        cv2.setNumThreads(cv2_threads)
        if torch.get_num_threads() != torch_threads:
            torch.set_num_threads(torch_threads)
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(tensors)
        cudnn.deterministic, cudnn.benchmark = mode
        if gpus is not None:
            torch.cuda.set_device(gpus[0])
            torch.cuda.set_rng_state_all(gpus[1])
