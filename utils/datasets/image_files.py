"""Image files of a split, found in folders and list files, and the label file of each."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from utils.errors import UserError
from utils.images.suffixes import IMAGE_SUFFIXES
from utils.parallel_map import parallel_map

MANY_IMAGES = 2000  # from this number on, processes are worth their start

Sources = str | Path | Sequence[str | Path]  # folders, list files and single images
T = TypeVar("T")


def is_image(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES


def label_path(image_path: str | Path) -> str:
    """Return the label file of an image: the last folder `images` becomes `labels`, the suffix becomes `.txt`."""
    stem = os.path.splitext(str(image_path))[0]
    folder = f"{os.sep}images{os.sep}"
    before, found, after = f"{os.sep}{stem}".rpartition(folder)  # the separator in front lets a path begin with images/
    return (f"{before}{os.sep}labels{os.sep}{after}"[1:] if found else stem) + ".txt"


def as_list(sources: Sources) -> list[str | Path]:
    return [sources] if isinstance(sources, (str, Path)) else list(sources)


def find_images(sources: Sources) -> list[str]:
    """Find images in folders (any depth, hidden names skipped), list files and single files. Return sorted paths.

    A list file has one path per line. A relative path is looked up in the current folder, then in the list's own. A
    path that begins with `./` is looked up in the list's own folder only. A path listed twice counts twice. Raises
    UserError if a source does not exist.
    """
    paths: list[str] = []
    for source in as_list(sources):
        if os.path.isdir(source):
            paths += _walk(str(source))
        elif not os.path.isfile(source):
            raise UserError(f"{source} does not exist: expected a folder of images or a .txt file that lists them")
        else:
            paths += [str(source)] if is_image(str(source)) else _read_list(Path(source))
    return sorted(paths)


def _walk(folder: str) -> Iterable[str]:
    seen = set()  # real paths of folders, so that a link to a parent folder does not loop
    for here, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        if real not in seen:
            seen.add(real)
            here = os.path.join(here, "")
            for name in names:  # up to a million: inlined is_image for names that do not begin with a dot
                if name[name.rfind(".") :].lower() in IMAGE_SUFFIXES and name[0] != ".":
                    yield here + name


def _read_list(file: Path) -> Iterable[str]:
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not a text file that lists images, one path per line ({error})") from error
    folder = str(file.parent)
    for line in filter(is_image, map(str.strip, text.splitlines())):
        if line.startswith("./"):
            yield os.path.join(folder, line[2:])
        elif os.path.isabs(line) or os.path.exists(line):
            yield line
        else:
            beside = os.path.join(folder, line)
            yield beside if os.path.exists(beside) else line


def map_chunks(function: Callable[[list[str]], T], paths: list[str], *, size: int) -> Iterator[T]:
    """Yield `function(chunk)` for consecutive chunks of `size` paths, in processes if there are many images."""
    chunks = [paths[k : k + size] for k in range(0, len(paths), size)]
    return parallel_map(function, chunks, cpu_bound=len(paths) >= MANY_IMAGES)
