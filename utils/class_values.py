"""Numbers by class, as they are typed: `person=0.4 "traffic light=0.25"`. A class goes by its name or its number.

Letters in shapes: C classes.
"""

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from utils.cli import flag, suggest
from utils.errors import UserError

AUTO = "auto"
DEFAULT_THRESHOLD = 0.25


def read_class_values(words: Iterable[str], expected: str) -> tuple[list[str], dict[str | int, float]]:
    """Return the words without `=`, and the numbers by class of those with one. The last `=` of a word counts.

    `expected` begins the messages: the flag, and the form of a word. Raises UserError for a class that is given twice,
    or has no number.
    """
    plain, values = list[str](), dict[str | int, float]()
    for word in words:
        name, equals, number = word.rpartition("=")
        if not equals:
            plain.append(word)
            continue
        if name in values:
            raise UserError(f"{expected}: {name} is given twice")
        try:
            values[name] = float(number)
        except ValueError:
            raise UserError(f"{expected}: {word!r} does not end with a number") from None
    return plain, values


def number_classes(values: Mapping[str | int, float], names: Mapping[int, str], where: str) -> dict[int, float]:
    """Return the values by class number. A key is a name, a name in other case, or a number, in this order.

    Raises UserError that begins with `where` for an unknown class, with the nearest name, and for one given twice.
    """
    found: dict[int, float] = {}
    for key, value in values.items():
        number = _find_class(key, names)
        if number is None:
            near = suggest(str(key), names.values())
            listed = f"; they are {', '.join(list(names.values())[:10])}{', ...' * (len(names) > 10)}"
            raise UserError(f"{where}: there is no class {key!r}{near or listed}")
        if number in found:
            raise UserError(f"{where}: class {number} {names[number]!r} is given twice")
        found[number] = value
    return found


def _find_class(key: str | int, names: Mapping[int, str]) -> int | None:
    """Return the number of a class, None if there is no such class, or if several names differ in case only."""
    if isinstance(key, int):
        return key if key in names else None
    exact = [number for number, name in names.items() if name == key]
    similar = [number for number, name in names.items() if name.strip().casefold() == key.strip().casefold()]
    if len(exact) == 1 or len(similar) == 1:
        return (exact if len(exact) == 1 else similar)[0]
    return int(key) if not exact and not similar and key.isdecimal() and int(key) in names else None


@dataclass(frozen=True)
class Thresholds:
    """Lowest confidence of each class, as typed. Iterating gives the words of the command line."""

    by_class: Mapping[str | int, float] = field(default_factory=dict)  # by name or number
    others: float = DEFAULT_THRESHOLD  # of the classes that are not in `by_class`
    auto: bool = False  # those that the model's file proposes take the place of `others`
    where: str = field(default="--conf-thres", compare=False)  # they were given, for messages

    def __iter__(self) -> Iterator[str]:
        yield AUTO if self.auto else f"{self.others}"
        yield from (f"{name}={value}" for name, value in self.by_class.items())

    def __str__(self) -> str:
        return " ".join(self)

    def resolve(self, names: Mapping[int, str], proposed: Mapping[int, float]) -> tuple[float, ...]:
        """Return the threshold (C,) of each class. `proposed`: by class number, of the model's file.

        Raises UserError for an unknown class, and for `auto` if the file proposes none.
        """
        typed = number_classes(self.by_class, names, self.where)
        if self.auto and not proposed:
            raise UserError(
                f"{self.where} {AUTO}: the model holds no thresholds, as best.pt of a training does. Give a number, "
                f"such as {DEFAULT_THRESHOLD}, or the numbers that val.py proposes"
            )
        values = {**dict.fromkeys(names, self.others), **(proposed if self.auto else {}), **typed}
        return tuple(values[number] for number in sorted(names))


Threshold = float | Thresholds  # one for all classes, or several


def highest(threshold: Threshold) -> float:
    """Return the highest of the numbers that were typed."""
    return max([threshold.others, *threshold.by_class.values()]) if isinstance(threshold, Thresholds) else threshold


def read_threshold(words: Sequence[str], others: float, where: str = "--conf-thres") -> Threshold:
    """Return the threshold of these words: a number, numbers by class, `auto`, or numbers by class after one of those.

    `others` is the threshold of classes without a number. Raises UserError that begins with `where`.
    """
    expected = f"{where} {' '.join(words)}"
    plain, by_class = read_class_values(words, expected)
    is_auto = plain == [AUTO]
    try:
        numbers = [] if is_auto else [float(word) for word in plain]
    except ValueError:
        numbers = [0.0, 0.0]
    if len(numbers) > 1:
        raise UserError(f"{expected}: expected a number, {AUTO} or CLASS=NUMBER, such as {where} 0.25 person=0.4")
    if numbers and not by_class:
        return numbers[0]
    for value in (*numbers, *by_class.values()):
        if not 0 <= value <= 1:  # also for NaN
            raise UserError(f"{expected}: {value} is outside 0...1: give for example {where} 0.25 person=0.4")
    return Thresholds(by_class, numbers[0] if numbers else others, is_auto)


def as_threshold(value: Any, where: str) -> Threshold:
    """Return the threshold that a program gives: a number, `auto`, or a mapping by name or number of classes.

    Raises UserError that begins with `where` for anything else.
    """
    try:
        if isinstance(value, Mapping):
            found = Thresholds(
                {key if isinstance(key, int) else str(key): float(value[key]) for key in value}, where=where
            )
            numbers = list(found.by_class.values())
        else:
            found = Thresholds(auto=True, where=where) if isinstance(value, str) and value == AUTO else float(value)
            numbers = [found] if isinstance(found, float) else []
    except (TypeError, ValueError):
        numbers, found = [-1.0], 0.0
    if not all(0 <= number <= 1 for number in numbers):
        raise UserError(f"{where} = {value!r}: expected a number in 0…1, such as 0.25, numbers by class, or {AUTO!r}")
    return found


def single_threshold(text: str) -> float:
    """Return the number in the text of a flag that takes no numbers by class, for argparse."""
    try:
        return float(text)
    except ValueError:
        advice = "one number is baked into the file. Type --conf-thres 0.25, and numbers by class to detect.py"
        raise argparse.ArgumentTypeError(f"{text}: {advice}") from None


class _ThresholdAction(argparse.Action):
    """Action that stores the words of a flag as a Threshold. `const` is the threshold of classes without a number."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: object) -> None:
        """Store the threshold, or end with the parser's error."""
        try:
            setattr(namespace, self.dest, read_threshold(values, self.const))
        except UserError as error:
            parser.error(str(error))


def threshold_flag(default: float, text: str) -> Any:
    """Return the flag `--conf-thres`: a number, or numbers by class."""
    return flag(
        default,
        f'{text}; by class: 0.25 person=0.4 "traffic light=0.3"; {AUTO}: those of the weights file',
        group="detection",
        type=str,
        nargs="+",
        action=_ThresholdAction,
        const=default,
        metavar="CONF",
    )
