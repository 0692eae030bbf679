"""Model that a training starts with: the names of its classes, the channels of its images."""

import pytest
import torch
import yaml
from small_models import TINY, save_pickled, tiny_model

from models.common import Focus
from models.loading import adapt_channels
from models.setup import build_model, rebuild_model, take_names
from utils.errors import UserError
from utils.pixel_format import PixelFormat, StatedPixels

NAMES = {0: "a", 1: "b", 2: "c"}


@pytest.mark.parametrize(
    "data_names, warned",
    [
        (NAMES, ""),
        ({0: "A", 1: " b", 2: "c"}, ""),
        ({0: "b", 1: "a", 2: "c"}, "class 0 is 'a' and 'b'"),
        ({0: "a", 1: "b", 2: "ship"}, "class 2 is 'c' and 'ship'"),
    ],
)
def test_other_class_names_than_those_of_the_weights_are_named(tmp_path, capsys, data_names, warned):
    model = tiny_model()
    model.names = NAMES
    started = build_model(weights=save_pickled(model, tmp_path / "m.pt"), cfg="", num_classes=3)
    resumed = rebuild_model({"yaml": TINY, "names": NAMES}, num_classes=3, checkpoint="last.pt", data="d.yaml")
    for found, data in ((started, "d.yaml"), (resumed, "e.yaml")):  # a warning is printed once per text
        take_names(found, data_names, data)
        message = capsys.readouterr().err
        assert found.names == data_names
        assert (warned in message and data in message) if warned else message == ""


# ---- channels


def outputs(model, images):
    with torch.no_grad():
        return model.eval()(images)[0]


@pytest.mark.parametrize("channels", [1, 2])
def test_weights_of_colours_give_the_same_for_equal_channels(tmp_path, channels, capsys):
    model = tiny_model()
    file = save_pickled(model, tmp_path / "m.pt")
    found = build_model(file, "", num_classes=model.num_classes, pixels=StatedPixels(channels, None, "d.yaml"))
    assert found.pixels == PixelFormat(channels) and found.yaml["ch"] == channels
    gray = torch.rand(1, 1, 64, 64)
    expected = outputs(model, gray.expand(-1, 3, -1, -1))
    assert torch.allclose(outputs(found, gray.expand(-1, channels, -1, -1)), expected, atol=1e-4)
    sum_of = "their sum in each" if channels == 1 else "their sum / 2 in each"
    assert (
        f"model.0.conv.weight: 3 channels in the weights, {channels} in the model: {sum_of}" in capsys.readouterr().out
    )


def test_more_channels_change_nothing_at_first(tmp_path, capsys):
    model = tiny_model()
    file = save_pickled(model, tmp_path / "m.pt")
    found = build_model(file, "", num_classes=model.num_classes, pixels=StatedPixels(5, 16, "d.yaml"))
    assert found.pixels == PixelFormat(5, 16)
    images = torch.rand(1, 5, 64, 64)
    assert torch.allclose(outputs(found, images), outputs(model, images[:, :3]), atol=1e-4)
    assert "the first are kept, the others start with zeros" in capsys.readouterr().out


def test_the_layer_of_version_5_is_fitted_in_each_of_its_parts():
    class Focused(torch.nn.Module):
        pixels = PixelFormat(1)

        def __init__(self):
            super().__init__()
            self.model = torch.nn.Sequential(Focus(1, 8, 3))

    colour, gray = Focus(3, 8, 3).eval(), Focused().eval()
    stored = {f"model.0.{name}": value for name, value in colour.state_dict().items()}
    gray.load_state_dict(dict(adapt_channels(gray, stored, 3)))
    image = torch.rand(1, 1, 16, 16)
    with torch.no_grad():
        assert torch.allclose(gray.model(image), colour(image.expand(-1, 3, -1, -1)), atol=1e-5)


def test_a_model_follows_the_data_then_its_yaml_then_its_weights(tmp_path):
    gray = save_pickled(tiny_model(ch=1), tmp_path / "gray.pt")
    cfg = tmp_path / "five.yaml"
    cfg.write_text(yaml.safe_dump(TINY | {"channels": 5}))

    def channels_of(weights, cfg, channels):
        stated = StatedPixels(channels, None, "d.yaml")
        return build_model(weights, str(cfg), num_classes=3, pixels=stated).pixels.channels

    assert channels_of(gray, "", None) == 1
    assert channels_of(gray, "", 4) == 4
    assert channels_of(gray, cfg, None) == channels_of(None, cfg, 5) == 5
    with pytest.raises(UserError, match=r"d.yaml: channels: 4, but .*five.yaml takes images of 5 channels"):
        channels_of(gray, cfg, 4)
    with pytest.raises(UserError, match=r"d.yaml: channels: 3, but last.pt takes images of 1 channel: correct one"):
        rebuild_model({"yaml": TINY | {"ch": 1}}, 3, "last.pt", data="d.yaml", pixels=StatedPixels(3, None, "d.yaml"))
