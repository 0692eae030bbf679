"""The detection loss: which anchors answer for which target, and how wrong their predictions are.

Letters in shapes: B batch, A anchors per level, H W rows and columns of a level, C classes, L levels, T targets,
R rows, that is pairs of one target and one anchor in one cell.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.boxes import ciou

# Finer levels have more cells, nearly all empty, and count for more.
BALANCE_OF_THREE = (4.0, 1.0, 0.4)
BALANCE_OF_OTHERS = (4.0, 1.0, 0.25, 0.06, 0.02)
# Candidate cells of a target: its own, then left, up, right and down; in cells, against the centre.
NEIGHBOURS = ((0.0, 0.0), (-0.5, 0.0), (0.0, -0.5), (0.5, 0.0), (0.0, 0.5))


class Assignment(NamedTuple):
    """The rows of one level, ordered by candidate cell, then anchor, then target; integers are int64."""

    image: Tensor  # (R,)
    anchor: Tensor  # (R,)
    row: Tensor  # (R,)
    column: Tensor  # (R,)
    cls: Tensor  # (R,)
    xywh: Tensor  # (R, 4) in cells, the centre relative to the cell
    anchor_wh: Tensor  # (R, 2) in cells


class Losses(NamedTuple):
    """The three parts, weighted by their gains, averaged over the batch, detached, each 0-dim."""

    box: Tensor
    obj: Tensor
    cls: Tensor


class LossSums(NamedTuple):
    """Losses summed and what they are the sums of, per level (L,); a class loss counts once for each of C classes."""

    box: Tensor  # over rows
    obj: Tensor  # over cells
    cls: Tensor  # over rows and classes
    rows: Tensor
    cells: Tensor


def scale_gains(hyp: Any, num_levels: int, num_classes: int, imgsz: int, *, label_smoothing: float = 0.0) -> dict:
    """The hyperparameters with box, obj and cls gains fitted to the model and the picture size, as a new dict.

    hyp: mapping or dataclass with gains meant for 3 levels, 80 classes and 640 pixels; it is not changed.
    """
    scaled = dict(hyp) if isinstance(hyp, Mapping) else dataclasses.asdict(hyp)
    per_level = 3 / num_levels
    scaled["box"] *= per_level
    scaled["cls"] *= num_classes / 80 * per_level
    scaled["obj"] *= (imgsz / 640) ** 2 * per_level
    scaled["label_smoothing"] = label_smoothing
    return scaled


def assign_targets(
    targets: Tensor, anchors: Tensor, grids: Sequence[tuple[int, int]], *, threshold: float
) -> list[Assignment]:
    """Pair every target with the anchors whose sizes are within `threshold` times its own, in up to three cells.

    targets: (T, 6) image, class, x, y, w, h normalised. anchors: (L, A, 2) width, height in cells of their level.
    grids: (H, W) per level. The result lies on the targets' device, an Assignment per level, without rows if T = 0.
    A centre on a cell border takes its own cell more than once: every such row counts in the means.
    """
    if len(targets) == 0:  # the common case of a picture without objects needs no kernel launches
        return [_no_rows(targets) for _ in grids]
    sizes = torch.tensor([[w, h] for h, w in grids], device=targets.device, dtype=torch.float32)  # (L, 2)
    centre = targets[None, :, 2:4].float() * sizes[:, None]  # (L, T, 2)
    wh = targets[None, :, 4:6].float() * sizes[:, None]  # (L, T, 2)
    fits = _anchor_fits(wh, anchors.to(targets.device, torch.float32), threshold)  # (L, A, T)
    nearby = _nearby_cells(centre, sizes)  # (L, 5, T)
    chosen = nearby[:, :, None] & fits[:, None]  # (L, 5, A, T)
    counts = chosen.flatten(1).sum(1).tolist()
    level, candidate, anchor, target = chosen.nonzero(as_tuple=True)  # row-major, hence the order promised above
    middle = centre[level, target]  # (R, 2)
    steps = torch.tensor(NEIGHBOURS, device=targets.device)
    last = (sizes - 1)[level]
    cell = torch.minimum((middle + steps[candidate]).trunc().clamp_(min=0), last)  # (R, 2) column, row
    cell.nan_to_num_()  # a NaN must show in the loss, not as a place outside the grid
    xywh = torch.cat((middle - cell, wh[level, target]), 1)
    anchor_wh = anchors.to(targets.device, torch.float32)[level, anchor]
    image, cls = targets[:, :2].long()[target].unbind(1)
    column, row = cell.long().unbind(1)
    columns = [part.split(counts) for part in (image, anchor, row, column, cls, xywh, anchor_wh)]
    return [Assignment(*parts) for parts in zip(*columns, strict=True)]


def _anchor_fits(wh: Tensor, anchors: Tensor, threshold: float) -> Tensor:
    """(L, T, 2) and (L, A, 2) in cells -> (L, A, T): neither side is `threshold` times longer or shorter, or more."""
    ratio = wh[:, None] / anchors[:, :, None]  # (L, A, T, 2)
    return torch.maximum(ratio, 1 / ratio).amax(-1) < threshold


def _nearby_cells(centre: Tensor, sizes: Tensor) -> Tensor:
    """(L, T, 2) -> (L, 5, T): which of NEIGHBOURS the centre is close to, the own cell always; none past a border."""
    from_far = sizes[:, None] - centre
    near_low = (centre % 1 < 0.5) & (centre > 1)  # (L, T, 2) left, up
    near_high = (from_far % 1 < 0.5) & (from_far > 1)  # (L, T, 2) right, down
    own = torch.ones_like(near_low[..., :1])
    return torch.cat((own, near_low, near_high), -1).transpose(1, 2)


def _no_rows(like: Tensor) -> Assignment:
    integers = [like.new_zeros(0, dtype=torch.int64) for _ in range(5)]
    return Assignment(*integers, like.new_zeros(0, 4, dtype=torch.float32), like.new_zeros(0, 2, dtype=torch.float32))


class DetectionLoss:
    """Box, objectness and class loss of the raw predictions, in float32 whatever autocast does.

    anchors: (L, A, 2) in cells, copied: settle them before. strides: (L,). hyp: mapping with gains as `scale_gains`
    leaves them: box obj cls cls_pw obj_pw anchor_t fl_gamma label_smoothing. autobalance: let the weight of each level
    follow its objectness loss. sum_over_processes: maps a 1-D float tensor of counts to its sum over all processes;
    means then run over the whole batch, and the totals of the processes add up to the loss of the whole batch.
    """

    def __init__(
        self,
        anchors: Tensor,
        strides: Tensor,
        num_classes: int,
        hyp: Mapping[str, float],
        autobalance: bool = False,
        sum_over_processes: Callable[[Tensor], Tensor] | None = None,
    ):
        weights = BALANCE_OF_THREE if len(anchors) == 3 else BALANCE_OF_OTHERS[: len(anchors)]
        if len(weights) != len(anchors):
            raise ValueError(f"the loss knows weights for at most {len(BALANCE_OF_OTHERS)} levels, not {len(anchors)}")
        self.anchors, self.num_classes, self.hyp = anchors.detach().float().cpu(), num_classes, dict(hyp)
        self.balance = torch.tensor(weights, device=anchors.device)  # (L,)
        self.autobalance, self.sum_over_processes = autobalance, sum_over_processes
        stride_distance = (torch.as_tensor(strides, dtype=torch.float32) - 16).abs()
        self.reference_level = int(stride_distance.argmin())  # autobalance keeps the weight of this one at 1

    def __call__(self, predictions: Sequence[Tensor], targets: Tensor) -> tuple[Tensor, Losses]:
        """Total loss to differentiate, 0-dim and multiplied by the batch size, and its parts.

        predictions: per level (B, A, H, W, 5+C) logits. targets: (T, 6) image, class, x, y, w, h normalised, T may be
        0; left on the CPU they cost no synchronisation with the GPU.
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
            self._follow((sums.obj / cells).detach())
        return sum(parts) * batch, Losses(*(part.detach() for part in parts))

    def sums(self, predictions: Sequence[Tensor], targets: Tensor) -> "LossSums":
        """What the loss is made of, before any mean: for several parts of a batch the sums add up."""
        device = predictions[0].device
        grids = [(p.shape[2], p.shape[3]) for p in predictions]
        levels = assign_targets(targets, self.anchors, grids, threshold=self.hyp["anchor_t"])
        levels = [_to_device(rows, device) for rows in levels]
        with torch.autocast(device.type, enabled=False):
            by_level = [self._level(*pair) for pair in zip(predictions, levels, strict=True)]
        box, obj, cls = (torch.stack(column) for column in zip(*by_level))
        counts = [[len(rows.image) for rows in levels], [p[..., 4].numel() for p in predictions]]
        rows, cells = _sent(torch.tensor(counts, dtype=torch.float32), device)
        return LossSums(box, obj, cls, rows, cells)

    def mean(self, sums: "LossSums") -> Losses:
        """The three parts, weighted by their gains: means over the rows or cells of each level, summed over levels."""
        rows = sums.rows.clamp(min=1)
        box = (sums.box / rows).sum()
        obj = (sums.obj / sums.cells.clamp(min=1) * self.balance.to(sums.obj.device)).sum()
        cls = (sums.cls / (rows * self.num_classes)).sum()
        return Losses(box * self.hyp["box"], obj * self.hyp["obj"], cls * self.hyp["cls"])

    def _level(self, prediction: Tensor, rows: Assignment) -> tuple[Tensor, Tensor, Tensor]:
        """Box, objectness and class loss of one level (B, A, H, W, 5+C), summed; each 0-dim."""
        box = cls = prediction.new_zeros((), dtype=torch.float32)
        overlap = box.expand(0)
        picked, objectness = Picked.apply(prediction, rows.image, rows.anchor, rows.row, rows.column)
        if len(rows.image):
            picked = picked.float()  # (R, 5+C)
            overlap = ciou(decode(picked, rows.anchor_wh), rows.xywh)  # (R,)
            box = (1 - overlap).sum()
            if self.num_classes > 1:
                cls = self._class_loss(picked[:, 5:], rows.cls)
        goal = objectness_target(overlap.detach().clamp(min=0), rows, prediction.shape[:4])
        return box, self._binary_loss(objectness.float(), goal, self.hyp["obj_pw"]), cls

    def _class_loss(self, logits: Tensor, classes: Tensor) -> Tensor:
        """Summed loss of (R, C) logits against one-hot classes (R,), smoothed."""
        smoothing = self.hyp["label_smoothing"]
        goal = torch.full_like(logits, smoothing / 2)
        goal.scatter_(1, classes[:, None], 1 - smoothing / 2)
        return self._binary_loss(logits, goal, self.hyp["cls_pw"])

    def _binary_loss(self, logits: Tensor, goal: Tensor, positive_weight: float) -> Tensor:
        """Summed binary cross-entropy, focal (arXiv 1708.02002, alpha 0.25) if fl_gamma is above 0."""
        weight = logits.new_full((), positive_weight) if positive_weight != 1 else None
        gamma = self.hyp["fl_gamma"]
        if gamma <= 0:
            return F.binary_cross_entropy_with_logits(logits, goal, pos_weight=weight, reduction="sum")
        plain = F.binary_cross_entropy_with_logits(logits, goal, pos_weight=weight, reduction="none")
        p = logits.sigmoid()
        p_of_truth = goal * p + (1 - goal) * (1 - p)
        alpha = goal * 0.25 + (1 - goal) * 0.75
        # pow has an infinite slope at 0 for exponents below 1: p_of_truth is rounded to 1 for confident logits
        return (plain * alpha * (1 - p_of_truth).clamp(min=1e-12).pow(gamma)).sum()

    def _follow(self, obj: Tensor) -> None:
        """Let each level's weight drift to the inverse of its objectness loss (L,), relative to the stride-16 level."""
        if self.sum_over_processes is not None:
            obj = self.sum_over_processes(obj)
        balance = self.balance.to(obj.device) * 0.9999 + 0.0001 / obj
        self.balance = balance / balance[self.reference_level]


