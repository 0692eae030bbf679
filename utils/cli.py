"""Command lines: one dataclass field per flag, help by theme, and errors that suggest the nearest known word."""

import argparse
import difflib
import reprlib
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, Field, field, fields
from pathlib import Path
from typing import Any, NoReturn

from utils import console

# Themes of `--help`, in the order in which it lists them.
GROUPS = ("data", "model", "optimisation", "augmentation", "detection", "devices", "output", "evolution")
NOT_OFFERED = {"__entity", "__upload_dataset", "__bbox_interval", "__artifact_alias", "__bucket", "__visualize"}


def shorten(value: Any) -> str:
    """Return `value` as one would type it, cut in the middle if it is long."""
    return reprlib.repr(value)


def suggest(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """Return a clause that suggests the known word nearest to `word`, or "" if none is close.

    `cutoff` is the least similarity, 0 to 1, of difflib.
    """
    plain = {one.lstrip("-").lower(): one for one in known}  # dashes do not count: all flags begin with them
    close = difflib.get_close_matches(word.lstrip("-").lower(), plain, n=1, cutoff=cutoff)
    return f"; did you mean {plain[close[0]]}?" if close else ""


def detect_command(weights: Iterable[str | Path], imgsz: Sequence[int], source: str = "YOUR_IMAGES") -> str:
    """Return the command that finds objects with these weights, with `--imgsz` unless that is the default."""
    size = [] if list(imgsz) == [640] else ["--imgsz", *map(str, imgsz)]
    return shlex.join(["python", "detect.py", "--weights", *map(str, weights), "--source", source, *size])


class SuggestingParser(argparse.ArgumentParser):
    """Argument parser that takes `_` and `-` as the same in flags and suggests the flag nearest to an unknown one."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2 and `message` in one line."""
        self.exit(2, f"error: {message} (python {self.prog} --help lists all flags)\n")

    # pyrefly: ignore[bad-override]  # argparse declares overloads; this signature covers them all
    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """Return the namespace of the flags typed, or exit with code 2 if one is unknown."""
        words = [self._canonical(word) for word in (sys.argv[1:] if args is None else args)]
        parsed, unknown = self.parse_known_args(words, namespace)
        if unknown:
            self.error("; ".join(map(self._complain, [word for word in unknown if word[0] == "-"] or unknown[:1])))
        return parsed

    def _complain(self, word: str) -> str:
        flag = word.partition("=")[0]
        if flag.replace("-", "_") in NOT_OFFERED:
            return f"{flag} of YOLOv5 is not offered (README.md, Deliberate differences): omit it"
        return f"unknown argument {word}{suggest(flag, self._option_string_actions)}"

    def _canonical(self, word: str) -> str:
        """Return `word` in the spelling of a known flag, or unchanged."""
        if not word.startswith("--"):
            return word
        flag, separator, value = word.partition("=")
        for spelling in (flag, flag.replace("_", "-"), "--" + flag[2:].replace("-", "_")):
            if spelling in self._option_string_actions:
                return spelling + separator + value
        return word


def flag(
    default: Any, text: str, *, group: str = "", type: Callable | None = None, names: Sequence[str] = (), **extra: Any
) -> Any:
    """Return a dataclass field that is also a command line flag.

    `group` is its theme in the help, one of GROUPS. `extra` goes to argparse.
    """
    assert not group or group in GROUPS, group
    metadata = {"help": text, "group": group, "type": type, "names": tuple(names), **extra}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def flag_fields(options: type) -> list[Field]:
    """Return the fields of the dataclass `options` that are flags."""
    return [entry for entry in fields(options) if "help" in entry.metadata]


def add_flags(parser: argparse.ArgumentParser, options: type) -> argparse.ArgumentParser:
    """Add the flags of the dataclass `options`, in groups by theme.

    A flag without names is `--field-name`. A flag that is not typed is absent from the namespace, so that the caller
    sees what the user typed.
    """
    entries = flag_fields(options)
    used = [theme for theme in GROUPS if any(entry.metadata["group"] == theme for entry in entries)]
    groups = {theme: parser.add_argument_group(theme) for theme in used}
    for entry in entries:
        _add_flag(groups.get(entry.metadata["group"], parser), entry)
    return parser


def _add_flag(group: argparse._ActionsContainer, entry: Field) -> None:
    settings = {key: value for key, value in entry.metadata.items() if key != "group"}
    names = settings.pop("names") or (f"--{entry.name.replace('_', '-')}",)
    default = entry.default if entry.default_factory is MISSING else entry.default_factory()
    value_type = settings.pop("type")
    if default is False and "nargs" not in settings:
        settings["action"] = "store_true"
    else:
        settings["type"] = value_type or type(default)
    values = " ".join(map(str, default)) if isinstance(default, list) else default
    shown = "" if default is False or values is None or values == "" else f" (default {values})"
    settings["help"] = f"{settings['help']}{shown}".replace("%", "%%")
    group.add_argument(*names, dest=entry.name, default=argparse.SUPPRESS, **settings)


def read_flags(options: type, argv: Sequence[str] | None, *, prog: str, description: str) -> dict[str, Any]:
    """Return the values typed for the flags of the dataclass `options`, by field.

    `--quiet` takes effect here. `argv` None reads the command line of this process.
    """
    parser = add_flags(SuggestingParser(prog=prog, description=description), options)
    parser.add_argument(
        "-q", "--quiet", action="store_true", help="print only warnings, errors and the results at the end"
    )
    typed = vars(parser.parse_args(argv))
    console.begin_program(quiet=typed.pop("quiet"))
    return typed
