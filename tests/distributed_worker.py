"""Program that tests start under torchrun: `torchrun --nproc_per_node N tests/distributed_worker.py JOB ...`."""

import errno
import os
import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train
from models.loading import load_model
from models.yolo import DetectionModel
from utils.config import Hyperparameters
from utils.datasets.labels import load_index
from utils.distributed import Distributed
from utils.errors import UserError
from utils.inference.evaluate import evaluate
from utils.loading.image_cache import ImageReader
from utils.loading.loader import LoadSettings, make_loader
from utils.loading.sampler import BatchSettings
from utils.loss import DetectionLoss, scale_gains
from utils.training import dry_run
from utils.training.ddp import warm_up_ddp_buckets

NUM_IMAGES = 5  # in each of the two batches that a step accumulates; not divisible by 2 or 3 processes


def keep_statistics() -> None:
    """Let batch normalisation use its running statistics in training too, for the rest of the process."""
    nn.BatchNorm2d.train = lambda self, mode=True: nn.Module.train(self, False)


def make_batch(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw five images. In batch 0 only the first two have targets, so the last of 2 or 3 processes has none."""
    generator = torch.Generator().manual_seed(number)
    images = torch.rand(NUM_IMAGES, 3, 64, 64, generator=generator)
    count = 9
    targets = torch.rand(count, 6, generator=generator)
    targets[:, 0] = torch.arange(count) % (NUM_IMAGES if number else 2)
    targets[:, 1] = torch.arange(count) % 3
    targets[:, 2:4] = targets[:, 2:4] * 0.8 + 0.1
    targets[:, 4:] = targets[:, 4:] * 0.5 + 0.1
    return images, targets


def share_of(
    rank: int, world_size: int, images: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the images of one process and their targets, whose image numbers count from 0."""
    numbers = torch.arange(len(images)).tensor_split(world_size)[rank]
    mine = targets[torch.isin(targets[:, 0], numbers)].clone()
    mine[:, 0] -= numbers[0]
    return images[numbers], mine


def gradients(group: Distributed, cfg: str, *, frozen: bool) -> dict[str, torch.Tensor]:
    """Return the gradients of two accumulated batches and the summed losses, with running batch statistics."""
    torch.manual_seed(0)
    model = DetectionModel(cfg, num_classes=3)
    if frozen:
        train.freeze_layers(model, [3])
    gains = scale_gains(Hyperparameters().to_dict(), 3, 3, 64)
    loss = DetectionLoss(
        model.head.anchors, model.stride, 3, gains, sum_over_processes=group.sum if group.world_size > 1 else None
    )
    wrapped = group.wrap(model, static_graph=not frozen)
    if group.world_size > 1:
        warm_up_ddp_buckets(wrapped, (3, 64, 64), group.device)
    wrapped.train()
    for number in range(2):
        images, targets = share_of(group.rank, group.world_size, *make_batch(number))
        with group.exchange_gradients(wrapped, now=number == 1):
            total, losses = loss(wrapped(images), targets)
            (total * group.world_size).backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {**found, "losses": group.sum(torch.stack(losses))}


def validation(group: Distributed, weights: str, images: str) -> dict[str, object]:
    """Return the metrics of all images in a folder. The last batch has fewer images than there are processes."""
    index = load_index(images, 2, cache=False, progress=False)
    loader = make_loader(
        index,
        imgsz=64,
        batch_size=7,
        batches=BatchSettings(rect=True, pad=0.5),
        loading=LoadSettings(workers=0),
        rank=group.rank,
        world_size=group.world_size,
    )
    model = load_model(weights)
    loss = DetectionLoss(model.head.anchors, model.stride, 2, scale_gains(Hyperparameters().to_dict(), 3, 2, 64))
    found = evaluate(model, loader, loss=loss, distributed=group)
    return {
        "metrics": [
            found.precision,
            found.recall,
            found.map50,
            found.map,
            *found.losses,
            found.images,
            found.instances,
        ],
        "ap": torch.from_numpy(found.per_class.ap),
        "confusion": torch.from_numpy(found.confusion.matrix),
    }


def measure(out: str, cfg: str, weights: str, images: str) -> None:
    """Write gradients and metrics to the file `out`, after a check that all processes have the same."""
    with Distributed.join().session() as group:
        keep_statistics()
        found = {
            "all": gradients(group, cfg, frozen=False),
            "frozen": gradients(group, cfg, frozen=True),
            "validation": validation(group, weights, images),
        }
        sums = group.gather([tensor.double().sum().item() for tensor in found["all"].values()])
        assert all(other == sums[0] for other in sums)
        if group.is_main:
            torch.save(found, out)


def fail(kind: str) -> None:
    """Cause a failure of some kind in the third batch of a training. `data` is noticed in the fourth."""
    rank = int(os.environ["RANK"])
    prepare, calls = train.prepare_images, []

    def prepare_or_fail(run, images):
        calls.append(1)
        images = prepare(run, images)
        if len(calls) == 3 and kind == "nan" and rank == 1:
            return images * float("nan")
        if len(calls) == 3 and kind == "error" and rank == 1:
            raise LookupError("what a bug raises")
        if len(calls) == 3 and kind == "disk" and rank == 0:
            raise OSError(errno.ENOSPC, "No space left on device", "results.csv")
        if len(calls) == 3 and kind == "data" and rank == 1:
            ImageReader._read_file = lose_image
        return images

    def lose_image(self, i, rows):
        raise UserError(f"{self.index.paths[i]}: gone")

    train.prepare_images = prepare_or_fail


if __name__ == "__main__":
    job, *words = sys.argv[1:]
    if job == "measure":
        measure(*words)
    else:
        if job == "keep":
            keep_statistics()
        elif job == "dry":  # no more steps than are needed
            dry_run.ENOUGH_SECONDS = 0.0
        else:
            fail(job)
        train.run_command(lambda: train.main(words))
