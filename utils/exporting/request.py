"""Request of an export: the properties that the files will have."""

from dataclasses import dataclass, replace

from utils.pixel_format import RGB, PixelFormat


@dataclass(frozen=True)
class NmsInside:
    """Settings of a suppression inside the exported file."""

    conf_thres: float
    iou_thres: float
    per_class: int  # most detections of a class
    total: int  # most detections of an image, and rows of the output
    agnostic: bool  # boxes of different classes suppress each other too


@dataclass(frozen=True)
class ExportRequest:
    """Properties of the exported files, from the command line."""

    size: tuple[int, int]  # height, width of the input, multiples of the model's stride
    batch: int = 1
    layout: str = "yolov5"  # of utils.inference.model_metadata.LAYOUTS
    nms: NmsInside | None = None  # of the layout `nms`
    dynamic: bool = False  # batch, height and width
    half: bool = False
    int8: bool = False
    opset: int = 17
    dynamo: bool = False  # trace ONNX by torch.export
    simplify: bool = False
    optimize: bool = False
    verbose: bool = False
    per_tensor: bool = False  # a scale per tensor, for int8
    calibration_images: int = 300
    data: str = ""  # YAML of the data set to calibrate on
    workspace: int = 4  # GB, TensorRT
    timing_cache: str = ""  # file, TensorRT
    pixels: PixelFormat = RGB  # of the input

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """Batch, channels, height and width of the input."""
        return self.batch, self.pixels.channels, *self.size

    def in_float32(self) -> "ExportRequest":
        """Return the request without `half`, for converters that lower the precision themselves."""
        return replace(self, half=False)
