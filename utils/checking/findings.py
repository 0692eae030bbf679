"""Findings of a check: what is wrong, how often, where, and what to do.

A check is a function `check(data: ScannedData) -> Iterable[Finding]`, listed in CHECKS of check.py. It reads the user's
files and never changes them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")  # the worst first
MAX_EXAMPLES = 100  # of a finding

Box = tuple[float, float, float, float, float]  # class, cx, cy, w, h in 0…1

# What a box is: the label that is meant, another label that it is compared with, or what a model finds.
Role = Literal["label", "other", "suggestion"]


@dataclass(frozen=True)
class Example:
    """One place of a finding."""

    file: str  # image or label file
    line: int = 0  # of a label file, from 1; 0 for the file as a whole
    detail: str = ""  # what is particular about it, such as `3 x 2 px`
    image: str = ""  # file to draw, "" if there is none that can be decoded
    boxes: tuple[Box, ...] = ()  # to draw into it
    beside: str = ""  # second image to show beside it, such as the one that it is a copy of
    roles: tuple[Role, ...] = ()  # of the first boxes; those behind them are labels

    @property
    def box_roles(self) -> tuple[Role, ...]:
        """Role of each box."""
        return self.roles + ("label",) * (len(self.boxes) - len(self.roles))

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True)
class Finding:
    """One kind of thing that is wrong in a split, or in the data set as a whole."""

    level: Level  # error: data is lost or wrong; warning: probably wrong; note: worth knowing
    group: str  # theme of the check: files, labels, splits, fit, label errors
    check: str  # its name, such as `truncated-image`
    count: int
    text: str  # what is wrong, without the count: `images are truncated`
    advice: str  # what to do, in one sentence or two
    split: str = ""  # "" for the data set as a whole
    examples: tuple[Example, ...] = ()  # the first MAX_EXAMPLES, the worst first where they differ
    figures: Mapping[str, float | str] = field(default_factory=dict)  # behind the text, for other programs


def first_examples(examples: Iterable[Example]) -> tuple[Example, ...]:
    """Return the examples that a finding keeps. The others are never computed."""
    return tuple(islice(examples, MAX_EXAMPLES))


def by_level(findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings with the worst level first, otherwise in their order."""
    return sorted(findings, key=lambda finding: LEVELS.index(finding.level))
