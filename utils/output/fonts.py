"""Fonts for names in any script: DejaVu Sans, which comes with matplotlib, else one that the system has."""

import shutil
import subprocess
import unicodedata
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

DEJAVU = Path("mpl-data", "fonts", "ttf", "DejaVuSans.ttf")  # in matplotlib's folder
# What macOS and Windows bring for the scripts of East Asia; elsewhere fontconfig is asked.
KNOWN = [
    Path("/System/Library/Fonts/Supplemental/Arial Unicode.ttf"),
    *(Path("C:/Windows/Fonts", name) for name in ("msyh.ttc", "YuGothM.ttc", "malgun.ttf", "Nirmala.ttf")),
]
PATIENCE = 10  # seconds for fontconfig, which may have to look through all fonts first
NO_GLYPH = "\N{WHITE SQUARE}"


class Rendering(NamedTuple):
    """What can be drawn of a text, with NO_GLYPH for letters that no font has, and the file of the font to do it with;
    None for Pillow's own font, which has Latin letters only."""

    text: str
    file: Path | None


@lru_cache(4096)
def choose_font(text: str) -> Rendering:
    """`text` in DejaVu Sans (Latin, Greek, Cyrillic, Arabic and many signs), or in a font of the system that has more
    of its letters. The first letters that none has cost one line. Nothing is fetched."""
    file = dejavu()
    if text.isascii() or file is None:
        return Rendering(text, file)
    wanted = {letter for letter in text if not _is_unseen(letter)}
    if not wanted <= letters_of(file):
        file = max([file, *_system_fonts(frozenset(wanted))], key=lambda font: len(wanted & letters_of(font)))
    absent = wanted - letters_of(file)
    if absent:
        _warn_once(absent)
    return Rendering("".join(NO_GLYPH if letter in absent else letter for letter in text), file)


def dejavu() -> Path | None:
    """Its file, without importing matplotlib; None where that is not installed."""
    package = find_spec("matplotlib")
    file = Path(package.origin).parent / DEJAVU if package and package.origin else None
    return file if file and file.is_file() else None


@cache
def letters_of(font: Path) -> frozenset[str]:
    """The letters that a font, or the first of a collection, has a glyph for; none for a file that cannot be read."""
    try:
        from fontTools.ttLib import TTFont  # late: it comes with matplotlib, and only names beyond ASCII need it

        with open(font, "rb") as file, TTFont(file, fontNumber=0, lazy=True) as table:
            return frozenset(map(chr, table.getBestCmap() or ()))
    except Exception:  # whatever a damaged font makes its reader raise: then it is of no use here
        return frozenset()


@cache
def _system_fonts(letters: frozenset[str]) -> list[Path]:
    """Fonts that may have these letters."""
    found = [font for font in KNOWN if font.is_file()]
    program = shutil.which("fc-match")  # fontconfig's: on nearly every Linux that draws at all
    if program:
        codes = " ".join(f"{ord(letter):x}" for letter in sorted(letters))
        try:
            answer = subprocess.run(
                [program, "--format=%{file}", f":charset={codes}"], capture_output=True, text=True, timeout=PATIENCE
            ).stdout
        except (OSError, subprocess.SubprocessError):
            answer = ""
        found += [Path(answer)] if answer else []
    return found


def _is_unseen(letter: str) -> bool:
    """Spaces, marks of direction and the like, which fonts need not have."""
    return letter.isspace() or unicodedata.category(letter)[0] == "C" or "\ufe00" <= letter <= "\ufe0f"


_warned: list[bool] = []


def _warn_once(absent: set[str]) -> None:
    if not _warned:
        _warned.append(True)
        print(
            f"WARNING no font here has letters such as {' '.join(sorted(absent)[:5])}: drawn as {NO_GLYPH} in "
            "pictures; install one that has (on Linux, for Chinese, Japanese and Korean, fonts-noto-cjk)"
        )
