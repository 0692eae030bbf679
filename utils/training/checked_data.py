"""Splits of a training, with a line on the errors in them: what `check.py` says at length."""

import shlex

from utils.checking.skipped import count_errors
from utils.console import warn
from utils.datasets.spec import DatasetSpec
from utils.datasets.splits import Splits, load_splits


def load_checked(spec: DatasetSpec, *, single_cls: bool = False, fraction: float = 1.0) -> Splits:
    """Return the splits as `load_splits` does, and warn of errors in the data that its scan found."""
    splits = load_splits(spec, single_cls=single_cls, fraction=fraction)
    if text := describe_errors(splits):
        command = shlex.join(["python", "check.py", "--data", str(spec.file)])
        warn(f"the data has errors: {text}. All of them, and what to do: {command}")
    return splits


def describe_errors(splits: Splits) -> str:
    """Return the errors of each split in short: `train: 3 truncated-image, 12 out-of-range`, or ""."""
    found = []
    indices = {"train": splits.train} | ({} if splits.val is splits.train else {"val": splits.val})
    for split, index in indices.items():
        counts = count_errors(index)
        if counts:
            found.append(f"{split}: {', '.join(f'{count} {check}' for check, count in counts.items())}")
    return "; ".join(found)
