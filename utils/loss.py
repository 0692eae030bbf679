"""Detection loss: assignment of targets to anchors, and the errors of the assigned predictions.

Letters in shapes: B batch, A anchors per level, H W rows and columns, C classes, L levels, T targets, R rows. A row is
a pair of a target and an anchor in one cell.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor

from utils.boxes import ciou
from utils.image_size import ImageSize, to_shape
from utils.kernels import gather_predictions, scatter_last, to_device

# Weights of the levels, finest first. Finer levels have more cells, nearly all of them empty.
BALANCE_OF_THREE = (4.0, 1.0, 0.4)
BALANCE_OF_OTHERS = (4.0, 1.0, 0.25, 0.06, 0.02)
# Steps to a target's candidate cells: its own, then left, up, right and down; in cells, from the centre.
NEIGHBOURS = ((0.0, 0.0), (-0.5, 0.0), (0.0, -0.5), (0.5, 0.0), (0.0, 0.5))


class Assignment(NamedTuple):
    """The rows of one level, ordered by candidate cell, then anchor, then target. Integers are int64."""

    image: Tensor  # (R,) index into the batch
    anchor: Tensor  # (R,)
    row: Tensor  # (R,)
    column: Tensor  # (R,)
    cls: Tensor  # (R,)
    xywh: Tensor  # (R, 4) in cells, the centre relative to the cell
    anchor_wh: Tensor  # (R, 2) in cells


class Losses(NamedTuple):
    """The three parts, weighted by their gains, means over the batch, detached, each 0-dim."""

    box: Tensor
    obj: Tensor
    cls: Tensor


class LossSums(NamedTuple):
    """Sums of the losses and their counts, per level (L,). A row has C class losses, one for each class."""

    box: Tensor  # over rows
    obj: Tensor  # over cells
    cls: Tensor  # over rows and classes
    rows: Tensor
    cells: Tensor


def scale_gains(
    hyp: Mapping[str, Any] | object,
    num_levels: int,
    num_classes: int,
    imgsz: ImageSize,
    *,
    label_smoothing: float = 0.0,
) -> dict[str, Any]:
    """Return the hyperparameters with box, obj and cls gains scaled to the model and the image size, as a new dict.

    hyp: mapping, or object with attributes, of gains meant for 3 levels, 80 classes and 640 x 640 pixels. The gain of
    objectness follows the number of cells, and so the area of the image.
    """
    scaled = dict(hyp if isinstance(hyp, Mapping) else vars(hyp))
    per_level = 3 / num_levels
    scaled["box"] *= per_level
    scaled["cls"] *= num_classes / 80 * per_level
    side = math.sqrt(math.prod(to_shape(imgsz)))  # of the square of the same area
    scaled["obj"] *= (side / 640) ** 2 * per_level
    scaled["label_smoothing"] = label_smoothing
    return scaled


def assign_targets(
    targets: Tensor, anchors: Tensor, grids: Sequence[tuple[int, int]], *, threshold: float
) -> list[Assignment]:
    """Match every target with the anchors whose sizes are within `threshold` times its own, in up to three cells.

    targets: (T, 6) image, class, x, y, w, h normalised. anchors: (L, A, 2) width, height in cells of their level.
    grids: (H, W) per level. Returns an Assignment per level on the targets' device, without rows if T = 0.
    A centre on a cell border takes its own cell more than once; the means count every such row.
    """
    if len(targets) == 0:  # common for images without objects, and needs no kernels
        return [_no_rows(targets) for _ in grids]
    sizes = torch.tensor([[w, h] for h, w in grids], device=targets.device, dtype=torch.float32)  # (L, 2)
    anchors = anchors.to(targets.device, torch.float32)
    centre = targets[None, :, 2:4].float() * sizes[:, None]  # (L, T, 2)
    wh = targets[None, :, 4:6].float() * sizes[:, None]  # (L, T, 2)
    chosen = _nearby_cells(centre, sizes)[:, :, None] & _anchor_fits(wh, anchors, threshold)[:, None]  # (L, 5, A, T)
    counts = chosen.flatten(1).sum(1).tolist()
    level, candidate, anchor, target = chosen.nonzero(as_tuple=True)  # row-major: the order that Assignment promises
    cell = _candidate_cells(centre[level, target], candidate, (sizes - 1)[level])  # (R, 2) column, row
    xywh = torch.cat((centre[level, target] - cell, wh[level, target]), 1)
    image, cls = targets[:, :2].long()[target].unbind(1)
    column, row = cell.long().unbind(1)
    columns = [part.split(counts) for part in (image, anchor, row, column, cls, xywh, anchors[level, anchor])]
    return [Assignment(*parts) for parts in zip(*columns, strict=True)]


def _anchor_fits(wh: Tensor, anchors: Tensor, threshold: float) -> Tensor:
    """Return (L, A, T) bool for sizes (L, T, 2) and anchors (L, A, 2): both sides differ by less than `threshold`."""
    ratio = wh[:, None] / anchors[:, :, None]  # (L, A, T, 2)
    return torch.maximum(ratio, 1 / ratio).amax(-1) < threshold


def _nearby_cells(centre: Tensor, sizes: Tensor) -> Tensor:
    """Return (L, 5, T) bool for centres (L, T, 2): the NEIGHBOURS in the grid that a centre is within 0.5 cells of.

    Its own cell is always one of them.
    """
    from_far = sizes[:, None] - centre
    near_low = (centre % 1 < 0.5) & (centre > 1)  # (L, T, 2) left, up
    near_high = (from_far % 1 < 0.5) & (from_far > 1)  # (L, T, 2) right, down
    own = torch.ones_like(near_low[..., :1])
    return torch.cat((own, near_low, near_high), -1).transpose(1, 2)


def _candidate_cells(centre: Tensor, candidate: Tensor, last: Tensor) -> Tensor:
    """Return the cells (R, 2) of centres (R, 2) after their step in NEIGHBOURS (R,), from 0 to `last` (R, 2)."""
    steps = torch.tensor(NEIGHBOURS, device=centre.device)
    cell = torch.minimum((centre + steps[candidate]).trunc().clamp_(min=0), last)
    return cell.nan_to_num_()  # a NaN must show in the loss, not as an index outside the grid


def _no_rows(like: Tensor) -> Assignment:
    none = like.new_zeros(0, dtype=torch.int64)
    floats = like.new_zeros(0, 6, dtype=torch.float32)
    return Assignment(none, none, none, none, none, floats[:, :4], floats[:, 4:])


class DetectionLoss:
    """Box, objectness and class loss of raw predictions, in float32 whatever autocast does.

    anchors: (L, A, 2) in cells, copied. strides: (L,). hyp: mapping with the gains of `scale_gains`: box obj cls cls_pw
    obj_pw anchor_t fl_gamma label_smoothing. autobalance: let the weight of each level follow its objectness loss.
    class_weights: (C,) factors on the class loss of objects of each class; None: 1.
    sum_over_processes: function that sums a 1-D float tensor of counts over all processes. Means then run over the
    whole batch, and the totals of the processes add up to its loss.
    """

    def __init__(
        self,
        anchors: Tensor,
        strides: Tensor,
        num_classes: int,
        hyp: Mapping[str, float],
        autobalance: bool = False,
        sum_over_processes: Callable[[Tensor], Tensor] | None = None,
        class_weights: ArrayLike | None = None,
    ):
        weights = BALANCE_OF_THREE if len(anchors) == 3 else BALANCE_OF_OTHERS[: len(anchors)]
        if len(weights) != len(anchors):
            raise ValueError(f"the loss has weights for at most {len(BALANCE_OF_OTHERS)} levels, not {len(anchors)}")
        self.anchors, self.num_classes, self.hyp = anchors.detach().float().cpu(), num_classes, dict(hyp)
        self.balance = torch.tensor(weights, device=anchors.device)  # (L,)
        self.class_weights = None  # (C,) float32
        if class_weights is not None:
            self.class_weights = torch.as_tensor(class_weights, dtype=torch.float32, device=anchors.device)
        self.autobalance, self.sum_over_processes = autobalance, sum_over_processes
        stride_distance = (torch.as_tensor(strides, dtype=torch.float32) - 16).abs()
        self.class_factor = 1.0  # on the class gain, by epoch
        self.reference_level = int(stride_distance.argmin())  # autobalance keeps the weight of this one at 1

    def __call__(self, predictions: Sequence[Tensor], targets: Tensor) -> tuple[Tensor, Losses]:
        """Return the total loss to differentiate, 0-dim and multiplied by the batch size, and its parts.

        predictions: per level (B, A, H, W, 5+C) logits. targets: (T, 6) image, class, x, y, w, h normalised, T may be
        0. Targets on the CPU need no sync with the GPU.
        """
        sums = self.sums(predictions, targets)
        L = len(predictions)
        rows, cells = sums.rows, sums.cells
        batch = rows.new_full((), len(predictions[0]))
        if self.sum_over_processes is not None:
            counts = self.sum_over_processes(torch.cat((rows, cells, batch[None])))
            rows, cells, batch = counts[:L], counts[L : 2 * L], counts[-1]
        parts = self.mean(sums._replace(rows=rows, cells=cells))
        if self.autobalance:
            self._update_balance((sums.obj / cells).detach())
        return sum(parts) * batch, Losses(*(part.detach() for part in parts))

    def sums(self, predictions: Sequence[Tensor], targets: Tensor) -> LossSums:
        """Return the sums before any mean. Those of several parts of a batch add up."""
        device = predictions[0].device
        grids = [(p.shape[2], p.shape[3]) for p in predictions]
        levels = assign_targets(targets, self.anchors, grids, threshold=self.hyp["anchor_t"])
        levels = [Assignment(*to_device(level, device)) for level in levels]
        with torch.autocast(device.type, enabled=False):
            by_level = [self._level(*pair) for pair in zip(predictions, levels, strict=True)]
        box, obj, cls = (torch.stack(column) for column in zip(*by_level, strict=True))
        counts = [[len(level.image) for level in levels], [p[..., 4].numel() for p in predictions]]
        (counted,) = to_device([torch.tensor(counts, dtype=torch.float32)], device)  # (2, L)
        return LossSums(box, obj, cls, *counted)

    def mean(self, sums: LossSums) -> Losses:
        """Return the three parts, weighted by their gains: means over rows or cells of a level, summed over levels."""
        rows = sums.rows.clamp(min=1)
        box = (sums.box / rows).sum()
        obj = (sums.obj / sums.cells.clamp(min=1) * self.balance.to(sums.obj.device)).sum()
        cls = (sums.cls / (rows * self.num_classes)).sum()
        return Losses(box * self.hyp["box"], obj * self.hyp["obj"], cls * (self.hyp["cls"] * self.class_factor))

    def _level(self, prediction: Tensor, rows: Assignment) -> tuple[Tensor, Tensor, Tensor]:
        """Return box, objectness and class loss of one level (B, A, H, W, 5+C), each summed to 0-dim."""
        box = cls = prediction.new_zeros((), dtype=torch.float32)
        overlap = box.expand(0)
        picked, objectness = gather_predictions(prediction, rows.image, rows.anchor, rows.row, rows.column)
        if len(rows.image):
            picked = picked.float()  # (R, 5+C)
            overlap = ciou(decode(picked, rows.anchor_wh), rows.xywh)  # (R,)
            box = (1 - overlap).sum()
            if self.num_classes > 1:
                cls = self._class_loss(picked[:, 5:], rows.cls)
        target = objectness_target(overlap.detach().clamp(min=0), rows, prediction.shape[:4])
        return box, self._binary_loss(objectness.float(), target, self.hyp["obj_pw"]), cls

    def _class_loss(self, logits: Tensor, classes: Tensor) -> Tensor:
        """Return the summed loss of logits (R, C) against one-hot classes (R,), smoothed."""
        smoothing = self.hyp["label_smoothing"]
        target = torch.full_like(logits, smoothing / 2)
        target.scatter_(1, classes[:, None], 1 - smoothing / 2)
        weight = None if self.class_weights is None else self.class_weights[classes][:, None]  # (R, 1)
        return self._binary_loss(logits, target, self.hyp["cls_pw"], weight)

    def _binary_loss(
        self, logits: Tensor, target: Tensor, positive_weight: float, row_weight: Tensor | None = None
    ) -> Tensor:
        """Return the summed binary cross-entropy, focal (arXiv 1708.02002, alpha 0.25) if fl_gamma is above 0.

        row_weight: factor on each row.
        """
        weight = logits.new_full((), positive_weight) if positive_weight != 1 else None
        gamma = self.hyp["fl_gamma"]
        if gamma <= 0:
            return F.binary_cross_entropy_with_logits(logits, target, row_weight, pos_weight=weight, reduction="sum")
        bce = F.binary_cross_entropy_with_logits(logits, target, row_weight, pos_weight=weight, reduction="none")
        p = logits.sigmoid()
        p_of_truth = target * p + (1 - target) * (1 - p)
        alpha = target * 0.25 + (1 - target) * 0.75
        # pow has an infinite slope at 0 for exponents below 1: p_of_truth is rounded to 1 for confident logits
        return (bce * alpha * (1 - p_of_truth).clamp(min=1e-12).pow(gamma)).sum()

    def _update_balance(self, obj: Tensor) -> None:
        """Move each level's weight toward the inverse of its objectness loss (L,), relative to the reference level."""
        if self.sum_over_processes is not None:
            obj = self.sum_over_processes(obj)
        balance = self.balance.to(obj.device) * 0.9999 + 0.0001 / obj
        self.balance = balance / balance[self.reference_level]


def decode(logits: Tensor, anchor_wh: Tensor) -> Tensor:
    """Return boxes x, y, w, h (R, 4) in cells, the centre relative to the cell, of logits (R, 4+), anchors (R, 2)."""
    squashed = logits[:, :4].sigmoid() * 2
    return torch.cat((squashed[:, :2] - 0.5, squashed[:, 2:].square() * anchor_wh), 1)


def objectness_target(quality: Tensor, rows: Assignment, shape: Sequence[int]) -> Tensor:
    """Return zeros (B, A, H, W) with each row's quality (R,) in its cell. The last of several rows in a cell wins."""
    B, A, H, W = shape
    cell = ((rows.image * A + rows.anchor) * H + rows.row) * W + rows.column  # (R,)
    return scatter_last(quality, cell, B * A * H * W).view(B, A, H, W)
