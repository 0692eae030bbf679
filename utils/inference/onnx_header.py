"""Header of an ONNX file: metadata, inputs, outputs and operators, read without the onnx package.

An ONNX file is a protobuf message: fields of a number, a wire type and a value. The reader below follows only the
fields that it needs and skips the weights without reading them. Numbers of fields are those of the file onnx.proto.
"""

import mmap
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from utils.errors import UserError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types
MAX_TEXT = 1 << 22  # bytes of a key or value
MAX_FIELDS = 1_000_000

Buffer = mmap.mmap | bytes


class Port(NamedTuple):
    """An input or output of the graph."""

    name: str
    dims: list[int | str | None]  # text and None are dynamic


class OnnxHeader(NamedTuple):
    """Description of a model, without its weights."""

    opsets: dict[str, int]  # by domain, "" is ONNX's own
    properties: dict[str, str]
    inputs: list[Port]  # without weights
    outputs: list[Port]
    operators: set[str]  # kinds of nodes, with their domain in front unless it is ONNX's own
    external_files: list[str]  # places of weights outside the file, as the file has them


class _Field(NamedTuple):
    number: int
    value: int  # of a varint
    start: int  # of bytes
    end: int


def read_onnx_header(path: str | Path) -> OnnxHeader:
    """Return the header of an ONNX file. Raise UserError for a damaged file, or one of another kind."""
    try:
        with open(path, "rb") as file, closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as data:
            return _read_model(data)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, IndexError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not an ONNX file, or a damaged one ({error})") from error


def _read_model(data: Buffer) -> OnnxHeader:
    opsets, properties, graph = {}, {}, None
    for field in _fields(data, 0, len(data)):
        if field.number == 7:
            graph = field
        elif field.number == 8:
            domain, number = _texts(data, field, {1}), _numbers(data, field)
            opsets[domain.get(1, "")] = number.get(2, 0)
        elif field.number == 14:
            entry = _texts(data, field, {1, 2})
            properties[entry.get(1, "")] = entry.get(2, "")
    if graph is None:
        raise ValueError("no graph")
    return _read_graph(data, graph, opsets, properties)


def _read_graph(data: Buffer, graph: _Field, opsets: dict[str, int], properties: dict[str, str]) -> OnnxHeader:
    header = OnnxHeader(opsets, properties, [], [], set(), [])
    weights = set()
    for field in _fields(data, graph.start, graph.end):
        if field.number == 1:
            texts = _texts(data, field, {4, 7})
            domain = texts.get(7, "")
            header.operators.add(f"{domain}.{texts.get(4, '')}" if domain not in ("", "ai.onnx") else texts.get(4, ""))
        elif field.number == 5:
            weights.add(_texts(data, field, {8}).get(8, ""))
            header.external_files.extend(_external_file(data, field))
        elif field.number in (11, 12):
            (header.inputs if field.number == 11 else header.outputs).append(_port(data, field))
    inputs = [port for port in header.inputs if port.name not in weights]  # IR versions before 4 list weights too
    if not inputs or not header.outputs:
        raise ValueError("no input or no output")
    return header._replace(inputs=inputs)


def _external_file(data: Buffer, tensor: _Field) -> Iterator[str]:
    for field in _fields(data, tensor.start, tensor.end):
        if field.number == 13:
            entry = _texts(data, field, {1, 2})
            if entry.get(1) == "location":
                yield entry.get(2, "")


def _port(data: Buffer, field: _Field) -> Port:
    """Return name and dimensions of a ValueInfoProto: type (2), tensor_type (1), shape (2), dim (1), value or name."""
    dims: list[int | str | None] = []
    for kind in _children(data, field, 2):
        for tensor in _children(data, kind, 1):
            for shape in _children(data, tensor, 2):
                for dim in _children(data, shape, 1):
                    dims.append(_numbers(data, dim).get(1) or _texts(data, dim, {2}).get(2))
    return Port(_texts(data, field, {1}).get(1, ""), dims)


def _children(data: Buffer, parent: _Field, number: int) -> Iterator[_Field]:
    return (field for field in _fields(data, parent.start, parent.end) if field.number == number and field.start)


def _numbers(data: Buffer, parent: _Field) -> dict[int, int]:
    return {field.number: field.value for field in _fields(data, parent.start, parent.end) if not field.start}


def _texts(data: Buffer, parent: _Field, numbers: set[int]) -> dict[int, str]:
    """Return the text of some fields of a message."""
    found = {}
    for field in _fields(data, parent.start, parent.end):
        if field.number in numbers and field.start:
            if field.end - field.start > MAX_TEXT:
                raise ValueError("a text that is too long")
            found[field.number] = data[field.start : field.end].decode("utf-8", errors="replace")
    return found


def _fields(data: Buffer, start: int, end: int) -> Iterator[_Field]:
    """Yield the fields of a message. Raise ValueError if one does not fit into it."""
    count = 0
    while start < end:
        key, start = _varint(data, start, end)
        count += 1
        if count > MAX_FIELDS:
            raise ValueError("too many fields")
        wire, number = key & 7, key >> 3
        value, first = 0, 0
        if wire == VARINT:
            value, start = _varint(data, start, end)
        elif wire == BYTES:
            size, first = _varint(data, start, end)
            start = first + size
        elif wire in (FIXED64, FIXED32):
            start += 8 if wire == FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if start > end or number == 0:
            raise ValueError("a field that does not fit")
        yield _Field(number, value, first, start)


def _varint(data: Buffer, start: int, end: int) -> tuple[int, int]:
    """Return the number at `start`, 7 bits a byte, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if start >= end:
            raise ValueError("it ends in the middle")
        byte = data[start]
        value, start = value | (byte & 0x7F) << shift, start + 1
        if byte < 0x80:
            return value, start
    raise ValueError("a number that is too long")
