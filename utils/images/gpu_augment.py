"""Last steps of augmentation on the device: data workers draw colours and flips, the device applies them.

Letters in shapes: B images of a batch, H W rows and columns.
"""

import torch
from torch import Tensor

from utils.color_kernel import jitter_hsv

IMAGES_AT_A_TIME = 16  # limits the memory of intermediate results


def apply_color_flips(images: Tensor, color_flips: Tensor) -> Tensor:
    """Apply the colours and flips of `color_flips` (B, 5) to images (B, 3, H, W) uint8 RGB.

    color_flips: float32 on the CPU, where reading it needs no sync; pinned for a GPU. Each row is a ColorFlip
    (utils.images.augment).
    """
    on_device = color_flips.to(images.device, non_blocking=True)  # whole: a slice would be copied to unpinned memory
    if (color_flips[:, :3] != 1).any():
        parts = zip(images.split(IMAGES_AT_A_TIME), on_device[:, :3].split(IMAGES_AT_A_TIME), strict=True)
        images = torch.cat([jitter_hsv(*part) for part in parts])
    for column, dim in ((3, 2), (4, 3)):
        if color_flips[:, column].any():
            chosen = on_device[:, column, None, None, None] > 0
            images = torch.where(chosen, images.flip(dim), images)
    return images
