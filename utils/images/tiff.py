"""Sizes of the pages of a TIFF or BigTIFF file, from its directories."""

from typing import BinaryIO, NamedTuple

MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # of a file: TIFF and BigTIFF, least and most significant byte first
MAX_FIELDS = 10_000  # of a page; a file of nothing else would take minutes to walk
SIZES = {1: 1, 3: 2, 4: 4, 16: 8}  # bytes of a number of each type
WIDTH, HEIGHT, SAMPLES = 256, 257, 277  # tags


class Page(NamedTuple):
    """Size of a page, zeros for what its directory does not say."""

    height: int
    width: int
    samples: int  # numbers per pixel


def read_pages(file: BinaryIO, most: int) -> list[Page]:
    """Return the first `most` pages. Of a repeated tag the larger value counts."""
    file.seek(0)
    head = file.read(16)
    order = "little" if head.startswith(b"II") else "big"
    big = 0x2B in head[2:4]
    start, count, entry, place, pointer = (slice(8, 16), 8, 20, 12, 8) if big else (slice(4, 8), 2, 12, 8, 4)
    position, last, pages = int.from_bytes(head[start], order), file.seek(0, 2), []
    while 0 < position < last and len(pages) < most:
        file.seek(position)
        values = dict.fromkeys((HEIGHT, WIDTH, SAMPLES), 0)
        num_fields = int.from_bytes(file.read(count), order)
        for _ in range(min(num_fields, MAX_FIELDS)):
            field = file.read(entry)
            tag, kind = int.from_bytes(field[:2], order), int.from_bytes(field[2:4], order)
            if tag in values:
                values[tag] = max(values[tag], int.from_bytes(field[place : place + SIZES.get(kind, 0)], order))
        pages.append(Page(values[HEIGHT], values[WIDTH], values[SAMPLES]))
        file.seek(position + count + num_fields * entry) if num_fields <= MAX_FIELDS else file.seek(0, 2)
        position = int.from_bytes(file.read(pointer), order)
    return pages
