"""Exported files as networks: what any runtime returns becomes the rows that a PyTorch network returns.

Legend: B images of a batch, H W rows and columns, N predictions, C classes, L levels, A anchors per level.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from utils.boxes import xyxy_to_xywh
from utils.cli import shorten
from utils.detector import DetectionAdvice
from utils.errors import UserError, one_line
from utils.inference.model_metadata import ModelMetadata
from utils.inference.runtime import Runtime
from utils.pixel_format import PixelFormat

PROBE_SIDE = 256  # pixels, of the blank image that shows the output of a dynamic model


class ExportedModel:
    """An InferenceModel around an exported file, whichever runtime runs it.

    Batches are split and padded to the batch that the file is made for. Raises UserError for a file whose output is not
    that of a detector of its layout.
    """

    def __init__(self, path: Path, runtime: Runtime):
        self.path, self.runtime = path, runtime
        self.metadata = ModelMetadata.from_properties(runtime.properties, str(path))
        stated = self.metadata.pixels
        self.pixels = PixelFormat(runtime.input_shape.channels or stated.channels, stated.bit_depth)
        outputs = self._probe()
        if "layout" not in runtime.properties:
            self.metadata = replace(self.metadata, layout=infer_layout(outputs[0].shape, len(self.metadata.names)))
        self._require_shape(outputs, len(self.metadata.names) or None)
        self.num_classes = len(self.metadata.names) or self._count_classes(outputs[0].shape)
        self.names: dict[int, str] = {i: self.metadata.names.get(i, str(i)) for i in range(self.num_classes)}

    @property
    def device(self) -> torch.device:
        return self.runtime.device

    @property
    def advice(self) -> DetectionAdvice:
        """Advice of the weights that the file was made from."""
        return self.metadata.advice

    @property
    def size_multiple(self) -> int:
        """Pixels that both sides of an input image are multiples of."""
        return self.metadata.stride

    @property
    def fixed_shape(self) -> tuple[int, int] | None:
        """Height and width that every input has, None if they are dynamic."""
        return self.runtime.input_shape.size

    @property
    def is_suppressed(self) -> bool:
        """True if the file suppresses overlapping boxes itself."""
        return self.metadata.layout == "nms"

    def __call__(self, images: Tensor, augment: bool = False) -> tuple[Tensor, None]:
        """Return (decoded, None): rows (B, N, 5+C) of cx, cy, w, h in pixels, objectness and class probabilities.

        images: (B, C, H, W) float32 in 0…1.
        """
        assert not augment, "see check_choices"
        return self._to_rows(self._run(images)), None

    def check_choices(self, *, augment: bool = False, sizes: bool = False) -> None:
        """Raise UserError if the file cannot do what the flags request: augmentation, or several sizes."""
        if augment:
            raise UserError(f"{self.path}: --augment needs PyTorch weights: give the .pt file, or omit --augment")
        if sizes and self.fixed_shape:
            raise UserError(f"{self.path}: has a fixed input, which fits one size: export it with --dynamic")

    def _run(self, images: Tensor) -> list[Tensor]:
        """Return the outputs of a batch of any size."""
        batch = self.runtime.input_shape.batch
        if batch is None or len(images) == batch:
            return self._call(images)
        parts = []
        for part in images.split(batch):
            missing = batch - len(part)
            filled = torch.cat((part, part.new_zeros(missing, *part.shape[1:]))) if missing else part
            parts.append([output[: len(part)] for output in self._call(filled)])
        return [torch.cat(outputs) for outputs in zip(*parts, strict=True)]

    def _call(self, images: Tensor) -> list[Tensor]:
        """Return the outputs of a batch that fits the file. Raises UserError if the runtime fails."""
        try:
            return self.runtime.run(images)
        except UserError:
            raise
        except Exception as error:  # of classes that some libraries do not export
            where = f"{self.runtime.title} cannot run it on images {tuple(images.shape)}"
            raise UserError(f"{self.path}: {where}: {one_line(str(error))}") from error

    def _probe(self) -> list[Tensor]:
        """Return the outputs for blank images, which show what the file is before real ones are read."""
        batch, height, width = self.runtime.input_shape
        shape = batch or 1, self.pixels.channels, height or PROBE_SIDE, width or PROBE_SIDE
        images = torch.zeros(shape, device=self.device)
        outputs = self._call(images)
        if not outputs:
            raise UserError(f"{self.path}: gives no output: a detector gives boxes")
        return outputs

    def _count_classes(self, shape: Sequence[int]) -> int:
        """Return the number of classes that an output has columns for. Raises UserError for a layout without them."""
        if self.metadata.layout not in ("yolov5", "yolov8"):
            raise UserError(f"{self.path}: its metadata names no classes: export the model again")
        return shape[1] - 4 if self.metadata.layout == "yolov8" else shape[2] - 5

    def _require_shape(self, outputs: Sequence[Tensor], num_classes: int | None) -> None:
        """Raise UserError if outputs are not those of the layout. num_classes: None accepts any."""
        layout, shapes = self.metadata.layout, [tuple(output.shape) for output in outputs]
        found, first = f"{self.path}: its output has the shape {shorten(shapes)}", shapes[0]
        if other := other_task(shapes, layout):
            raise UserError(f"{found}: {other}")
        if layout == "raw":
            if len(outputs) != len(self.metadata.anchors) or len(outputs) != len(self.metadata.strides):
                raise UserError(f"{found}, which does not fit the anchors and strides in its metadata")
            width = [len(level) // 2 * (5 + len(self.metadata.names)) for level in self.metadata.anchors]
            if [shape[1:2] for shape in shapes] != [(one,) for one in width]:
                raise UserError(f"{found}, expected {shorten(width)} channels")
            return
        wanted = {"deepstream": 6, "nms": 6, "yolov8": None if num_classes is None else 4 + num_classes}.get(
            layout, None if num_classes is None else 5 + num_classes
        )
        axis = 1 if layout == "yolov8" else 2
        if len(first) != 3 or first[axis] < 6 - (layout == "yolov8") or wanted not in (None, first[axis]):
            raise UserError(f"{found}, which is not that of a detector of layout {layout}")

    def _to_rows(self, outputs: Sequence[Tensor]) -> Tensor:
        """Return the rows (B, N, 5+C) of outputs in the layout of the file."""
        self._require_shape(outputs, self.num_classes)
        layout = self.metadata.layout
        if layout == "raw":
            return decode_levels(outputs, self.metadata.anchors, self.metadata.strides)
        output = outputs[0]
        if layout == "yolov8":
            rows = output.transpose(1, 2)  # (B, N, 4+C)
            return torch.cat((rows[..., :4], torch.ones_like(rows[..., :1]), rows[..., 4:]), dim=2)
        return output if layout == "yolov5" else self._from_corners(output)

    def _from_corners(self, found: Tensor) -> Tensor:
        """Return rows (B, N, 5+C) of detections (B, N, 6) x1, y1, x2, y2, score, class, with one class each."""
        classes = found[..., 5].long().clamp(0, self.num_classes - 1)
        one_hot = torch.nn.functional.one_hot(classes, self.num_classes).to(found.dtype)
        return torch.cat((xyxy_to_xywh(found[..., :4]), found[..., 4:5], one_hot), dim=2)


def infer_layout(shape: Sequence[int], num_classes: int) -> str:
    """Return the layout of a file that does not say it, from the shape of its output.

    num_classes: 0 if the file names none. Then the longer side is that of the predictions.
    """
    if len(shape) != 3:
        return "yolov5"
    if num_classes:
        return "yolov8" if shape[1] == 4 + num_classes and shape[2] != 5 + num_classes else "yolov5"
    return "yolov8" if 4 < shape[1] < shape[2] else "yolov5"


def other_task(shapes: Sequence[Sequence[int]], layout: str) -> str:
    """Return what a model with outputs of these shapes is instead of a detector of `layout`, "" if it may be one."""
    ranks = [len(shape) for shape in shapes]
    if layout == "raw":
        return ""
    if ranks[0] == 3 and 4 in ranks:
        return "boxes and masks of a segmentation model: only models that detect are run"
    if ranks[0] == 2:
        return "classes of whole images: only models that detect are run"
    if len(shapes) > 1 and ranks[0] in (4, 5):
        return "raw levels, without the anchors to decode them: export the model with its decoding"
    return ""


def decode_levels(levels: Sequence[Tensor], anchors: Sequence[Sequence[float]], strides: Sequence[int]) -> Tensor:
    """Return rows (B, N, 5+C) of raw levels (B, A (5+C), H, W), as the head decodes them.

    anchors: per level w, h, w, h, … in pixels. strides: pixels per cell of each level.
    """
    rows = []
    for level, sides, stride in zip(levels, anchors, strides, strict=True):
        A, (B, _, H, W) = len(sides) // 2, level.shape
        scores = level.float().reshape(B, A, -1, H, W).permute(0, 1, 3, 4, 2).sigmoid()  # (B, A, H, W, 5+C)
        row, column = torch.meshgrid(
            torch.arange(H, device=level.device), torch.arange(W, device=level.device), indexing="ij"
        )
        centres = (scores[..., :2] * 2 - 0.5 + torch.stack((column, row), dim=2)) * stride
        pairs = torch.tensor(sides, device=level.device).reshape(A, 1, 1, 2)
        rows.append(torch.cat((centres, (scores[..., 2:4] * 2).square() * pairs, scores[..., 4:]), 4).flatten(1, 3))
    return torch.cat(rows, dim=1)
