"""Writer of TensorRT's engines, through ONNX. An engine fits the GPU and the version that it was built on.

The file begins with the metadata: 4 bytes, little-endian, with the length of a JSON text, and that text. The engine
follows.
"""

import json
from dataclasses import replace
from pathlib import Path

from utils.detector import Detector
from utils.errors import UserError
from utils.exporting.onnx_writer import build_onnx
from utils.exporting.request import ExportRequest
from utils.formats import import_extra
from utils.inference.model_metadata import ModelMetadata

PURPOSE = "--include engine"
GIBIBYTE = 1 << 30


def check_engine(request: ExportRequest, network: Detector) -> None:
    """Raise UserError where there is no NVIDIA GPU or no TensorRT, or for what is not offered."""
    if network.device.type != "cuda":
        raise UserError(f"{PURPOSE}: TensorRT builds for one NVIDIA GPU: type --device 0 on a machine that has it")
    import_extra("tensorrt", "engine", PURPOSE)
    import_extra("onnx", "engine", PURPOSE)
    if request.int8:
        raise UserError(f"{PURPOSE} --int8: not offered: use --half, or --include onnx --int8")


def write_engine(network: Detector, request: ExportRequest, metadata: ModelMetadata, path: Path) -> None:
    """Build an engine for the network's GPU and write it into the file `path`."""
    trt = import_extra("tensorrt", "engine", PURPOSE)
    logger = trt.Logger(trt.Logger.VERBOSE if request.verbose else trt.Logger.ERROR)
    builder = trt.Builder(logger)
    definition = builder.create_network(0)
    parser = trt.OnnxParser(definition, logger)
    graph = build_onnx(network, replace(request, half=False)).SerializeToString()
    if not parser.parse(graph):
        raise UserError(f"{PURPOSE}: TensorRT cannot read this model: {parser.get_error(0).desc()}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace * GIBIBYTE)
    if request.half:
        config.set_flag(trt.BuilderFlag.FP16)
    if request.dynamic:
        _add_profile(builder, config, request, metadata.stride)
    cache = Path(request.timing_cache) if request.timing_cache else None
    if cache is not None:
        config.set_timing_cache(config.create_timing_cache(cache.read_bytes() if cache.is_file() else b""), False)
    engine = builder.build_serialized_network(definition, config)
    if engine is None:
        raise UserError(f"{PURPOSE}: TensorRT cannot build this model: type --verbose to see why")
    if cache is not None:
        cache.write_bytes(bytes(config.get_timing_cache().serialize()))
    header = json.dumps(metadata.to_properties()).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(4, "little") + header)
        file.write(engine)


def _add_profile(builder, config, request: ExportRequest, stride: int) -> None:
    """Let the engine take batches from 1 to --batch-size and images from one stride to twice --imgsz."""
    B, C, H, W = request.input_shape
    profile = builder.create_optimization_profile()
    profile.set_shape("images", (1, C, stride, stride), (B, C, H, W), (B, C, 2 * H, 2 * W))
    config.add_optimization_profile(profile)
