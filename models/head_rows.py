"""Rows of a detection head, carried over from weights that were trained with other classes.

Letters in shapes: A anchors per level, C classes, I input channels.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from models.yolo import DetectionModel

SHARED = 5  # rows of an anchor that no class owns: x, y, w, h, objectness


def carry_head(model: DetectionModel, state_dict: Mapping[str, Tensor], before: Mapping[int, str]) -> int | None:
    """Copy rows of the head in `state_dict`, whose classes are `before`, into the head of `model`.

    Those of boxes and objectness stay as they are. A class takes the rows of its name, without regard to case, or else
    the mean of all classes. Return how many classes were found by name. Nothing is carried over, and None returned, if
    the classes are equal in number or the heads differ in anchors or inputs.
    """
    own, A = dict(model.head.named_parameters()), model.head.num_anchors
    prefix = next(name for name in model.state_dict() if name.endswith("anchors")).removesuffix("anchors")
    old = {name: state_dict.get(prefix + name) for name in own}
    if len(before) == model.num_classes or not all(
        values is not None and values.shape == (A * (SHARED + len(before)), *own[name].shape[1:])
        for name, values in old.items()
    ):
        return None
    rows = {name.casefold(): number for number, name in before.items()}
    sources = [rows.get(name.casefold()) for _, name in sorted(model.names.items())]
    for name, values in old.items():
        assert values is not None
        shared, classes = values.float().unflatten(0, (A, -1)).split((SHARED, len(before)), 1)  # (A, 5, …), (A, C, …)
        mean = classes.mean(1)
        taken = torch.stack([mean if row is None else classes[:, row] for row in sources], 1)
        own[name].data.copy_(torch.cat((shared, taken), 1).flatten(0, 1))
    return sum(row is not None for row in sources)
