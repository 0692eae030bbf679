"""Fonts for class names in any script: DejaVu Sans, which matplotlib brings, else a font of the system."""

import shutil
import subprocess
import unicodedata
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from utils.console import warn

DEJAVU = Path("mpl-data", "fonts", "ttf", "DejaVuSans.ttf")  # in matplotlib's folder
# Fonts of macOS and Windows for the scripts of East Asia; on other systems fontconfig finds one.
KNOWN = [
    Path("/System/Library/Fonts/Supplemental/Arial Unicode.ttf"),
    *(Path("C:/Windows/Fonts", name) for name in ("msyh.ttc", "YuGothM.ttc", "malgun.ttf", "Nirmala.ttf")),
]
FONTCONFIG_SECONDS = 10  # it may have to scan all fonts first
NO_GLYPH = "\N{WHITE SQUARE}"


class Rendering(NamedTuple):
    """Text to draw, with NO_GLYPH in place of letters that no font has, and the font file to draw it with.

    The file is None for Pillow's own font, which has Latin letters only.
    """

    text: str
    file: Path | None


@lru_cache(4096)
def choose_font(text: str) -> Rendering:
    """Choose DejaVu Sans (Latin, Greek, Cyrillic, Arabic, many signs), or a system font with more of the letters.

    The first letters that no font has cost one warning. Nothing is downloaded.
    """
    file = dejavu()
    if text.isascii() or file is None:
        return Rendering(text, file)
    wanted = {letter for letter in text if not _is_invisible(letter)}
    if not wanted <= letters_of(file):
        file = max([file, *_system_fonts(frozenset(wanted))], key=lambda font: len(wanted & letters_of(font)))
    absent = wanted - letters_of(file)
    if absent:
        _warn_once(absent)
    return Rendering("".join(NO_GLYPH if letter in absent else letter for letter in text), file)


def dejavu() -> Path | None:
    """Find the file of DejaVu Sans without importing matplotlib. Return None if matplotlib is not installed."""
    package = find_spec("matplotlib")
    file = Path(package.origin).parent / DEJAVU if package and package.origin else None
    return file if file and file.is_file() else None


@cache
def letters_of(font: Path) -> frozenset[str]:
    """Return the letters that a font, or the first one of a collection, has a glyph for.

    The set is empty for a file that cannot be read.
    """
    try:
        from fontTools.ttLib import TTFont  # comes with matplotlib; only names beyond ASCII need it

        with open(font, "rb") as file, TTFont(file, fontNumber=0, lazy=True) as table:
            return frozenset(map(chr, table.getBestCmap() or ()))
    except Exception:  # a damaged font can make the reader raise anything
        return frozenset()


@cache
def _system_fonts(letters: frozenset[str]) -> list[Path]:
    """Find fonts that may have these letters."""
    found = [font for font in KNOWN if font.is_file()]
    program = shutil.which("fc-match")  # of fontconfig, which nearly every Linux with graphics has
    if program:
        codes = " ".join(f"{ord(letter):x}" for letter in sorted(letters))
        command = [program, "--format=%{file}", f":charset={codes}"]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, timeout=FONTCONFIG_SECONDS).stdout
        except (OSError, subprocess.SubprocessError):
            answer = ""
        found += [Path(answer)] if answer else []
    return found


def _is_invisible(letter: str) -> bool:
    """Return True for spaces, direction marks and the like, which need no glyph."""
    return letter.isspace() or unicodedata.category(letter)[0] == "C" or "\ufe00" <= letter <= "\ufe0f"


_warned: list[bool] = []


def _warn_once(absent: set[str]) -> None:
    if not _warned:
        _warned.append(True)
        warn(
            f"no font here has letters such as {' '.join(sorted(absent)[:5])}: drawn as {NO_GLYPH} in images. "
            "Install a font that has them (on Linux, for Chinese, Japanese and Korean: fonts-noto-cjk)."
        )
