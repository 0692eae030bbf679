"""Reader of YOLOv5 `.pt` files, which are pickles of a program's objects. Nothing in them is executed.

Modules become PickledObjects, which hold attributes only. Tensors are described, and loaded on request. Every callable
that is not on the short list below is refused by name. Zip archives (torch 1.6 and later) and the older stream format
are read.
"""

import io
import math
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from utils.checkpoint import READ_ERRORS, START, recognise
from utils.errors import UserError
from utils.safe_pickle import AllowedCall, SafeUnpickler, check_key

MAX_PATH = 100_000  # characters
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
MODULE_PACKAGES = ("models.", "utils.activations.", "torch.nn.modules.", "torch.nn.parallel.", "__main__.")
OWN_PACKAGES = ("__builtin__", "torch", "numpy", "utils")  # a file has no reason to call other parts of these
DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
DTYPE_NAMES = {str(dtype): dtype for dtype in DTYPES.values()}  # torch.float32 ...


class PickledObject:
    """Placeholder for an object of a class that is not imported: it holds attributes and does nothing.

    Each load makes its own subclasses, so nothing that a file sets outlives the load.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.arguments = args

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict) and all(isinstance(key, str) for key in state):
            self.__dict__.update(state)


@dataclass(frozen=True)
class StorageRef:
    """Block of `numel` values in the file."""

    key: str
    dtype: torch.dtype
    numel: int


@dataclass(frozen=True)
class TensorRef:
    """View of a storage, in values. Its extent is checked against the storage when it is created."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def __post_init__(self) -> None:
        numbers = (self.offset, *self.shape, *self.strides)
        if (
            not isinstance(self.storage, StorageRef)
            or len(self.shape) != len(self.strides)
            or not all(type(number) is int and 0 <= number < 1 << 63 for number in numbers)
        ):
            raise pickle.UnpicklingError("the description of a tensor holds something other than sizes")
        numel = math.prod(self.shape)
        extent = self.offset + sum((side - 1) * stride for side, stride in zip(self.shape, self.strides)) + 1
        # The first comparison also bounds tensors with stride 0, which would grow when they are copied.
        if numel > self.storage.numel or (numel and extent > self.storage.numel):
            raise pickle.UnpicklingError(f"a tensor of shape {self.shape} exceeds its {self.storage.numel} values")


def make_tensor_ref(storage: StorageRef, offset: int, shape: tuple, strides: tuple, *_: Any) -> TensorRef:
    """Describe a tensor in place of torch's function that builds it."""
    return TensorRef(storage, offset, tuple(shape), tuple(strides))


