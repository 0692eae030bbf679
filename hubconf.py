"""Entry points of torch.hub: `torch.hub.load(FOLDER, "custom", path="best.pt", source="local")`.

The packages `models` and `utils` are imported under a private name, because a program may have packages of these names
itself. This file runs again at each load.
"""

import builtins
import copyreg
import functools
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import pathlib
import pickle
import sys
import zlib

dependencies = ["torch"]

_FOLDER = pathlib.Path(__file__).resolve().parent
_PACKAGES = ("models", "utils")
_PREFIX = f"anchorage_{zlib.crc32(str(_FOLDER).encode()):08x}"  # another one for each copy of the project


# ---- the private name


def _import(name, globals=None, locals=None, fromlist=(), level=0):
    """Import for an import statement of this project: its packages under the private name, others as usual."""
    top = name.partition(".")[0]
    if level or top not in _PACKAGES:
        return builtins.__import__(name, globals, locals, fromlist, level)
    found = builtins.__import__(f"{_PREFIX}.{name}", globals, locals, fromlist, 0)
    return found if fromlist else getattr(found, top)


_BUILTINS = {**vars(builtins), "__import__": _import}


class _Loader(importlib.machinery.SourceFileLoader):
    """Loader of a module whose import statements call `_import`. Other modules keep theirs."""

    def exec_module(self, module):
        vars(module)["__builtins__"] = _BUILTINS
        super().exec_module(module)


class _Finder(importlib.abc.MetaPathFinder):
    """Finder of this project's modules under the private name."""

    prefix = _PREFIX

    def find_spec(self, fullname, path=None, target=None):
        """Return the spec of a module of this project, None for all other names."""
        root, _, name = fullname.partition(".")
        if root != _PREFIX:
            return None
        if not name:
            return importlib.machinery.ModuleSpec(fullname, None, is_package=True)
        place = _FOLDER.joinpath(*name.split("."))
        is_package = (place / "__init__.py").is_file()
        file = place / "__init__.py" if is_package else place.with_name(f"{place.name}.py")
        if not file.is_file():
            return None
        return importlib.util.spec_from_file_location(
            fullname,
            file,
            loader=_Loader(fullname, str(file)),
            submodule_search_locations=[str(place)] if is_package else None,
        )


def _step_back():
    """Move this folder from the front of sys.path, where torch.hub puts it for the time of a load, to the end.

    A thread that imports a `utils` of the caller meanwhile must not get this project's.
    """
    text = str(_FOLDER)
    if sys.path.count(text) == 1 and sys.path[0] == text:
        sys.path.append(sys.path.pop(0))


_step_back()
if not any(getattr(finder, "prefix", None) == _PREFIX for finder in sys.meta_path):
    sys.meta_path.insert(0, _Finder())  # before the one that searches the paths of packages
__builtins__ = _BUILTINS  # for the functions below, whose imports are of this project


# ---- models


def custom(
    path: str | pathlib.Path | list = "path/to/model.pt",
    autoshape: bool = True,
    _verbose: bool = True,
    device: object = None,
):
    """Return the model of a weights file, of a list of them (an ensemble), or of a file that export.py wrote.

    path: file, address, or a published name such as yolov5s.pt, which is downloaded if it is not here.
    autoshape: False returns the bare network of a .pt file, not fused. device: None is the first GPU, or the CPU.
    """
    from models.loading import find_weights, load_ensemble
    from utils.device import select_device
    from utils.download import fetch_typed
    from utils.formats import format_of
    from utils.inference.open_model import open_model
    from utils.inference.runtime import RuntimeSettings

    names = [str(one) for one in (path if isinstance(path, (list, tuple)) else [path])]
    files = find_weights(fetch_typed({"weights": names})["weights"], typed=True, exported=True)
    target = select_device("" if device is None else str(device))[0]
    model = open_model(
        files, RuntimeSettings(target), load_networks=lambda found: load_ensemble(found, target, fuse=autoshape)
    )
    return _finish(model, autoshape or format_of(files[0]), ", ".join(names) * _verbose)


def _entry(name):
    """Return the entry point of a published model."""

    def load(pretrained=True, channels=3, classes=80, autoshape=True, _verbose=True, device=None):
        if pretrained and (channels, classes) == (3, 80):
            return custom(f"{name}.pt", autoshape, _verbose, device)
        from models.loading import adapt_channels, read_weights, resolve_weights, transfer
        from models.yolo import DetectionModel
        from utils.device import select_device

        model = DetectionModel(f"{name}.yaml", channels=channels, num_classes=classes)
        if pretrained:
            weights = read_weights(resolve_weights(f"{name}.pt", allow_download=True))
            transfer(model, adapt_channels(model, weights.state_dict, 3))
        target = select_device("" if device is None else str(device))[0]
        return _finish(model.to(target).eval(), autoshape, f"{name} of {classes} classes" * _verbose)

    load.__name__ = name
    load.__doc__ = f"""Return {name}, by default with its published weights, downloaded if they are not here.

    channels: with another number the first layer is fitted to it. classes: with another number only the weights that
    fit are taken. pretrained: False takes none. autoshape: False returns the bare network. device: None is the first
    GPU, or the CPU.
    """
    return load


def _finish(model, autoshape, title):
    """Return the network, or the callable around it, and print `title` if there is one."""
    from utils import console
    from utils.device import describe_device
    from utils.inference.hub_model import HubModel

    _register_pickling()
    if title:
        console.info(f"{title} on {describe_device(model.device)}")
    return HubModel(model) if autoshape else model


yolov5n, yolov5s, yolov5m, yolov5l, yolov5x = (_entry(f"yolov5{size}") for size in "nsmlx")
yolov5n6, yolov5s6, yolov5m6, yolov5l6, yolov5x6 = (_entry(f"yolov5{size}6") for size in "nsmlx")


# ---- pickles, which other processes can read that have not loaded this file


def _register_pickling():
    """Let pickles of our objects rebuild them by `_rebuild`."""
    from models.loading import Ensemble
    from models.yolo import DetectionModel
    from utils.detections import Detections
    from utils.inference.hub_model import HubModel
    from utils.inference.results import Results

    for kind in (HubModel, Results, Detections, DetectionModel, Ensemble):
        copyreg.pickle(kind, _reduce)


def _reduce(found):
    """Return how to rebuild an object, by a function that every process has."""
    import torch

    load = functools.partial(torch.hub.load, str(_FOLDER), "_rebuild", source="local")
    return load, (pickle.dumps((type(found), vars(found))),)


def _rebuild(data):
    _register_pickling()
    kind, state = pickle.loads(data)
    rebuilt = kind.__new__(kind)
    vars(rebuilt).update(state)
    return rebuilt
