"""Model YAMLs: what they may say, and messages that name file, layer and value."""

import copy
import json

import pytest
from small_models import TINY
from torch import nn

from models import common
from models.architecture import find_cfg, parse_activation
from models.yolo import DetectionModel
from utils.errors import UserError


@pytest.mark.parametrize(
    "text, kind",
    [
        ("nn.SiLU()", common.SiLU),
        ("nn.SiLU", common.SiLU),
        ("torch.nn.ReLU()", nn.ReLU),
        ("nn.Hardswish()", nn.Hardswish),
        ("nn.Identity()", nn.Identity),
        ("nn.LeakyReLU(negative_slope=0.2)", nn.LeakyReLU),
    ],
)
def test_activation_text(text, kind):
    assert type(parse_activation(text)) is kind


@pytest.mark.parametrize(
    "text",
    [
        "nn.Linear(3, 3)",
        "__import__('os').system('true')",
        "nn.ReLU(",
        "",
        "nn.ReLU(x)",
        "nn.LeakyReLU(slope=1)",
        "[nn.ReLU() for _ in ()]",
        "nn.ReLU(*[1])",
        "(" * 5000,
    ],
)
def test_bad_activation_text(text):
    with pytest.raises(UserError, match="^activation .*nn.SiLU"):
        parse_activation(text)


def head_with(row) -> dict:
    return {"head": [row, *TINY["head"][1:]]}


# what is changed, what the message must say
@pytest.mark.parametrize(
    "change, message",
    [
        ({"nc": None}, "nc: None"),
        ({"nc": True}, "nc: True"),
        ({"width_multiple": "wide"}, "width_multiple: 'wide' is not a number above 0"),
        ({"depth_multiple": 0}, "depth_multiple: 0"),
        ({"ch": 0}, "ch: 0"),
        ({"channel_multiple": -8}, "channel_multiple: -8"),
        ({"activation": 3}, "activation: 3"),
        ({"activation": "nn.Silu()"}, "activation 'nn.Silu\\(\\)': Silu"),
        ({"activations": "nn.SiLU()"}, "unknown key 'activations', did you mean 'activation'"),
        ({"anchors": "auto"}, "anchors: 'auto'"),
        ({"anchors": 0}, "anchors: 0"),
        ({"anchors": []}, "anchors: \\[\\]"),
        ({"anchors": [[1, 2, 3], [4, 5, 6]]}, "anchors: row 0 has 3 numbers"),
        ({"anchors": [[1, 2], [4, 5, 6, 7]]}, "anchors: row 1 has 4 numbers"),
        ({"anchors": [[1, 2], ["a", 3]]}, "anchors: row 1"),
        ({"anchors": [[1, 2], [-4, 3]]}, "anchors: row 1"),
        ({"anchors": [[1, 2]]}, "layer 7 .* Detect: 1 rows of anchors for 2 levels"),
        ({"backbone": 3}, "backbone: expected a list"),
        ({"backbone": [], "head": []}, "last layer must be Detect"),
        ({"head": TINY["head"][:-1]}, "last layer must be Detect"),
        (
            head_with([-1, 1, "nn.Upsmaple", ["None", 2, "nearest"]]),
            "layer 4 \\(head\\).*'nn.Upsmaple'.*nn.Upsample\\?",
        ),
        (head_with([-1, 1, "c3", [64]]), "layer 4 \\(head\\): unknown block 'c3'; did you mean C3\\?"),
        (head_with([-1, 1, "__import__('os').system('true')", []]), "layer 4 .*unknown block"),
        (head_with([-1, 1, 7, []]), "unknown block 7"),
        (head_with([-1, 1, "Segment", ["nc", "anchors"]]), "only detection models"),
        (head_with([-1, 1, "Conv"]), "layer 4 .*is not a row"),
        (head_with([-1, 0, "Conv", [64]]), "number: 0"),
        (head_with([-1, "3", "Conv", [64]]), "number: '3'"),
        (head_with([-1, 1, "Conv", 64]), "args: 64 is not a list"),
        (head_with([9, 1, "Conv", [64]]), "from: 9 is not an earlier layer"),
        (head_with([4, 1, "Conv", [64]]), "from: 4 is not an earlier layer: use -1 for the previous one, or 0 to 3"),
        (head_with([-7, 1, "Conv", [64]]), "from: -7"),
        (head_with(["-1", 1, "Conv", [64]]), "from: '-1'"),
        (head_with([[-1, 2], 1, "Conv", [64]]), "from: .* must be one layer"),
        (head_with([-1, 1, "Concat", [1]]), "must be a list of layers"),
        (head_with([[], 1, "Concat", [1]]), "must be a list of layers"),
        (head_with([-1, 1, "Conv", []]), "first must be the output channels"),
        (head_with([-1, 1, "Conv", ["wide"]]), "first must be the output channels"),
        (head_with([-1, 1, "Conv", [64, "3"]]), "layer 4 \\(head\\) Conv: args \\[64, '3'\\]"),
        (head_with([-1, 1, "Conv", [64, 3, 1, "None", 7]]), "layer 4 \\(head\\) Conv: args .*groups"),
        (head_with([-1, 1, "Conv", [64, 3, 1, 1, 1, 1, True, 5]]), "layer 4 .*takes"),
        (head_with([-1, 1, "nn.Upsample", ["None", 2, "closest"]]), "layer 4 .*do not fit the input"),
        (
            head_with([-1, 1, "nn.Upsample", ["None", 3, "nearest"]]),
            "layer 5 \\(head\\) Concat: args \\[1\\] do not fit",
        ),
        (head_with([-1, 1, "Contract", [0]]), "gain: 0"),
        ({"head": [[[3], 1, "Detect", [80, "anchors"]]]}, "must be \\[nc, anchors\\] \\(nc is 3\\)"),
        ({"head": [[-1, 1, "Detect", ["nc", "anchors"]]]}, "must be a list of layers"),
        ({"head": [[[2, 3], 1, "Detect", ["nc"]]]}, "must be \\[nc, anchors\\]"),
    ],
)
def test_bad_description(change, message):
    with pytest.raises(UserError, match=message) as caught:
        DetectionModel(copy.deepcopy(TINY) | change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["nc", "depth_multiple", "width_multiple", "anchors", "backbone", "head"])
