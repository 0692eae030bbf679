"""Command lines: a dataclass field per flag, and errors that suggest the nearest known word."""

import argparse
import difflib
import reprlib
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, field, fields
from pathlib import Path
from typing import Any


def brief(value: Any) -> str:
    """`value` as one may type it, shortened where it is large."""
    return reprlib.repr(value)


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?`, or nothing when no known word is close."""
    plain = {one.lstrip("-"): one for one in known}  # what all flags begin with makes none of them like another
    close = difflib.get_close_matches(word.lstrip("-"), plain, n=1, cutoff=0.6)
    return f"; did you mean {plain[close[0]]}?" if close else ""


NOT_OFFERED = {"__entity", "__upload_dataset", "__bbox_interval", "__artifact_alias", "__bucket", "__visualize"}


def detect_command(weights: Iterable[str | Path], imgsz: Sequence[int], source: str = "YOUR_PICTURES") -> str:
    """What to type for detections with these weights; `imgsz` is named where it is not the usual."""
    size = [] if list(imgsz) == [640] else ["--imgsz", *map(str, imgsz)]
    return shlex.join(["python", "detect.py", "--weights", *map(str, weights), "--source", source, *size])


class SuggestingParser(argparse.ArgumentParser):
    """argparse, except that an unknown flag names the nearest known one, and `_` and `-` are the same in flags."""

    def error(self, message: str) -> None:
        self.exit(2, f"error: {message} (python {self.prog} --help lists all flags)\n")

    def parse_args(self, args: Sequence[str] | None = None, namespace=None):
        words = [self._canonical(word) for word in (sys.argv[1:] if args is None else args)]
        parsed, unknown = self.parse_known_args(words, namespace)
        if unknown:
            self.error("; ".join(map(self._complain, [word for word in unknown if word[0] == "-"] or unknown[:1])))
        return parsed

    def _complain(self, word: str) -> str:
        flag = word.partition("=")[0]
        if flag.replace("-", "_") in NOT_OFFERED:
            return f"{flag} of YOLOv5 is not offered (README.md, Deliberate differences): leave it out"
        return f"unknown argument {word}{nearest(flag, self._option_string_actions)}"

    def _canonical(self, word: str) -> str:
        if not word.startswith("--"):
            return word
        flag, separator, value = word.partition("=")
        for spelling in (flag, flag.replace("_", "-"), "--" + flag[2:].replace("-", "_")):
            if spelling in self._option_string_actions:
                return spelling + separator + value
        return word


def flag(default: Any, text: str, *, type: Callable = None, names: Sequence[str] = (), **extra) -> Any:
    """A dataclass field that is also a command line flag; `extra` goes to argparse."""
    metadata = {"help": text, "type": type, "names": tuple(names), **extra}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def add_flags(parser: argparse.ArgumentParser, options: type) -> argparse.ArgumentParser:
    """One flag per field of the dataclass `options`; fields whose names list is empty get `--field-name`.

    A flag that is not given is absent from the namespace, so that the caller knows what the user asked for.
    """
    for entry in fields(options):
        settings = dict(entry.metadata)
        names = settings.pop("names") or (f"--{entry.name.replace('_', '-')}",)
        default = entry.default if entry.default is not MISSING else entry.default_factory()
        value_type = settings.pop("type", None)
        if default is False and "nargs" not in settings:
            settings["action"] = "store_true"
        else:
            settings["type"] = value_type or type(default)
        shown = "" if default is False or default is None or default == "" else f" (default {default})"
        settings["help"] = f"{settings['help']}{shown}".replace("%", "%%")
        parser.add_argument(*names, dest=entry.name, default=argparse.SUPPRESS, **settings)
    return parser