class Picked(torch.autograd.Function):
    """Of predictions (B, A, H, W, 5+C) the rows at four indices (R,), (R, 5+C), and the objectness logits (B, A, H, W).

    Written as two index operations, each would leave a gradient of the size of the predictions, nearly all zeros, and
    to fill and add these was most of the time of the whole loss. The one gradient lies in memory as the predictions do,
    so that the head's convolution takes it without moving it about.
    """

    @staticmethod
    def forward(context: Any, prediction: Tensor, *cells: Tensor) -> tuple[Tensor, Tensor]:
        context.layout = torch.empty_like(prediction, device="meta")
        context.save_for_backward(*cells)
        return prediction[cells], prediction[..., 4].clone(memory_format=torch.contiguous_format)

    @staticmethod
    def backward(context: Any, of_rows: Tensor, of_objectness: Tensor) -> tuple[Tensor | None, ...]:
        gradient = torch.zeros_like(context.layout, device=of_objectness.device)
        gradient[..., 4] = of_objectness
        image, anchor, row, column = context.saved_tensors
        lying, cells = gradient.permute(0, 2, 3, 1, 4), [image, row, column, anchor]  # of a channels-last convolution
        if not lying.is_contiguous():  # a GPU would copy it
            lying, cells = gradient, [image, anchor, row, column]
        # As index_put_ does it, without its looks at the indices: on a GPU these are some seventy more kernels a step.
        torch.ops.aten._index_put_impl_(lying, cells, of_rows, accumulate=True, unsafe=True)
        return gradient, None, None, None, None