def test_missing_key(key, tmp_path):
    file = tmp_path / "model.yaml"
    file.write_text(json.dumps({name: value for name, value in TINY.items() if name != key}))  # JSON is YAML
    with pytest.raises(UserError, match=f"model.yaml: the key '{key}' is missing"):
        DetectionModel(file)


def test_unknown_block_names_file_and_layer(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(find_cfg("yolov5n").read_text().replace("SPPF", "SPFF"))
    message = r"mine.yaml: layer 9 \(backbone\): unknown block 'SPFF'; did you mean SPPF\?"
    with pytest.raises(UserError, match=message):
        DetectionModel(file)


def test_what_is_no_description(tmp_path):
    file = tmp_path / "list.yaml"
    file.write_text("- 1\n- 2\n")
    with pytest.raises(UserError, match="list.yaml"):
        DetectionModel(file)
    with pytest.raises(UserError, match="found int"):
        DetectionModel(5)
    with pytest.raises(UserError, match="nc: -3"):
        DetectionModel(TINY, num_classes=-3)


def test_find_cfg(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_cfg("yolov5n") == find_cfg("yolov5n.yaml") and find_cfg("yolov5n").parent.name == "models"
    assert find_cfg("models/yolov5n.yaml").is_file() and find_cfg("yolov5n6").parent.name == "hub"
    (tmp_path / "yolov5n.yaml").write_text("nc: 1\n")
    assert find_cfg("yolov5n").resolve() == tmp_path / "yolov5n.yaml", "what lies here comes first"
    with pytest.raises(UserError, match="yolov5q.*did you mean yolov5"):
        find_cfg("yolov5q.yaml")
