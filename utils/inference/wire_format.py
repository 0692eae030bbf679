"""Wire format of protocol buffers: the fields of a message, read without its schema and without copying."""

from collections.abc import Iterator
from typing import NamedTuple

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MAX_VARINT_BYTES = 10


class DamagedMessage(ValueError):
    """Bytes that are no protocol buffer message, or one with too many fields."""


class Field(NamedTuple):
    """One field of a message."""

    number: int
    wire: int  # VARINT, FIXED64, BYTES or FIXED32
    value: int  # of a number, its 64 or 32 bits without a sign; 0 for bytes
    data: memoryview  # of bytes, empty for numbers


class Reader:
    """Reader of messages that stops after a number of fields, because a file can hold 10⁹ of them."""

    def __init__(self, max_fields: int) -> None:
        self.left = max_fields

    def fields(self, message: memoryview) -> Iterator[Field]:
        """Yield the fields of a message in their order. Raises DamagedMessage."""
        place, end = 0, len(message)
        while place < end:
            self.left -= 1
            if self.left < 0:
                raise DamagedMessage("too many parts")
            tag, place = read_varint(message, place)
            number, wire = tag >> 3, tag & 7
            value, data = 0, message[:0]
            if wire == VARINT:
                value, place = read_varint(message, place)
            elif wire in (FIXED64, FIXED32):
                size = 8 if wire == FIXED64 else 4
                value, place = int.from_bytes(message[place : place + size], "little"), place + size
            elif wire == BYTES:
                size, start = read_varint(message, place)
                data, place = message[start : start + size], start + size
            else:
                raise DamagedMessage(f"unknown kind of field {wire}")
            if place > end or not number:
                raise DamagedMessage("a field reaches beyond its message" if number else "a field has number 0")
            yield Field(number, wire, value, data)


def read_varint(data: memoryview, place: int) -> tuple[int, int]:
    """Return the number that begins at `place`, as 64 bits without a sign, and the place behind it."""
    value = 0
    for position, byte in enumerate(data[place : place + MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << 7 * position
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, place + position + 1
    raise DamagedMessage("a number has no end")


def integers(field: Field, most: int) -> list[int]:
    """Return the signed 64-bit integers of a field, packed or a single one. Raises DamagedMessage beyond `most`."""
    found, place = [] if field.wire == BYTES else [field.value], 0
    while place < len(field.data):
        value, place = read_varint(field.data, place)
        found.append(value)
        if len(found) > most:
            raise DamagedMessage(f"more than {most} numbers in a row")
    return [value - (1 << 64) if value >> 63 else value for value in found]


def integer(field: Field) -> int:
    """Return the signed 64-bit integer of a field. Raises DamagedMessage for bytes."""
    if field.wire == BYTES:
        raise DamagedMessage(f"field {field.number} is no number")
    return integers(field, 1)[0]


def text(data: memoryview, most: int) -> str:
    """Return bytes as UTF-8 text. Raises DamagedMessage beyond `most` bytes."""
    if len(data) > most:
        raise DamagedMessage(f"a text of {len(data)} bytes")
    try:
        return bytes(data).decode()
    except UnicodeDecodeError as error:
        raise DamagedMessage("a text that is not UTF-8") from error
