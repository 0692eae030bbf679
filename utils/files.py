"""Run folders, file look-up, bounded reading, atomic writing, YAML files."""

import errno
import io
import os
import secrets
import stat
import zipfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from utils.environment import variable
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[1]  # the project folder

# A configuration is never this large: a larger one is a mistake or an attack.
MAX_YAML_BYTES = 1 << 20
MAX_YAML_PARTS = 300_000  # counted as often as aliases repeat them
MAX_NUMBER_LETTERS = 100

SMALL_BYTES = 1 << 16  # up to this size one read into memory is faster than a buffered file


def increment_path(path: str | Path, exist_ok: bool = False) -> Path:
    """Create and return a new folder: `path`, or the first of path2, path3, … that is free.

    Creating the folder claims its number, so that two runs started at the same moment get different ones. With
    `exist_ok` the folder is always `path`.
    """
    path, number = Path(path), 1
    while True:
        candidate = path if number == 1 else path.with_name(f"{path.name}{number}")
        try:
            candidate.mkdir(parents=True, exist_ok=exist_ok)
            return candidate
        except OSError as error:
            if not exist_ok and os.path.lexists(candidate):
                number += 1
                continue
            problem = f"cannot create the folder {candidate}: {error.strerror}"
            raise UserError(f"{problem}; give another --project") from error


def require_writable(project: str | Path) -> None:
    """Raise UserError if no folder can be created in `project`. Called before work that takes long; creates nothing."""
    path = Path(project).absolute()
    present = next(folder for folder in (path, *path.parents) if folder.exists())
    if not present.is_dir():
        reason = "is not a folder"
    elif not os.access(present, os.W_OK):
        reason = "cannot be written to"
    else:
        return
    raise UserError(f"cannot create the folder {project}: {present} {reason}; give another --project")


def datasets_folders() -> list[Path]:
    """Return the folders in which a data set is searched, those of environment variables first."""
    named = [variable(key) for key in ("ANCHORAGE_DATASETS", "YOLOv5_DATASETS_DIR")]
    return [
        *(Path(folder) for folder in named if folder),
        Path.cwd(),
        Path.cwd() / "datasets",
        ROOT,
        ROOT / "datasets",
        ROOT.parent / "datasets",
    ]


def find_file(name: str | Path, *folders: Path) -> Path | None:
    """Return the file `name` as typed, else the first directly in one of `folders`, None if absent."""
    candidates = [Path(name), *(folder / name for folder in folders)]
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def open_regular(path: str | Path, max_bytes: int) -> BinaryIO:
    """Open a data file for reading. Raise OSError in the cases of `read_regular`."""
    if _check_size(path, max_bytes) > SMALL_BYTES:
        return open(path, "rb")
    return io.BytesIO(_read_once(path, SMALL_BYTES))


def read_regular(path: str | Path, max_bytes: int) -> bytes:
    """Return the bytes of a data file.

    Raise OSError if it is larger than `max_bytes` or not a regular file: opening a pipe may block forever, and a device
    has no end.
    """
    return _read_once(path, _check_size(path, max_bytes))


def _check_size(path: str | Path, max_bytes: int) -> int:
    """Return the size of a regular file of at most `max_bytes`. Raise OSError for any other."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    if status.st_size > max_bytes:
        raise OSError(errno.EFBIG, f"more than {max_bytes >> 20} MiB")
    return status.st_size


def _read_once(path: str | Path, size: int) -> bytes:
    """Return the first `size` bytes by one system call. A file object would double the time."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        return os.read(descriptor, size)
    finally:
        os.close(descriptor)


def check_archive(path: str | Path, *, contents: bool = False) -> None:
    """Raise BadZipFile if a zip file of torch or NumPy would unpack to more than its size.

    Both write their records one after the other, uncompressed. With `contents`, also raise it if bytes differ from
    their checksum. NumPy compares these as it reads, torch does not.
    """
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise zipfile.BadZipFile("compressed records")
        if sum(record.file_size for record in records) > Path(path).stat().st_size:
            raise zipfile.BadZipFile("records that overlap")
        has_sums = any(record.CRC for record in records)  # an option of torch omits them
        damaged = archive.testzip() if contents and has_sums else None
    if damaged:
        raise zipfile.BadZipFile(f"{damaged} is damaged")


@contextmanager
def atomic_write(path: str | Path, *, sync: bool = True) -> Generator[BinaryIO]:
    """Yield a binary file that replaces `path` at the end of the block, and is removed if the block raises.

    It is written beside `path`, flushed by fsync and renamed, and the folder is synced. So a reader sees the whole old
    file or the whole new one, also after a power cut. Without `sync` a power cut may lose the file: for thousands of
    files that are easily made again.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    # With the access rights of the umask, unlike a file of tempfile.
    file = open(temporary, "xb")  # noqa: SIM115 (closed below)
    try:
        with file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if sync:
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable by fsync. Ignore file systems that cannot sync a folder."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def write_yaml(path: str | Path, content: dict) -> None:
    """Write `content` as YAML in its own key order, atomically."""
    with atomic_write(path) as file:
        file.write(yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode())


def read_yaml(path: str | Path) -> dict:
    """Return the mapping in a YAML file. Raise UserError with file and line for damage and for tags of objects."""
    path = Path(path)
    try:
        if path.stat().st_size > MAX_YAML_BYTES:
            raise UserError(f"{path}: {path.stat().st_size} bytes is too large for a YAML configuration file")
        content = _load_yaml(path.read_bytes().decode("utf-8", errors="ignore"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except (
        yaml.YAMLError,
        ValueError,
        RecursionError,
        LookupError,
        ArithmeticError,
        TypeError,
        AttributeError,
    ) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}{_locate_yaml_error(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected `key: value` lines, found {type(content).__name__}")
    return content


def _load_yaml(text: str) -> Any:
    """Return the content of a YAML document, None if it is empty."""
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        _check_yaml_size(root)
        return loader.construct_document(root)
    finally:
        loader.dispose()


def _check_yaml_size(root: yaml.Node) -> None:
    """Raise MarkedYAMLError if building the document would take very long. Aliases may repeat parts without end."""
    waiting, count = [root], 0
    while waiting:
        node, count = waiting.pop(), count + 1
        if count > MAX_YAML_PARTS:
            raise yaml.MarkedYAMLError(
                problem="too many values, or aliases that repeat each other", problem_mark=node.start_mark
            )
        if isinstance(node, yaml.MappingNode):
            waiting += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif len(node.value) > MAX_NUMBER_LETTERS and not node.tag.endswith(":str"):
            raise yaml.MarkedYAMLError(problem=f"a number of {len(node.value)} letters", problem_mark=node.start_mark)


def _locate_yaml_error(error: Exception) -> str:
    """Return the line of the error, if known, and the reason."""
    mark = getattr(error, "problem_mark", None)
    reason = getattr(error, "problem", None) or (str(error).strip() or type(error).__name__).splitlines()[0]
    return f":{mark.line + 1}: {reason}" if mark else f": {reason}"
