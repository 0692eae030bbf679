"""Models from weights files: our own checkpoints, `.pt` files of YOLOv5, ensembles, published names."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from models.pickled_modules import Module, fit_description, read_modules
from models.yolo import DetectionModel
from models.yolov5_pickle import PickledObject, YOLOv5File
from utils.checkpoint import own_outline, read_checkpoint
from utils.console import info
from utils.detector import NO_ADVICE, DetectionAdvice, name_difference
from utils.errors import UserError
from utils.files import ROOT
from utils.formats import format_of

RELEASE_URL = "https://github.com/ultralytics/yolov5/releases/download/v7.0/"
PUBLISHED = tuple(f"yolov5{size}{level}.pt" for level in ("", "6") for size in "nsmlx")
SHA256 = {
    "yolov5n.pt": "4f180cf23ba0717ada0badd6c685026d73d48f184d00fc159c2641284b2ac0a3",
    "yolov5s.pt": "8b3b748c1e592ddd8868022e8732fde20025197328490623cc16c6f24d0782ee",
}
MAX_DEPTH = 20  # of lists within lists in a description
MAX_DESCRIPTION = 100_000  # values in a model's description, and classes of a model


@dataclass(frozen=True)
class WeightsFile:
    """Content of a weights file: tensors by name (floating point in float32), model description, class names."""

    state_dict: dict[str, Tensor]
    yaml: dict[str, Any]
    names: dict[int, str]
    origin: str  # "anchorage" or "yolov5"
    modules: dict[str, Module] = field(default_factory=dict)  # pickled ones of a YOLOv5 file, by name
    advice: DetectionAdvice = NO_ADVICE


class Transfer(NamedTuple):
    """Number of the model's entries that were copied, and of all its entries."""

    matched: int
    total: int


