"""Height and width of a model's input, as `--imgsz` and the model have them."""

from utils import console
from utils.detector import InferenceModel
from utils.image_size import ImageSize, describe_size, round_size, to_shape


def input_shape(imgsz: ImageSize, model: InferenceModel) -> tuple[int, int]:
    """Return height and width of the input: those of a file with a fixed one, else `imgsz` rounded up."""
    fixed = model.fixed_shape
    if not fixed:
        return round_size(imgsz, model.size_multiple)
    if to_shape(imgsz) not in ((640, 640), fixed, (max(fixed), max(fixed))):
        typed, (height, width) = describe_size(imgsz), fixed
        console.warn(f"--imgsz {typed} is ignored: this file has a fixed input of {height} x {width}")
    return fixed
