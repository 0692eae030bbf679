"""Preprocessing: the network's input has the values, the type and the memory order that it should have."""

import pytest
import torch

from utils.inference.preprocess import to_network_input


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16, torch.float16])
def test_network_input(dtype):
    images = torch.arange(256, dtype=torch.uint8).repeat(2, 3, 1).view(2, 3, 16, 16)
    found = to_network_input(images, torch.device("cpu"), dtype)
    assert found.dtype == (dtype or torch.float32) and found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, (images.float() / 255).to(found.dtype)) and images.max() == 255
