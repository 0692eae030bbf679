"""Weights of others: what the pickled modules say counts before the description, and what differs is named."""

import pytest
import torch
from small_models import image, require_one_line, save_pickled, tiny_model
from torch import nn

from models.common import Conv
from models.loading import load_model, read_weights
from models.setup import build_model
from models.yolo import DetectionModel
from utils.checkpoint import describe_model, write_checkpoint
from utils.errors import UserError

CSP = {
    "backbone": [
        [-1, 1, "Conv", [32, 3, 4]],
        [-1, 1, "Conv", [64, 3, 2]],
        [-1, 3, "BottleneckCSP", [64]],
        [-1, 1, "Conv", [64, 3, 2]],
    ]
}


def boxes(model: DetectionModel) -> torch.Tensor:
    with torch.no_grad():
        return model(image(1, 64))[0]


def replace_activations(model: DetectionModel, activation: nn.Module, *names: str) -> None:
    """Give an activation to the named modules, or to every convolution that uses the model's."""
    found = names or [f"{name}.act" for name, part in model.named_modules() if isinstance(part, Conv)]
    for name in found:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, activation)


@pytest.mark.parametrize(
    "activation, names",
    [
        (nn.ELU(0.5), ()),
        (nn.GELU("tanh"), ()),
        (nn.Tanh(), ()),
        (nn.LeakyReLU(0.2), ()),
        (nn.LeakyReLU(0.1), ("model.2.act",)),  # versions 2 to 6 between the halves of a CSP block
        (nn.Softplus(2.0, 10.0), ("model.1.act", "model.2.m.0.cv1.act")),
        (nn.PReLU(), ("model.1.act",)),
        (nn.Identity(), ("model.3.act",)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(len(value)),
)
def test_edited_activations_are_taken_over(tmp_path, activation, names):
    model = tiny_model(**CSP)
    if isinstance(activation, nn.PReLU):
        activation = nn.PReLU(model.model[1].conv.out_channels, init=0.4)
    replace_activations(model, activation, *names)
    file = save_pickled(model, tmp_path / "m.pt")
    loaded = load_model(file, fuse=False)
    assert torch.allclose(boxes(loaded), boxes(model), rtol=1e-4, atol=1e-3)
    write_checkpoint(tmp_path / "own.pt", {"model": describe_model(loaded)}, kind="weights")
    assert torch.equal(boxes(load_model(tmp_path / "own.pt", fuse=False)), boxes(loaded)), "our own files keep them"
    trained = build_model(weights=file, cfg="", num_classes=3).eval()
    assert torch.allclose(boxes(trained), boxes(loaded), atol=1e-3), "a training starts with them"


def other_upsampling(model: DetectionModel) -> None:
    model.model[4].mode = "bilinear"


def other_class(model: DetectionModel) -> None:
    model.model[4] = nn.PixelShuffle(1)


def more_tensors(model: DetectionModel) -> None:
    model.model[2].att = nn.Conv2d(4, 4, 1)


def more_layers_without_tensors(model: DetectionModel) -> None:
    model.model[2].gate = nn.AvgPool2d(3)


def other_epsilon(model: DetectionModel) -> None:
    model.model[1].bn.eps = 0.1


def loose_parameter(model: DetectionModel) -> None:
    model.model[2].gamma = nn.Parameter(torch.ones(1))


@pytest.mark.parametrize(
    "change, message",
    [
        (other_upsampling, r"model.4 \(Upsample\) has mode bilinear, not nearest"),
        (other_class, r"model.4 is PixelShuffle, not Upsample"),
        (more_tensors, r"model.2.att \(Conv2d\) is not in the model"),
        (more_layers_without_tensors, r"model.2.gate \(AvgPool2d\) is not in the model"),
        (other_epsilon, r"model.1.bn \(BatchNorm2d\) has eps 0.1, not 0.001"),
        (loose_parameter, r"the model has no model.2.gamma \(1 such tensors\)"),
    ],
)
def test_blocks_changed_under_an_old_name_are_named(tmp_path, change, message):
    model = tiny_model()
    change(model)
    file = save_pickled(model, tmp_path / "m.pt")
    for load in (load_model, lambda path: build_model(weights=path, cfg="", num_classes=3)):
        with pytest.raises(UserError, match=f"m.pt: .*{message}") as error:
            load(file)
        require_one_line(error)


def test_tensors_left_over_in_our_own_files_are_named(tmp_path):
    whole = describe_model(tiny_model())
    state = {**whole["state_dict"], "model.9.weight": torch.zeros(1)}
    write_checkpoint(tmp_path / "own.pt", {"model": {**whole, "state_dict": state}}, kind="weights")
    with pytest.raises(UserError, match=r"own.pt: .*the model has no model.9.weight"):
        load_model(tmp_path / "own.pt")


def test_the_anchors_are_those_that_inference_used(tmp_path):
    """Versions before 6 decode with `anchor_grid`. Their `anchors` may be in units of the other level."""
    model = tiny_model()
    head, wanted = model.head, boxes(model)
    pixels = head.anchors * head.stride.reshape(-1, 1, 1)
    head.register_buffer("anchor_grid", pixels.reshape(2, 1, 2, 1, 1, 2).clone())
    head.anchors.copy_(pixels / head.stride.flip(0).reshape(-1, 1, 1))
    assert torch.allclose(boxes(load_model(save_pickled(model, tmp_path / "m.pt"), fuse=False)), wanted)


def test_a_file_of_version_1_is_named(tmp_path):
    model = tiny_model()
    model.md = model.__dict__.pop("yaml")
    with pytest.raises(UserError, match="m.pt: a file of YOLOv5 v1.0"):
        read_weights(save_pickled(model, tmp_path / "m.pt"))
