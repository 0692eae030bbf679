"""Model that a training starts with: from a checkpoint, from weights, or from a YAML, with layers frozen."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from models.architecture import read_cfg
from models.head_rows import carry_head
from models.loading import adapt_channels, described_model, read_weights, reject_leftovers, resolve_weights, transfer
from models.yolo import DetectionModel
from utils.console import info, warn
from utils.detector import name_difference
from utils.errors import UserError
from utils.pixel_format import RGB, UNSTATED, PixelFormat, StatedPixels, read_stated_pixels


class InitialModel(NamedTuple):
    """Source of a new model."""

    weights: Path | None  # None: from scratch
    cfg: str  # model YAML; "" takes the one in the weights file


def resolve_initial_weights(weights: str, cfg: str, *, typed: bool) -> InitialModel:
    """Resolve `--weights` and `--cfg`: a run from scratch has no weights, only a YAML.

    Only weights that the user typed are ever downloaded. The default ones count only if the file is here and no
    `--cfg` is given.
    """
    path = None
    if typed and Path(weights).suffix.lower() in (".yaml", ".yml"):
        raise UserError(f"{weights}: a model YAML has no weights: give it as --cfg {weights}")
    if weights and typed:
        path = resolve_weights(weights, allow_download=True)
    elif weights and not cfg:
        try:
            path = resolve_weights(weights, allow_download=False)
        except UserError:
            info(f"{weights} is not here: starting from scratch (--weights {weights} would fetch it)")
    return InitialModel(path, cfg if path or cfg else Path(weights).with_suffix(".yaml").name)


def build_model(
    weights: Path | None, cfg: str, *, num_classes: int, anchors: int | None = None, pixels: StatedPixels = UNSTATED
) -> DetectionModel:
    """Return a new model on the CPU, from scratch or with the tensors of `weights` that fit by name and shape.

    `anchors` is the number of anchors per level that will be fitted to the data; None keeps the model's own. `pixels`
    is what the data set says about its images, and counts before what the weights were trained with.
    """
    if weights is None:
        model = DetectionModel(describe_model(cfg, pixels, RGB), num_classes=num_classes, anchors=anchors)
        info(f"Model {cfg} from scratch, {describe_size(model)}")
        return model
    file = read_weights(weights)
    described = described_model(file, weights)
    stored = read_stated_pixels(described, weights).fill(RGB)
    description = describe_model(cfg, pixels, stored) if cfg else with_pixels(described, pixels.fill(stored))
    model = DetectionModel(description, num_classes=num_classes, anchors=anchors)
    if len(file.names) == num_classes:
        model.names = file.names
    if not cfg:
        reject_leftovers(model, file, weights)
    moved = transfer(
        model, adapt_channels(model, file.state_dict, stored.channels), exclude=("anchor",) if cfg or anchors else ()
    )
    info(f"Transferred {moved.matched}/{moved.total} tensors from {weights}, {describe_size(model)}")
    return model


def carry_head_over(model: DetectionModel, weights: str, rows: float) -> None:
    """Give the head of a new model the rows of `weights`, which have other classes, if `rows` is not 0."""
    if not weights or not rows:
        return
    file = read_weights(resolve_weights(weights, allow_download=False))
    named = carry_head(model, file.state_dict, file.names)
    if named is not None:
        info(f"Head: boxes and objectness as in {weights}, {named} of {model.num_classes} classes by their names")


def describe_model(cfg: str, pixels: StatedPixels, other: PixelFormat) -> str | dict[str, Any]:
    """Return the model YAML `cfg`, or its content with the pixels that the data set states.

    `other` counts where neither states any. Raises UserError if they state different ones.
    """
    content, file = read_cfg(cfg)
    wanted = pixels.require(read_stated_pixels(content, file).fill(pixels.fill(other)), of=file)
    changed = with_pixels(content, wanted)
    return cfg if changed == content else changed


def with_pixels(description: dict[str, Any], pixels: PixelFormat) -> dict[str, Any]:
    """Return a model description whose images are of `pixels`."""
    if read_stated_pixels(description, "").fill(RGB) == pixels:
        return description
    others = {key: value for key, value in description.items() if key not in ("ch", "channels", "bit_depth")}
    return others | {"ch": pixels.channels, "bit_depth": pixels.bit_depth}


def rebuild_model(
    stored: dict[str, Any], num_classes: int, checkpoint: str, *, data: str, pixels: StatedPixels = UNSTATED
) -> DetectionModel:
    """Return the model of a resumed run from its description and names, without its weights.

    Raises UserError naming `checkpoint` and `data` if the data set has another number of classes or other pixels.
    """
    model, names = DetectionModel(stored["yaml"]), stored.get("names")
    pixels.require(model.pixels, of=checkpoint)
    if model.num_classes != num_classes:
        raise UserError(
            f"{checkpoint}: a model of {model.num_classes} classes, but {data} names {num_classes}; start a new run "
            f"with --weights {checkpoint}"
        )
    if isinstance(names, dict) and all(isinstance(name, str) for name in names.values()):
        model.names = names
    return model


def take_names(model: DetectionModel, names: dict[int, str], data: str) -> None:
    """Give the model the class names of the data set, and warn where its weights were trained with others."""
    if other := name_difference(model.names, names):
        warn(
            f"The weights and {data} differ in the names of classes: {other}. The names of the data set count; put "
            "its names in the order of the weights if these are the same classes."
        )
    model.names = names


def describe_size(model: DetectionModel) -> str:
    """Return the number of parameters, and the pixels of images if they are not 8-bit RGB, for people."""
    images = "" if model.pixels == RGB else f", images of {model.pixels}"
    return f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters{images}"


def anchors_to_fit(anchors: float, *, noautoanchor: bool) -> int | None:
    """Return how many anchors per level to fit to the data, or None to keep the model's own.

    `anchors` is the hyperparameter.
    """
    if anchors and noautoanchor:
        warn(
            f"anchors: {anchors} in --hyp must be fitted to the data, which --noautoanchor switches off; keeping the "
            "model's own anchors"
        )
        return None
    return round(anchors) or None


def freeze_layers(model: DetectionModel, freeze: Sequence[int]) -> list[int]:
    """Stop the gradients of layers 0 … N-1 (one number N) or of exactly the listed ones. Return their numbers."""
    indices = list(range(freeze[0]) if len(freeze) == 1 else freeze)
    words = " ".join(map(str, freeze))
    for index in indices:
        if not 0 <= index < len(model.model):
            raise UserError(f"--freeze {words}: the model has layers 0 to {len(model.model) - 1}")
    for index in indices:
        model.model[index].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"--freeze {words}: no layer is left to train; freeze fewer")
    if indices:
        info(f"Frozen layers: {', '.join(map(str, indices))}")
    return indices
