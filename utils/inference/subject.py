"""Subject of a measurement: a model, and the images to measure it on."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from utils import console
from utils.datasets.label_index import LabelIndex
from utils.datasets.spec import DatasetSpec
from utils.detector import InferenceModel, name_difference
from utils.distributed import Distributed
from utils.errors import UserError
from utils.inference.nms_settings import NmsSettings


@dataclass(frozen=True)
class Subject:
    """A model, the images to measure it on, and the processes that do."""

    weights: list[Path]
    model: InferenceModel
    spec: DatasetSpec
    split: str
    index: LabelIndex
    names: Mapping[int, str]
    nms: NmsSettings
    group: Distributed  # the processes that share the images


def require_same_classes(model: InferenceModel, spec: DatasetSpec, weights: Path) -> None:
    """Raise UserError if the numbers of classes of a model and a data set differ. Warn if their names do."""
    if model.num_classes != spec.num_classes:
        raise UserError(
            f"{weights} has {model.num_classes} classes, {spec.file} names {spec.num_classes}. "
            "Give the data set that the model was trained with: --data"
        )
    if difference := name_difference(model.names, spec.names):
        console.warn(
            f"{weights} and {spec.file} name their classes differently: {difference}. Each is measured as the class "
            "of its number. Give the data set that the model was trained with: --data"
        )


def find_annotations(subject: Subject) -> Path | None:
    """Return the COCO ground truth of the split or beside the data set, None if there is none.

    Beside it is instances_<name>.json in the root of the data set or its annotations/. The name is that of the split,
    or of its folder or list.
    """
    root, sources = subject.spec.root, subject.spec.sources(subject.split)
    if len(sources) == 1 and sources[0].suffix == ".json":
        return sources[0]
    stems = [subject.split, *(Path(source).stem for source in sources)]
    candidates = [folder / f"instances_{stem}.json" for folder in (root, root / "annotations") for stem in stems]
    return next((file for file in candidates if file.is_file()), None)


@torch.no_grad()
def warm_up(model: InferenceModel, shape: tuple[int, int]) -> None:
    """Run the model once: the first pass on a GPU is slow and must not be timed."""
    model(torch.zeros(1, model.pixels.channels, *shape, device=model.device))
