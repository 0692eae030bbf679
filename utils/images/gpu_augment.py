"""The last steps of augmentation, colours and flips, drawn by the data workers and done to the pixels on the device.

Letters: B pictures of a batch, H W rows and columns.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.cuda import jiterator

AT_A_TIME = 16  # pictures: what stands in between stays small


def apply_color_flips(images: Tensor, color_flips: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) uint8 RGB with the colours and flips that the rows of `color_flips` (B, 5) ask for.

    color_flips: float32, each row a ColorFlip (utils.images.augment), on the CPU, where looking at it costs no waiting; pinned for a
    GPU.
    """
    on_device = color_flips.to(images.device, non_blocking=True)  # as it lies: a part would be copied to plain memory
    if (color_flips[:, :3] != 1).any():
        parts = zip(images.split(AT_A_TIME), on_device[:, :3].split(AT_A_TIME))
        images = torch.cat([jitter_hsv(*part) for part in parts])
    for column, dim in ((3, 2), (4, 3)):
        if color_flips[:, column].any():
            chosen = on_device[:, column, None, None, None] > 0
            images = torch.where(chosen, images.flip(dim), images)
    return images


def jitter_hsv(images: Tensor, factors: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) uint8 RGB with hue, saturation and value multiplied by their factors (B, 3).

    With the scales and roundings of OpenCV's 8 bits, as multiply_hsv has them: hue 0 to 179, the others 0 to 255.
    """
    channels = [*images.unbind(1), *factors[:, :, None, None].unbind(1)]  # (B, H, W) three times, (B, 1, 1) likewise
    jitter = _kernel() if images.is_cuda and kernel_works(images.device) else jitter_hsv_reference
    done = torch.empty_like(images)
    for place, channel in zip(done.unbind(1), jitter(*channels), strict=True):
        place.copy_(channel)  # cut off, as OpenCV does
    return done


def jitter_hsv_reference(
    red: Tensor, green: Tensor, blue: Tensor, by_hue: Tensor, by_saturation: Tensor, by_value: Tensor
) -> tuple[Tensor, ...]:
    """What KERNEL computes, in operations that every device has: some seventy, each over all the pixels."""
    hue, saturation, value = _rgb_to_hsv(torch.stack([red, green, blue], 1).float())
    hue = (hue * by_hue).remainder_(180).floor_()
    saturation = (saturation * by_saturation).clamp_(max=255).floor_()
    value = (value * by_value).clamp_(max=255).floor_()
    return _hsv_to_rgb(hue, saturation, value).unbind(1)


def _rgb_to_hsv(rgb: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, 3, H, W) levels -> three (B, H, W) in whole numbers; of a grey all but the value is 0."""
    red, green, blue = rgb.unbind(1)
    value = rgb.amax(1)
    spread = value - rgb.amin(1)
    divisor = spread.clamp(min=1)
    sixths = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
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


# The same for one pixel. A GPU reads and writes each pixel once with it; for all the parts it would do so forty times.
KERNEL = """
template <typename T> T channel(T value, T chroma, T sixths) {
    T place = fmod(sixths, (T)6);
    return value - chroma * fmax(fmin(fmin(place, (T)4 - place), (T)1), (T)0);
}
template <typename T> void jitter(T red, T green, T blue, T by_hue, T by_saturation, T by_value,
                                  T& to_red, T& to_green, T& to_blue) {
    T value = fmax(red, fmax(green, blue));
    T spread = value - fmin(red, fmin(green, blue));
    T divisor = fmax(spread, (T)1);
    T sixths = value == red ? (green - blue) / divisor
             : value == green ? (blue - red) / divisor + (T)2 : (red - green) / divisor + (T)4;
    T hue = rint(sixths * (T)30);
    hue = spread == (T)0 ? (T)0 : hue < (T)0 ? hue + (T)180 : hue;
    T saturation = rint(spread * (T)255 / fmax(value, (T)1));
    hue = floor(fmod(hue * by_hue, (T)180));
    saturation = floor(fmin(saturation * by_saturation, (T)255));
    value = floor(fmin(value * by_value, (T)255));
    T chroma = value * saturation / (T)255;
    to_red = channel<T>(value, chroma, hue / (T)30 + (T)5);
    to_green = channel<T>(value, chroma, hue / (T)30 + (T)3);
    to_blue = channel<T>(value, chroma, hue / (T)30 + (T)1);
}
"""


@cache
def _kernel() -> Callable[..., tuple[Tensor, ...]]:
    """KERNEL over tensors that broadcast; PyTorch compiles it with what CUDA brings along, at the first call."""
    return jiterator._create_multi_output_jit_fn(KERNEL, num_outputs=3)


@cache
def kernel_works(device: torch.device) -> bool:
    """Whether KERNEL can be compiled for this GPU, and finds on made-up colours what the parts find."""
    dice = torch.Generator().manual_seed(0)
    planes = torch.randint(0, 256, (3, 4, 64, 64), generator=dice, dtype=torch.uint8)
    factors = 0.5 + torch.rand((3, 4, 1, 1), generator=dice)
    channels = [*planes.to(device), *factors.to(device)]
    try:
        off = torch.stack(_kernel()(*channels)) - torch.stack(jitter_hsv_reference(*channels))
        alike = float((off.abs() < 1).float().mean())  # the compiler may round otherwise here and there
        problem = "" if alike > 0.99 else f"{1 - alike:.0%} of the pixels are wrong"
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # this part of PyTorch is in beta: it may fail in any way
        problem = f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no reason given'])[0][:200]}"
    if problem:
        print(f"WARNING the kernel for colours is left out, so that they take longer: {problem}")
    return not problem
