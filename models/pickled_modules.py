"""Pickled modules of a YOLOv5 file, compared with the network that its description builds.

The modules count before the description: other activations are taken over, any other difference is an error.
"""

import inspect
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from models.architecture import ACTIVATIONS, Architecture, activation_class, parse_activation
from models.common import use_activation
from models.yolo import build_layers, set_batch_norms
from models.yolov5_pickle import PickledObject
from utils.errors import UserError

MAX_DEPTH = 50  # of modules within modules
IGNORED_CONSTANTS = {"inplace", "momentum", "name"}  # no effect on what a trained network computes
WITHOUT_EFFECT = ("Identity", "Dropout", "Dropout2d", "Dropout3d", "AlphaDropout")  # in evaluation mode
OTHER_NAMES = {  # class in a file: class here that computes the same
    "SyncBatchNorm": "BatchNorm2d",
    "MemoryEfficientMish": "Mish",
    "MemoryEfficientSwish": "SiLU",
    "Swish": "SiLU",
}


class Module(NamedTuple):
    """Class name of a module in a file, and its attributes that are numbers, text or short tuples."""

    kind: str
    values: dict[str, Any]


def read_modules(root: PickledObject) -> dict[str, Module]:
    """Return all modules below `root` by the names that `nn.Module.named_modules` gives them."""
    found: dict[str, Module] = {}
    waiting: list[tuple[str, object]] = [("", root)]
    while waiting:
        name, module = waiting.pop()
        if not isinstance(module, PickledObject):
            continue
        children = vars(module).get("_modules") or {}
        if name.count(".") < MAX_DEPTH and isinstance(children, dict):
            prefix = f"{name}." if name else ""
            waiting += [(f"{prefix}{child}", part) for child, part in reversed(list(children.items()))]
        kind = type(module).__name__
        values = {key: value for key, value in vars(module).items() if _is_short(value)}
        found[name] = Module(OTHER_NAMES.get(kind, kind), values)
    del found[""]
    return found


def _is_short(value: object) -> bool:
    if isinstance(value, (tuple, list)):
        return len(value) <= 6 and not any(isinstance(part, (tuple, list)) for part in value) and _is_plain(*value)
    return _is_plain(value)


def _is_plain(*values: object) -> bool:
    return all(value is None or isinstance(value, (bool, int, float, str)) for value in values)


def _constants(kind: object) -> set[str]:
    """Return the names of the settings that PyTorch lists for a class of modules."""
    return {str(name) for name in getattr(kind, "__constants__", ())}


def describe_activation(kind: str, values: Mapping[str, Any]) -> str:
    """Return an activation as text that `parse_activation` reads, with all its settings besides `inplace`."""
    built = activation_class(kind)
    settings = sorted(_constants(built) - IGNORED_CONSTANTS)
    accepted = inspect.signature(built.__init__).parameters
    words = [f"{key}={values[key]!r}" for key in settings if key in values and key in accepted]
    return f"nn.{kind}({', '.join(words)})"


def fit_description(description: dict[str, Any], modules: Mapping[str, Module], where: str) -> dict[str, Any]:
    """Return the description with the activations that the modules have. An empty `modules` changes nothing.

    Raises UserError, naming the first, if the file holds a module that the description does not build.
    """
    if not modules:
        return description
    if "activation" not in description and (common := _common_activation(modules)):
        description = {**description, "activation": common}
    with torch.random.fork_rng(devices=()), torch.device("meta"):
        arch = Architecture.from_dict(description, where)
        network = nn.Module()
        network.model = build_layers(arch)
        if arch.activation:
            use_activation(network, parse_activation(arch.activation))
    set_batch_norms(network)
    built = dict(network.named_modules(remove_duplicate=False))
    exceptions = {}
    for name, module in modules.items():
        if module.kind in ACTIVATIONS and _is_activation(built.get(name)):
            text = describe_activation(module.kind, module.values)
            if module.kind == "PReLU" or text != describe_activation(type(built[name]).__name__, vars(built[name])):
                exceptions[name] = text
        elif difference := _difference(module, built.get(name)):
            raise UserError(
                f"{where}: {name} {difference}: the model of a fork, whose blocks differ from those of YOLOv5"
            )
    return {**description, "module_activations": exceptions} if exceptions else description


def _common_activation(modules: Mapping[str, Module]) -> str | None:
    """Return the most frequent activation of the convolutions, or None for SiLU. Versions 1 to 3 had others."""
    texts = Counter(
        describe_activation(module.kind, module.values)
        for name, module in modules.items()
        if name.endswith(".act")
        and module.kind in ACTIVATIONS
        and module.kind not in ("Identity", "PReLU")  # weights of a PReLU are those of one place
        and name.removesuffix("act") + "conv" in modules
    )
    text = texts.most_common(1)[0][0] if texts else "nn.SiLU()"
    return None if text == "nn.SiLU()" else text


def _is_activation(module: nn.Module | None) -> bool:
    return module is not None and type(module).__name__ in ACTIVATIONS


def _difference(module: Module, built: nn.Module | None) -> str:
    """Return how a module of a file differs from the built one, or "" if it computes the same."""
    if built is None:
        return "" if module.kind in WITHOUT_EFFECT else f"({module.kind}) is not in the model of the description"
    names = [kind.__name__ for kind in type(built).__mro__]
    if module.kind not in names:
        return f"is {module.kind}, not {names[0]}"
    if not module.kind.startswith("Dropout"):
        for key in sorted(_constants(type(built)) - IGNORED_CONSTANTS):
            wanted = getattr(built, key, None)
            found = module.values.get(key, wanted)
            if _is_short(wanted) and _comparable(found) != _comparable(wanted):
                return f"({module.kind}) has {key} {found}, not {wanted}"
    return ""


def _comparable(value: Any) -> Any:
    return list(value) if isinstance(value, (tuple, list)) else value
