"""Find objects: run a model on pictures, videos or streams and write what it finds.

python detect.py --weights runs/train/exp/weights/best.pt --source pictures/
"""

from utils.errors import silence_ctrl_c_during_imports

if __name__ == "__main__":
    silence_ctrl_c_during_imports()  # amid the imports

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch

from models.loading import find_weights, is_own_checkpoint, load_ensemble
from utils.checkpoint import inference_checkpoint, read_checkpoint, write_checkpoint
from utils.cli import SuggestingParser, add_flags, detect_command, flag
from utils.device import describe_device, select_device, set_current_device
from utils.download import fetch_typed
from utils.errors import UserError, run
from utils.files import ROOT, datasets_folders, find_file, increment_path, read_yaml, require_writable
from utils.images.letterbox import Letterbox, letterbox
from utils.images.sources import Frame, Source, open_source
from utils.inference.preprocess import to_network_input
from utils.nms import non_max_suppression
from utils.output.detection_files import Outputs, can_show_windows


@dataclass(frozen=True)
class DetectOptions:
    """What `detect.py` was asked to do; one field per flag."""

    weights: list = flag(["yolov5s.pt"], "model file; several are combined", type=str, nargs="+")
    source: str = flag("data/images", "file, folder, 'glob', .txt list, URL, stream, .streams list, camera or screen")
    data: str = flag("data/coco128.yaml", "YAML with class names, for a model that has none")
    imgsz: list = flag([640], "input: side, or h w", type=int, nargs="+", names=["--imgsz", "--img", "--img-size"])
    conf_thres: float = flag(0.25, "least confidence")
    iou_thres: float = flag(0.45, "boxes that overlap more are one object")
    max_det: int = flag(1000, "most detections in a picture")
    device: str = flag("", "cpu, mps or a GPU number; '' takes the first GPU, or the CPU")
    view_img: bool = flag(False, "show what is found in a window; q ends")
    save_txt: bool = flag(False, "write labels/*.txt")
    save_format: int = flag(0, "in them, 0: x y w h, 1: x1 y1 x2 y2; all 0...1", choices=[0, 1])
    save_csv: bool = flag(False, "write predictions.csv")
    save_conf: bool = flag(False, "add the confidence to the .txt files")
    save_crop: bool = flag(False, "cut every object out into crops/CLASS/")
    nosave: bool = flag(False, "write no pictures and videos")
    classes: list | None = flag(None, "keep these classes only: --classes 0 2", type=int, nargs="+")
    agnostic_nms: bool = flag(False, "of overlapping boxes of different classes keep the surest only")
    augment: bool = flag(False, "look at each picture in three sizes (slower)")
    update: bool = flag(False, "afterwards strip the training state from the weights file")
    project: str = flag("runs/detect", "results go to PROJECT/NAME")
    name: str = flag("exp", "results go to PROJECT/NAME; a number is added if it exists")
    exist_ok: bool = flag(False, "use an existing PROJECT/NAME")
    line_thickness: int = flag(3, "of boxes, in pixels")
    hide_labels: bool = flag(False, "draw boxes only")
    hide_conf: bool = flag(False, "draw class names without confidence")
    half: bool = flag(False, "half precision (GPU)")
    dnn: bool = flag(False, "not offered: reads ONNX files in the original")
    vid_stride: int = flag(1, "look at every k-th frame of videos and streams")

    def __post_init__(self) -> None:
        if self.dnn:
            raise UserError("--dnn reads ONNX files, which this program does not; leave it out and give a .pt file")
        if len(self.imgsz) > 2 or min(self.imgsz) < 1:
            given = " ".join(map(str, self.imgsz))
            raise UserError(f"--imgsz {given}: expected one side or height and width, as in --imgsz 640 480")
        for name, value in (("--conf-thres", self.conf_thres), ("--iou-thres", self.iou_thres)):
            if not 0 <= value <= 1:
                raise UserError(f"{name} {value} is outside 0...1: give for example {name} 0.25")
        for name, value in (("--line-thickness", self.line_thickness), ("--max-det", self.max_det)):
            if value < 1:
                raise UserError(f"{name} {value}: must be 1 or more")


