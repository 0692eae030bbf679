"""Resumable downloads over HTTP, and unpacking of untrusted archives."""

import hashlib
import http.client
import lzma
import os
import re
import shutil
import stat
import tarfile
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from email.message import Message
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO, NamedTuple

from utils import console
from utils.errors import UserError

CHUNK = 1 << 20
ATTEMPTS = 3  # consecutive connections that bring nothing
TIMEOUT_S = 30
PAUSE_S = 1.0  # after the first failure, longer after each further one
JUNK = ("__MACOSX", ".DS_Store")  # files that macOS adds to archives
YAML, WEIGHTS = (".yaml", ".yml"), (".pt",)
URL_FLAGS = {"data": YAML, "cfg": YAML, "hyp": YAML, "weights": WEIGHTS}  # flags that accept an address, and suffixes
ARCHIVE_ERRORS = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, RuntimeError)


def fetch(
    url: str,
    destination: str | Path,
    *,
    sha256: str | None = None,
    size: int | None = None,
    progress: bool = True,
    keep: bool = True,
    part: Path | None = None,
) -> Path:
    """Download `url` to the file `destination` and return it.

    The bytes go to `<destination>.part`, and a later call resumes an interrupted download. The file gets its own name
    only when it is complete. A file that exists and passes the checks is returned without a request.
    A failure raises UserError that says what to do by hand.
    sha256, size: expected hash (hex) and number of bytes.
    keep: False if `destination` is deleted at the end of the program.
    part: another path for the bytes received so far.
    """
    destination = Path(destination)
    if not url.startswith(("http://", "https://")):
        raise UserError(f"{url}: only http:// and https:// addresses can be fetched")
    if destination.exists():
        _check(destination, sha256, size, f"{destination} is not the file from {url}: delete it and try again")
        return destination
    part = part or destination.with_name(destination.name + ".part")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        _transfer(url, part, progress)
        try:
            _check(part, sha256, size, f"the file from {url} is not the expected one")
        except UserError:
            part.unlink()
            raise
        os.replace(part, destination)
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if type(error) is urllib.error.URLError else error
        by_hand = (
            f"try again (the part received is kept), or put the file at {destination}"
            if keep
            else "try again, or fetch it by other means and give the file"
        )
        raise UserError(f"could not fetch {url} ({reason}): {by_hand}") from None
    return destination


def fetch_typed(given: dict[str, Any]) -> dict[str, Any]:
    """Return the options that a user typed, with each http(s) address replaced by a file in the current folder.

    An existing file of that name is used. Only for the command line: an address in a checkpoint or a data set must not
    be fetched this way.
    """
    local = {}
    for flag in URL_FLAGS.keys() & given.keys():
        value = given[flag]
        local[flag] = (
            [_fetch_address(flag, one) for one in value] if isinstance(value, list) else _fetch_address(flag, value)
        )
    return {**given, **local}


def _fetch_address(flag: str, text: str) -> str:
    """Return `text`, or the name of the file downloaded from it if it is an address."""
    if not text.startswith(("http://", "https://")):
        return text
    try:
        parts = urllib.parse.urlsplit(text)
        file = Path(urllib.parse.unquote(parts.path).rsplit("/", 1)[-1])
        if file.suffix.lower() not in URL_FLAGS[flag]:
            raise UserError(f"--{flag} {text}: the address of a {' or '.join(URL_FLAGS[flag])} file is needed")
        if file.exists():
            console.info(f"--{flag}: {file} exists already, not downloaded again")
            return str(file)
        url = parts._replace(path=urllib.parse.quote(parts.path, safe="/%:@")).geturl()
        # Two addresses may end in the same name, so the part's name depends on the whole address.
        part = file.with_name(f"{file.name}.{hashlib.sha256(url.encode()).hexdigest()[:8]}.part")
        return str(fetch(url, file, part=part))
    except (ValueError, OSError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"--{flag} {text}: no address that can be fetched ({error})") from error


def _transfer(url: str, part: Path, progress: bool) -> None:
    """Download the rest of `part`, over several connections if needed. Raise if ATTEMPTS in a row bring nothing."""
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            return _receive(url, part, progress)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code < 500:
                raise
            failure = error
        except (OSError, http.client.HTTPException) as error:
            failure = error
        failures = 1 if part.exists() and part.stat().st_size > before else failures + 1
        if failures >= ATTEMPTS:
            raise failure
        time.sleep(failures * PAUSE_S)


