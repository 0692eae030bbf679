"""Command lines: one dataclass field per flag, help by theme, and errors that suggest the nearest known word."""

import argparse
import difflib
import reprlib
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, field, fields
from pathlib import Path
from typing import Any, NoReturn

from utils import console
from utils.errors import UserError
from utils.image_size import ImageSize, to_option, to_sides

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


def detect_command(weights: Iterable[str | Path], imgsz: ImageSize, source: str = "YOUR_IMAGES") -> str:
    """Return the command that finds objects with these weights, with `--imgsz` unless that is the default."""
    sides = to_sides(imgsz)
    size = [] if sides == [640] else ["--imgsz", *map(str, sides)]
    return shlex.join(["python", "detect.py", "--weights", *map(str, weights), "--source", source, *size])


class Flags(argparse.Namespace):
    """All flags of a program as attributes, those that were not typed with their defaults."""

    __slots__ = ("typed",)  # no attribute in vars(), which programs take for the flags

    def __init__(self, typed: Mapping[str, Any], defaults: Mapping[str, Any]):
        super().__init__(**{**defaults, **typed})
        self.typed = frozenset(typed)


# Command line of a program: words (None: those of this process), the Namespace of its parse_opt(), or keywords.
Arguments = Sequence[str] | argparse.Namespace | Mapping[str, Any] | None


def to_flags(values: Mapping[str, Any]) -> list[str]:
    """Return the words of a command line: True is a bare flag, a list several words. False and None are skipped."""
    words: list[str] = []
    for name, value in values.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif isinstance(value, list | tuple):
            words += [flag, *map(str, value)]
        elif value is not False and value is not None:
            words.append(f"{flag}={value}")
    return words


class SuggestingParser(argparse.ArgumentParser):
    """Argument parser that takes `_` and `-` as the same in flags and suggests the flag nearest to an unknown one.

    `exits`: a mistake ends the program with code 2, otherwise it raises UserError.
    """

    exits, ignores_unknown = True, False

    def error(self, message: str) -> NoReturn:
        """Exit with code 2 and `message` in one line."""
        advice = f"(python {self.prog} --help lists all flags)"
        if not self.exits:
            raise UserError(f"{message} {advice}")
        self.exit(2, f"error: {message} {advice}\n")

    # pyrefly: ignore[bad-override]  # argparse declares overloads; this signature covers them all
    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """Return the namespace of the flags typed, or exit with code 2 if one is unknown."""
        words = [self._canonical(word) for word in (sys.argv[1:] if args is None else args)]
        parsed, unknown = self.parse_known_args(words, namespace)
        if unknown and not self.ignores_unknown:
            self.error("; ".join(map(self._complain, [word for word in unknown if word[:1] == "-"] or unknown[:1])))
        return parsed

    def words_of(self, keywords: Mapping[str, Any]) -> list[str]:
        """Return the command line for keywords such as `batch_size=8, exist_ok=True`. None means the default.

        Raises UserError for an unknown keyword, with the nearest known one.
        """
        actions = {name[2:].replace("-", "_"): action for name, action in self._option_string_actions.items()}
        actions = {name: action for name, action in actions.items() if len(name) > 1 and name != "help"}
        words = []
        for name, value in keywords.items():
            if f"__{name}" in NOT_OFFERED and value is not None:
                self.error(self._complain(f"--{name}"))
            elif name not in actions and value is not None:
                self.error(f"unknown keyword {name}{suggest(name, actions)}")
            elif value is not None:
                words += self._words_of_flag(f"--{name}", value, actions[name])
        return words

    def _words_of_flag(self, flag: str, value: Any, action: argparse.Action) -> list[str]:
        if action.nargs in (0, "?") and isinstance(value, bool):
            return [flag] * value
        if action.nargs == 0 or isinstance(value, bool):
            expected = "True or False" if action.nargs == 0 else "a value"
            self.error(f"{flag[2:]}={shorten(value)}: expected {expected}")
        if action.nargs in ("+", "*") and isinstance(value, Mapping):
            value = [f"{name}={value[name]}" for name in value]
        if action.nargs in ("+", "*") and not isinstance(value, str) and isinstance(value, Iterable):
            return [flag, *map(str, value)]
        return [f"{flag}={value}"]

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


class ImageSizeAction(argparse.Action):
    """Action of a flag `--imgsz` that stores a number for a square, else a list."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        setattr(namespace, self.dest, to_option(values) if len(values) < 3 else values)


def image_size_flag(default: ImageSize, text: str) -> Any:
    """Return the field of `--imgsz`: one side, or height and width. It holds a list if its default is one."""
    action = "store" if isinstance(default, list) else ImageSizeAction
    names = ["--imgsz", "--img", "--img-size"]
    return flag(default, f"{text}: side, or h w", type=int, nargs="+", action=action, names=names, group="data")


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
    default = _default_of(entry)
    value_type = settings.pop("type")
    if default is False and "nargs" not in settings:
        settings["action"] = "store_true"
    else:
        settings["type"] = value_type or type(default)
    values = " ".join(map(str, default)) if isinstance(default, list) else default
    shown = "" if default is False or values is None or values == "" else f" (default {values})"
    settings["help"] = f"{settings['help']}{shown}".replace("%", "%%")
    group.add_argument(*names, dest=entry.name, default=argparse.SUPPRESS, **settings)


def build_parser(options: type, *, prog: str, description: str) -> SuggestingParser:
    """Return the parser of the dataclass `options`, with `--quiet`."""
    parser = SuggestingParser(prog=prog, description=description)
    add_flags(parser, options)
    parser.add_argument(
        "-q",
        "--quiet",
        action="store_true",
        default=argparse.SUPPRESS,
        help="print only warnings, errors and the results at the end",
    )
    return parser


def read_flags(options: type, argv: Arguments, *, prog: str, description: str) -> dict[str, Any]:
    """Return the values typed for the flags of the dataclass `options`, by field.

    `--quiet` takes effect here. Wrong words end the program. Wrong keywords and namespaces raise UserError.
    """
    parser = build_parser(options, prog=prog, description=description)
    if isinstance(argv, argparse.Namespace | Mapping):
        parser.exits = False
        argv = parser.words_of(argv if isinstance(argv, Mapping) else _changed_flags(argv, options))
    typed = vars(parser.parse_args(argv))
    console.begin_program(quiet=typed.pop("quiet", False), data_only=typed.get("json", False))
    return typed


def parse_flags(options: type, *, prog: str, description: str, known: bool = False) -> Flags:
    """Return all flags of this process's command line. `known`: ignore words that are no flags."""
    parser = build_parser(options, prog=prog, description=description)
    parser.ignores_unknown = known
    return Flags(vars(parser.parse_args()), {**default_flags(options), "quiet": False})


def default_flags(options: type) -> dict[str, Any]:
    """Return the default of each flag of the dataclass `options`, by field."""
    return {entry.name: _default_of(entry) for entry in flag_fields(options)}


def _default_of(entry: Field) -> Any:
    return entry.default if entry.default_factory is MISSING else entry.default_factory()


def _changed_flags(namespace: argparse.Namespace, options: type) -> dict[str, Any]:
    """Return the attributes that differ from the defaults, or that were typed."""
    defaults, typed = default_flags(options), getattr(namespace, "typed", frozenset())
    return {
        name: value
        for name, value in vars(namespace).items()
        if name in typed or name not in defaults or value != defaults[name]
    }
