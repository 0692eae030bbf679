"""Resumable downloads over HTTP, and unpacking of untrusted archives."""

import base64
import hashlib
import http.client
import lzma
import os
import re
import shutil
import socket
import stat
import tarfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from email.message import Message
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO, NamedTuple

from utils import console
from utils.addresses import remove_credentials, remove_credentials_from
from utils.errors import UserError
from utils.files import MAX_YAML_BYTES
from utils.temporary_files import draft_folder

CHUNK = 1 << 20
ATTEMPTS = 3  # consecutive connections that bring nothing
TIMEOUT_S = 30  # without a byte
STALL_S = 60  # in which a connection has to bring at least STALL_BYTES
STALL_BYTES = 1 << 14
MAX_BYTES = {".yaml": MAX_YAML_BYTES, ".yml": MAX_YAML_BYTES, ".pt": 8 << 30}  # by suffix
SPARE_BYTES = 1 << 30  # left free on the disk by a file of unknown length
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
    max_bytes: int | None = None,
) -> Path:
    """Download `url` to the file `destination` and return it.

    The bytes go to `<destination>.part`, and a later call resumes an interrupted download. The file gets its own name
    only when it is complete. A file that exists and passes the checks is returned without a request.
    A failure raises UserError that says what to do by hand.
    sha256, size: expected hash (hex) and number of bytes.
    keep: False if `destination` is deleted at the end of the program.
    part: another path for the bytes received so far.
    max_bytes: largest file that is accepted; by default that of its suffix in MAX_BYTES.
    """
    destination, shown = Path(destination), remove_credentials(url)
    if not url.startswith(("http://", "https://")):
        raise UserError(f"{shown}: only http:// and https:// addresses can be fetched")
    if destination.exists():
        _check(destination, sha256, size, f"{destination} is not the file from {shown}: delete it and try again")
        return destination
    part = part or destination.with_name(destination.name + ".part")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        _transfer(url, part, max_bytes or MAX_BYTES.get(destination.suffix.lower()), progress)
        try:
            _check(part, sha256, size, f"the file from {shown} is not the expected one")
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
        raise UserError(f"could not fetch {shown} ({remove_credentials_from(str(reason), url)}): {by_hand}") from None
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
            raise UserError(
                f"--{flag} {remove_credentials(text)}: the address of a {' or '.join(URL_FLAGS[flag])} file is needed"
            )
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
        shown, reason = remove_credentials(text), remove_credentials_from(str(error), text)
        raise UserError(f"--{flag} {shown}: no address that can be fetched ({reason})") from error


class Stalled(OSError):
    """A connection brings next to nothing."""


class _Deadline(http.client.HTTPConnection):
    """HTTP connection whose answer has to begin within TIMEOUT_S, however many single bytes arrive in that time."""

    def getresponse(self) -> http.client.HTTPResponse:
        late = threading.Event()

        def give_up() -> None:
            late.set()
            with suppress(OSError, AttributeError):  # closed already
                self.sock.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(TIMEOUT_S, give_up)
        timer.start()
        try:
            return super().getresponse()
        finally:
            timer.cancel()
            if late.is_set():
                raise Stalled(f"no answer within {TIMEOUT_S} s")


class _SecureDeadline(_Deadline, http.client.HTTPSConnection):
    """HTTPS connection with the same deadline."""


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_Deadline, req)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_SecureDeadline, req)


