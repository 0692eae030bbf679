"""Results of a call of the hub's model: lists by image, under the names that programs for YOLOv5 use.

Legend: B images of the call, H W rows and columns, n detections of an image.
"""

import importlib
import itertools
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageShow
from torch import Tensor

from utils import console
from utils.boxes import xyxy_to_xywh
from utils.detections import Detections, import_optional
from utils.files import increment_path
from utils.inference.speed import describe_speed
from utils.metrics import Speed
from utils.output.detection_files import can_show_windows
from utils.output.drawing import crop_with_margin, draw_boxes, save_image
from utils.output.result_names import claim_first_free, class_folders

CORNERS, CENTRES = ("xmin", "ymin", "xmax", "ymax"), ("xcenter", "ycenter", "width", "height")
LISTS = {"xyxy": CORNERS, "xyxyn": CORNERS, "xywh": CENTRES, "xywhn": CENTRES}  # attribute -> columns of its boxes
SAVE_DIR = "runs/detect/exp"


class Results:
    """Detections of the images of one call.

    pred, xyxy: per image a tensor (n, 6) x1, y1, x2, y2 in pixels, confidence, class; highest confidence first.
    xywh: centre x, centre y, width, height in place of the corners. xyxyn, xywhn: in 0…1 of the image's sides.
    ims: RGB arrays (H, W, 3). files: their names, with the suffix .jpg. names: of the classes.
    s: shape (B, 3, H, W) of the network's input. times, t: milliseconds per image of preprocessing, network and NMS.
    """

    xyxy: list[Any]
    xywh: list[Any]
    xyxyn: list[Any]
    xywhn: list[Any]

    def __init__(
        self, images: Sequence[np.ndarray], found: Sequence[Detections], input_shape: tuple[int, int, int, int]
    ):
        self.ims, self.n, self.s = list(images), len(images), input_shape
        self.names = dict(found[0].names) if found else {}
        speed = found[0].speed if found else Speed()
        self.times = self.t = (speed.preprocess, speed.inference, speed.nms)
        self.paths = [one.path for one in found]
        self.files = [f"{Path(one.path).stem}.jpg" for one in found]
        self.pred = [torch.from_numpy(one.rows.astype(np.float32)) for one in found]
        self.xyxy = self.pred
        self.xywh = [torch.cat((xyxy_to_xywh(rows[:, :4]), rows[:, 4:]), 1) for rows in self.pred]
        self.xyxyn, self.xywhn = self._normalise(self.xyxy), self._normalise(self.xywh)

    def _normalise(self, boxes: Sequence[Tensor]) -> list[Tensor]:
        """Return boxes (n, 6) with the first four columns divided by the sides of their images."""
        sides = [rows.new_tensor([*image.shape[1::-1] * 2, 1, 1]) for rows, image in zip(boxes, self.ims)]
        return [rows / side for rows, side in zip(boxes, sides, strict=True)]

    @property
    def imgs(self) -> list[np.ndarray]:
        """The images, by the name that YOLOv5 had before 6.2."""
        return self.ims

    @property
    def detections(self) -> list[Detections]:
        """The detections of each image, as NumPy arrays."""
        speed, (height, width) = Speed(*self.times), self.s[2:]
        return [
            Detections(rows.cpu().numpy(), image.shape[:2], path, self.names, (height, width), speed)
            for rows, image, path in zip(self.pred, self.ims, self.paths, strict=True)
        ]

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int | slice) -> "Results":
        """Return the results of one image, or of several."""
        chosen = range(self.n)[index] if isinstance(index, slice) else [range(self.n)[index]]
        found = self.detections
        part = Results([self.ims[i] for i in chosen], [found[i] for i in chosen], self.s)
        part.names, part.files = self.names, [self.files[i] for i in chosen]
        return part

    def __iter__(self) -> Iterator["Results"]:
        return (self[index] for index in range(self.n))

    def tolist(self) -> list["Results"]:
        """Return the results of each image."""
        return list(self)

    def __str__(self) -> str:
        lines = [self._describe(index) for index in range(self.n)]
        return "\n".join([*lines, describe_speed(Speed(*self.times), self.s)])

    __repr__ = __str__

    def _describe(self, index: int) -> str:
        """Return the line of an image, such as `image 1/2: 720x1280 2 persons, 1 tie`."""
        height, width = self.ims[index].shape[:2]
        counts = sorted(Counter(self.pred[index][:, 5].int().tolist()).items())
        objects = ", ".join(f"{count} {self._name(number)}{'s' if count > 1 else ''}" for number, count in counts)
        return f"image {index + 1}/{self.n}: {height}x{width} {objects or '(no detections)'}"

    def print(self) -> None:
        """Print the text of the results."""
        console.result(*str(self).splitlines())

    def render(self, labels: bool = True) -> list[np.ndarray]:
        """Draw boxes, and `labels` on them, into `ims`. Return it."""
        for number, rows in enumerate(self.pred):
            self.ims[number] = self._draw(self.ims[number], rows, labels)
        return self.ims

    def _draw(self, image: np.ndarray, rows: Tensor, labels: bool) -> np.ndarray:
        """Return an RGB image with its boxes, those of the highest confidence on top."""
        array = rows.cpu().numpy()[::-1]
        texts = [self._label(row) if labels else "" for row in array]
        drawn = draw_boxes(image[:, :, ::-1], array[:, :4], texts, array[:, 5])
        return np.ascontiguousarray(drawn[:, :, ::-1])

    def _label(self, row: np.ndarray | Tensor) -> str:
        return f"{self._name(int(row[5]))} {float(row[4]):.2f}"

    def _name(self, number: int) -> str:
        """Return the name of a class, or its number if it has no name."""
        return self.names.get(number, str(number))

    def show(self, labels: bool = True) -> None:
        """Show the images with their boxes, in a notebook's output or the system's image viewer."""
        for name, image, rows in zip(self.files, self.ims, self.pred, strict=True):
            drawn = Image.fromarray(self._draw(image, rows, labels))
            if not (show_in_notebook(drawn) or (can_show_windows() and ImageShow.show(drawn, name))):
                console.warn("no window can be opened here. Use results.save() or results.render()")
                return

    def save(self, labels: bool = True, save_dir: str | Path = SAVE_DIR, exist_ok: bool = False) -> Path:
        """Write the images with their boxes into a new numbered folder, or `save_dir` itself with `exist_ok`.

        Return the folder. Images of one name get numbers.
        """
        folder, taken = increment_path(save_dir, exist_ok), set[str]()
        for name, image, rows in zip(self.files, self.ims, self.pred, strict=True):
            save_image(folder / _free_name(name, taken), self._draw(image, rows, labels)[:, :, ::-1])
        console.result(f"Saved {self.n} image{'s' * (self.n != 1)} to {folder}")
        return folder

    def crop(self, save: bool = True, save_dir: str | Path = SAVE_DIR, exist_ok: bool = False) -> list[dict[str, Any]]:
        """Return each object as a dict: box (4 values), conf, cls, label, and im (h, w, 3) BGR with a small margin.

        Within an image the lowest confidence is first. With `save` they are written to crops/CLASS/ in a folder as of
        `save`.
        """
        folder = increment_path(save_dir, exist_ok) if save else None
        present = {number: self._name(number) for rows in self.pred for number in rows[:, 5].int().tolist()}
        folders, taken, found = class_folders({**self.names, **present}), dict[Path, set[str]](), []
        for name, image, rows in zip(self.files, self.ims, self.pred, strict=True):
            for row in rows.flip(0):
                cut = crop_with_margin(image[:, :, ::-1], row[:4].tolist())
                if folder:
                    place = folder / "crops" / folders[self._name(int(row[5]))]
                    place.mkdir(parents=True, exist_ok=True)
                    save_image(place / _free_name(name, taken.setdefault(place, set())), cut)
                found.append(
                    {"box": list(row[:4]), "conf": row[4], "cls": row[5], "label": self._label(row), "im": cut}
                )
        if folder:
            console.result(f"Saved {len(found)} crop{'s' * (len(found) != 1)} to {folder}")
        return found

    def pandas(self) -> "Results":
        """Return a copy whose xyxy, xyxyn, xywh and xywhn are lists of DataFrames. Raises UserError without pandas."""
        pandas = import_optional("pandas", "results.pandas()")
        copied = self[:]
        for name, columns in LISTS.items():
            tables = []
            for rows in getattr(self, name):
                table = pandas.DataFrame(rows.cpu().double().numpy(), columns=[*columns, "confidence", "class"])
                table["class"] = table["class"].astype(int)
                table["name"] = pandas.Series([self._name(number) for number in table["class"]], dtype=str)
                tables.append(table)
            setattr(copied, name, tables)
        return copied

    def to_json(self) -> str:
        """Return a list with a dict per image: file, height, width, detections (see `Detections.to_records`)."""
        images = [
            {"file": one.path or name, "height": one.shape[0], "width": one.shape[1], "detections": one.to_records()}
            for one, name in zip(self.detections, self.files, strict=True)
        ]
        return json.dumps(images)


def show_in_notebook(image: Image.Image) -> bool:
    """Show an image in the output of a notebook's cell. Return False outside of one."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if not hasattr(shell, "kernel"):
        return False
    importlib.import_module("IPython.display").display(image)
    return True


def _free_name(name: str, taken: set[str]) -> str:
    """Return `name`, or with a number before its suffix if it is `taken`, and add it there."""
    stem, suffix = Path(name).stem, Path(name).suffix
    return claim_first_free(itertools.chain([name], (f"{stem}{n}{suffix}" for n in itertools.count(2))), taken)
