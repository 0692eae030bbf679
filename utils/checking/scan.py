"""Content of a data set as training reads it, for the checks."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from utils.checking.findings import Finding
from utils.datasets.label_index import LabelIndex
from utils.datasets.spec import DatasetSpec


@dataclass(frozen=True)
class ScannedSplit:
    """One split: its images and labels."""

    name: str  # train, val or test
    sources: list[Path]  # folders and list files
    paths: list[str]  # of all images, usable or not
    index: LabelIndex  # of the usable images


@dataclass(frozen=True)
class ScannedData:
    """A data set, scanned."""

    spec: DatasetSpec
    splits: dict[str, ScannedSplit]  # by name, train first; without those in `same`
    imgsz: int  # size of the training that is planned
    same: dict[str, str] = field(default_factory=dict)  # split -> earlier split with the same sources


Check = Callable[[ScannedData], Iterable[Finding]]
