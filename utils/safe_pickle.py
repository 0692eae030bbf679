"""Unpickler whose work and memory are bounded by the size of its file, and that calls only what is listed.

It is written in Python: the unpickler in C allocates memory up to any memo index that a file names.
"""

import io
import itertools
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from utils.files import check_archive

# Opcodes that protocols 2 to 4 write. Others are not needed, and some allocate as much memory as a file requests.
OPCODES = (
    "PROTO FRAME STOP MARK POP NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT BINUNICODE "
    "SHORT_BINUNICODE BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES EMPTY_LIST APPEND APPENDS TUPLE "
    "EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT SETITEM SETITEMS EMPTY_SET ADDITEMS FROZENSET GLOBAL "
    "STACK_GLOBAL REDUCE NEWOBJ BUILD BINPERSID BINGET LONG_BINGET BINPUT LONG_BINPUT MEMOIZE"
).split()
BASE: dict[int, Any] = pickle._Unpickler.dispatch  # loader of each opcode
MAX_KEY_PARTS = 1000  # of nested tuples in the key of a dict
COPIES = 1 << 22  # values and characters that the calls of a file may copy


class AllowedCall:
    """Permitted callable without attributes that a file could replace."""

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError(f"the file sets {name} on a function")

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)


def check_key(key: object) -> None:
    """Raise UnpicklingError for a key of many parts: the hash of nested tuples may take 2^depth steps."""
    waiting, count = [key], 0
    while waiting:
        part = waiting.pop()
        count += 1
        if count > MAX_KEY_PARTS:
            raise pickle.UnpicklingError("a nested tuple as a key")
        if isinstance(part, (tuple, frozenset)):
            waiting += itertools.islice(part, MAX_KEY_PARTS)


class SafeUnpickler(pickle._Unpickler):
    """Unpickler that subclasses give `find_class` and `persistent_load`."""

    stack: list[Any]

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="latin1")
        self._copied = 0

    def _set_item(self) -> None:
        check_key(self.stack[-2])
        BASE[pickle.SETITEM[0]](self)

    def _set_items(self) -> None:
        for key in self.stack[::2]:
            check_key(key)
        BASE[pickle.SETITEMS[0]](self)

    def _add_items(self) -> None:
        for key in self.stack:
            check_key(key)
        BASE[pickle.ADDITEMS[0]](self)

    def _frozenset(self) -> None:
        for key in self.stack:
            check_key(key)
        BASE[pickle.FROZENSET[0]](self)

    def _reduce(self) -> None:
        function, arguments = self.stack[-2:]
        if function is OrderedDict and arguments:
            raise pickle.UnpicklingError("a dictionary that is called with its items")
        if isinstance(function, AllowedCall):
            for part in arguments:  # before the call, which may copy all of them
                self._copied += len(part) if isinstance(part, (str, bytes, tuple, list, set, frozenset)) else 1
        if self._copied > COPIES:
            raise pickle.UnpicklingError("its calls copy many times the size of the file")
        BASE[pickle.REDUCE[0]](self)

    dispatch: ClassVar[dict[int, Any]] = {
        **{code: BASE[code] for code in (getattr(pickle, name)[0] for name in OPCODES)},
        pickle.SETITEM[0]: _set_item,
        pickle.SETITEMS[0]: _set_items,
        pickle.ADDITEMS[0]: _add_items,
        pickle.FROZENSET[0]: _frozenset,
        pickle.REDUCE[0]: _reduce,
    }


class PlainUnpickler(SafeUnpickler):
    """Unpickler of containers, text, numbers and dense tensors, which become None. It refuses everything else."""

    def __init__(self, file: BinaryIO, sizes: dict[str, int]) -> None:
        super().__init__(file)
        self._sizes = sizes  # bytes of each storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return AllowedCall(lambda *_: None)
        if module == "torch" and name.isalpha() and name.endswith("Storage"):
            return name
        raise pickle.UnpicklingError(f"it calls {module}.{name}")

    def persistent_load(self, pid: Any) -> None:
        kind, dtype, key, _, numel = pid
        if kind != "storage" or not isinstance(dtype, str) or not isinstance(key, str) or type(numel) is not int:
            raise pickle.UnpicklingError("an unknown kind of stored object")
        if not 0 <= numel <= self._sizes[key]:
            raise pickle.UnpicklingError(f"storage {key} has {self._sizes[key]} bytes for {numel} values")


def read_outline(path: str | Path) -> Any:
    """Return what an archive of torch holds, with None in place of tensors.

    Raises UnpicklingError, BadZipFile, or what damaged pickles raise, if `torch.load` would do more than build plain
    containers and dense tensors.
    """
    check_archive(path)
    with zipfile.ZipFile(path) as archive:
        folder = archive.namelist()[0].partition("/")[0]
        prefix = f"{folder}/data/"
        sizes = {
            record.filename.removeprefix(prefix): record.file_size
            for record in archive.infolist()
            if record.filename.startswith(prefix)
        }
        record = archive.getinfo(f"{folder}/data.pkl")
        if not record.CRC:  # an option of torch omits it
            del record.CRC
        data = archive.read(record)
    return PlainUnpickler(io.BytesIO(data), sizes).load()
