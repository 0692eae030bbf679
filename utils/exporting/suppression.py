"""Non-maximum suppression that tracing can follow, with the results of utils.nms.

Legend: B images, N rows, C classes, n candidates, K rows of the output.
"""

import torch
from torch import Tensor, nn
from torchvision.ops import nms

from utils.boxes import xywh_to_xyxy
from utils.exporting.request import NmsInside


class Suppression(nn.Module):
    """Function from rows (B, N, 5+C) to (B, K, 6) x1, y1, x2, y2, confidence, class. Zeros fill the rest."""

    def __init__(self, settings: NmsInside, num_classes: int):
        super().__init__()
        self.settings, self.num_classes = settings, num_classes

    def forward(self, rows: Tensor) -> Tensor:
        score, best = (rows[..., 5:] * rows[..., 4:5]).max(dim=2)  # (B, N) each
        image, place = (score > self.settings.conf_thres).nonzero(as_tuple=True)
        found = torch.cat((xywh_to_xyxy(rows[..., :4]), score[..., None], best[..., None].to(rows.dtype)), dim=2)
        found = found[image, place]  # (n, 6)
        # All images and classes at once: in float64 each group is moved where no other reaches.
        group = image if self.settings.agnostic else image * self.num_classes + found[:, 5].long()
        corners = found[:, :4].double()
        extent = torch.cat((corners, corners.new_zeros(1, 4)))
        span = extent.max() - extent.min() + 1
        kept = nms(corners + group[:, None] * span, found[:, 4].double(), self.settings.iou_thres)
        kept = kept[rank_in_group(group[kept]) < self.settings.per_class]
        rank = rank_in_group(image[kept])
        kept, rank = kept[rank < self.settings.total], rank[rank < self.settings.total]
        output = rows.new_zeros(rows.shape[0], self.settings.total, 6)
        output[image[kept], rank] = found[kept]
        return output


def rank_in_group(group: Tensor) -> Tensor:
    """Return the number of earlier entries (n,) of the same group for each entry of `group` (n,)."""
    order = group.argsort(stable=True)
    grouped = group[order]
    rank = torch.arange(grouped.shape[0], device=group.device) - torch.searchsorted(grouped, grouped)
    return torch.zeros_like(rank).scatter(0, order, rank)
