"""A training step on the CPU with mixed precision, channels-last and fused updates, against the plain way.

    python benchmarks/step.py                      yolov5n and yolov5s, 640, batch 8
    python benchmarks/step.py --sizes n --imgsz 320 --batch 16

The baseline is the same model in float32 and contiguous format. It uses the project's loss; torch's optimizer and the
EMA are loops over the tensors. Both sides train on the same synthetic uint8 batch. Each side runs in a process of its
own, because train.py also changes how malloc keeps memory.
"""

import argparse
import copy
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.timing import InOwnProcess, Row, Timing, compare, print_rows, row
from models.yolo import DetectionModel
from utils.config import Hyperparameters
from utils.device import amp_dtype, tune_malloc
from utils.ema import ModelEMA
from utils.inference.preprocess import to_network_input
from utils.loss import DetectionLoss, scale_gains
from utils.optim import MuonSettings, build_optimizer

AT_LEAST = {"auto": "1.8 (with AVX512-BF16 or AMX)", "off": "1.1"}


def synthetic_batch(batch: int, imgsz: int, per_image: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (B, 3, S, S) uint8 images and (T, 6) targets of about the number and sizes in COCO."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, 3, imgsz, imgsz), dtype=np.uint8)
    T = batch * per_image
    wh = np.exp(rng.uniform(np.log(0.02), np.log(0.8), (T, 2)))
    xy = rng.uniform(wh / 2, 1 - wh / 2)
    columns = np.repeat(np.arange(batch), per_image)[:, None], rng.integers(0, 80, (T, 1)), xy, wh
    return torch.from_numpy(images), torch.from_numpy(np.concatenate(columns, 1).astype(np.float32))


def build_loss(model: DetectionModel, imgsz: int) -> DetectionLoss:
    gains = scale_gains(Hyperparameters(), len(model.stride), model.num_classes, imgsz)
    return DetectionLoss(model.head.anchors, model.stride, model.num_classes, gains)


def our_step(size: str, imgsz: int, batch: int, amp: str, optimizer_name: str = "SGD") -> Callable[[], None]:
    """Return a function that runs one step of train.py's loop: cast, forward, loss, backward, clip, update, EMA."""
    tune_malloc()
    images, targets = synthetic_batch(batch, imgsz)
    dtype = amp_dtype(amp, torch.device("cpu"))
    model = new_model(size).to(memory_format=torch.channels_last)
    muon = MuonSettings(coarse=dtype == torch.bfloat16) if optimizer_name == "Muon" else None
    loss, optimizer, ema = build_loss(model, imgsz), build_optimizer(model, optimizer_name, muon=muon), ModelEMA(model)

    def step() -> None:
        x = to_network_input(images, images.device, dtype)
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            predictions = model(x)
        loss(predictions, targets)[0].backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        ema.update(model)
        optimizer.zero_grad(set_to_none=True)

    return step


def plain_step(size: str, imgsz: int, batch: int) -> Callable[[], None]:
    """Return a function that runs the same step in float32 and contiguous format, with loops over the tensors."""
    images, targets = synthetic_batch(batch, imgsz)
    model = new_model(size)
    loss, average = build_loss(model, imgsz), copy.deepcopy(model).eval()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.937, nesterov=True, foreach=False, fused=False)

    def step() -> None:
        loss(model(images.float() / 255), targets)[0].backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0, foreach=False)
        optimizer.step()
        with torch.no_grad():
            theirs = model.state_dict()
            for name, mine in average.state_dict().items():
                if mine.is_floating_point():
                    mine.mul_(0.999).add_(theirs[name], alpha=0.001)
        optimizer.zero_grad()

    return step


def new_model(size: str) -> DetectionModel:
    torch.manual_seed(0)
    return DetectionModel(f"yolov5{size}.yaml").train()


def measure(size: str, imgsz: int, batch: int, amp: str, pairs: int) -> Row:
    sides = InOwnProcess(plain_step, size, imgsz, batch), InOwnProcess(our_step, size, imgsz, batch, amp)
    timing = compare_and_close(*sides, pairs=pairs)
    return row(f"training step, yolov5{size}, {imgsz}, batch {batch}, --amp {amp}", timing, at_least=AT_LEAST[amp])


def compare_and_close(baseline: InOwnProcess, ours: InOwnProcess, *, pairs: int) -> Timing:
    """Compare two steps, each in a process of its own, and end the processes."""
    timing = compare(baseline, ours, pairs=pairs)
    for side in (baseline, ours):
        side.close()
    return timing


def print_sizes(measure: Callable[..., Row], description: str, *, batch: int, pairs: int) -> None:
    """Measure each size of model and --amp in the command line, and print the rows.

    `batch` and `pairs` are the defaults of their flags.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--sizes", nargs="+", default=["n", "s"])
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--pairs", type=int, default=pairs)
    options = parser.parse_args()
    rows = [
        measure(size, options.imgsz, options.batch, amp, options.pairs)
        for size in options.sizes
        for amp in ("auto", "off")
    ]
    print_rows(rows, f"{torch.get_num_threads()} threads.")


if __name__ == "__main__":
    print_sizes(measure, __doc__.splitlines()[0], batch=8, pairs=7)
