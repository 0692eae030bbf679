"""Preprocessing: from uint8 images to the network's input.

Legend: B images of a batch, H W rows and columns.
"""

import torch
from torch import Tensor


def to_network_input(images: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Move uint8 RGB images (B, 3, H, W) to the device and scale them from 0…255 to 0…1.

    The result is in channels-last memory order, which is fastest. dtype: float32 if None; the autocast dtype gives the
    same numbers that autocast would round to.
    """
    # As uint8 the images move and are reordered with a quarter of the bytes.
    images = images.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)
    return images.to(dtype or torch.float32, copy=True).div_(255)
