"""Preprocessing: from images of whole levels to the network's input.

Legend: B images of a batch, C channels, H W rows and columns.
"""

import torch
from torch import Tensor


def to_network_input(images: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Move images (B, C, H, W) to the device and scale them to 0…1: uint8 from 0…255, uint16 from 0…65535.

    The result is in channels-last memory order, which is fastest. dtype: float32 if None; the autocast dtype gives the
    same numbers that autocast would round to.
    """
    # As uint8 the images move and are reordered with a quarter of the bytes.
    images = images.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)
    if images.dtype == torch.uint16:  # float16 ends at 65504
        return images.to(torch.float32).div_(65535).to(dtype or torch.float32)
    return images.to(dtype or torch.float32, copy=True).div_(255)
