"""Find objects: run a model on pictures, videos or streams and write what it finds.

python detect.py --weights runs/train/exp/weights/best.pt --source pictures/
"""

import argparse
import contextlib
import csv
import itertools
import re
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch

from models.loading import load_ensemble, resolve_weights
from utils.acquire import acquire
from utils.augment import letterbox
from utils.boxes import xyxy_to_xywh
from utils.checkpoint import strip_checkpoint
from utils.config import SuggestingParser
from utils.errors import UserError, run
from utils.files import find_file, increment_path, read_yaml
from utils.nms import non_max_suppression
from utils.plots import draw_boxes, save_image
from utils.runtime import ROOT, describe_device, select_device
from utils.sources import Frame, Source, open_source

WRITABLE = frozenset(".bmp .jpeg .jpg .png .tif .tiff .webp".split())  # formats that OpenCV writes; others become .jpg
UNFIT_FOR_FILES = re.compile(r"[^\w.\- ]")


def build_parser() -> argparse.ArgumentParser:
    parser = SuggestingParser(prog="detect.py", description="Find objects in pictures, videos and streams.")
    add = parser.add_argument
    add("--weights", nargs="+", default=["yolov5s.pt"], help="model file; several are combined (default yolov5s.pt)")
    add("--source", help="file, folder, 'glob', .txt list, URL, stream, .streams list, camera number, or screen")
    add("--data", default="data/coco128.yaml", help="YAML with class names, for a model that has none")
    add("--imgsz", "--img", "--img-size", type=int, nargs="+", default=[640], help="input: side, or h w (default 640)")
    add("--conf-thres", type=float, default=0.25, help="least confidence (default 0.25)")
    add("--iou-thres", type=float, default=0.45, help="boxes that overlap more are one object (default 0.45)")
    add("--max-det", type=int, default=1000, help="most detections in a picture (default 1000)")
    add("--device", default="", help="cpu, mps, or a GPU number (default: the first GPU, or else the CPU)")
    add("--view-img", action="store_true", help="show what is found in a window; q ends")
    add("--save-txt", action="store_true", help="write labels/*.txt")
    add("--save-format", type=int, choices=(0, 1), default=0, help="in them, 0: x y w h, 1: x1 y1 x2 y2; all 0...1")
    add("--save-csv", action="store_true", help="write predictions.csv")
    add("--save-conf", action="store_true", help="add the confidence to the .txt files")
    add("--save-crop", action="store_true", help="cut every object out into crops/CLASS/")
    add("--nosave", action="store_true", help="write no pictures and videos")
    add("--classes", type=int, nargs="+", help="keep these classes only: --classes 0 2")
    add("--agnostic-nms", action="store_true", help="of overlapping boxes of different classes keep the surest only")
    add("--augment", action="store_true", help="look at each picture in three sizes (slower)")
    add("--update", action="store_true", help="afterwards strip the training state from the weights file")
    add("--project", default="runs/detect", help="folder for results (default runs/detect)")
    add("--name", default="exp", help="folder in it; a number is added if it exists")
    add("--exist-ok", action="store_true", help="write into the folder even if it exists")
    add("--line-thickness", type=int, default=3, help="of boxes, in pixels (default 3)")
    add("--hide-labels", action="store_true", help="draw boxes only")
    add("--hide-conf", action="store_true", help="draw class names without confidence")
    add("--half", action="store_true", help="half precision (GPU)")
    add("--dnn", action="store_true", help="not offered: reads ONNX files in the original")
    add("--vid-stride", type=int, default=1, help="look at every k-th frame of videos and streams")
    return parser


class Timing(NamedTuple):
    """Milliseconds for one picture."""

    prepare: float
    infer: float
    suppress: float


@dataclass
class Speed:
    """Mean times over the frames so far; streams have no end, so no frame is kept."""

    frames: int = 0
    totals: Timing = Timing(0.0, 0.0, 0.0)
    input_shape: tuple[int, int] = (0, 0)

    def add(self, found: "Found") -> None:
        self.frames += 1
        self.totals = Timing(*(total + time for total, time in zip(self.totals, found.timing, strict=True)))
        self.input_shape = found.input_shape

    def __str__(self) -> str:
        prepare, infer, suppress = (f"{total / max(self.frames, 1):.1f}ms" for total in self.totals)
        times = f"Speed: {prepare} pre-process, {infer} inference, {suppress} NMS per image"
        return f"{times} at shape (1, 3, {self.input_shape[0]}, {self.input_shape[1]})"