class _SameSchemes(urllib.request.HTTPRedirectHandler):
    """Redirects to http(s) addresses only, and from https to https only."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if not newurl.startswith(("https://",) if req.type == "https" else ("http://", "https://")):
            raise UserError(
                f"{remove_credentials(req.full_url)} redirects to {remove_credentials(newurl)}: "
                "only http:// and https:// addresses are followed, from https only https"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(url: str, have: int) -> Any:
    """Open a connection for the bytes from `have` on. The user info of `url` is sent as a header, to its host only."""
    parts = urllib.parse.urlsplit(url)
    user_info, _, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(parts._replace(netloc=host).geturl(), headers={"User-Agent": "anchorage"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    if user_info:
        encoded = base64.b64encode(urllib.parse.unquote(user_info).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {encoded}")
    return urllib.request.build_opener(_SameSchemes, _Http, _Https).open(request, timeout=TIMEOUT_S)


def _transfer(url: str, part: Path, max_bytes: int | None, progress: bool) -> None:
    """Download the rest of `part`, over several connections if needed. Raise if ATTEMPTS in a row bring nothing."""
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            return _receive(url, part, max_bytes, progress)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code < 500:
                raise
            failure = error
        except (OSError, http.client.HTTPException) as error:
            failure = error
        grown = part.exists() and part.stat().st_size > before and not isinstance(failure, Stalled)
        failures = 1 if grown else failures + 1
        if failures >= ATTEMPTS:
            raise failure
        time.sleep(failures * PAUSE_S)


def _receive(url: str, part: Path, max_bytes: int | None, progress: bool) -> None:
    """Append the missing bytes to `part` over one connection. Raise ConnectionError if it ends early."""
    have = part.stat().st_size if part.exists() else 0
    try:
        response = _open(url, have)
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
        shown, free = remove_credentials(url), shutil.disk_usage(part.parent).free
        if total and total - have > free:
            raise UserError(f"{part.parent} has too little space for {shown}, which needs {_format_mb(total - have)}")
        room = max_bytes or (total or have + max(free - SPARE_BYTES, free // 2))
        try:
            if total and total > room:
                raise OverflowError
            with open(part, "ab" if resumed else "wb") as file:
                have += _copy(response, file, have, total, part.name.removesuffix(".part"), progress, room)
        except OverflowError:
            part.unlink(missing_ok=True)
            raise UserError(f"{shown} is larger than {_format_mb(room)}, which is too much") from None
    if total is not None and have < total:
        raise ConnectionError(f"the connection ended after {have} of {total} bytes")


def _copy(
    response: http.client.HTTPResponse,
    file: BinaryIO,
    have: int,
    total: int | None,
    name: str,
    progress: bool,
    room: int,
) -> int:
    """Copy the rest of the response, fsync the file, and return the number of bytes.

    Raise Stalled for a connection that brings next to nothing, OverflowError for a file larger than `room`.
    """
    copied, mark, begin = 0, 0, time.monotonic()
    with console.progress_bar(
        total=total, initial=have, desc=name, unit="B", unit_scale=True, disable=not progress
    ) as bar:
        while chunk := response.read1(CHUNK):
            file.write(chunk)
            copied += len(chunk)
            bar.update(len(chunk))
            if have + copied > room:
                raise OverflowError
            if time.monotonic() - begin > STALL_S:
                if copied - mark < STALL_BYTES:
                    raise Stalled(f"{copied - mark} bytes in {STALL_S} s")
                mark, begin = copied, time.monotonic()
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


def unpack(archives: str | Path | Sequence[Path], folder: str | Path, *, own: str = "") -> Path:
    """Unpack zip or tar archives (tar also gz, bz2, xz) into `folder`. Return it. Files that macOS adds are skipped.

    They are unpacked aside and then moved as a whole. A file that exists is never replaced. Nothing is added to an
    existing folder in `folder`, except to the one named `own`.
    Raise UserError for a member that would be added there, is a link or a device, or would land outside `folder`.
    Raise it also if an archive is damaged or larger than the free space. Then `folder` is unchanged.
    """
    folder, archives = Path(folder), [Path(archives)] if isinstance(archives, str | Path) else archives
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with draft_folder(folder / "unpack") as staging:
            for archive in archives:
                with _open_archive(archive) as members:
                    needed, free = sum(member.size for member in members), shutil.disk_usage(folder).free
                    if needed > free:
                        raise UserError(
                            f"{archive} unpacks to {_format_mb(needed)}, but {folder} has {_format_mb(free)} free"
                        )
                    _write_members(members, staging)
            _move_entries(staging, folder, own)
    except (*ARCHIVE_ERRORS, OSError) as error:
        raise UserError(f"could not unpack {', '.join(map(str, archives))} into {folder}: {error}") from None
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


def _move_entries(source: Path, folder: Path, own: str) -> None:
    """Move every entry of `source` to `folder`. Raise UserError, with nothing moved, if one would change other data."""
    moves: list[tuple[Path, Path]] = []
    for entry in sorted(source.iterdir()):
        target = folder / entry.name
        if not os.path.lexists(target):
            moves.append((entry, target))
            continue
        missing = [file for file in _files(entry) if not os.path.lexists(folder / file.relative_to(source))]
        if missing and entry.name != own:
            raise UserError(f"the archive holds {entry.name}, but {target} exists: move that away, or unpack by hand")
        console.warn(f"{target} exists: {len(missing)} files are added to it, the others stay as they are")
        moves += [(file, folder / file.relative_to(source)) for file in missing]
    for file, target in moves:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(file, target)


def _files(entry: Path) -> list[Path]:
    """Return the file `entry`, or all files below the folder `entry`."""
    return sorted(path for path in entry.rglob("*") if path.is_file()) if entry.is_dir() else [entry]
