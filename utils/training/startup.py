"""Start-up of a training in three stages: Launch (what was typed), Setup (made on rank 0), Run (see run.py).

Options are completed in one function, `complete_options`. Nothing replaces them afterwards.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from utils.autobatch import find_batch_size
from utils.config import Hyperparameters, TrainOptions
from utils.console import info
from utils.datasets.division import Division
from utils.datasets.splits import Splits
from utils.detector import Detector
from utils.device import select_device
from utils.distributed import Distributed
from utils.download import fetch_typed
from utils.errors import UserError
from utils.files import ROOT, increment_path, require_writable
from utils.image_size import ImageSize, round_size, to_option
from utils.images.tiles import Tiling
from utils.loading.sampler import steps_per_epoch
from utils.schedule import NOMINAL, largest_shape, nominal_batch
from utils.training.launch_record import find_restarted_run
from utils.training.resume import (
    edited_flags,
    find_checkpoint,
    read_run_state,
    reject_finished_run,
    resumed_options,
    run_folder_of,
)


@dataclass(frozen=True)
class Launch:
    """Command line of a training, resolved, and the checkpoint to resume."""

    options: TrainOptions  # `typed` in it names what the user typed
    checkpoint: dict[str, Any] | None = None  # None for a new run
    folder: Path | None = None  # run folder of this launch before torchrun restarted its processes
    dry_run: bool = False

    @property
    def started(self) -> Path | None:
        """Folder of the run that this one resumes, None for a new run."""
        resume = self.options.resume
        return self.folder or (run_folder_of(Path(resume)) if isinstance(resume, str) else None)

    @property
    def division(self) -> Division | None:
        """Division of the images by `--split`. Of a resumed run its own counts."""
        return Division.parse(self.options.split, self.started)


@dataclass(frozen=True)
class Setup:
    """Preparations of rank 0 for all ranks: files are read, downloaded and fitted to the data once."""

    options: TrainOptions  # final
    hyp: Hyperparameters
    data: Splits
    model: Detector
    frozen: list[int]  # layers of the model


def resolve_launch(typed: Mapping[str, Any], launchers: Sequence[str]) -> Launch:
    """Resolve the command line. With `--resume`, start from the stored options and apply the flags typed now.

    `launchers` are the launch tokens of all processes. A run that these launchers started before a restart is resumed
    automatically.
    """
    typed = fetch_typed(dict(typed))
    resume, dry_run = typed.pop("resume", False), typed.pop("dry_run", False)
    project = typed.get("project", TrainOptions.project)
    folder = find_restarted_run(project, launchers)
    if folder is not None:
        resume = (folder / "weights" / "last.pt").is_file() and str(folder)
        if resume and typed.get("batch_size") == -1:
            del typed["batch_size"]  # it was found the first time, and is stored
        info(f"Restarted by torchrun: resuming {folder}")
    if not resume:
        require_writable(project)
        options = TrainOptions.from_typed(typed)
        reject_conflicts(options)
        return Launch(options, folder=folder, dry_run=dry_run)
    checkpoint = find_checkpoint(resume, project)
    content = read_run_state(checkpoint)
    if own := run_folder_of(checkpoint):
        typed = edited_flags(own, content) | typed
    options = resumed_options(content, checkpoint, typed)
    if folder is None:
        reject_finished_run(checkpoint, content.get("epoch"), options.epochs, typed)
    if "device" not in typed and not any(launchers):
        require_device(options.device)
    return Launch(options, content, folder, dry_run)


def reject_conflicts(options: TrainOptions) -> None:
    """Raise UserError for flags of a new run that `--time` excludes, or a tiling that is none."""
    tiling_of(options)
    if options.time and "epochs" in options.typed:
        raise UserError(f"--time {options.time:g} settles the number of epochs: omit it, or --epochs {options.epochs}")
    if options.time and options.evolve:
        raise UserError(
            "--time with --evolve: trainings of different lengths cannot be compared; give --epochs instead"
        )


def reject_torchrun(group: Distributed) -> None:
    """Raise UserError under torchrun: `--evolve` starts its own processes."""
    if group.local_rank is not None:
        raise UserError(
            "--evolve starts its own processes: type python train.py --evolve ... --device 0,1,2,3, without torchrun"
        )


def tiling_of(options: TrainOptions) -> Tiling | None:
    """Return the tiling of the training images, None without `--tile`. Raises UserError."""
    return Tiling.from_flags(options.tile, options.tile_overlap)


def require_device(device: str) -> None:
    """Raise UserError if this machine lacks the device that a run was started on."""
    try:
        select_device(device)
    except UserError as error:
        raise UserError(
            f"--resume: the run was started with --device {device}, which is not here: add --device cpu, or "
            "a GPU that is here, such as --device 0"
        ) from error


def open_run_folder(launch: Launch, make: Callable[[Path, bool], Path] = increment_path) -> Path:
    """Return the folder of the run: the one that it was started in, or a new one with the next free number.

    `make` returns a new one by its path and `--exist-ok`.
    """
    options = launch.options
    if launch.started is not None:
        return launch.started
    name = Path(options.cfg or options.weights or "exp").stem if options.name == "cfg" else options.name
    return make(Path(options.project) / name, options.exist_ok)


def read_hyperparameters(launch: Launch) -> Hyperparameters:
    """Return the hyperparameters of the resumed run, unless another file is typed, or those of `--hyp`."""
    if launch.checkpoint and "hyp" not in launch.options.typed:
        return Hyperparameters.from_dict(launch.checkpoint["hyp"], str(launch.options.resume))
    return Hyperparameters.load(launch.options.hyp, ROOT, ROOT / "data" / "hyps")


def complete_options(
    options: TrainOptions,
    model: Detector,
    *,
    weights: str,
    cfg: str,
    num_images: int,
    distributed: Distributed,
    autocast: torch.dtype | None,
) -> TrainOptions:
    """Return the final options, with weights, cfg, imgsz, batch_size, nbs and threads filled in.

    `weights` and `cfg` are what the model was built from, `num_images` is the number that an epoch draws.
    """
    imgsz = to_option(round_size(options.imgsz, model.size_multiple, least=2))  # see multi_scale_size
    batch_size = options.batch_size
    if batch_size == -1:
        largest = to_option(largest_shape(imgsz, model.size_multiple)) if options.multi_scale else imgsz
        batch_size = find_batch_of_each(model, largest, autocast, distributed.device) * num_replicas(distributed)
    steps = steps_per_epoch(num_images, batch_size, quad=options.quad, world_size=distributed.world_size)
    nbs = options.nbs or choose_nominal_batch(batch_size, options.epochs * steps)
    threads = options.threads
    if not options.resume and distributed.world_size == 1 and distributed.device.type == "cpu":
        threads = threads or torch.get_num_threads()  # so that a resumed run computes with as many
    return options.replace(weights=weights, cfg=cfg, imgsz=imgsz, batch_size=batch_size, nbs=nbs, threads=threads)


def checks_anchors(options: TrainOptions, hyp: Hyperparameters, *, weights: str) -> bool:
    """Return True if a new run fits its anchors to the data where those of the model are bad."""
    keeps_those_of_weights = bool(weights) and not hyp.anchor_fit and not hyp.anchors
    return not options.noautoanchor and not keeps_those_of_weights


def find_batch_of_each(
    model: Detector,
    imgsz: ImageSize,
    autocast: torch.dtype | None,
    device: torch.device,
    find: Callable[[Detector, ImageSize, torch.dtype | None], int] = find_batch_size,
) -> int:
    """Return the largest batch for one device, measured with a copy of the model."""
    probe = copy.deepcopy(model).to(device, memory_format=torch.channels_last)
    return find(probe, imgsz, autocast)


def num_replicas(group: Distributed) -> int:
    """Return the number of processes or GPUs that share one batch."""
    return max(group.world_size, len(group.devices))


def choose_nominal_batch(batch_size: int, iterations: int) -> int:
    """Return `--nbs` for a run of `iterations` batches, and print a line if it is below 64."""
    nbs = nominal_batch(batch_size, iterations)
    if nbs < NOMINAL:
        info(
            f"A short run has few optimizer steps: one for every {nbs} images (--nbs {NOMINAL} takes one for every "
            f"{NOMINAL})"
        )
    return nbs
