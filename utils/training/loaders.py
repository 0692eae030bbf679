"""Loaders of a run: the training and the validation split, as the options say."""

from dataclasses import replace

import numpy as np

from utils import console
from utils.config import TrainOptions
from utils.datasets.label_index import LabelIndex
from utils.device import cores_for_loading
from utils.distributed import Distributed
from utils.loading.loader import Loader, LoadSettings, make_loader
from utils.loading.sampler import BatchSettings
from utils.schedule import mosaic_epochs
from utils.training.startup import Setup


def warn_about_image_weights(options: TrainOptions, index: LabelIndex) -> None:
    """Warn of what `--image-weights` leaves without effect, and of the images that it never draws."""
    if not options.image_weights:
        return
    if options.rect:
        console.warn("--rect has no effect with --image-weights, which samples images of any shape")
    backgrounds = int((np.diff(index.offsets) == 0).sum())
    if backgrounds:
        console.warn(
            f"--image-weights never draws backgrounds: {backgrounds} of {len(index)} images have no labels. Train "
            "without the flag to use them"
        )


def build_loaders(setup: Setup, distributed: Distributed) -> tuple[Loader, Loader]:
    """Return the training and the validation loader of this process."""
    options = setup.options
    shared = {
        "imgsz": options.imgsz,
        "stride": setup.model.size_multiple,
        "seed": options.seed,
        "rank": distributed.rank,
        "world_size": distributed.world_size,
    }
    on_gpu = distributed.device.type == "cuda"
    loading = LoadSettings(
        workers=options.workers, cores=cores_for_loading(distributed.device), pin_memory=on_gpu, defer_color_flip=on_gpu
    )
    warn_about_image_weights(options, setup.data.train)
    modes = {None: ("auto", "auto"), "off": (None, None), "val": (None, "ram")}
    for_train, for_val = modes.get(options.cache, (options.cache, options.cache))
    train_loader = make_loader(
        setup.data.train,
        batch_size=options.batch_size,
        hyp=setup.hyp,
        batches=BatchSettings(
            rect=options.rect,
            shuffle=not options.rect,
            image_weights=options.image_weights,
            quad=options.quad,
            mosaic_epochs=mosaic_epochs(options.epochs, setup.hyp.close_mosaic),
        ),
        loading=replace(loading, cache=for_train),
        **shared,
    )
    val_loader = make_loader(
        setup.data.val,
        batch_size=2 * options.batch_size,
        batches=BatchSettings(rect=True, pad=0.5),
        loading=replace(loading, cache=None if options.noval else for_val),
        **shared,
    )
    return train_loader, val_loader