def parse_args(argv: Sequence[str] | None = None) -> tuple[DetectOptions, frozenset[str]]:
    """The options, and the names of those that the user typed."""
    parser = SuggestingParser(prog="detect.py", description="Find objects in pictures, videos and streams.")
    given = fetch_typed(vars(add_flags(parser, DetectOptions).parse_args(argv)))
    return DetectOptions(**given), frozenset(given)


class Timing(NamedTuple):
    """Milliseconds for one picture; those of a batch share its time equally."""

    prepare: float
    infer: float
    suppress: float


class Found(NamedTuple):
    """Detections (n, 6) = x1, y1, x2, y2 in whole pixels of the picture, confidence, class, lowest confidence first."""

    rows: np.ndarray
    input_shape: tuple[int, int]  # height, width of the model's input
    timing: Timing


@dataclass
class Speed:
    """Mean times over the frames so far; streams have no end, so no frame is kept."""

    frames: int = 0
    totals: Timing = Timing(0.0, 0.0, 0.0)
    input_shape: tuple[int, int] = (0, 0)

    def add(self, found: Found) -> None:
        self.frames += 1
        self.totals = Timing(*(total + time for total, time in zip(self.totals, found.timing, strict=True)))
        self.input_shape = found.input_shape

    def __str__(self) -> str:
        prepare, infer, suppress = (f"{total / max(self.frames, 1):.1f}ms" for total in self.totals)
        return (
            f"Speed: {prepare} pre-process, {infer} inference, {suppress} NMS per image "
            f"at shape {(1, 3, *self.input_shape)}"
        )


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
    def __call__(self, images: Sequence[np.ndarray]) -> list[Found]:
        """images: BGR uint8 (H, W, 3). One batch where the model gets them in one size, else one after the other."""
        started = self._now()
        boxed = [letterbox(image, self.imgsz, auto=True, stride=self.model.size_multiple) for image in images]
        prepare = (self._now() - started) / len(images)
        batches = [boxed] if len({picture.shape for picture, _ in boxed}) == 1 else [[one] for one in boxed]
        return [found for batch in batches for found in self._find(batch, prepare)]

    def _find(self, boxed: Sequence[tuple[np.ndarray, Letterbox]], prepare: float) -> list[Found]:
        """boxed: letterboxed pictures of one shape; prepare: seconds that each has taken so far."""
        started = self._now()
        stacked = np.stack([cv2.cvtColor(picture, cv2.COLOR_BGR2RGB) for picture, _ in boxed])  # (B, H, W, 3)
        batch = to_network_input(torch.from_numpy(stacked).permute(0, 3, 1, 2), self.device)
        prepared = self._now()
        with torch.autocast(self.device.type, torch.float16, enabled=self.half):
            prediction = self.model(batch, augment=self.augment)[0]
        inferred = self._now()
        kept = non_max_suppression(
            prediction, self.conf_thres, self.iou_thres, self.classes, self.agnostic, max_det=self.max_det
        )
        results = [rows.flip(0).cpu().numpy() for rows in kept]
        for rows, (_, geometry) in zip(results, boxed, strict=True):
            rows[:, :4] = geometry.undo(rows[:, :4]).round()
        shares = [span / len(boxed) for span in (prepared - started, inferred - prepared, self._now() - inferred)]
        timing = Timing(1000 * (prepare + shares[0]), 1000 * shares[1], 1000 * shares[2])
        return [Found(rows, tuple(batch.shape[2:]), timing) for rows in results]

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def detect(source: Source, detector: Detector, outputs: Outputs, *, show: bool = False) -> Speed:
    """Run over all frames, print a line for each and write outputs; Ctrl-C, or q in a window, ends early."""
    speed = Speed()
    try:
        for frames in source.rounds():
            results = detector([frame.image for frame in frames])
            for frame, found in zip(frames, results, strict=True):
                outputs.write(frame, found.rows)
                print(describe(frame, found, outputs.names), flush=True)
                speed.add(found)
                if show:
                    cv2.imshow(frame.path, outputs.draw(frame.image, found.rows))
            if show and cv2.waitKey(1) & 0xFF == ord("q"):
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


