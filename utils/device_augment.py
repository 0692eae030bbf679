"""The last steps of augmentation, colours and flips, drawn by the data workers and done to the pixels on the device.

Letters: B pictures of a batch, H W rows and columns.
"""

import torch
from torch import Tensor

AT_A_TIME = 16  # pictures: what stands in between stays in the device's cache, and small


def finish_images(images: Tensor, finishes: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) uint8 RGB with the colours and flips that the rows of `finishes` (B, 5) ask for.

    finishes: float32, each row a Finish (utils.augment), on the CPU, where looking at it costs no waiting; pinned for a
    GPU.
    """
    on_device = finishes.to(images.device, non_blocking=True)  # as it lies: a part would be copied to plain memory
    if (finishes[:, :3] != 1).any():
        parts = zip(images.split(AT_A_TIME), on_device[:, :3].split(AT_A_TIME))
        images = torch.cat([jitter_hsv(*part) for part in parts])
    for column, dim in ((3, 2), (4, 3)):
        if finishes[:, column].any():
            chosen = on_device[:, column, None, None, None] > 0
            images = torch.where(chosen, images.flip(dim), images)
    return images


def jitter_hsv(images: Tensor, factors: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) uint8 RGB with hue, saturation and value multiplied by their factors (B, 3).

    With the scales and roundings of OpenCV's 8 bits, as multiply_hsv has them: hue 0 to 179, the others 0 to 255.
    """
    by_hue, by_saturation, by_value = factors[:, :, None, None].unbind(1)  # (B, 1, 1) each
    hue, saturation, value = _rgb_to_hsv(images.float())
    hue = (hue * by_hue).remainder_(180).floor_()
    saturation = (saturation * by_saturation).clamp_(max=255).floor_()
    value = (value * by_value).clamp_(max=255).floor_()
    return _hsv_to_rgb(hue, saturation, value).to(torch.uint8)  # cut off, as OpenCV does on the way back


def _rgb_to_hsv(rgb: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, 3, H, W) levels -> three (B, H, W) in whole numbers; of a grey all but the value is 0."""
    red, green, blue = rgb.unbind(1)
    value = rgb.amax(1)
    spread = value - rgb.amin(1)
    divisor = spread.clamp(min=1)
    sixths = torch.where(value == red, (green - blue) / divisor,
                         torch.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4))
    hue = (sixths * 30).round_().remainder_(180)
    return torch.where(spread > 0, hue, 0), (spread * 255 / value.clamp(min=1)).round_(), value


def _hsv_to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Three (B, H, W) as above -> (B, 3, H, W), not rounded: a channel falls short of the value away from its hue."""
    sixths, chroma = hue / 30, value * saturation / 255
    channels = []
    for start in (5, 3, 1):  # the sixths that lie between red, green, blue and the hue where each begins to fall
        place = (sixths + start).remainder_(6)
        channels.append(value - chroma * torch.minimum(place, 4 - place).clamp_(0, 1))
    return torch.stack(channels, 1)