def decode(logits: Tensor, anchor_wh: Tensor) -> Tensor:
    """(R, 4+) logits and (R, 2) anchors -> (R, 4) boxes x, y, w, h in cells, the centre relative to the cell."""
    squashed = logits[:, :4].sigmoid() * 2
    return torch.cat((squashed[:, :2] - 0.5, squashed[:, 2:].square() * anchor_wh), 1)


def objectness_target(quality: Tensor, rows: Assignment, shape: Sequence[int]) -> Tensor:
    """(B, A, H, W) zeros with each row's quality (R,) in its cell; of rows that share a cell the last one wins.

    The winner is found by its position, not by the order of writes, so every device gives the same answer.
    """
    B, A, H, W = shape
    cell = ((rows.image * A + rows.anchor) * H + rows.row) * W + rows.column  # (R,)
    position = torch.arange(len(cell), device=cell.device)
    winner = torch.full((B * A * H * W,), -1, device=cell.device)
    winner.scatter_reduce_(0, cell, position, "amax")
    return torch.cat((quality, quality.new_zeros(1)))[winner].view(B, A, H, W)  # -1 is the zero at the end


def _to_device(rows: Assignment, device: torch.device) -> Assignment:
    if rows.image.device == device:
        return rows
    integers, floats = torch.stack(rows[:5]), torch.cat(rows[5:], 1)  # two copies instead of seven
    integers, floats = _sent(integers, device), _sent(floats, device)
    return Assignment(*integers, floats[:, :4], floats[:, 4:])


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on `device`; a GPU is not waited for."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)
