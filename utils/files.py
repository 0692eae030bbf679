"""Run folders, file look-up, bounded reading, atomic writing, YAML files."""

import codecs
import errno
import io
import os
import stat
import time
import zipfile
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import yaml

from utils.environment import variable
from utils.errors import UserError
from utils.temporary_files import temporary_path

ROOT = Path(__file__).resolve().parents[1]  # the project folder

# A configuration is never this large: a larger one is a mistake or an attack.
MAX_YAML_BYTES = 1 << 20
MAX_YAML_PARTS = 300_000  # counted as often as aliases repeat them
MAX_NUMBER_LETTERS = 100

SMALL_BYTES = 1 << 16  # up to this size one read into memory is faster than a buffered file

# Errors that say what a file is. All others say that it could not be read this time.
LASTING_ERRORS = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.EINVAL,  # not a regular file
    errno.EFBIG,
)
RETRY_DELAYS = (0.05, 0.2)  # seconds

T = TypeVar("T")


class UnreadableFile(ValueError):
    """Error of a file that could not be read this time. It may be whole, so nothing about it may be remembered."""


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


def free_path(path: str | Path, exist_ok: bool = False) -> Path:
    """Return the folder that `increment_path` would create now. Nothing is created."""
    path, number = Path(path), 1
    candidate = path
    while os.path.lexists(candidate) and not exist_ok:
        number += 1
        candidate = path.with_name(f"{path.name}{number}")
    return candidate


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
    size = _check_size(path, max_bytes)
    return open(path, "rb") if size > SMALL_BYTES else io.BytesIO(_read_start(path, size))


def read_regular(path: str | Path, max_bytes: int) -> bytes:
    """Return the bytes of a data file.

    Raise OSError if it is larger than `max_bytes` or not a regular file: opening a pipe may block forever, and a device
    has no end.
    """
    return _read_start(path, _check_size(path, max_bytes))


def _check_size(path: str | Path, max_bytes: int) -> int:
    """Return the size of a regular file of at most `max_bytes`. Raise OSError for any other."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    if status.st_size > max_bytes:
        raise OSError(errno.EFBIG, f"more than {max_bytes >> 20} MiB")
    return status.st_size


def _read_start(path: str | Path, size: int) -> bytes:
    """Return the first `size` bytes, usually by one system call. A file object would double the time.

    Network file systems may give less than requested at a time.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        data = os.read(descriptor, size)
        if len(data) == size:
            return data
        parts = [data]
        while parts[-1] and (missing := size - sum(map(len, parts))) > 0:
            parts.append(os.read(descriptor, missing))
        return b"".join(parts)
    finally:
        os.close(descriptor)


def is_lasting(error: OSError) -> bool:
    """Return whether the error says what the file is, so that the next try will give the same."""
    return error.errno in LASTING_ERRORS


def retry_reading(read: Callable[[], T]) -> T:
    """Return `read()`. Try again if it raises an OSError that may pass (EIO, EMFILE, ESTALE, ...)."""
    for delay in RETRY_DELAYS:
        try:
            return read()
        except OSError as error:
            if is_lasting(error) or isinstance(error, PermissionError):
                raise
            time.sleep(delay)
    return read()


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
        if len({record.filename.lower() for record in records}) != len(records):
            raise zipfile.BadZipFile("two records of one name")
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
    temporary = temporary_path(path)
    with named_errors(path, temporary):
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
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
    if sync:
        sync_folder(path.parent)


@contextmanager
def named_errors(path: str | Path, temporary: str | Path = "") -> Generator[None]:
    """Let OSErrors of the block name `path`. Those of a write name no file, and a temporary one says nothing."""
    try:
        yield
    except OSError as error:
        if error.filename is None or str(error.filename) == str(temporary):
            error.filename = str(path)
        raise


def sync_folder(folder: Path) -> None:
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