class Found(NamedTuple):
    """Detections (n, 6) = x1, y1, x2, y2 in whole pixels of the picture, confidence, class, lowest confidence first."""

    rows: np.ndarray
    input_shape: tuple[int, int]  # height, width of the model's input
    timing: Timing


@dataclass
class Detector:
    """A model with everything it takes to get from a picture to boxes."""

    model: torch.nn.Module
    device: torch.device
    imgsz: tuple[int, int]  # height, width, multiples of the stride
    conf_thres: float = 0.25
    iou_thres: float = 0.45
    max_det: int = 1000
    classes: Sequence[int] | None = None
    agnostic: bool = False
    augment: bool = False
    half: bool = False

    @torch.inference_mode()
    def __call__(self, image: np.ndarray) -> Found:
        """image: BGR uint8 (H, W, 3)."""
        started = self._now()
        boxed, geometry = letterbox(image, self.imgsz, auto=True, stride=int(max(self.model.stride)))
        pixels = torch.from_numpy(np.ascontiguousarray(boxed[:, :, ::-1].transpose(2, 0, 1)))  # (3, H, W) RGB
        batch = pixels.to(self.device)[None].float() / 255
        prepared = self._now()
        with torch.autocast(self.device.type, torch.float16) if self.half else contextlib.nullcontext():
            prediction = self.model(batch, augment=self.augment)[0]
        inferred = self._now()
        rows = non_max_suppression(
            prediction, self.conf_thres, self.iou_thres, self.classes, self.agnostic, max_det=self.max_det
        )[0]
        rows = rows.flip(0).cpu().numpy()
        rows[:, :4] = geometry.undo(rows[:, :4]).round()
        timing = Timing(*(1000 * t for t in (prepared - started, inferred - prepared, self._now() - inferred)))
        return Found(rows, boxed.shape[:2], timing)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


class OutputNames:
    """A name for each source's outputs, so that a/cat.jpg, b/cat.jpg and cat.png do not overwrite each other."""

    def __init__(self):
        self._by_path: dict[str, str] = {}
        self._taken: set[str] = set()

    def stem(self, frame: Frame) -> str:
        """The source's own stem if it is still free, else with _2, _3, ... added."""
        if frame.path not in self._by_path:
            is_file = frame.kind in ("image", "video")
            stem = Path(frame.path).stem if is_file else UNFIT_FOR_FILES.sub("_", frame.path)
            candidates = itertools.chain([stem], (f"{stem}_{n}" for n in itertools.count(2)))
            free = next(name for name in candidates if not self._clashes(name, frame.kind))
            self._taken.add(free)
            self._by_path[frame.path] = free
        return self._by_path[frame.path]

    def _clashes(self, stem: str, kind: str) -> bool:
        """Frame 7 of a video `a` has the label file a_7.txt, which a picture `a_7` may have claimed."""
        frames = re.compile(re.escape(stem) + r"_\d+")
        return stem in self._taken or (kind != "image" and any(frames.fullmatch(other) for other in self._taken))


