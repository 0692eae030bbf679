"""Image files of a split, found in folders and list files, and the label file of each."""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from utils.console import info
from utils.datasets.label_folders import find_label_folder, holds_texts
from utils.datasets.stated_paths import find_moved
from utils.errors import UserError
from utils.files import is_lasting, retry_reading
from utils.images.suffixes import IMAGE_SUFFIXES
from utils.parallel_map import parallel_map

MANY_IMAGES = 2000  # from this number on, processes are worth their start

Sources = str | Path | Sequence[str | Path]  # folders, list files and single images
T = TypeVar("T")


def is_image(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES


def label_path(image_path: str | Path) -> str:
    """Return the label file of an image: the last folder `images` becomes `labels`, the suffix becomes `.txt`.

    If there is no such folder `labels`, the label file is beside the image if text files are there. Else it is in the
    folder that `find_label_folder` finds. Raises UserError if there are several such folders.
    """
    stem = os.path.splitext(str(image_path))[0]
    usual, folder = _usual_label(stem)
    if folder and os.path.isdir(folder):
        return usual
    above, name = os.path.split(stem)
    if holds_texts(above):
        return f"{stem}.txt"
    other = find_label_folder(above)
    return os.path.join(other, f"{name}.txt") if other else usual


def _usual_label(stem: str) -> tuple[str, str]:
    """Return the label file of an image without suffix by its path alone, and the folder `labels` in it or ""."""
    folder = f"{os.sep}images{os.sep}"
    before, found, after = f"{os.sep}{stem}".rpartition(folder)  # the separator in front lets a path begin with images/
    labels = f"{before}{os.sep}labels{os.sep}"[1:]
    return (f"{labels}{after}.txt", labels) if found else (f"{stem}.txt", "")


def unusual_label_folders(image_paths: Iterable[str]) -> dict[str, str]:
    """Return the folders of labels that have another name than `labels`, by the folders of their images."""
    found = {}
    for folder in dict.fromkeys(map(os.path.dirname, image_paths)):
        stem = os.path.join(folder, "x")
        labels = label_path(f"{stem}.jpg")
        if labels not in (f"{stem}.txt", _usual_label(stem)[0]):
            found[folder] = os.path.dirname(labels)
    return found


def as_list(sources: Sources) -> list[str | Path]:
    return [sources] if isinstance(sources, (str, Path)) else list(sources)


def find_images(sources: Sources) -> list[str]:
    """Find images in folders (any depth, hidden names skipped), list files and single files. Return sorted paths.

    A list file has one path per line. A relative path is looked up in the current folder, then in the list's own. A
    path that begins with `./` is looked up in the list's own folder only. A path listed twice counts twice. Backslashes
    count as slashes if the path as written does not exist. If the first image is not there, ends of paths that exist
    below the list's folder count, or below the one above. Raises UserError if a source does not exist, or a folder
    cannot be listed.
    """
    paths: list[str] = []
    for source in as_list(sources):
        if os.path.isdir(source):
            paths += walk_files(str(source), IMAGE_SUFFIXES)
        elif not os.path.isfile(source):
            raise UserError(f"{source} does not exist: expected a folder of images or a .txt file that lists them")
        else:
            paths += [str(source)] if is_image(str(source)) else _read_list(Path(source))
    return sorted(paths)


def walk_files(folder: str, suffixes: Collection[str]) -> Iterable[str]:
    """Yield the files below a folder that have one of the suffixes, written in small letters. Skip hidden names.

    Raises UserError for a folder that cannot be listed.
    """
    seen: set[str] = set()  # real paths of folders, so that a link to a parent folder does not loop
    waiting = [folder]
    while waiting:
        here = os.path.join(waiting.pop(), "")
        real = os.path.realpath(here)
        if real in seen:
            continue
        seen.add(real)
        folders = []
        for entry in _list_folder(here):
            name = entry.name
            if name[0] == ".":
                continue
            if _is_folder(entry):
                folders.append(here + name)
            elif name[name.rfind(".") :].lower() in suffixes:  # up to a million: inlined is_image
                yield here + name
        waiting += sorted(folders, reverse=True)


def _list_folder(folder: str) -> list[os.DirEntry[str]]:
    def read() -> list[os.DirEntry[str]]:
        with os.scandir(folder) as entries:
            return list(entries)

    try:
        return retry_reading(read)
    except OSError as error:
        raise _cannot_list(folder, error) from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir() and entry.name != "lost+found"  # of the file system, for its administrator only
    except OSError as error:
        if is_lasting(error):  # a loop of links
            return False
        raise _cannot_list(entry.path, error) from error


def _cannot_list(folder: str, error: OSError) -> UserError:
    return UserError(
        f"{folder} cannot be listed: {error.strerror}. Its files would be missing: mend the folder, or move it away"
    )


def _read_list(file: Path) -> Iterable[str]:
    try:
        text = retry_reading(file.read_bytes).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not a text file that lists images, one path per line ({error})") from error
    folders = list(dict.fromkeys([str(file.parent), os.path.dirname(os.path.realpath(file))]))
    lines = [line for line in map(str.strip, text.splitlines()) if is_image(line)]
    paths = [_find_line(line, folders) for line in lines]
    return paths if not paths or os.path.exists(paths[0]) else _follow_moved(file, lines, paths)


def _follow_moved(file: Path, lines: list[str], paths: list[str]) -> list[str]:
    """Return the paths of a list that was made on another machine, or for darknet's folder.

    Where `paths` do not exist, those with the ends of `lines` below the list's folder, or the one above, count.
    """
    folders = [str(file.parent), str(file.absolute().parent.parent)]
    found = [
        path if os.path.exists(path) else find_moved(line, folders) for line, path in zip(lines, paths, strict=True)
    ]
    moved = sum(new not in (None, path) for new, path in zip(found, paths, strict=True))
    if moved:
        info(f"{file}: {moved} of its {len(lines)} paths are not here; their images are found below {file.parent}")
    return [new or path for new, path in zip(found, paths, strict=True)]


def _find_line(line: str, folders: list[str]) -> str:
    """Return the path of a line of a list. Backslashes, as on Windows, count as slashes if it does not exist."""
    path, slashes = _find_listed(line, folders), line.replace("\\", "/")
    return _find_listed(slashes, folders) if slashes != line and not os.path.exists(path) else path


def _find_listed(line: str, folders: list[str]) -> str:
    """Return the path of a line of a list that lies in `folders`: its own and, if it is a link, that of its target."""
    if line.startswith("./"):
        beside = [os.path.join(folder, line[2:]) for folder in folders]
    elif os.path.isabs(line) or os.path.exists(line):
        return line
    else:
        beside = [os.path.join(folder, line) for folder in folders]
    absent = beside[0] if line.startswith("./") else line
    return next(filter(os.path.exists, beside), absent)


def map_chunks(function: Callable[[list[str]], T], paths: list[str], *, size: int) -> Iterator[T]:
    """Yield `function(chunk)` for consecutive chunks of `size` paths, in processes if there are many images."""
    chunks = [paths[k : k + size] for k in range(0, len(paths), size)]
    return parallel_map(function, chunks, cpu_bound=len(paths) >= MANY_IMAGES)
