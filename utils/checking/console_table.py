"""Findings on the console: a block for each, the worst last, where a terminal shows them."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from utils.checking.findings import LEVELS, Finding, by_level
from utils.cli import shorten

SHOWN_EXAMPLES = {"error": 3, "warning": 2, "note": 1}


def findings_table(findings: Sequence[Finding]) -> list[str]:
    """Return the lines of all findings: notes first, errors last. Without findings there is none."""
    lines = []
    for finding in reversed(by_level(findings)):
        split = f"{finding.split}: " if finding.split else ""
        lines.append(f"\n{finding.level.upper()} {split}{finding.count} {finding.text} ({finding.check})")
        shown = finding.examples[: SHOWN_EXAMPLES[finding.level]]
        for example in shown:
            detail = f"  {shorten(example.detail)}" if example.detail else ""
            lines.append(f"    {short_path(example.place)}{detail}")
        if len(shown) < finding.count and shown:
            lines[-1] += f"  ... {finding.count - len(shown)} more"
        lines.append(f"    -> {finding.advice}")
    return lines


def summary(findings: Sequence[Finding]) -> str:
    """Return the number of findings of each level: `2 errors, 1 warning, 0 notes`."""
    counts = Counter(finding.level for finding in findings)
    return ", ".join(f"{counts[level]} {level}{'' if counts[level] == 1 else 's'}" for level in LEVELS)


def short_path(place: str) -> str:
    """Return a path as seen from the current folder if it lies below it."""
    here = os.path.join(Path.cwd(), "")
    return place.removeprefix(here)
