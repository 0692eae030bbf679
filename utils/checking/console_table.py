"""Findings on the console: a block for each, the worst last, where a terminal shows them."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from utils.checking.findings import LEVELS, Finding, by_level

MAX_DETAIL = 120  # characters
SHOWN_EXAMPLES = 2  # of a finding


def findings_table(findings: Sequence[Finding]) -> list[str]:
    """Return the lines of all findings, notes first and errors last: level, split, count, name and what is wrong.

    Errors and warnings have examples and what to do, notes have a line each.
    """
    lines = []
    for finding in reversed(by_level(findings)):
        title = f"{finding.level.upper():8}{finding.split or 'all':6}{finding.count:>7}  "
        title += f"{finding.check}: {finding.text}"
        if finding.level == "note":
            lines.append(title)
        else:
            lines += [f"\n{title}", *_example_lines(finding), f"    -> {finding.advice}"]
    return lines


def _example_lines(finding: Finding) -> list[str]:
    shown = finding.examples[:SHOWN_EXAMPLES]
    lines = [f"    {short_path(example.place)}  {example.detail[:MAX_DETAIL]}".rstrip() for example in shown]
    if shown and len(shown) < finding.count:
        lines[-1] += f"  ... {finding.count - len(shown)} more"
    return lines


def summary(findings: Sequence[Finding]) -> str:
    """Return the number of findings of each level: `2 errors, 1 warning, 0 notes`."""
    counts = Counter(finding.level for finding in findings)
    return ", ".join(f"{counts[level]} {level}{'' if counts[level] == 1 else 's'}" for level in LEVELS)


def short_path(place: str) -> str:
    """Return a path as seen from the current folder if it lies below it."""
    here = os.path.join(Path.cwd(), "")
    return place.removeprefix(here)
