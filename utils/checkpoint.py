"""Checkpoint files: contents, writing, reading, reduction to what inference needs.

A checkpoint is a dict of tensors, numbers, strings, lists and dicts: `torch.load(weights_only=True)` reads it where
this project cannot be imported. There are two kinds: `train` (the full state of a run) and `weights` (a model for
inference, in float16).
"""

import copy
import errno
import itertools
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from utils.detector import Detector
from utils.errors import UserError
from utils.files import atomic_write, check_archive
from utils.safe_pickle import read_outline

SCHEMA = 1  # raise it when the layout changes, and add a function to UPGRADES that upgrades the layout before
UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
PLAIN_TYPES = (str, int, float, bool, type(None))  # besides tensors, dicts, lists and tuples
MAX_DEPTH = 50  # of containers within containers
MAX_PARTS = 1_000_000  # values in a checkpoint, counted as often as they are referenced

# What a damaged or foreign file can raise in torch.load and other readers of pickles.
READ_ERRORS = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    struct.error,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    ArithmeticError,
    MemoryError,
)


START = 512  # bytes at a file's start that `recognise` needs


class ForeignCheckpoint(UserError):
    """The file is damaged, or another program's."""


def recognise(start: bytes) -> str:
    """Return what a file that is no checkpoint is, from its first bytes, for messages. "" if that is unknown."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"version https://git-lfs"):
        return ", but a pointer of Git LFS (`git lfs pull` fetches the file itself)"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return ", but a web page (download the file itself)"
    return " (the file is empty)" if not start else ""


def describe_model(model: Detector) -> dict[str, Any]:
    """Return the YAML, names and state of the model as plain types and tensors."""
    return {"yaml": copy.deepcopy(model.yaml), "names": dict(model.names), "state_dict": model.state_dict()}


def snapshot(value: object) -> Any:
    """Return a copy of nested dicts and lists with their tensors on the CPU, which later training does not change."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: snapshot(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(snapshot(entry) for entry in value)
    assert type(value) in PLAIN_TYPES, f"a checkpoint with a {type(value)} could not be read again"
    return value


def is_finite(content: dict[str, Any]) -> bool:
    """Return True if the weights and the EMA in a state hold neither NaN nor infinity."""
    parts = [content[name]["state_dict"] for name in ("model", "ema") if name in content]
    tensors = [value for part in parts for value in part.values() if value.is_floating_point()]
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def write_checkpoint(path: str | Path, content: dict[str, Any], kind: str = "train") -> None:
    """Write `content` with schema and kind, atomically. Raise OSError if that fails (disk full, no access)."""
    try:
        with atomic_write(path) as file:
            torch.save({"anchorage": SCHEMA, "kind": kind, **content}, file)
    except RuntimeError as error:  # torch's own for a full disk
        cause = error.__context__
        number, reason = (cause.errno, cause.strerror) if isinstance(cause, OSError) else (None, None)
        reason = reason or (str(error) or type(error).__name__).splitlines()[0]
        raise OSError(number or errno.EIO, reason, str(path)) from error


def read_checkpoint(path: str | Path, outline: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the dict of one of our own checkpoints, on the CPU, upgraded to the present schema.

    Nothing in the file is executed, and it cannot unpack to more than its size. Any other file raises UserError.
    `outline` is that of `own_outline`, if it was read already.
    """
    if not Path(path).exists():
        raise UserError(f"{path}: no such file")
    try:
        outline = outline or read_outline(path)
        check_archive(path, contents=True)
        check_depth(outline)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except READ_ERRORS as error:
        raise ForeignCheckpoint(f"{path}: not a whole checkpoint of this project{explain(error, path)}") from error
    check_unpacked_size(content, path)
    if not isinstance(content, dict) or type(content.get("anchorage")) is not int:
        raise ForeignCheckpoint(f"{path}: not a checkpoint of this project")
    if content["anchorage"] > SCHEMA:
        raise UserError(f"{path}: written by a newer version (schema {content['anchorage']}); update this project")
    while (schema := content["anchorage"]) < SCHEMA:
        if schema not in UPGRADES:
            raise ForeignCheckpoint(f"{path}: not a checkpoint of this project (there is no schema {schema})")
        content = UPGRADES[schema](content)
    return content


def own_outline(path: str | Path) -> dict[str, Any] | None:
    """Return what the file holds, without its tensors, if it is plain data with our key. None for any other file."""
    try:
        content = read_outline(path)
    except READ_ERRORS:
        return None
    return content if isinstance(content, dict) and "anchorage" in content else None


def check_depth(content: object) -> None:
    """Raise UnpicklingError if containers are nested deeper than in any real file."""
    level, depth = [content], 0
    while level := [part for value in level if isinstance(value, (dict, list, tuple)) for part in _parts(value)]:
        depth += 1
        if depth > MAX_DEPTH or len(level) > MAX_PARTS:
            raise pickle.UnpicklingError("nested too deep, or unpacks to many times its size")


def _parts(value: dict | list | tuple) -> Iterable[object]:
    return (*value.keys(), *value.values()) if isinstance(value, dict) else value


def explain(error: Exception, path: str | Path) -> str:
    """Return why a file could not be read, for messages."""
    if isinstance(error, (zipfile.BadZipFile, pickle.UnpicklingError)) and zipfile.is_zipfile(path):
        return f" ({(str(error).splitlines() or [''])[0][:200]})"
    with open(path, "rb") as file:
        return recognise(file.read(START))


def check_unpacked_size(content: Any, path: str | Path) -> None:
    """Raise UserError if a part is referenced very often, or a tensor is larger than its storage."""
    count, waiting = itertools.count(1), [content]
    while waiting:
        value = waiting.pop()
        if next(count) > MAX_PARTS:
            raise UserError(f"{path}: refused: the file unpacks to many times its size")
        if isinstance(value, torch.Tensor):
            if value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise UserError(
                    f"{path}: refused: a tensor of shape {tuple(value.shape)} is larger than what is stored"
                )
        elif isinstance(value, dict):
            waiting += value.keys()
            waiting += value.values()
        elif isinstance(value, (list, tuple, set, frozenset)):
            waiting += value


def inference_checkpoint(content: dict[str, Any]) -> dict[str, Any]:
    """Return what inference needs of a training state: the EMA weights in half precision, and the settings."""
    weights = content.get("ema", content["model"])["state_dict"]
    half = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    kept = {key: content[key] for key in ("epoch", "metrics", "options", "hyp", "advice") if key in content}
    return {"model": {**content["model"], "state_dict": half}, **kept}
