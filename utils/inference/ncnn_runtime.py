"""Folders of ncnn (.param, .bin) run by ncnn on the CPU."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from utils.errors import UserError
from utils.formats import import_extra
from utils.inference.metadata_file import find_model_file, read_metadata_file
from utils.inference.model_metadata import ModelMetadata
from utils.inference.ncnn_file import check_ncnn
from utils.inference.runtime import InputShape, RuntimeSettings
from utils.inference.trial_run import load_ncnn, require_trial_run


class NcnnRuntime:
    """Runtime of ncnn's folders, one image a call. It computes in float32, or with `half` in 16 bits."""

    def __init__(self, path: Path, settings: RuntimeSettings):
        self.ncnn = import_extra("ncnn", "ncnn", str(path))
        graph = find_model_file(path, ".param")
        self.properties, self.device = read_metadata_file(graph.parent), torch.device("cpu")
        self.path, metadata = path, ModelMetadata.from_properties(self.properties, str(path))
        if metadata.imgsz is None:
            raise UserError(f"{path}: its metadata lacks imgsz, the size of its input: export it again")
        self.input_shape = InputShape((1, *metadata.imgsz), metadata.pixels.channels)
        check_ncnn(graph, graph.with_suffix(".bin"), metadata.pixels.channels)
        require_trial_run(graph, "ncnn", settings.half, settings.threads, metadata.pixels.channels, *metadata.imgsz)
        self.net = load_ncnn(graph, settings.half, settings.threads)
        if self.net is None:
            raise UserError(f"{path}: ncnn cannot load it: it is damaged, or has layers that ncnn does not know")
        # pnnx names outputs out0, out1, …; other open ends of the graph are constants that nothing reads.
        self.inputs = self.net.input_names()
        self.outputs = sorted(name for name in self.net.output_names() if name.startswith("out"))
        if len(self.inputs) != 1 or not self.outputs:
            raise UserError(f"{path}: takes {len(self.inputs)} inputs, not one of images")
        self.title = f"ncnn {self.ncnn.__version__} (CPU, {'16 bits' if settings.half else 'float32'})"

    def run(self, images: Tensor) -> list[Tensor]:
        with self.net.create_extractor() as extractor:
            image = np.ascontiguousarray(images[0].numpy())
            extractor.input(self.inputs[0], self.ncnn.Mat(image))
            found = [extractor.extract(name) for name in self.outputs]
            if any(code for code, _ in found):
                raise UserError(f"{self.path}: ncnn cannot run it on an image of {images.shape[2]} x {images.shape[3]}")
            return [torch.from_numpy(np.array(mat))[None].float() for _, mat in found]
