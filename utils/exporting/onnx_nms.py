"""Non-maximum suppression inside an ONNX model, as operators after its rows.

They give the boxes of utils.nms: the best class of a row, suppression within each class, highest confidence first. No
class is shifted, so no box loses precision. Legend: B images, N rows, C classes, K rows of the output.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from utils.exporting.request import NmsInside
from utils.formats import import_extra

if TYPE_CHECKING:
    from onnx import ModelProto


class _GraphBuilder:
    """Builder of nodes and constants with names of their own, at the end of a graph."""

    def __init__(self, model: "ModelProto"):
        self.onnx = import_extra("onnx", "export", "--nms")
        self.graph = model.graph
        self.count = 0

    def constant(self, values: Any, dtype: type) -> str:
        """Add a constant. Return its name."""
        self.count += 1
        name = f"nms/constant{self.count}"
        self.graph.initializer.append(self.onnx.numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def node(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Add a node. Return the name of its output, or the names of several."""
        self.count += 1
        names = [f"nms/{kind}{self.count}_{i}" for i in range(outputs)]
        label = f"/nms/{kind}{self.count}"
        self.graph.node.append(self.onnx.helper.make_node(kind, list(inputs), names, name=label, **attributes))
        return names[0] if outputs == 1 else names

    def columns(self, tensor: str, start: int, end: int) -> str:
        """Return the values start to end of the last of three axes."""
        return self.node("Slice", tensor, *(self.constant([value], np.int64) for value in (start, end, 2)))


def append_nms(model: "ModelProto", settings: NmsInside, num_classes: int) -> "ModelProto":
    """Replace the output of rows (B, N, 5+C) by (B, K, 6): x1, y1, x2, y2, confidence, class; zeros fill the rest."""
    build, rows = _GraphBuilder(model), "rows"
    output = model.graph.output[0]
    for node in model.graph.node:
        node.output[:] = [rows if name == output.name else name for name in node.output]
        node.input[:] = [rows if name == output.name else name for name in node.input]
    found, kept = _select(build, rows, settings, num_classes)
    found = build.node("Concat", build.columns(found, 0, 4), kept, build.columns(found, 5, 6), axis=2)
    padding = build.constant([0, 0, 0, 0, settings.total, 0], np.int64)  # at least K rows, however small the image
    found = build.node("Pad", found, padding)
    scores = build.node("Squeeze", build.columns(found, 4, 5), build.constant([2], np.int64))
    if _opset(model) < 13:
        build.graph.node[-1].input[:] = [build.graph.node[-1].input[0]]
        build.graph.node[-1].attribute.append(build.onnx.helper.make_attribute("axes", [2]))
    _, place = build.node("TopK", scores, build.constant([settings.total], np.int64), outputs=2, axis=1)
    place = build.node("Reshape", place, build.constant([0, -1, 1], np.int64))  # (B, K, 1)
    best = build.node("GatherND", found, place, batch_dims=1)  # (B, K, 6)
    is_kept = build.node("Greater", build.columns(best, 4, 5), build.constant(0.0, np.float32))
    last = build.node("Where", is_kept, best, build.constant(0.0, np.float32))
    build.graph.node[-1].output[:] = [output.name]
    assert last
    dims = output.type.tensor_type.shape.dim
    for dim, value in ((dims[1], settings.total), (dims[2], 6)):
        dim.ClearField("dim_param")
        dim.dim_value = value
    return model


def _select(build: _GraphBuilder, rows: str, settings: NmsInside, num_classes: int) -> tuple[str, str]:
    """Return (B, N, 6) corners, confidence, class of all rows, and confidences (B, N, 1) that are 0 if suppressed."""
    scores = build.node("Mul", build.columns(rows, 5, 5 + num_classes), build.columns(rows, 4, 5))  # (B, N, C)
    score, best = build.node("TopK", scores, build.constant([1], np.int64), outputs=2, axis=2)  # (B, N, 1) each
    centre, half = (
        build.columns(rows, 0, 2),
        build.node("Mul", build.columns(rows, 2, 4), build.constant(0.5, np.float32)),
    )
    corners = build.node("Concat", build.node("Sub", centre, half), build.node("Add", centre, half), axis=2)
    number = build.node("Cast", best, to=build.onnx.TensorProto.FLOAT)
    by_class = build.node("Transpose", score, perm=[0, 2, 1])  # (B, 1, N): one group for all classes
    if not settings.agnostic:
        flat = build.node("Reshape", best, build.constant([0, -1], np.int64))  # (B, N)
        depth, values = build.constant([num_classes], np.int64), build.constant([0.0, 1.0], np.float32)
        by_class = build.node("Mul", build.node("OneHot", flat, depth, values, axis=1), by_class)  # (B, C, N)
    limits = (
        build.constant([settings.per_class], np.int64),
        build.constant([settings.iou_thres], np.float32),
        build.constant([settings.conf_thres], np.float32),
    )
    chosen = build.node("NonMaxSuppression", corners, by_class, *limits)  # image, class, row
    pairs = build.node("Gather", chosen, build.constant([0, 2], np.int64), axis=1)  # image, row
    flat_score = build.node("Reshape", score, build.constant([0, -1], np.int64))  # (B, N)
    nothing = build.node("Mul", flat_score, build.constant(0.0, np.float32))
    kept = build.node("ScatterND", nothing, pairs, build.node("GatherND", flat_score, pairs))
    found = build.node("Concat", corners, score, number, axis=2)
    return found, build.node("Reshape", kept, build.constant([0, -1, 1], np.int64))


def _opset(model: "ModelProto") -> int:
    return next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
