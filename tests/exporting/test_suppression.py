"""Suppression inside an export, traced and as ONNX operators, against that of detect.py."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from utils.exporting.onnx_nms import append_nms
from utils.exporting.request import NmsInside
from utils.exporting.suppression import Suppression, rank_in_group
from utils.nms import non_max_suppression

SETTINGS = {
    "as detect.py": NmsInside(0.25, 0.45, 300, 300, False),
    "across classes": NmsInside(0.25, 0.45, 300, 300, True),
    "strict": NmsInside(0.6, 0.2, 300, 300, False),
    "few": NmsInside(0.25, 0.45, 300, 5, False),
    "nothing": NmsInside(0.999, 0.45, 300, 300, False),
}


def in_onnx(rows: torch.Tensor, settings: NmsInside, opset: int = 17) -> torch.Tensor:
    """Run the operators behind a graph that returns its input."""
    shape = list(rows.shape)
    graph = helper.make_graph(
        [helper.make_node("Identity", ["images"], ["output0"])],
        "rows",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    model = append_nms(model, settings, rows.shape[2] - 5)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert session.get_outputs()[0].shape == [shape[0], settings.total, 6]
    return torch.from_numpy(session.run(None, {"images": rows.numpy()})[0])


def traced(rows: torch.Tensor, settings: NmsInside) -> torch.Tensor:
    return torch.jit.trace(Suppression(settings, rows.shape[2] - 5), rows[:1], check_trace=False)(rows)


def as_detect(rows: torch.Tensor, settings: NmsInside) -> list[torch.Tensor]:
    return non_max_suppression(
        rows, settings.conf_thres, settings.iou_thres, agnostic=settings.agnostic, max_det=settings.total
    )


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("suppress", [in_onnx, traced])
def test_the_boxes_are_those_of_detect(crowd, suppress, name):
    found = suppress(crowd, SETTINGS[name])
    for mine, theirs in zip(found, as_detect(crowd, SETTINGS[name]), strict=True):
        torch.testing.assert_close(mine[: len(theirs)], theirs, rtol=1e-6, atol=1e-4)
        assert not mine[len(theirs) :].any()


@pytest.mark.parametrize("suppress", [in_onnx, traced])
def test_a_class_has_a_limit_of_its_own(crowd, suppress):
    settings = NmsInside(0.25, 0.45, 2, 300, False)
    found, every = suppress(crowd, settings), as_detect(crowd, SETTINGS["as detect.py"])
    for mine, all_boxes in zip(found, every, strict=True):
        wanted = all_boxes.tolist()
        wanted = [row for i, row in enumerate(wanted) if sum(other[5] == row[5] for other in wanted[:i]) < 2]
        kept = mine[mine[:, 4] > 0]
        np.testing.assert_allclose(kept.numpy(), wanted, rtol=1e-5)


@pytest.mark.parametrize("opset", [12, 13, 18, 20])
def test_operator_sets(crowd, opset):
    settings = SETTINGS["as detect.py"]
    torch.testing.assert_close(in_onnx(crowd, settings, opset), in_onnx(crowd, settings))


def test_ranks():
    assert rank_in_group(torch.tensor([3, 1, 3, 3, 1])).tolist() == [0, 0, 1, 2, 1]
    assert rank_in_group(torch.zeros(0, dtype=torch.long)).tolist() == []