def read_weights(path: str | Path) -> WeightsFile:
    """Read a checkpoint on the CPU, its EMA weights if there are any. Nothing in the file is executed.

    Raises UserError, in one line, for a file that is missing, damaged, no checkpoint, or calls code.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a .pt file")
    outline = own_outline(path)
    return read_yolov5(path) if outline is None else read_own_checkpoint(path, outline)


def read_own_checkpoint(path: Path, outline: dict[str, Any]) -> WeightsFile:
    """Read one of our own checkpoints. Raises UserError if a part is missing."""
    content = read_checkpoint(path, outline)
    try:
        model = content["model"]
        state = content["ema"]["state_dict"] if content.get("ema") else model["state_dict"]
        weights = make_weights_file(path, state, to_plain_data(model["yaml"], path), model["names"], "anchorage")
        advice = DetectionAdvice.from_dict(content.get("advice"), len(weights.names), str(path))
        return replace(weights, advice=advice)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: the checkpoint lacks a part of its model ({error})") from error


def read_yolov5(path: Path) -> WeightsFile:
    """Read a `.pt` file of YOLOv5, of any version: pickled modules."""
    with YOLOv5File(path) as file:
        content = file.content
        module = pickled_model(content)
        if module is None:
            raise UserError(
                f"{path}: holds no YOLOv5 model (only {describe_type(content)}): give a .pt file that train.py wrote"
            )
        attributes = vars(module)
        if "md" in attributes and "yaml" not in attributes:
            raise UserError(
                f"{path}: a file of YOLOv5 v1.0, whose layers differ from all later ones: use weights of v2.0 or later"
            )
        if not isinstance(attributes.get("yaml"), dict):
            raise UserError(f"{path}: its model has no description (yaml): it is not a detection model of YOLOv5")
        description = to_plain_data(attributes["yaml"], path)
        state = anchors_of_inference(file, module, path)
        weights = make_weights_file(path, state, description, attributes.get("names"), "yolov5")
        return replace(weights, modules=read_modules(module))


def anchors_of_inference(file: YOLOv5File, module: PickledObject, path: Path) -> dict[str, Tensor]:
    """Return the tensors of the model, with its anchors taken from `anchor_grid` if it has that.

    Versions before 6 decode boxes with `anchor_grid`, in pixels. Their `anchors` are in wrong units where the YAML
    lists the largest level first.
    """
    state = file.state_dict(module)
    for name in [name for name in state if name.endswith(".anchor_grid")]:
        grid, prefix = state.pop(name), name.removesuffix("anchor_grid")
        stride = file.attribute(module, f"{prefix}stride")
        anchors = state.get(f"{prefix}anchors")
        if stride is None or anchors is None:
            continue
        if grid.numel() != anchors.numel() or stride.numel() != anchors.shape[0] or not (stride > 0).all():
            raise UserError(f"{path}: {name} does not fit the anchors and strides of its model")
        cells = grid.float().reshape(anchors.shape) / stride.float().reshape(-1, 1, 1)
        state[f"{prefix}anchors"] = cells
    return state


def pickled_model(content: object) -> PickledObject | None:
    """Return the EMA model or the model, without the wrapper for several GPUs. Return None if there is no model."""
    candidates: list[object] = [content]
    if isinstance(content, dict):
        candidates = [content.get("ema"), content.get("model")]
    for found in candidates:
        found = found[0] if isinstance(found, tuple) and found else found  # before v6: (model, updates)
        if isinstance(found, PickledObject):
            inner = (vars(found).get("_modules") or {}).get("module")
            return inner if isinstance(inner, PickledObject) else found
    return None


def describe_type(content: object) -> str:
    """Return the type of `content` for messages, or the first keys of a dict."""
    if isinstance(content, dict):
        return f"the keys {', '.join(str(key) for key in list(content)[:3] if isinstance(key, (str, int)))}"
    return f"a {type(content).__name__}"


def to_plain_data(value: Any, path: Path) -> Any:
    """Return `value` as dicts, lists, text, numbers and None. Raises UserError for other types or too many values."""
    visited = itertools.count()

    def copy(entry: object, depth: int = 0) -> Any:
        if next(visited) < MAX_DESCRIPTION and depth <= MAX_DEPTH:
            if entry is None or isinstance(entry, (str, bool, int, float)):
                return entry
            if isinstance(entry, (list, tuple)):
                return [copy(part, depth + 1) for part in entry]
            if isinstance(entry, dict):
                return {copy(key, depth + 1): copy(part, depth + 1) for key, part in entry.items()}
        raise UserError(f"{path}: the model's description is too large or too deep, or holds a {type(entry).__name__}")

    try:
        return copy(value)
    except (RecursionError, TypeError) as error:
        raise UserError(f"{path}: the model's description is not plain data") from error


def make_weights_file(path: Path, state: object, description: object, names: object, origin: str) -> WeightsFile:
    """Check the parts of a file and return them in the form that all origins share."""
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()) or not state:
        raise UserError(f"{path}: holds no tensors by name")
    if not isinstance(description, dict):
        raise UserError(f"{path}: holds no description of its model")
    tensors = {str(name): value.float() if value.is_floating_point() else value for name, value in state.items()}
    listed = dict(enumerate(names)) if isinstance(names, (list, tuple)) else names if isinstance(names, dict) else {}
    count = description.get("nc")
    if not isinstance(count, int) or not 1 <= count <= MAX_DESCRIPTION:
        raise UserError(f"{path}: the model's description has no usable number of classes (nc)")
    texts = {number: name if isinstance(name := listed.get(number), str) else str(number) for number in range(count)}
    return WeightsFile(tensors, description, texts, origin)


@torch.no_grad()
def adapt_channels(model: DetectionModel, state_dict: Mapping[str, Tensor], channels: int) -> Mapping[str, Tensor]:
    """Return tensors of a model of images with `channels`, its first convolution fitted to the channels of `model`.

    If one of them has fewer than 3, each new channel gets the sum over the old ones, divided by the number of new ones.
    So an image of equal channels gives what it gave. Otherwise the first channels keep their weights, and further ones
    start with zeros: at first they change nothing.
    """
    own, wanted = model.state_dict(), model.pixels.channels
    name = next((name for name, value in state_dict.items() if name.startswith("model.0.") and value.ndim == 4), "")
    weight = state_dict.get(name)
    if wanted == channels or weight is None or name not in own or weight.shape[1] % channels:
        return state_dict
    parts = weight.unflatten(1, (-1, channels))  # (O, 1, channels, kh, kw), of Focus (O, 4, ...)
    if min(channels, wanted) < 3:
        fitted = parts.sum(2, keepdim=True).expand(-1, -1, wanted, -1, -1) / wanted
        how = f"their sum{f' / {wanted}' if wanted > 1 else ''} in each"
    else:
        fitted = parts.new_zeros((*parts.shape[:2], wanted, *parts.shape[3:]))
        fitted[:, :, :channels] = parts[:, :, :wanted]
        how = "the first are kept" + (", the others start with zeros" if wanted > channels else "")
    info(f"{name}: {channels} channels in the weights, {wanted} in the model: {how}")
    return {**state_dict, name: fitted.flatten(1, 2)}


@torch.no_grad()
def transfer(model: nn.Module, state_dict: Mapping[str, Tensor], exclude: Sequence[str] = ()) -> Transfer:
    """Copy the entries that agree in name and shape, except names that contain a string of `exclude`."""
    own = model.state_dict()
    matched = 0
    for name, value in state_dict.items():
        if name in own and own[name].shape == value.shape and not any(part in name for part in exclude):
            own[name].copy_(value)
            matched += 1
    return Transfer(matched, len(own))


def described_model(weights: WeightsFile, path: str | Path) -> dict[str, Any]:
    """Return the description of the model in the file, with the activations that its modules have."""
    return fit_description(weights.yaml, weights.modules, str(path))


def reject_leftovers(model: nn.Module, weights: WeightsFile, path: str | Path) -> None:
    """Raise UserError if the file holds a tensor that the model lacks: one of its blocks is another than here."""
    known = model.state_dict().keys()
    if left := [name for name in weights.state_dict if name not in known]:
        raise UserError(
            f"{path}: does not fit its own description: the model has no {left[0]} ({len(left)} such tensors). "
            "A fork changed that block"
        )


def build_model_from(weights: WeightsFile, path: str | Path) -> DetectionModel:
    """Return the model that the file describes, with all its weights. Raises UserError if they do not fit."""
    stored = sum(value.numel() for value in weights.state_dict.values())
    description = described_model(weights, path)
    with torch.random.fork_rng(devices=()):  # loading must not change the random state
        try:
            model = DetectionModel(description, max_parameters=2 * stored)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
    if any(name.endswith(".conv.bias") for name in weights.state_dict):  # saved after fusing
        model.fuse()
    transfer(model, weights.state_dict)
    reject_leftovers(model, weights, path)
    for name, value in model.state_dict().items():
        found = weights.state_dict.get(name)
        if (found is None or found.shape != value.shape) and not name.endswith("num_batches_tracked"):
            shape = "is missing" if found is None else f"has shape {tuple(found.shape)}, not {tuple(value.shape)}"
            raise UserError(f"{path}: does not fit its own description: {name} {shape}")
    model.names, model.advice = weights.names, weights.advice
    return model


def load_model(weights: str | Path, device: str | torch.device = "cpu", fuse: bool = True) -> DetectionModel:
    """Return the model of a weights file, float32, in evaluation mode, with batch norms folded in if `fuse`.

    Raises UserError for NaN or infinity in the weights: such a model finds nothing, and says nothing.
    """
    content = read_weights(weights)
    for name, value in content.state_dict.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(f"{weights}: {name} has NaN or infinite values. Give an earlier checkpoint of that run")
    model = build_model_from(content, weights).eval()
    return (model.fuse() if fuse else model).to(device).to(memory_format=torch.channels_last)


class Ensemble(nn.Module):
    """Several models of the same classes as one: their decoded rows concatenated (B, N1 + N2 + ..., 5+C)."""

    fixed_shape, is_suppressed = None, False  # as in utils.detector.InferenceModel
    advice = NO_ADVICE  # thresholds of one model do not fit the boxes of several

    def __init__(self, models: Sequence[DetectionModel]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        named = next((model for model in models if any(n != str(i) for i, n in model.names.items())), models[0])
        self.names, self.yaml, self.num_classes = named.names, models[0].yaml, models[0].num_classes
        self.pixels = models[0].pixels

    @property
    def members(self) -> list[DetectionModel]:
        """The models."""
        return [cast(DetectionModel, model) for model in self.models]

    @property
    def stride(self) -> Tensor:
        """Strides (L,) of the model with the largest stride."""
        return max((model.stride for model in self.members), key=lambda stride: float(stride.max()))

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.members[0].device

    @property
    def size_multiple(self) -> int:
        """Pixels that both sides of an input image are multiples of, for every one of the models."""
        return max(model.size_multiple for model in self.members)

    def forward(self, x: Tensor, augment: bool = False) -> tuple[Tensor, None]:
        return torch.cat([model(x, augment=augment)[0] for model in self.models], dim=1), None


def load_ensemble(
    weights: Sequence[str | Path], device: str | torch.device = "cpu", fuse: bool = True
) -> DetectionModel | Ensemble:
    """Load all `weights` as one model, a single file as the model itself.

    Raises UserError if the numbers or the names of classes differ.
    """
    if not weights:
        raise UserError("no weights given: use --weights FILE.pt")
    models = [load_model(file, device, fuse) for file in weights]
    for file, model in zip(weights, models):
        if model.num_classes != models[0].num_classes:
            raise UserError(
                f"{file}: {model.num_classes} classes, but {weights[0]} has {models[0].num_classes}: "
                "an ensemble needs the same classes"
            )
        if model.pixels != models[0].pixels:
            raise UserError(
                f"{file}: takes images of {model.pixels}, but {weights[0]} those of {models[0].pixels}: an ensemble "
                "needs the same"
            )
        if other := name_difference(models[0].names, model.names):
            raise UserError(f"{weights[0]} and {file}: {other}. An ensemble needs the same classes in the same order")
    return models[0] if len(models) == 1 else Ensemble(models)


def resolve_weights(name: str | Path, *, allow_download: bool, exported: bool = False) -> Path:
    """Return the file of `name`: as typed, or in the project folder or its weights/.

    Published names (yolov5n.pt ... yolov5x6.pt) that are not there are downloaded if that is allowed. Raises UserError
    otherwise, with the place to put the file. `exported` allows files and folders that export.py wrote.
    """
    file = Path(name)
    if file.suffix.lower() in (".yaml", ".yml"):
        raise UserError(f"{file}: a model YAML has no weights: give a .pt file")
    kind = format_of(file)
    if kind and not exported:
        raise UserError(f"{file}: {kind.title} holds no weights that can be trained or exported: give the .pt file")
    if not file.suffix and f"{file.name}.pt" in PUBLISHED:
        file = file.with_name(f"{file.name}.pt")
    for candidate in (file, ROOT / file, ROOT / "weights" / file.name):
        if candidate.is_file() or (kind and candidate.is_dir()):
            return candidate
        if candidate.is_dir():
            raise UserError(f"{candidate}: a folder: give the .pt file in it, such as {example_in(candidate)}")
    target = ROOT / "weights" / file.name
    if file.name not in PUBLISHED:
        raise UserError(f"{file}: no such file, here or in {ROOT} or {target.parent}; give a .pt file")
    if not allow_download:
        raise UserError(f"{file}: not found: put the file at {target} (it is published at {RELEASE_URL}{file.name})")
    return fetch_published(file.name, target)


def example_in(folder: Path) -> Path:
    """Return a weights file in a run folder or its weights/, or where a run would have it."""
    names = [place / name for place in (folder, folder / "weights") for name in ("best.pt", "last.pt")]
    found = [file for file in names if file.is_file()] + sorted(folder.glob("*.pt"))
    return found[0] if found else folder / ("best.pt" if folder.name == "weights" else "weights/best.pt")


def find_weights(names: Sequence[str], *, typed: bool, exported: bool = False) -> list[Path]:
    """Return the files of --weights. Published ones are downloaded only if the user `typed` their name.

    `exported` allows files and folders that export.py wrote.
    """
    try:
        return [resolve_weights(name, allow_download=typed, exported=exported) for name in names]
    except UserError as error:
        if typed:
            raise
        raise UserError(
            f"no --weights given, and no {names[0]} here: type --weights runs/train/exp/weights/best.pt, "
            f"or --weights {names[0]} to download that model"
        ) from error


def fetch_published(name: str, target: Path) -> Path:
    """Download published weights to `target`."""
    from utils.download import fetch  # only this needs the network

    info(f"Fetching {name}: weights by Ultralytics under AGPL-3.0, not part of this project")
    return fetch(RELEASE_URL + name, target, sha256=SHA256.get(name))