def decode_bytes(text: str, encoding: str = "latin1") -> bytes:
    """Decode bytes as pickle protocol 2 writes them."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError("bytes in an unknown encoding")
    return text.encode("latin1")


def join_path(*parts: str) -> str:
    """Return a path as text."""
    if not all(isinstance(part, str) for part in parts) or sum(map(len, parts)) > MAX_PATH:
        raise pickle.UnpicklingError("a path that is not made of text, or endless")
    return "/".join(parts)


def make_set(items: Any = ()) -> set:
    """Return a set of items whose hashes take little time."""
    for item in items:
        check_key(item)
    return set(items)


def first_argument(value: Any, *_: Any) -> Any:
    """Return the tensor of a parameter."""
    return value


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": make_tensor_ref,
    "torch._utils._rebuild_tensor_v2": make_tensor_ref,
    "torch._utils._rebuild_parameter": first_argument,
    "torch._utils._rebuild_parameter_with_state": first_argument,
    "torch.Size": tuple,
    "_codecs.encode": decode_bytes,
    **{
        f"{module}.{kind}": kinds
        for module in ("builtins", "__builtin__")
        for kind, kinds in (("set", make_set), ("frozenset", lambda items=(): frozenset(make_set(items))))
    },
    **{
        f"{module}.{kind}": join_path
        for module in ("pathlib", "pathlib._local")
        for kind in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path")
    },
}
# The content of these is not needed (NumPy values are only the fitness), so they become PickledObjects.
INERT = {
    "torch.device",
    "numpy.dtype",
    "numpy.ndarray",
    "argparse.Namespace",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
}


class Unpickler(SafeUnpickler):
    """Unpickler of containers, text, numbers, PickledObjects and tensor references. Others are a UserError."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        super().__init__(file)
        self.path = path
        self.classes: dict[str, type | Any] = {}
        self.storages: dict[str, StorageRef] = {}

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in self.classes:
            self.classes[full] = self._placeholder(full)
        return self.classes[full]

    def _placeholder(self, full: str) -> Any:
        module, _, name = full.rpartition(".")
        if full == "collections.OrderedDict":
            return OrderedDict
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if full in DTYPE_NAMES:
            return DTYPE_NAMES[full]
        if full in FUNCTIONS:
            return AllowedCall(FUNCTIONS[full])
        if full in INERT or full.startswith(MODULE_PACKAGES):
            return type(name, (PickledObject,), {})
        package = module.partition(".")[0]
        if package == "ultralytics":
            raise UserError(
                f"{self.path}: a model of YOLOv8 or later (it holds {full}), not a YOLOv5 model: use a YOLOv5 .pt file"
            )
        if package in {*sys.stdlib_module_names, *OWN_PACKAGES}:
            raise UserError(
                f"{self.path}: refused: the file calls {full}, which no YOLOv5 checkpoint needs; do not trust this file"
            )
        raise UserError(f"{self.path}: not a YOLOv5 model: it needs {full}, of a fork or another program")

    def persistent_load(self, pid: Any) -> Any:
        if isinstance(pid, tuple) and pid and pid[0] == "module":  # older files store a class with its source text
            return pid[1]
        kind, dtype, key, _, numel, *view = pid
        if (
            kind != "storage"
            or not isinstance(dtype, torch.dtype)
            or not isinstance(key, (str, int))
            or not (type(numel) is int and numel >= 0)
        ):
            raise pickle.UnpicklingError("an unknown kind of stored object")
        if view and view[0] is not None:
            raise pickle.UnpicklingError("a storage that is part of another one")
        return self.storages.setdefault(str(key), StorageRef(str(key), dtype, numel))


