"""Colours and flips on the device: the same draws, the same boxes, and pixels as near as rounding allows."""

import ctypes
import shutil
import subprocess

import cv2
import numpy as np
import pytest
import torch

from utils.datasets.labels import load_index
from utils.images.augment import ColorFlip, multiply_hsv
from utils.images.gpu_augment import KERNEL, _kernel, apply_color_flips, jitter_hsv, jitter_hsv_reference, kernel_works
from utils.loading.dataset import make_loader

FLIPPING = {"flipud": 0.5, "fliplr": 0.5, "mosaic": 0.5, "mixup": 0.5, "translate": 0.1, "scale": 0.5}
GAINS = {"hsv_h": 0.015, "hsv_s": 0.7, "hsv_v": 0.4}


def rgb_planes(image: np.ndarray) -> torch.Tensor:
    """BGR (H, W, 3) -> (1, 3, H, W) RGB."""
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
    assert (off > 2).float().mean() < 0.01 and off.float().mean() < 0.5  # versions of OpenCV round or cut off


LOOP = """
extern "C" void run(long n, const float* in, float* out) {
    for (long i = 0; i < n; i++)
        jitter<float>(in[i], in[n + i], in[2 * n + i], in[3 * n + i], in[4 * n + i], in[5 * n + i],
                      out[i], out[n + i], out[2 * n + i]);
}
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler: without a GPU it stands for CUDA's own")
def test_the_kernel_computes_what_the_parts_do(tmp_path):
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
    assert (_kernel().kernel_name, _kernel().num_outputs, _kernel().return_by_ref) == ("jitter", 3, True)


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
    ("kernel", "says"),
    [
        (exact, ""),
        (too_bright, "100% of the pixels are wrong"),
        (one_in_twenty, "6% of the pixels are wrong"),
        (no_compiler, "RuntimeError: nvrtc: no such thing\n"),
    ],
)
def test_a_kernel_that_fails_or_errs_is_left_out(kernel, says, monkeypatch, capsys):
    monkeypatch.setattr("utils.images.gpu_augment._kernel", lambda: kernel)
    kernel_works.cache_clear()
    try:
        assert kernel_works(torch.device("cpu")) == (not says)
    finally:
        kernel_works.cache_clear()
    out = capsys.readouterr().out
    assert says in out and (not says) == (not out)


def test_want_of_memory_is_no_verdict_on_the_kernel(monkeypatch):
    def full(*channels: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("full")

    kernel_works.cache_clear()
    monkeypatch.setattr("utils.images.gpu_augment._kernel", lambda: full)
    with pytest.raises(torch.OutOfMemoryError):
        kernel_works(torch.device("cpu"))
    monkeypatch.setattr("utils.images.gpu_augment._kernel", lambda: exact)
    assert kernel_works(torch.device("cpu"))
    kernel_works.cache_clear()


def test_a_cpu_has_no_need_of_the_kernel(monkeypatch):
    monkeypatch.setattr("utils.images.gpu_augment.kernel_works", None)
    assert jitter_hsv(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.ones(1, 3)).sum() == 0


def test_greys_black_and_white_stay_what_they_are():
    levels = torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256)
    assert torch.equal(jitter_hsv(levels, torch.tensor([[1.3, 1.7, 1.0]])), levels)
    assert jitter_hsv(levels, torch.tensor([[1.0, 1.0, 2.0]])).amax() == 255


def test_every_picture_has_its_own_flips():
    images = torch.randint(0, 256, (4, 3, 5, 7), dtype=torch.uint8)
    rows = [
        ColorFlip(),
        ColorFlip(upside_down=True),
        ColorFlip(mirrored=True),
        ColorFlip(upside_down=True, mirrored=True),
    ]
    done = apply_color_flips(images, torch.tensor(rows, dtype=torch.float32))
    expected = [images[0], images[1].flip(1), images[2].flip(2), images[3].flip(1).flip(2)]
    assert torch.equal(done, torch.stack(expected))


def test_more_pictures_than_are_done_at_a_time():
    images = torch.randint(0, 256, (35, 3, 8, 8), dtype=torch.uint8)
    rows = torch.tensor([ColorFlip(1 + k / 100, 0.9, 0.5 + k / 100) for k in range(35)], dtype=torch.float32)
    alone = [apply_color_flips(images[k : k + 1], rows[k : k + 1]) for k in range(35)]
    assert torch.equal(apply_color_flips(images, rows), torch.cat(alone))


def loaded(data, **flags):
    index = load_index(data.parent / "images" / "train", 2, progress=False)
    loader = make_loader(index, imgsz=64, batch_size=8, workers=0, shuffle=True, **flags)
    return list(loader)


@pytest.mark.parametrize("gains", [{}, GAINS], ids=["flips alone", "colours too"])
@pytest.mark.parametrize("rect", [False, True])
@pytest.mark.parametrize("degrees, scale", [(0.0, 0.0), (0.0, 0.5), (5.0, 0.5)])
def test_a_sample_is_the_same_on_every_device(tiny_data, gains, rect, degrees, scale):
    hyp = {**FLIPPING, **gains, "degrees": degrees, "scale": scale}
    whole, parts = (loaded(tiny_data, hyp=hyp, rect=rect, finish_on_device=later) for later in (False, True))
    flipped = 0
    for batch, other in zip(whole, parts, strict=True):
        assert batch.color_flips is None and torch.equal(batch.targets, other.targets) and batch.paths == other.paths
        done = apply_color_flips(other.images, other.color_flips)
        off = (done.int() - batch.images.int()).abs()
        if not gains:
            assert torch.equal(done, batch.images)
        elif rect or degrees or not scale:
            assert (off > 2).float().mean() < 0.01
        else:  # some are enlarged mosaics: their colours change before that here, and after it there
            shares = (off > 2).flatten(1).float().mean(1)
            assert (shares < 0.01).sum() >= len(shares) / 4 and off.float().mean() < 0.5
        flipped += int(other.color_flips[:, 3:].sum())
    assert flipped


def test_nothing_is_left_to_do_without_augmentation_or_with_quad(tiny_data):
    hyp = {**GAINS, **FLIPPING}
    for flags in ({}, {"hyp": hyp, "quad": True}):
        assert all(batch.color_flips is None for batch in loaded(tiny_data, finish_on_device=True, **flags))


def test_workers_hand_over_what_is_left_to_do(tiny_data):
    hyp = {**GAINS, **FLIPPING}
    index = load_index(tiny_data.parent / "images" / "train", 2, progress=False)
    here, there = (
        [
            batch.color_flips
            for batch in make_loader(index, imgsz=64, batch_size=8, hyp=hyp, workers=workers, finish_on_device=True)
        ]
        for workers in (0, 1)
    )
    assert all(torch.equal(one, other) for one, other in zip(here, there, strict=True))
