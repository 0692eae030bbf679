"""Checks of classes: ids without a name, names without boxes, names that may mean the same."""

from collections.abc import Iterator, Mapping
from itertools import combinations

import numpy as np

from utils.checking.findings import Example, Finding, first_examples
from utils.checking.scan import ScannedData, ScannedSplit

HARDLY = 20  # boxes of a class in the training images, below which it is hardly seen
MIN_LETTERS = 6  # of names that may differ by one letter through a mistake; short words often do


def check_classes(data: ScannedData) -> Iterator[Finding]:
    """Yield the findings on class ids and class names."""
    for split in data.splits.values():
        yield from _unknown_findings(split)
    yield from _frequency_findings(data)
    yield from _name_findings(data)


def class_counts(split: ScannedSplit) -> np.ndarray:
    """Return the number of labels (C,) of each named class in a split."""
    ids = split.index.labels[:, 0].astype(np.int64)
    return np.bincount(ids[ids < len(split.names)], minlength=len(split.names))


def _unknown_findings(split: ScannedSplit) -> Iterator[Finding]:
    ids, count = split.index.labels[:, 0].astype(np.int64), len(split.names)
    unknown = np.flatnonzero(ids >= count)
    if len(unknown):
        values, counts = np.unique(ids[unknown], return_counts=True)
        yield Finding(
            "error",
            "labels",
            "unknown-class",
            len(unknown),
            f"rows have a class that is not named (0...{count - 1})",
            "Correct the rows, or add the classes to `names`. Training does not start.",
            split.name,
            first_examples(split.label_example(int(j), f"class {ids[j]}") for j in unknown),
            {f"class {value}": int(number) for value, number in zip(values[:100], counts[:100], strict=True)},
        )


def _frequency_findings(data: ScannedData) -> Iterator[Finding]:
    """Yield the findings on classes that are never seen, or hardly in training."""
    names, file = data.spec.names, str(data.spec.file)
    counts = {name: class_counts(split) for name, split in data.splits.items()}
    total = np.sum(list(counts.values()), axis=0)
    if not total.sum():
        return
    never = [k for k in names if not total[k]]
    if never:
        examples = first_examples(Example(file, detail=f"class {k} {names[k]!r}") for k in never)
        advice = "Remove them from `names`, with new ids for the others, or label some: they cost accuracy and time."
        yield Finding(
            "warning", "labels", "absent-class", len(never), "classes have no box at all", advice, examples=examples
        )
    train = counts.get("train")
    if train is None or not train.sum():
        return
    rare = sorted((k for k in names if 0 < train[k] < HARDLY), key=lambda k: train[k])
    if rare:
        yield Finding(
            "warning",
            "labels",
            "rare-class",
            len(rare),
            f"classes have fewer than {HARDLY} boxes to train on",
            "They are hardly learnt: label more of them, merge them with others, or remove them.",
            "train",
            first_examples(Example(file, detail=f"class {k} {names[k]!r}, boxes: {train[k]}") for k in rare),
        )


def _name_findings(data: ScannedData) -> Iterator[Finding]:
    pairs = similar_names(data.spec.names)
    if pairs:
        yield Finding(
            "warning",
            "labels",
            "similar-names",
            len(pairs),
            "pairs of class names differ only in case or spelling",
            "If they mean the same, give their rows one class id, and remove the other name.",
            examples=first_examples(
                Example(str(data.spec.file), detail=f"{one} {data.spec.names[one]!r}, {two} {data.spec.names[two]!r}")
                for one, two in pairs
            ),
        )


def similar_names(names: Mapping[int, str]) -> list[tuple[int, int]]:
    """Return the pairs of classes whose names may be one word.

    They differ in case, signs, or the s of a plural, or in one letter of a long word.
    """
    letters = {k: "".join(filter(str.isalnum, name.casefold())) for k, name in names.items()}
    found = []
    for one, two in combinations(names, 2):
        a, b = letters[one], letters[two]
        if not a or not b:
            same = names[one].strip() == names[two].strip()
        else:
            same = a == b or {a + "s", b + "s"} & {a, b} != set() or _is_typo(a, b)
        if same:
            found.append((one, two))
    return found


def _is_typo(a: str, b: str) -> bool:
    """Return whether two long words of letters differ by one letter: changed, added or missing."""
    if min(len(a), len(b)) < MIN_LETTERS or abs(len(a) - len(b)) > 1 or not (a + b).isalpha():
        return False
    start = next((k for k, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    return a[start + (len(a) >= len(b)) :] == b[start + (len(b) >= len(a)) :]
