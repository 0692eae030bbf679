"""Checks of a TorchScript file before PyTorch loads it.

TorchScript is a program. PyTorch runs a part of it while loading (`__setstate__`), and its `torch.save` writes any
file. A traced network needs neither, nor loops, so a file with more than calls of tensor functions is refused.
"""

import io
import re
import zipfile
from pathlib import Path

from utils.cli import shorten
from utils.errors import UserError
from utils.files import open_regular

MAX_BYTES = 1 << 32
MAX_CODE = 1 << 26  # bytes of all compressed records, which are code; a yolov5x has 1 MiB
FILE_FUNCTIONS = "save|from_file|load|read_file|write_file"
# Calls of tensor functions. Everything else that names `torch` or `ops` could hide what is called.
CALL = re.compile(r"torch\.(?!classes\b)\w+\(|ops\.(?:prim|aten)\.\w+\(|ops\.torchvision\.nms\(")
NAMED = re.compile(r"(?<![\w.])(?:torch|ops)\b")
GETATTR = re.compile(r"getattr\(\w+, \"\w+\"\)")
FORBIDDEN = {
    "calls a function of files": re.compile(rf"[.\"'][\s\\]*(?:{FILE_FUNCTIONS})\b|\b(?:{FILE_FUNCTIONS})\s*\("),
    "has a loop": re.compile(r"^\s*(?:while|for)\b", re.MULTILINE),
    "runs code while it is loaded": re.compile(r"\bdef[\s\\]+(?!forward)\w+"),
    "has classes that are no modules": re.compile(r"torch[\s\\]*\.[\s\\]*classes\b"),
    "starts threads": re.compile(r"\bfork\b"),
}


def read_torchscript(path: Path) -> io.BytesIO:
    """Return a copy of a TorchScript file whose code only computes tensors.

    It is packed again, so that PyTorch finds the records that were checked. Raises UserError for any other file.
    """
    try:
        with open_regular(path, MAX_BYTES) as file, zipfile.ZipFile(file) as archive:
            return _checked_copy(archive, path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not a TorchScript file, or a damaged one ({error}): export it again") from error


def _checked_copy(archive: zipfile.ZipFile, path: Path) -> io.BytesIO:
    records, copy = archive.infolist(), io.BytesIO()
    stored = [record for record in records if record.compress_type == zipfile.ZIP_STORED]
    if sum(record.file_size - record.compress_size for record in stored) or len(archive.NameToInfo) != len(records):
        raise zipfile.BadZipFile("records that overlap")
    if sum(record.file_size for record in records if record not in stored) > MAX_CODE:
        raise zipfile.BadZipFile("records that unpack to many times their size")
    if not any(record.filename.endswith("/constants.pkl") for record in records):
        raise zipfile.BadZipFile("no program in it")
    with zipfile.ZipFile(copy, "w", zipfile.ZIP_STORED) as packed:
        for record in records:
            content = archive.read(record)
            if "/code/" in record.filename and record.filename.endswith(".py"):
                check_code(content.decode(), path)
            packed.writestr(record.filename, content)
    copy.seek(0)
    return copy


def check_code(code: str, path: Path) -> None:
    """Raise UserError for a part of a TorchScript program that does more than to compute tensors."""
    advice = "only traced networks are run: give an export of the .pt file"
    for what, pattern in FORBIDDEN.items():
        if found := pattern.search(code):
            raise UserError(f"{path}: its program {what} ({shorten(found[0].strip())}), {advice}")
    for pattern, allowed in ((NAMED, CALL), (re.compile("getattr"), GETATTR)):
        for found in pattern.finditer(code):
            if not allowed.match(code, found.start()):
                line = code[found.start() : found.start() + 40].split("\n")[0]
                raise UserError(
                    f"{path}: its program has {shorten(line)}, which is no call of a tensor function: {advice}"
                )