def build_detector(options: DetectOptions, files: Sequence[Path]) -> Detector:
    device = set_current_device(select_device(options.device)[0])
    model = load_ensemble(files, device)
    half = options.half and device.type == "cuda"
    if options.half and not half:
        print(f"--half needs a GPU; going on in full precision on {device.type}")
    for index in options.classes or []:
        if not 0 <= index < model.num_classes:
            raise UserError(f"--classes {index}: this model has classes 0 to {model.num_classes - 1}")
    print(f"{', '.join(file.name for file in files)} on {describe_device(device)}")
    size = input_size(options.imgsz, model.size_multiple)
    return Detector(
        model,
        device,
        size,
        conf_thres=options.conf_thres,
        iou_thres=options.iou_thres,
        max_det=options.max_det,
        classes=options.classes,
        agnostic=options.agnostic_nms,
        augment=options.augment,
        half=half,
    )


def build_outputs(options: DetectOptions, names: dict[int, str]) -> Outputs:
    folder = increment_path(Path(options.project) / options.name, options.exist_ok)
    return Outputs(
        folder,
        names,
        images=not options.nosave,
        text=options.save_txt,
        table=options.save_csv,
        crops=options.save_crop,
        corners=options.save_format == 1,
        confidence=options.save_conf,
        line_width=options.line_thickness,
        hide_labels=options.hide_labels,
        hide_conf=options.hide_conf,
    )


def input_size(imgsz: Sequence[int], stride: int) -> tuple[int, int]:
    """Height and width from --imgsz, rounded up to multiples of the stride."""
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
    """data/images if it is there, else the validation pictures of the built-in data set."""
    shapes = [folder / "shapes" / "images" / "val" for folder in datasets_folders()]
    candidates = [Path("data", "images"), ROOT / "data" / "images", *shapes]
    found = next((folder for folder in candidates if folder.is_dir()), None)
    if found is None:
        raise UserError(
            "no --source given, and there is no folder data/images: type --source YOUR_PICTURES "
            "(python utils/datasets/shapes.py draws some)"
        )
    return str(found)


def other_outputs(outputs: Outputs, options: DetectOptions, source: str) -> str:
    """The command for a kind of result that was not asked for."""
    kinds = [
        ("--save-txt", "the boxes as text", outputs.text),
        ("--save-crop", "the objects cut out", outputs.crops),
        ("--save-csv", "a table", outputs.table),
    ]
    flag, what = next(((flag, what) for flag, what, given in kinds if not given), ("", ""))
    return f"; for {what}: {detect_command(options.weights, options.imgsz, source)} {flag}" if flag else ""


def summarise(outputs: Outputs, speed: Speed, source: str, options: DetectOptions) -> None:
    """What took how long, where the results are, and what to type next."""
    if not speed.frames:
        outputs.discard()
        raise UserError(f"--source {source}: nothing could be read; see the warnings above")
    print(speed)
    if outputs.text:
        print(f"{outputs.label_files} labels saved to {outputs.folder / 'labels'}")
    if outputs.images or outputs.text or outputs.crops or outputs.table:
        print(f"Results saved to {outputs.folder}")
        print(f"Next: look at them{other_outputs(outputs, options, source)}")
    else:
        print("Nothing was saved: leave --nosave out, or add --save-txt, --save-csv or --save-crop")


def strip(file: Path) -> None:
    """Leave of a checkpoint what it is used for; one of another project stays as it is."""
    if is_own_checkpoint(file):
        write_checkpoint(file, inference_checkpoint(read_checkpoint(file)), kind="weights")
        print(f"{file}: stripped of its training state")
    else:
        print(f"--update: {file} stays as it is, only checkpoints of this project are rewritten")


def main(argv: Sequence[str] | None = None) -> Path:
    """Run the command line; returns the folder with the results."""
    options, typed = parse_args(argv)
    require_writable(options.project)
    text = options.source if "source" in typed else default_source()
    with open_source(text, vid_stride=options.vid_stride) as source:
        files = find_weights(options.weights, typed="weights" in typed)
        detector = build_detector(options, files)
        outputs = build_outputs(options, class_names(detector.model, options.data))
        show = options.view_img and can_show_windows()
        if options.view_img and not show:
            print("--view-img: no window can be opened here; going on without")
        speed = detect(source, detector, outputs, show=show)
    summarise(outputs, speed, text, options)
    if options.update:
        strip(files[0])
    return outputs.folder


if __name__ == "__main__":
    run(main)
