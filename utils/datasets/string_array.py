"""Array of millions of strings without one object per string."""

import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np


class StringArray(Sequence[str]):
    """Strings in one array of bytes: surrogateescaped UTF-8, separated by zero bytes, which no string may hold.

    A list of a million paths is a million objects. Reading one writes to its reference count, so every forked worker
    would end up with a copy of them all. The arrays here stay shared between processes.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._take(np.frombuffer("\0".join(texts).encode(errors="surrogateescape"), np.uint8))

    @classmethod
    def from_bytes(cls, data: np.ndarray) -> "StringArray":
        """Return the array whose `.data` this was. Empty data gives no strings."""
        array = cls()
        array._take(data.astype(np.uint8, copy=False).reshape(-1))
        return array

    @classmethod
    def concatenate(cls, parts: Iterable["StringArray"]) -> "StringArray":
        """Return the strings of all parts, in their order."""
        zero = np.zeros(1, np.uint8)
        pieces = [piece for part in parts if len(part) for piece in (zero, part.data)]
        return cls.from_bytes(np.concatenate(pieces)[1:]) if pieces else cls()

    def _take(self, data: np.ndarray) -> None:
        self.data = data  # (bytes,) uint8
        ends = [np.flatnonzero(data == 0), [len(data)]] if len(data) else []
        self._starts = np.concatenate([[0], *ends]).astype(np.int64)  # string i is data[starts[i] (+ 1): starts[i + 1]]

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...

    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        i = range(len(self))[operator.index(i)]
        return _decode(self.data[self._starts[i] + (i > 0) : self._starts[i + 1]])

    def __iter__(self) -> Iterator[str]:
        return iter(_decode(self.data).split("\0") if len(self) else ())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, StringArray):
            return np.array_equal(self.data, other.data)
        return list(self) == other if isinstance(other, list) else NotImplemented

    __hash__ = None

    def __repr__(self) -> str:
        return f"StringArray({list(self)})"


class TakenStrings(Sequence[str]):
    """Strings of a sequence by their numbers, which may repeat, without a copy of any string."""

    def __init__(self, strings: Sequence[str], numbers: np.ndarray) -> None:
        self.strings, self.numbers = strings, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...

    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [self.strings[k] for k in self.numbers[i].tolist()]
        return self.strings[int(self.numbers[i])]


def _decode(data: np.ndarray) -> str:
    return data.tobytes().decode(errors="surrogateescape")
