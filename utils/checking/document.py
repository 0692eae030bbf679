"""Findings as one JSON document: that of `check.py --json`, and findings.json. docs/json.md describes its fields."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.addresses import remove_credentials
from utils.checking.findings import LEVELS, Example, Finding, by_level
from utils.checking.scan import ScannedData
from utils.image_size import to_option


def describe_check(data: ScannedData, findings: Sequence[Finding], *, typed: str, save_dir: Path) -> dict[str, Any]:
    """Return the document of a check. `typed` is `--data`."""
    return {
        "program": "check",
        "data": remove_credentials(typed),
        "save_dir": str(save_dir),
        "imgsz": to_option(data.imgsz),
        "names": [data.spec.names[k] for k in sorted(data.spec.names)],
        "splits": [
            {"split": split.name, "images": len(split.paths), "labels": len(split.index.labels)}
            for split in data.splits.values()
        ],
        **{f"{level}s": sum(finding.level == level for finding in findings) for level in LEVELS},
        "findings": [_describe_finding(finding) for finding in by_level(findings)],
    }


def _describe_finding(finding: Finding) -> dict[str, Any]:
    return {
        "level": finding.level,
        "group": finding.group,
        "check": finding.check,
        "split": finding.split or None,
        "count": finding.count,
        "text": finding.text,
        "advice": finding.advice,
        "figures": [{"name": name, "value": _plain(value)} for name, value in finding.figures.items()],
        "examples": [_describe_example(example) for example in finding.examples],
    }


def _describe_example(example: Example) -> dict[str, Any]:
    return {
        "file": example.file,
        "line": example.line or None,
        "detail": example.detail,
        "image": example.image or None,
        "beside": example.beside or None,
        "boxes": [[int(class_id), *(_plain(value) for value in rest)] for class_id, *rest in example.boxes],
        "roles": list(example.box_roles),
    }


def _plain(value: float | str) -> float | str | None:
    """Return a rounded number, None for NaN and infinity, which JSON lacks."""
    if isinstance(value, str | int):
        return value
    return round(float(value), 6) if math.isfinite(value) else None
