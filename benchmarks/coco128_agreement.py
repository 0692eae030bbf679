"""Published weights on coco128: our figures, and the causes of their difference from the reference.

The first row is what val.py measures. In the second, images of equal aspect ratio are in the order of NumPy's default
sort on this CPU. Batches then hold other images and have other shapes. The third also treats odd padding as the
reference does, which shifts boxes by half a pixel.

    python benchmarks/coco128_agreement.py --weights yolov5n.pt
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models.loading import load_model
from utils.boxes import xywh_to_xyxy
from utils.datasets.labels import load_index
from utils.datasets.locate import locate_dataset
from utils.images.letterbox import Letterbox
from utils.loading import sampler as batches
from utils.loading.loader import LoadSettings, make_loader
from utils.loading.sampler import BatchSettings
from utils.metrics import ap_per_class, match_detections
from utils.nms import non_max_suppression

rect_shapes = batches.rect_shapes
REFERENCE = (0.586, 0.508, 0.568, 0.365)


def half_pixels(box: Letterbox, batch_shape: tuple[int, int]) -> Letterbox:
    """Return the same letterbox with half of an odd padding on each side."""
    inner = [round(gain * side) for gain, side in zip(box.gain, box.shape)]
    return replace(box, pad=tuple((outer - side) / 2 for outer, side in zip(batch_shape, inner)))


def as_sorted(shapes: np.ndarray, *args, **named) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Return what `rect_shapes` does, but order equal aspect ratios as NumPy's default sort does on this CPU."""
    return np.argsort(shapes[:, 0] / shapes[:, 1]), rect_shapes(shapes, *args, **named)[1]


@torch.inference_mode()
def measure(model: torch.nn.Module, index, *, half_margins: bool) -> tuple[float, ...]:
    """Return P, R, mAP50, mAP50-95 at 640 pixels in rectangular batches of 16."""
    loader = make_loader(
        index, imgsz=640, batch_size=16, batches=BatchSettings(rect=True, pad=0.5), loading=LoadSettings(workers=0)
    )
    correct, found, true = [], [], []
    for batch in loader:
        rows = non_max_suppression(model(batch.images.float() / 255)[0], 0.001, 0.6, multi_label=True)
        height, width = batch.images.shape[2:]
        for number, (detections, box) in enumerate(zip(rows, batch.letterboxes, strict=True)):
            labels = batch.targets[batch.targets[:, 0] == number, 1:]
            corners = box.undo(xywh_to_xyxy(labels[:, 1:] * torch.tensor([width, height, width, height])))
            back = half_pixels(box, (height, width)) if half_margins else box
            native = torch.cat((back.undo(detections[:, :4]), detections[:, 4:]), 1)
            correct.append(match_detections(native, torch.cat((labels[:, :1], corners), 1)))
            found.append(detections[:, 4:].numpy())
            true.append(labels[:, 0].numpy())
    scores = np.concatenate(found)
    result = ap_per_class(np.concatenate(correct), scores[:, 0], scores[:, 1], np.concatenate(true))
    return result.p.mean(), result.r.mean(), result.ap[:, 0].mean(), result.ap.mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="yolov5n.pt")
    parser.add_argument("--data", default="coco128.yaml")
    options = parser.parse_args()
    spec = locate_dataset(options.data)
    index, model = load_index(spec.sources("val"), spec.num_classes), load_model(options.weights)
    print(f"{'':44}{'P':>9}{'R':>9}{'mAP50':>9}{'mAP50-95':>9}")
    rows = [
        ("as val.py measures", False, False),
        ("equal aspects as the sort leaves them", True, False),
        ("and odd margins as half pixels", True, True),
    ]
    for title, any_order, half_margins in rows:
        if any_order:
            batches.rect_shapes = as_sorted
        figures = measure(model, index, half_margins=half_margins)
        print(f"{title:44}" + "".join(f"{figure:9.4f}" for figure in figures))
    print(f"{'reference':44}" + "".join(f"{figure:9.3f}" for figure in REFERENCE))


if __name__ == "__main__":
    main()