def _receive(url: str, part: Path, progress: bool) -> None:
    """Append the missing bytes to `part` over one connection. Raise ConnectionError if it ends early."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "anchorage"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        error.close()
        if _parse_total(error.headers) == have:  # nothing is missing
            return
        part.unlink()  # longer than the file: not a piece of it
        raise ConnectionError("the file has changed; starting over") from None
    with response:
        resumed = response.status == 206
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            raise ConnectionError(f"the server did not continue at byte {have}")
        have = have if resumed else 0
        total = _parse_total(response.headers) if resumed else _parse_length(response.headers)
        if total and total - have > shutil.disk_usage(part.parent).free:
            raise UserError(f"{part.parent} has too little space for {url}, which needs {_format_mb(total - have)}")
        with open(part, "ab" if resumed else "wb") as file:
            have += _copy(response, file, have, total, part.name.removesuffix(".part"), progress)
    if total is not None and have < total:
        raise ConnectionError(f"the connection ended after {have} of {total} bytes")


def _copy(
    response: http.client.HTTPResponse, file: BinaryIO, have: int, total: int | None, name: str, progress: bool
) -> int:
    """Copy the rest of the response, fsync the file, and return the number of bytes."""
    copied = 0
    with console.progress_bar(
        total=total, initial=have, desc=name, unit="B", unit_scale=True, disable=not progress
    ) as bar:
        while chunk := response.read1(CHUNK):
            file.write(chunk)
            copied += len(chunk)
            bar.update(len(chunk))
    file.flush()
    os.fsync(file.fileno())
    return copied


def _parse_length(headers: Message) -> int | None:
    """Return the length of the response, None if unknown."""
    text = headers.get("Content-Length", "")
    return int(text) if text.isdigit() else None


def _parse_total(headers: Message) -> int | None:
    """Return the full length of the file from `Content-Range: bytes 5-9/10` or `bytes */10`, None if absent."""
    found = re.search(r"/(\d+)$", headers.get("Content-Range", ""))
    return int(found[1]) if found else None


def _check(file: Path, sha256: str | None, size: int | None, complaint: str) -> None:
    """Raise UserError with the text `complaint` if size or hash differ."""
    actual_size = file.stat().st_size
    if size is not None and actual_size != size:
        raise UserError(f"{complaint} ({actual_size} bytes, expected {size})")
    if sha256 is None:
        return
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != sha256.lower():
        raise UserError(f"{complaint} (SHA-256 {digest.hexdigest()}, expected {sha256.lower()})")


def _format_mb(count: int) -> str:
    return f"{count / 1e6:.0f} MB"


class _Member(NamedTuple):
    """Regular file in an archive."""

    name: str
    size: int
    open: Callable[[], IO[bytes]]


def unpack(archive: str | Path, folder: str | Path) -> Path:
    """Unpack a zip or tar archive (tar also gz, bz2, xz) into `folder`, replacing files of the same names.

    Return `folder`. Files that macOS adds are skipped.
    Raise UserError if the archive is damaged or larger than the free space. Raise it also if a member is a link or a
    device, or would land outside `folder`. Then `folder` is unchanged.
    """
    archive, folder = Path(archive), Path(folder)
    try:
        with _open_archive(archive) as members:
            folder.mkdir(parents=True, exist_ok=True)
            needed, free = sum(member.size for member in members), shutil.disk_usage(folder).free
            if needed > free:
                raise UserError(f"{archive} unpacks to {_format_mb(needed)}, but {folder} has {_format_mb(free)} free")
            with tempfile.TemporaryDirectory(prefix=".unpack-", dir=folder) as staging:
                _write_members(members, Path(staging))
                _move_files(Path(staging), folder)
    except (*ARCHIVE_ERRORS, OSError) as error:
        raise UserError(f"could not unpack {archive} into {folder}: {error}") from None
    return folder


@contextmanager
def _open_archive(archive: Path) -> Generator[list[_Member]]:
    """Yield the regular files of an open archive. Raise UserError for a member that is not safe."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            yield list(_list_zip(archive, opened))
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as opened:
            yield list(_list_tar(archive, opened))
    else:
        raise UserError(f"{archive} is neither a zip nor a tar archive, or is damaged: delete it and fetch it again")


def _list_zip(archive: Path, opened: zipfile.ZipFile) -> Iterator[_Member]:
    for info in opened.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise UserError(f"{archive}: refusing {info.filename!r}, which is a link or a device")
        name = _check_name(archive, info.filename)
        if name and not info.is_dir():
            yield _Member(name, info.file_size, partial(opened.open, info))


def _list_tar(archive: Path, opened: tarfile.TarFile) -> Iterator[_Member]:
    for info in opened:
        if not (info.isfile() or info.isdir()):
            raise UserError(f"{archive}: refusing {info.name!r}, which is a link or a device")
        name = _check_name(archive, info.name)
        if name and info.isfile():
            yield _Member(name, info.size, partial(_open_tar_member, opened, info))


def _open_tar_member(opened: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    stream = opened.extractfile(info)
    assert stream is not None  # it is None for folders and devices only
    return stream


def _check_name(archive: Path, name: str) -> str | None:
    """Return the member's path below the folder, None if it is skipped. Raise UserError for a path outside."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", str(path)) or "\0" in name:
        raise UserError(f"{archive}: refusing {name!r}, which would be written outside the folder")
    return None if set(JUNK) & set(path.parts) or not path.parts else str(path)


def _write_members(members: list[_Member], folder: Path) -> None:
    """Write the members below `folder`. Raise UserError if one is shorter than the archive says."""
    for member in members:
        target = folder / member.name
        target.parent.mkdir(parents=True, exist_ok=True)
        with member.open() as source, open(target, "wb") as file:
            shutil.copyfileobj(source, file, CHUNK)
        if target.stat().st_size != member.size:
            raise UserError(f"{member.name!r} in the archive is cut short: fetch the archive again")


def _move_files(source: Path, folder: Path) -> None:
    """Move every file below `source` to the same place below `folder`."""
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        target = folder / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, target)