@dataclass
class Outputs:
    """What --save-* and --nosave ask for. write() puts one frame's results below `folder`; close() finishes videos."""

    folder: Path
    names: dict[int, str]
    pictures: bool = True
    text: bool = False
    corners: bool = False
    confidence: bool = False
    table: bool = False
    crops: bool = False
    line_width: int = 3
    hide_labels: bool = False
    hide_conf: bool = False
    label_files: int = 0
    picture_files: int = 0
    _stems: OutputNames = field(default_factory=OutputNames)
    _videos: dict[str, "VideoFile"] = field(default_factory=dict)
    _crop_numbers: Counter = field(default_factory=Counter)
    _crop_files: set[Path] = field(default_factory=set)

    def __post_init__(self):
        self._table = None
        if self.table:
            self._table = open(self.folder / "predictions.csv", "w", newline="", encoding="utf-8")
            csv.writer(self._table).writerow(["Image Name", "Prediction", "Confidence"])

    def write(self, frame: Frame, rows: np.ndarray) -> None:
        stem = self._stems.stem(frame)
        if self.text:
            self._write_text(frame, stem, rows)
        if self._table:
            name = stem + (Path(frame.path).suffix if frame.kind in ("image", "video") else "")
            cells = [[name, self.names[int(row[5])], f"{row[4]:.2f}"] for row in rows]
            csv.writer(self._table).writerows(cells)
        if self.crops:
            self._write_crops(frame.image, stem, rows)
        if self.pictures:
            self._write_picture(frame, stem, self.draw(frame.image, rows))

    def draw(self, image: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Copy of the picture with its detections."""
        labels = [self._label(row) for row in rows]
        return draw_boxes(image, rows[:, :4], labels, rows[:, 5], line_width=self.line_width)

    def close(self) -> None:
        self._finish_videos()
        if self._table:
            self._table.close()

    def _label(self, row: np.ndarray) -> str:
        if self.hide_labels:
            return ""
        name = self.names[int(row[5])]
        return name if self.hide_conf else f"{name} {row[4]:.2f}"

    def _write_text(self, frame: Frame, stem: str, rows: np.ndarray) -> None:
        """`class c1 c2 c3 c4 [confidence]` a line, coordinates in 0...1; no file where nothing is found."""
        file = self.folder / "labels" / f"{stem}{'' if frame.kind == 'image' else f'_{frame.number}'}.txt"
        if not len(rows):
            file.unlink(missing_ok=True)  # of an earlier run into the same folder
            return
        height, width = frame.image.shape[:2]
        boxes = rows[:, :4] if self.corners else xyxy_to_xywh(rows[:, :4])
        boxes = boxes / np.array([width, height, width, height])
        lines = []
        for row, box in zip(rows, boxes, strict=True):
            values = [int(row[5]), *box] + ([row[4]] if self.confidence else [])
            lines.append(" ".join(f"{value:g}" for value in values) + "\n")
        file.parent.mkdir(exist_ok=True)
        file.write_text("".join(lines))
        self.label_files += 1

    def _write_crops(self, image: np.ndarray, stem: str, rows: np.ndarray) -> None:
        """Every object with a margin of 1 % and 5 pixels on each side, as crops/CLASS/STEM.jpg, STEM2.jpg, ..."""
        height, width = image.shape[:2]
        for row in rows:
            x1, y1, x2, y2 = row[:4].astype(float)
            margin_x, margin_y = (x2 - x1) * 0.01 + 5, (y2 - y1) * 0.01 + 5
            left, top = max(int(x1 - margin_x), 0), max(int(y1 - margin_y), 0)
            right, bottom = min(int(x2 + margin_x), width), min(int(y2 + margin_y), height)
            folder = self.folder / "crops" / (UNFIT_FOR_FILES.sub("_", self.names[int(row[5])]).strip(". ") or "_")
            folder.mkdir(parents=True, exist_ok=True)
            save_image(self._crop_file(folder, stem), image[top:bottom, left:right])

    def _crop_file(self, folder: Path, stem: str) -> Path:
        """The first file that this run has not written yet: those of earlier runs are replaced."""
        while True:
            self._crop_numbers[folder, stem] += 1
            number = self._crop_numbers[folder, stem]
            file = folder / f"{stem}{number if number > 1 else ''}.jpg"
            if file not in self._crop_files:
                self._crop_files.add(file)
                return file

    def _write_picture(self, frame: Frame, stem: str, drawn: np.ndarray) -> None:
        suffix = Path(frame.path).suffix if frame.kind == "image" else ".mp4"
        file = self.folder / (stem + (suffix if suffix.lower() in WRITABLE | {".mp4"} else ".jpg"))
        if file.resolve() == Path(frame.path).resolve():
            raise UserError(f"{file}: the result would overwrite its own source; choose another --name")
        if frame.kind == "image":
            save_image(file, drawn)
            self.picture_files += 1
            return
        if frame.path not in self._videos:
            if frame.kind == "video":  # files come one after the other; streams all at once
                self._finish_videos()
            self._videos[frame.path] = VideoFile(file, frame.fps, drawn.shape[:2])
            self.picture_files += 1
        self._videos[frame.path].write(drawn, frame.time)

    def _finish_videos(self) -> None:
        for video in self._videos.values():
            video.close()
        self._videos.clear()


class VideoFile:
    """An mp4 being written, with the size of its first frame, that plays as long as what it shows took."""

    def __init__(self, file: Path, fps: float, shape: tuple[int, int]):
        self._size, self._fps = (shape[1], shape[0]), fps
        self._previous: np.ndarray | None = None
        self._written = 0
        self._writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"mp4v"), fps, self._size)
        if not self._writer.isOpened():
            raise UserError(f"{file}: this OpenCV cannot write mp4 videos; use --nosave with --save-txt or --save-crop")

    def write(self, image: np.ndarray, time: float) -> None:
        """Show a picture from `time` (seconds) on: the one before it fills the gap where frames were left out."""
        if (image.shape[1], image.shape[0]) != self._size:
            image = cv2.resize(image, self._size, interpolation=cv2.INTER_AREA)
        due = round(time * self._fps)
        while self._previous is not None and self._written < due:
            self._add(self._previous)
        if self._written <= due or self._previous is None:
            self._add(image)
        self._previous = image

    def close(self) -> None:
        self._writer.release()

    def _add(self, image: np.ndarray) -> None:
        self._writer.write(image)
        self._written += 1


def can_show_windows() -> bool:
    """Tried in a process of its own: without a display, Qt does not raise an error but ends the process."""
    script = "import cv2; cv2.namedWindow('test'); cv2.waitKey(1); cv2.destroyAllWindows()"
    try:
        return subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=30).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def detect(source: Source, detector: Detector, outputs: Outputs, *, show: bool = False) -> Speed:
    """Run over all frames, print a line for each and write outputs; Ctrl-C, or q in a window, ends early."""
    speed = Speed()
    try:
        for frame in source:
            found = detector(frame.image)
            outputs.write(frame, found.rows)
            print(describe(frame, found, outputs.names), flush=True)
            speed.add(found)
            if show:
                cv2.imshow(frame.path, outputs.draw(frame.image, found.rows))
                if cv2.waitKey(1) & 0xFF == ord("q"):
                    break
    except KeyboardInterrupt:
        print("stopped")
    finally:
        outputs.close()
        if show:
            cv2.destroyAllWindows()
    return speed


def describe(frame: Frame, found: Found, names: dict[int, str]) -> str:
    """`image 1/2 /a/bus.jpg: 640x480 4 persons, 1 bus, 41.5ms`"""
    height, width = found.input_shape
    counts = sorted(Counter(found.rows[:, 5].astype(int).tolist()).items())
    objects = ", ".join(f"{count} {names[index]}{'s' if count > 1 else ''}" for index, count in counts)
    return f"{frame.prefix}{height}x{width} {objects or '(no detections)'}, {found.timing.infer:.1f}ms"


def build_detector(args: argparse.Namespace, files: Sequence[Path]) -> Detector:
    device = select_device(args.device)[0]
    model = load_ensemble(files, device)
    half = args.half and device.type == "cuda"
    if args.half and not half:
        print(f"--half needs a GPU; going on in full precision on {device.type}")
    for index in args.classes or []:
        if not 0 <= index < model.num_classes:
            raise UserError(f"--classes {index}: this model has classes 0 to {model.num_classes - 1}")
    print(f"{', '.join(file.name for file in files)} on {describe_device(device)}")
    size = input_size(args.imgsz, int(max(model.stride)))
    limits = {"conf_thres": args.conf_thres, "iou_thres": args.iou_thres, "max_det": args.max_det}
    choice = {"classes": args.classes, "agnostic": args.agnostic_nms, "augment": args.augment}
    return Detector(model, device, size, **limits, **choice, half=half)


def build_outputs(args: argparse.Namespace, names: dict[int, str]) -> Outputs:
    folder = increment_path(Path(args.project) / args.name, args.exist_ok)
    wanted = {"pictures": not args.nosave, "text": args.save_txt, "table": args.save_csv, "crops": args.save_crop}
    style = {"line_width": args.line_thickness, "hide_labels": args.hide_labels, "hide_conf": args.hide_conf}
    return Outputs(folder, names, **wanted, corners=args.save_format == 1, confidence=args.save_conf, **style)


def input_size(imgsz: Sequence[int], stride: int) -> tuple[int, int]:
    """Height and width from --imgsz, rounded up to multiples of the stride."""
    if len(imgsz) > 2 or min(imgsz) < 1:
        given = " ".join(map(str, imgsz))
        raise UserError(f"--imgsz {given}: expected one side or height and width, as in --imgsz 640 480")
    height, width = (-(-side // stride) * stride for side in (imgsz[0], imgsz[-1]))
    if (height, width) != (imgsz[0], imgsz[-1]):
        print(f"--imgsz rounded up to {height} {width}: multiples of the model's stride {stride}")
    return height, width


def class_names(model: torch.nn.Module, data: str) -> dict[int, str]:
    """The model's names; where it knows its classes by number only, those of the --data YAML if it has as many."""
    names = {i: str(model.names.get(i, i)) for i in range(model.num_classes)}
    file = find_file(data, ROOT, ROOT / "data") if all(name == str(i) for i, name in names.items()) else None
    listed = read_yaml(file).get("names") if file else None
    listed = dict(enumerate(listed)) if isinstance(listed, list) else listed
    if not isinstance(listed, dict) or set(listed) != set(names):
        return names
    print(f"the model names no classes; the names of {file} are used (another --data gives others)")
    return {i: str(listed[i]) for i in names}


def default_source() -> str:
    """data/images if it is there, else the pictures of the built-in data set."""
    for folder in (Path("data/images"), ROOT / "data" / "images"):
        if folder.is_dir():
            return str(folder)
    return str(acquire(str(ROOT / "data" / "shapes.yaml")).sources("val")[0])


def summarise(outputs: Outputs, speed: Speed, source: str, weights: Sequence[str]) -> None:
    """What took how long, where the results are, and what to type next."""
    if not speed.frames:
        raise UserError(f"--source {source}: nothing could be read; see the warnings above")
    print(speed)
    if outputs.text:
        print(f"{outputs.label_files} labels saved to {outputs.folder / 'labels'}")
    if outputs.pictures or outputs.text or outputs.crops or outputs.table:
        flag = "--save-crop" if outputs.text else "--save-txt"
        what = "the objects cut out" if outputs.text else "the boxes as text"
        print(f"Results saved to {outputs.folder}")
        command = shlex.join(["python", "detect.py", "--weights", *weights, "--source", source, flag])
        print(f"Next: look at them; for {what}: {command}")
    else:
        print("Nothing was saved: leave --nosave out, or add --save-txt, --save-csv or --save-crop")


def check_options(args: argparse.Namespace) -> None:
    """UserError for values that could not work, before anything is loaded or a folder made."""
    if args.dnn:
        raise UserError("--dnn reads ONNX files, which this program does not; leave it out and give a .pt file")
    for flag, value in (("--conf-thres", args.conf_thres), ("--iou-thres", args.iou_thres)):
        if not 0 <= value <= 1:
            raise UserError(f"{flag} {value} is outside 0...1: give for example {flag} 0.25")
    for flag, value in (("--line-thickness", args.line_thickness), ("--max-det", args.max_det)):
        if value < 1:
            raise UserError(f"{flag} {value}: must be 1 or more")


def main(argv: Sequence[str] | None = None) -> Path:
    """Run the command line; returns the folder with the results."""
    args = build_parser().parse_args(argv)
    check_options(args)
    text = args.source or default_source()
    with open_source(text, vid_stride=args.vid_stride) as source:
        files = [resolve_weights(name, allow_download=True) for name in args.weights]
        detector = build_detector(args, files)
        outputs = build_outputs(args, class_names(detector.model, args.data))
        show = args.view_img and can_show_windows()
        if args.view_img and not show:
            print("--view-img: no window can be opened here; going on without")
        speed = detect(source, detector, outputs, show=show)
    if args.update:
        strip_checkpoint(files[0], files[0])
        print(f"{files[0]}: stripped of its training state")
    summarise(outputs, speed, text, args.weights)
    return outputs.folder


if __name__ == "__main__":
    run(main)
