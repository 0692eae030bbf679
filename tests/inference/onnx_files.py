"""Small ONNX files with known answers, as other programs write them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

IMAGES = (1, 3, 64, 64)


def known_graph(outputs: Mapping[str, np.ndarray], shape: tuple = IMAGES, *, batch: str | int = 1) -> onnx.GraphProto:
    """Return a graph that gives the arrays (1, ...), whatever the image: once for each image if `batch` is a name."""
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], axes=[1, 2, 3], keepdims=1),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
    ]
    initializers = [numpy_helper.from_array(np.zeros(1, np.float32), "zero")]
    infos = []
    for name, array in outputs.items():
        rank = array.ndim
        flat = "nothing"
        if rank != 4:
            initializers.append(numpy_helper.from_array(np.array([-1] + [1] * (rank - 1)), f"rank of {name}"))
            nodes.append(helper.make_node("Reshape", ["nothing", f"rank of {name}"], [f"nothing of {name}"]))
            flat = f"nothing of {name}"
        initializers.append(numpy_helper.from_array(array.astype(np.float32), f"rows of {name}"))
        nodes.append(helper.make_node("Add", [f"rows of {name}", flat], [name]))
        infos.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *array.shape[1:]]))
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, *shape[1:]])
    return helper.make_graph(nodes, "known", [image], infos, initializers)


def make_model(
    graph: onnx.GraphProto, metadata: Mapping[str, str] | None = None, *, opset: int = 17, domains: tuple[str, ...] = ()
) -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    helper.set_model_props(model, dict(metadata or {}))
    return model


def save(path: Path, model: onnx.ModelProto) -> Path:
    path.write_bytes(model.SerializeToString())
    return path