def size_on_disk(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


def append_line(path: str | Path, line: str) -> None:
    """Add a line, or several, to an existing file. They are on disk on return.

    A line before them that a power cut left incomplete is ended first. If the write fails, as on a full disk, the file
    stays as it was.
    """
    with named_errors(path), open(path, "r+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        content = (b"" if file.read(1) in (b"\n", b"") else b"\n") + line.encode()
        try:
            while content:  # in one write, unless the disk is full
                content = content[file.write(content) :]
            os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):
                file.truncate(size)
            raise


def write_yaml(path: str | Path, content: dict) -> None:
    """Write `content` as YAML in its own key order, atomically."""
    with atomic_write(path) as file:
        file.write(yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode())


def read_yaml(path: str | Path) -> dict:
    """Return the mapping in a YAML file, with its class names (under `names`) as they are typed.

    Raise UserError with file and line for damage, a key that occurs twice, text that is not UTF-8, and tags of objects.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_YAML_BYTES:
            raise UserError(f"{path}: {path.stat().st_size} bytes is too large for a YAML configuration file")
        content = _load_yaml(_decode_yaml(retry_reading(lambda: read_regular(path, MAX_YAML_BYTES))))
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


def _decode_yaml(data: bytes) -> str:
    """Return the text of UTF-8, or of UTF-16 with a byte order mark. Letters lost in comments do not count."""
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        text = data.decode(encoding, errors="replace")
    try:
        damaged = any("\ufffd" in event.value for event in yaml.parse(text) if isinstance(event, yaml.ScalarEvent))
    except yaml.YAMLError:
        damaged = True
    if damaged:
        raise yaml.MarkedYAMLError(
            problem="not UTF-8 text. Save the file in the encoding UTF-8",
            problem_mark=yaml.Mark("", 0, line - 1, 0, None, 0),
        )
    return text


def _load_yaml(text: str) -> Any:
    """Return the content of a YAML document, None if it is empty."""
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        for node in _walk_yaml(root):
            if isinstance(node, yaml.MappingNode):
                _require_unique_keys(loader, node)
        _keep_names_as_typed(root)
        return loader.construct_document(root)
    finally:
        loader.dispose()


def _walk_yaml(root: yaml.Node) -> Generator[yaml.Node]:
    """Yield all nodes. Raise MarkedYAMLError if building the document would take very long.

    Aliases may repeat parts without end.
    """
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
        yield node


def _require_unique_keys(loader: yaml.SafeLoader, mapping: yaml.MappingNode) -> None:
    """Raise MarkedYAMLError if a key occurs twice, also as 7 and 07. YAML would keep the last value."""
    seen = set()
    for key, _ in mapping.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        is_number = key.tag.endswith((":int", ":float")) and len(key.value) <= MAX_NUMBER_LETTERS
        same = key.tag, loader.construct_object(key) if is_number else key.value
        if same in seen:
            raise yaml.MarkedYAMLError(
                problem=f"the key {key.value[:60]!r} occurs twice. Remove one", problem_mark=key.start_mark
            )
        seen.add(same)


def _keep_names_as_typed(root: yaml.Node) -> None:
    """Make text of the values under `names`, which YAML takes for numbers or booleans: 012, 1:30, 1.10, no."""
    values = [value for key, value in root.value if key.value == "names"] if isinstance(root, yaml.MappingNode) else []
    for value in values:
        names = value.value if isinstance(value, yaml.SequenceNode) else []
        names = [name for _, name in value.value] if isinstance(value, yaml.MappingNode) else names
        for name in names:
            if isinstance(name, yaml.ScalarNode) and name.tag.endswith((":int", ":float", ":bool", ":timestamp")):
                name.tag = "tag:yaml.org,2002:str"


def _locate_yaml_error(error: Exception) -> str:
    """Return the line of the error, if known, and the reason."""
    mark = getattr(error, "problem_mark", None)
    reason = getattr(error, "problem", None) or (str(error).strip() or type(error).__name__).splitlines()[0]
    return f":{mark.line + 1}: {reason}" if mark else f": {reason}"
