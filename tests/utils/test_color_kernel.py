"""Colour jitter on a device against OpenCV, and its GPU kernel against the plain twin."""

import ctypes
import shutil
import subprocess

import cv2
import numpy as np
import pytest
import torch

from utils import console
from utils.color_kernel import KERNEL, _compile_kernel, jitter_hsv, jitter_hsv_reference, kernel_works
from utils.images.augment import multiply_hsv


def rgb_planes(image: np.ndarray) -> torch.Tensor:
    """Convert BGR (H, W, 3) to RGB (1, 3, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(image[:, :, ::-1].transpose(2, 0, 1)))[None]


@pytest.mark.parametrize("gains", [(0.015, 0.7, 0.4), (0.5, 0.9, 0.9), (0.0, 0.0, 1.0)], ids=str)
@pytest.mark.parametrize("blur", [0, 5], ids=["noise", "soft"])
@pytest.mark.parametrize("seed", range(3))
def test_colours_are_within_two_levels_of_opencvs(gains, blur, seed):
    image = np.random.default_rng(seed).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    image = cv2.GaussianBlur(image, (0, 0), blur) if blur else image
    factors = 1 + np.random.default_rng(seed).uniform(-1, 1, 3) * gains
    expected = rgb_planes(multiply_hsv(image, factors))
    off = (jitter_hsv(rgb_planes(image), torch.tensor(factors[None], dtype=torch.float32)).int() - expected.int()).abs()
    assert (off > 2).float().mean() < 0.01 and off.float().mean() < 0.5  # versions of OpenCV round or truncate


LOOP = """
extern "C" void run(long n, const float* in, float* out) {
    for (long i = 0; i < n; i++)
        jitter<float>(in[i], in[n + i], in[2 * n + i], in[3 * n + i], in[4 * n + i], in[5 * n + i],
                      out[i], out[n + i], out[2 * n + i]);
}
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler, in place of CUDA's own")
def test_the_kernel_computes_the_same_as_its_twin(tmp_path):
    source, library = tmp_path / "kernel.cpp", tmp_path / "kernel.so"
    source.write_text(f"#include <math.h>\n{KERNEL}{LOOP}")
    subprocess.run(["g++", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-o", library, source], check=True)
    dice, count = torch.Generator().manual_seed(0), 200_000
    colours = torch.randint(0, 256, (3, count), generator=dice).float()
    colours[:, :256] = torch.arange(256.0)  # greys
    channels = torch.cat([colours, 2 * torch.rand((3, count), generator=dice)]).contiguous()
    found = torch.empty(3, count)
    ctypes.CDLL(str(library)).run(ctypes.c_long(count), *(ctypes.c_void_p(x.data_ptr()) for x in (channels, found)))
    expected = jitter_hsv_reference(*channels[:3, None, None].byte(), *channels[3:, None, None])
    assert torch.equal(found, torch.stack(expected).view(3, count))


def test_the_kernel_is_read_as_pytorch_wants_it():
    assert (_compile_kernel().kernel_name, _compile_kernel().num_outputs, _compile_kernel().return_by_ref) == (
        "jitter",
        3,
        True,
    )


def exact(*channels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return jitter_hsv_reference(*channels)


def one_in_twenty(*channels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(
        channel + 2 * (torch.arange(channel.shape[-1]) % 20 == 0) for channel in jitter_hsv_reference(*channels)
    )


def too_bright(*channels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(channel + 2 for channel in jitter_hsv_reference(*channels))


def no_compiler(*channels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    raise RuntimeError("nvrtc: no such thing\nand more")


@pytest.mark.parametrize(
    "kernel, says",
    [
        (exact, ""),
        (too_bright, "100% of the pixels are wrong"),
        (one_in_twenty, "6% of the pixels are wrong"),
        (no_compiler, "RuntimeError: nvrtc: no such thing)"),
    ],
)
def test_a_kernel_that_fails_is_not_used(kernel, says, monkeypatch, capsys):
    monkeypatch.setattr("utils.color_kernel._compile_kernel", lambda: kernel)
    kernel_works.cache_clear()
    console.begin_program()
    try:
        assert kernel_works(torch.device("cpu")) == (not says)
    finally:
        kernel_works.cache_clear()
    err = capsys.readouterr().err
    assert says in err and (not says) == (not err)


def test_out_of_memory_does_not_disable_the_kernel(monkeypatch):
    def full(*channels: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("full")

    kernel_works.cache_clear()
    monkeypatch.setattr("utils.color_kernel._compile_kernel", lambda: full)
    with pytest.raises(torch.OutOfMemoryError):
        kernel_works(torch.device("cpu"))
    monkeypatch.setattr("utils.color_kernel._compile_kernel", lambda: exact)
    assert kernel_works(torch.device("cpu"))
    kernel_works.cache_clear()


def test_a_cpu_does_not_use_the_kernel(monkeypatch):
    monkeypatch.setattr("utils.color_kernel.kernel_works", None)
    assert jitter_hsv(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.ones(1, 3)).sum() == 0


def test_greys_keep_their_colour():
    levels = torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256)
    assert torch.equal(jitter_hsv(levels, torch.tensor([[1.3, 1.7, 1.0]])), levels)
    assert jitter_hsv(levels, torch.tensor([[1.0, 1.0, 2.0]])).amax() == 255