class YOLOv5File:
    """Object in a `.pt` file of YOLOv5 (`content`), and its tensors on request. Use it as a context manager.

    Raises UserError, in one line, for files that are damaged, are no checkpoints, or call anything not permitted.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._blocks: dict[str, bytes] = {}
        self._tensors: dict[str, Tensor] = {}
        self._charged = 0  # bytes read from the file, and 100 per module visited

    def __enter__(self) -> "YOLOv5File":
        try:
            self._file = self.path.open("rb")
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read: {error.strerror}") from error
        try:
            self.content = self._read()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    def _read(self) -> Any:
        start = self._file.read(START)
        self._file.seek(0)
        try:
            if start.startswith(b"PK\x03\x04"):
                return self._read_zip()
            if start.startswith(b"\x80"):
                return self._read_stream()
        except UserError:
            raise
        except READ_ERRORS as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"{self.path}: damaged, cut off or no YOLOv5 checkpoint ({reason[:200]})") from error
        raise UserError(f"{self.path}: not a checkpoint{recognise(start)}: give a .pt file that train.py wrote")

    def _read_zip(self) -> Any:
        self._archive = zipfile.ZipFile(self._file)
        names = self._archive.namelist()
        pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
        if any(name.endswith("/constants.pkl") for name in names):
            raise UserError(
                f"{self.path}: a TorchScript file is not supported yet: give the .pt file it was exported from"
            )
        if len(pickles) != 1:
            raise UserError(f"{self.path}: a zip archive, but not a checkpoint: give a .pt file that train.py wrote")
        self._folder = pickles[0].removesuffix("data.pkl")
        if f"{self._folder}byteorder" in names and self._member("byteorder") != b"little":
            raise UserError(f"{self.path}: written on a big-endian machine, which is not supported")
        return Unpickler(io.BytesIO(self._member("data.pkl")), self.path).load()

    def _member(self, name: str) -> bytes:
        info = self._archive.getinfo(self._folder + name)
        if info.compress_type != zipfile.ZIP_STORED:  # torch never compresses; a compressed file may be a zip bomb
            raise UserError(f"{self.path}: {name} is compressed, which no checkpoint is")
        return self._archive.read(info)

    def _read_stream(self) -> Any:
        """Read the format before torch 1.6: magic, protocol, machine, object, storage keys, bytes of each storage."""
        if Unpickler(self._file, self.path).load() != LEGACY_MAGIC:
            raise UserError(f"{self.path}: a pickle, but not a checkpoint: give a .pt file that train.py wrote")
        Unpickler(self._file, self.path).load()
        machine = Unpickler(self._file, self.path).load()
        if not machine.get("little_endian", True):
            raise UserError(f"{self.path}: written on a big-endian machine, which is not supported")
        reader = Unpickler(self._file, self.path)
        content = reader.load()
        for key in Unpickler(self._file, self.path).load():
            if not isinstance(key, (str, int)):
                raise pickle.UnpicklingError("a storage without a name")
            storage = reader.storages[str(key)]
            (numel,) = struct.unpack("<q", self._file.read(8))
            block = self._file.read(storage.numel * storage.dtype.itemsize)
            if numel != storage.numel:
                raise pickle.UnpicklingError(f"storage {key} holds {numel} values, not {storage.numel}")
            if len(block) != storage.numel * storage.dtype.itemsize:
                raise EOFError(f"storage {key} is cut off")
            self._blocks[storage.key] = block
        return content

    def _charge(self, amount: int) -> None:
        """Count `amount`. Raises UserError if a small file expands to a huge one by naming the same part many times."""
        self._charged += amount
        if self._charged > 4 * self.path.stat().st_size + (1 << 20):
            raise UserError(f"{self.path}: refused: the file unfolds to many times its size")

    def tensor(self, ref: TensorRef) -> Tensor:
        """Return a copy of the tensor that `ref` describes. Raises UserError if its bytes are missing or damaged."""
        try:
            self._charge(math.prod(ref.shape) * ref.storage.dtype.itemsize)
            return self._storage(ref.storage).as_strided(ref.shape, ref.strides, ref.offset).clone()
        except UserError:
            raise
        except READ_ERRORS as error:
            raise UserError(
                f"{self.path}: damaged or cut off: storage {ref.storage.key} cannot be read ({error}); "
                "download the file again"
            ) from error

    def _storage(self, storage: StorageRef) -> Tensor:
        if storage.key not in self._tensors:
            block = self._blocks.get(storage.key)
            block = self._member(f"data/{storage.key}") if block is None else block
            self._charge(len(block))
            if len(block) != storage.numel * storage.dtype.itemsize:
                raise UserError(
                    f"{self.path}: damaged or cut off: storage {storage.key} has {len(block)} bytes, "
                    f"expected {storage.numel * storage.dtype.itemsize}"
                )
            self._tensors[storage.key] = (
                torch.frombuffer(bytearray(block), dtype=storage.dtype)
                if block
                else torch.empty(0, dtype=storage.dtype)
            )
        return self._tensors[storage.key]

    def state_dict(self, module: PickledObject) -> dict[str, Tensor]:
        """Return the tensors of a pickled module and its children, by the names that `Module.state_dict` gives them."""
        return {name: self.tensor(ref) for name, ref in self._entries(module, "")}

    def _entries(self, module: Any, prefix: str) -> Iterator[tuple[str, TensorRef]]:
        if prefix.count(".") > 50:
            raise UserError(f"{self.path}: modules nested more than 50 deep")
        self._charge(100)
        parts = vars(module) if isinstance(module, PickledObject) else {}
        hidden = parts.get("_non_persistent_buffers_set") or ()
        for group in ("_parameters", "_buffers"):
            for name, value in (parts.get(group) or {}).items():
                if isinstance(value, TensorRef) and not (group == "_buffers" and name in hidden):
                    yield prefix + name, value
        for name, child in (parts.get("_modules") or {}).items():
            yield from self._entries(child, f"{prefix}{name}.")

    def attribute(self, module: PickledObject, name: str) -> Tensor | None:
        """Return the tensor in a plain attribute of a module below, by its dotted name, or None if there is none."""
        *parents, last = name.split(".")
        owner: Any = module
        for part in parents:
            owner = (vars(owner).get("_modules") or {}).get(part) if isinstance(owner, PickledObject) else None
        parts = vars(owner) if isinstance(owner, PickledObject) else {}
        found = parts.get(last) or (parts.get("_buffers") or {}).get(last)
        return self.tensor(found) if isinstance(found, TensorRef) else None
