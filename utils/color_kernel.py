"""Colour jitter of images in one GPU kernel, beside its plain twin in tensor operations.

Letters in shapes: B images of a batch, H W rows and columns.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.cuda import jiterator

from utils import console, kernels


def jitter_hsv(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply hue, saturation and value of images (B, 3, H, W) uint8 RGB by their factors (B, 3).

    Scales and roundings are those of OpenCV's 8 bits: hue 0 to 179, the others 0 to 255.
    """
    channels = [*images.unbind(1), *factors[:, :, None, None].unbind(1)]  # (B, H, W) three times, (B, 1, 1) likewise
    use_kernel = kernels.FAST and images.is_cuda and kernel_works(images.device)
    jitter = _compile_kernel() if use_kernel else jitter_hsv_reference
    jittered = torch.empty_like(images)
    for plane, channel in zip(jittered.unbind(1), jitter(*channels), strict=True):
        plane.copy_(channel)  # truncates, as OpenCV does
    return jittered


def jitter_hsv_reference(
    red: Tensor, green: Tensor, blue: Tensor, by_hue: Tensor, by_saturation: Tensor, by_value: Tensor
) -> tuple[Tensor, ...]:
    """Return the results of KERNEL by about seventy tensor operations, each over all the pixels."""
    hue, saturation, value = _rgb_to_hsv(torch.stack([red, green, blue], 1).float())
    hue = (hue * by_hue).remainder_(180).floor_()
    saturation = (saturation * by_saturation).clamp_(max=255).floor_()
    value = (value * by_value).clamp_(max=255).floor_()
    return _hsv_to_rgb(hue, saturation, value).unbind(1)


def _rgb_to_hsv(rgb: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Convert levels (B, 3, H, W) to three (B, H, W) of whole numbers. Hue and saturation of a grey are 0."""
    red, green, blue = rgb.unbind(1)
    value = rgb.amax(1)
    chroma = value - rgb.amin(1)
    divisor = chroma.clamp(min=1)
    sixths = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    hue = (sixths * 30).round_().remainder_(180)
    return torch.where(chroma > 0, hue, 0), (chroma * 255 / value.clamp(min=1)).round_(), value


def _hsv_to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Convert three (B, H, W) as above to (B, 3, H, W), not rounded. A channel falls below the value with its hue."""
    sixths, chroma = hue / 30, value * saturation / 255
    channels = []
    for start in (5, 3, 1):  # sixths of the circle from red, green, blue to the hue at which each begins to fall
        position = (sixths + start).remainder_(6)
        channels.append(value - chroma * torch.minimum(position, 4 - position).clamp_(0, 1))
    return torch.stack(channels, 1)


# The same for one pixel. The GPU reads and writes each pixel once, and forty times for the tensor operations.
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
def _compile_kernel() -> Callable[..., tuple[Tensor, ...]]:
    """Return KERNEL over tensors that broadcast. PyTorch compiles it with CUDA's own compiler, at the first call."""
    return jiterator._create_multi_output_jit_fn(KERNEL, num_outputs=3)


@cache
def kernel_works(device: torch.device) -> bool:
    """Return whether KERNEL can be compiled for this GPU, and agrees with the twin on random colours."""
    dice = torch.Generator().manual_seed(0)
    planes = torch.randint(0, 256, (3, 4, 64, 64), generator=dice, dtype=torch.uint8)
    factors = 0.5 + torch.rand((3, 4, 1, 1), generator=dice)
    channels = [*planes.to(device), *factors.to(device)]
    try:
        difference = torch.stack(_compile_kernel()(*channels)) - torch.stack(jitter_hsv_reference(*channels))
        equal = float((difference.abs() < 1).float().mean())  # the compiler may round differently in some places
        problem = "" if equal > 0.99 else f"{1 - equal:.0%} of the pixels are wrong"
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # this part of PyTorch is in beta: it may raise any exception
        problem = f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no reason given'])[0][:200]}"
    if problem:
        console.warn(f"Colour augmentation is slower here, since its GPU kernel does not work ({problem}).")
    return not problem
