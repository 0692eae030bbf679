"""Find objects: run a model on images, videos or streams and write what it finds.

python detect.py --weights runs/train/exp/weights/best.pt --source images/
"""

from utils.errors import silence_ctrl_c_during_imports

silence_ctrl_c_during_imports(__name__)

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from models.loading import find_weights, load_ensemble
from utils import console
from utils.addresses import remove_credentials
from utils.checkpoint import inference_checkpoint, own_outline, read_checkpoint, write_checkpoint
from utils.class_values import DEFAULT_THRESHOLD, Threshold, highest, threshold_flag
from utils.cli import Arguments, Flags, detect_command, flag, image_size_flag, parse_flags, read_flags
from utils.detections import Detections
from utils.detector import InferenceModel
from utils.device import describe_device, select_device, set_current_device
from utils.download import fetch_typed
from utils.errors import UserError
from utils.errors import run as run_command
from utils.exporting.cpu_runtime import convert_after, runtime_flag
from utils.files import ROOT, datasets_folders, find_file, increment_path, read_yaml, require_writable
from utils.formats import format_of
from utils.image_size import require_size
from utils.images.cut import Cut, read_cut
from utils.images.frames import Frame, Source
from utils.images.sources import open_source
from utils.images.streams import StreamSettings
from utils.images.tiles import DEFAULT_OVERLAP, Tiling
from utils.inference.exported_model import ExportedModel
from utils.inference.input_shape import input_shape
from utils.inference.nms_settings import NmsSettings
from utils.inference.open_model import open_model
from utils.inference.predictor import Predictor
from utils.inference.runtime import RuntimeSettings
from utils.inference.speed import MeanSpeed
from utils.inference.tile_pass import mention_tiles
from utils.output.annotation_files import FORMATS, open_annotations
from utils.output.detection_files import Outputs, can_show_windows
from utils.output.json_documents import describe_frame, to_line
from utils.process_state import unchanged_process
from utils.tracking.followed_source import FollowedSource
from utils.tracking.tracker import LOW_CONFIDENCE, TrackSettings

PROGRAM = {"prog": "detect.py", "description": "Find objects in images, videos and streams."}

# Function from images (H, W, 3) BGR uint8 and their paths to their detections.
Predict = Callable[[Sequence[np.ndarray], Sequence[str]], Sequence[Detections]]
# Function from a frame and its detections to those that are reported, with ids.
Follow = Callable[[Frame, Detections], Detections]


@dataclass(frozen=True)
class DetectOptions:
    """Options of `detect.py`: one field per flag."""

    source: str = flag(
        "data/images", "file, folder, 'glob', .txt list, URL, stream, .streams list, camera or screen", group="data"
    )
    vid_stride: int = flag(1, "read every k-th frame of videos and streams", group="data")
    start: str | None = flag(None, "begin in videos at this time: seconds or h:m:s", type=str, group="data")
    end: str | None = flag(None, "end in videos before this time: seconds or h:m:s", type=str, group="data")
    stream_timeout: float = flag(15.0, "a stream without a frame for this many seconds is opened again", group="data")
    stream_retries: int | None = flag(
        None, "attempts to reach a lost stream, also at the start; without it until it answers", type=int, group="data"
    )
    data: str = flag("data/coco128.yaml", "YAML with class names, for a model that has none", group="data")
    imgsz: list[int] = image_size_flag([640], "input")
    weights: list[str] = flag(
        ["yolov5s.pt"], "model file; several .pt files form an ensemble", type=str, nargs="+", group="model"
    )
    augment: bool = flag(False, "run each image at three scales (slower)", group="model")
    half: bool = flag(False, "half precision (GPU)", group="model")
    dnn: bool = flag(False, "run ONNX files with OpenCV", group="model")
    runtime: str = runtime_flag()
    update: bool = flag(False, "afterwards strip the training state from the weights file", group="model")
    conf_thres: Threshold = threshold_flag(DEFAULT_THRESHOLD, "lowest confidence")
    iou_thres: float = flag(0.45, "NMS threshold: boxes that overlap more are one object", group="detection")
    max_det: int = flag(1000, "most detections per image; more if the training had images with more", group="detection")
    classes: list[int] | None = flag(
        None, "keep these classes only: --classes 0 2", type=int, nargs="+", group="detection"
    )
    agnostic_nms: bool = flag(
        False, "NMS across classes: keep the highest confidence of overlapping boxes", group="detection"
    )
    track: bool = flag(False, "number the objects of videos, streams and sequences of images", group="detection")
    track_buffer: int = flag(30, "frames that an object may be hidden and keep its number", group="detection")
    tile: int = flag(
        0, "look at tiles of N x N pixels of the image too, for small objects; 0 is off", metavar="N", group="detection"
    )
    tile_overlap: float = flag(DEFAULT_OVERLAP, "least share of a tile that the next one sees too", group="detection")
    device: str = flag("", "cpu, mps or a GPU number; '' takes the first GPU, or the CPU", group="devices")
    view_img: bool = flag(False, "show the results in a window; q ends", group="output")
    nosave: bool = flag(False, "write no images and videos", group="output")
    segment_minutes: float = flag(
        0.0, "record streams in files of this length, which survive a kill; 0: one .mp4", group="output"
    )
    save_txt: bool = flag(False, "write labels/*.txt", group="output")
    save_format: int = flag(
        0, "format of labels/*.txt, 0: x y w h, 1: x1 y1 x2 y2; all in 0...1", choices=[0, 1], group="output"
    )
    save_csv: bool = flag(False, "write predictions.csv", group="output")
    save_conf: bool = flag(False, "add the confidence to the .txt files, and to boxes for CVAT", group="output")
    save_labels: str | None = flag(
        None, "write the detections for a labelling tool to import", type=str, choices=FORMATS, group="output"
    )
    save_crop: bool = flag(False, "write each object as an image into crops/CLASS/", group="output")
    line_thickness: int = flag(3, "thickness of boxes in pixels", group="output")
    hide_labels: bool = flag(False, "draw boxes only", group="output")
    hide_conf: bool = flag(False, "draw class names without confidence", group="output")
    json: bool = flag(False, "print a line of JSON per image on stdout, and messages on stderr", group="output")
    project: str = flag("runs/detect", "results go to PROJECT/NAME", group="output")
    name: str = flag("exp", "results go to PROJECT/NAME; a number is added if it exists", group="output")
    exist_ok: bool = flag(False, "use an existing PROJECT/NAME", group="output")

    def __post_init__(self) -> None:
        require_size(self.imgsz)
        for name, value in (("--conf-thres", highest(self.conf_thres)), ("--iou-thres", self.iou_thres)):
            if not 0 <= value <= 1:
                raise UserError(f"{name} {value} is outside 0...1: give for example {name} 0.25")
        for name, value in (
            ("--line-thickness", self.line_thickness),
            ("--max-det", self.max_det),
            ("--track-buffer", self.track_buffer),
        ):
            if value < 1:
                raise UserError(f"{name} {value}: must be 1 or more")
        if not self.track and self.track_buffer != DetectOptions.track_buffer:
            raise UserError(f"--track-buffer {self.track_buffer} needs --track: add it to number the objects")
        Tiling.from_flags(self.tile, self.tile_overlap)
        if not 0 <= self.segment_minutes < math.inf:
            raise UserError(f"--segment-minutes {self.segment_minutes:g}: expected minutes, as in --segment-minutes 10")
        _ = self.cut, self.streams  # check them before anything is loaded

    @property
    def cut(self) -> Cut:
        return read_cut(self.start, self.end)

    @property
    def streams(self) -> StreamSettings:
        return StreamSettings(self.stream_timeout, self.stream_retries)

    @property
    def nms(self) -> NmsSettings:
        return NmsSettings(self.conf_thres, self.iou_thres, self.max_det, self.classes, self.agnostic_nms)


def parse_opt() -> Flags:
    """Return all flags of the command line, for `main`."""
    return parse_flags(DetectOptions, **PROGRAM)


def parse_args(argv: Arguments = None) -> tuple[DetectOptions, frozenset[str]]:
    """Return the options, and the names of those that the user typed."""
    typed = fetch_typed(read_flags(DetectOptions, argv, **PROGRAM))
    return DetectOptions(**typed), frozenset(typed)


def detect(
    source: Source,
    predict: Predict,
    outputs: Outputs,
    *,
    show: bool = False,
    as_json: bool = False,
    follow: Follow | None = None,
) -> MeanSpeed:
    """Run over all frames, print a line for each and write outputs. Ctrl-C, or q in a window, ends early."""
    speed = MeanSpeed(channels=source.pixels.channels)
    try:
        for frames in source.rounds():
            results = predict([frame.image for frame in frames], [frame.path for frame in frames])
            for frame, found in zip(frames, results, strict=True):
                found = follow(frame, found) if follow else found
                rows = table_of(found)[::-1]  # lowest confidence first: the highest is drawn on top
                outputs.write(frame, rows)
                outputs.annotate(frame, found)
                console.info(describe(frame, found, outputs.names))
                if as_json:
                    console.data(to_line(describe_frame(frame, found, outputs.names)))
                speed.add(found)
                if show:
                    cv2.imshow(frame.path, outputs.draw(frame.image, rows))
            if show and cv2.waitKey(1) & 0xFF == ord("q"):
                break
    except KeyboardInterrupt:
        console.info("stopped")
    finally:
        outputs.close()
        if show:
            cv2.destroyAllWindows()
    return speed


def table_of(found: Detections) -> np.ndarray:
    """Return detections (n, 6) with boxes in whole pixels, and a seventh column with the ids if there are any."""
    rows = found.rounded().rows
    return rows if found.track_ids is None else np.concatenate((rows, found.track_ids[:, None]), axis=1)


def describe(frame: Frame, found: Detections, names: Mapping[int, str]) -> str:
    """Return the line of a frame, such as `image 1/2 /a/bus.jpg: 640x480 4 persons, 1 bus, 41.5ms`."""
    height, width = found.input_shape
    counts = sorted(Counter(found.classes.tolist()).items())
    objects = ", ".join(f"{count} {names[index]}{'s' if count > 1 else ''}" for index, count in counts)
    return f"{frame.prefix}{height}x{width} {objects or '(no detections)'}, {found.speed.inference:.1f}ms"


def build_predictor(options: DetectOptions, files: Sequence[Path], typed: frozenset[str] = frozenset()) -> Predictor:
    """Load the model and return it with the settings of `options`. `typed`: names of those that the user typed."""
    device = set_current_device(select_device(options.device)[0])
    settings = RuntimeSettings(device, dnn=options.dnn, half=options.half)
    load = convert_after(lambda networks: load_ensemble(networks, device), options.runtime, augment=options.augment)
    model = open_model(files, settings, load_networks=load)
    half = options.half and device.type == "cuda"
    if options.half and not half and not isinstance(model, ExportedModel):
        console.warn(f"--half needs a GPU. Running in float32 on {device.type}")
    for index in options.classes or []:
        if not 0 <= index < model.num_classes:
            raise UserError(f"--classes {index}: this model has classes 0 to {model.num_classes - 1}")
    console.info(f"{', '.join(file.name for file in files)} on {describe_device(device)}")
    imgsz = input_shape(options.imgsz, model)
    names = class_names(model, options.data)
    if isinstance(model, ExportedModel):
        model.check_choices(augment=options.augment)
        require_names(names, model, options.data)
    nms = options.nms.with_room(
        model.advice.most_labels, f"{files[0].name} was validated on an image with", typed="max_det" in typed
    )
    tiling = Tiling.from_flags(options.tile, options.tile_overlap)
    mention_tiles(model.advice, tiling)
    return Predictor(model, imgsz, nms, augment=options.augment, half=half, names=names, tiling=tiling)


def follow_objects(options: DetectOptions, source: Source, predictor: Predictor) -> FollowedSource:
    """Return the trackers of a source, and let the predictor find the detections of low confidence that they need."""
    settings = TrackSettings(predictor.nms.fitted_limits, options.track_buffer, options.agnostic_nms)
    predictor.nms = predictor.nms.down_to(LOW_CONFIDENCE)
    return FollowedSource(source, settings)


def build_outputs(options: DetectOptions, names: dict[int, str], source: Source, model: str) -> Outputs:
    """Make the run folder and return the writer of the files that the options name. `model` is its name."""
    folder = increment_path(Path(options.project) / options.name, options.exist_ok)
    annotations = options.save_labels and open_annotations(
        options.save_labels, folder, names, source.images, model=model, confidence=options.save_conf
    )
    return Outputs(
        folder,
        names,
        images=not options.nosave,
        text=options.save_txt,
        table=options.save_csv,
        timed=source.kind != "files" or bool(source.videos),
        segment_minutes=options.segment_minutes,
        crops=options.save_crop,
        tracks=options.track,
        corners=options.save_format == 1,
        confidence=options.save_conf,
        line_width=options.line_thickness,
        hide_labels=options.hide_labels,
        hide_conf=options.hide_conf,
        sources=source.files,
        annotations=annotations or None,
    )


def require_images(options: DetectOptions, source: Source, shown: str) -> None:
    """Raise UserError if `--save-labels` has no images to write, and warn of videos, which it skips."""
    advice = "labelling tools import images. Write the frames as images first: ffmpeg -i VIDEO FOLDER/%06d.jpg"
    if options.save_labels and not source.images:
        raise UserError(f"--save-labels: --source {shown} has no images, and {advice}")
    if options.save_labels and source.videos:
        console.warn(f"--save-labels skips {len(source.videos)} videos: {advice}")


def class_names(model: InferenceModel, data: str) -> dict[int, str]:
    """Return the model's class names.

    If it knows its classes by number only, use those of the --data YAML, provided that there are as many.
    """
    names = {i: str(model.names.get(i, i)) for i in range(model.num_classes)}
    file = find_file(data, ROOT, ROOT / "data") if all(name == str(i) for i, name in names.items()) else None
    listed = read_yaml(file).get("names") if file else None
    listed = dict(enumerate(listed)) if isinstance(listed, list) else listed
    if not isinstance(listed, dict) or set(listed) != set(names):
        return names
    console.info(f"the model names no classes; the names of {file} are used (another --data gives others)")
    return {i: str(listed[i]) for i in names}


def require_names(names: Mapping[int, str], model: ExportedModel, data: str) -> None:
    """Raise UserError if neither the metadata of an exported file nor the --data YAML names its classes."""
    if not model.metadata.names and all(name == str(index) for index, name in names.items()):
        raise UserError(
            f"{model.path}: names no classes, and --data {data} has no {len(names)} names: give the data set that the "
            "model was trained with: --data"
        )


def default_source() -> str:
    """Return data/images if it exists, else the validation images of the built-in data set."""
    shapes = [folder / "shapes" / "images" / "val" for folder in datasets_folders()]
    candidates = [Path("data", "images"), ROOT / "data" / "images", *shapes]
    found = next((folder for folder in candidates if folder.is_dir()), None)
    if found is None:
        raise UserError(
            "no --source given, and there is no folder data/images: type --source YOUR_IMAGES "
            "(python data/scripts/make_shapes.py draws some)"
        )
    return str(found)


def other_outputs(outputs: Outputs, options: DetectOptions, source: str) -> str:
    """Return the command for a kind of result that was not requested, or "" if there is none."""
    kinds = [
        ("--save-txt", "the boxes as text", outputs.text),
        ("--save-crop", "the objects cut out", outputs.crops),
        ("--save-csv", "a table", outputs.table),
    ]
    for word, result, requested in kinds:
        if not requested:
            return f"; for {result}: {detect_command(options.weights, options.imgsz, source)} {word}"
    return ""


def summarise(outputs: Outputs, speed: MeanSpeed, source: str, options: DetectOptions) -> None:
    """Print the speed, where the results are and what to type next."""
    if not speed.num_images:
        outputs.discard()
        raise UserError(f"--source {source}: nothing could be read; see the warnings above")
    console.result(str(speed))
    if outputs.renamed.file.exists():
        console.result(f"Results with other names than their sources are listed in {outputs.renamed.file}")
    if outputs.text:
        console.result(f"{outputs.label_files} labels saved to {outputs.folder / 'labels'}")
    if outputs.annotations:
        console.result(f"Labels saved to {outputs.annotations.file}. To import them {outputs.annotations.hint}")
    if outputs.images or outputs.text or outputs.crops or outputs.table or outputs.annotations:
        console.result(f"Results saved to {outputs.folder}")
        console.result(f"Next: look at them{other_outputs(outputs, options, source)}")
    else:
        console.result("Nothing was saved. Omit --nosave, or add --save-txt, --save-labels, --save-csv or --save-crop")


def require_written(outputs: Outputs) -> None:
    """Raise UserError if videos could not be written, after all the others were."""
    if outputs.unwritten:
        raise UserError(f"{len(outputs.unwritten)} videos could not be written, the first is {outputs.unwritten[0]}")


def strip(file: Path) -> None:
    """Strip the training state from one of our checkpoints. Leave other files alone."""
    if format_of(file) is None and (outline := own_outline(file)):
        write_checkpoint(file, inference_checkpoint(read_checkpoint(file, outline)), kind="weights")
        console.result(f"{file}: stripped of its training state")
    else:
        console.result(f"--update: {file} stays as it is, only checkpoints of this project are rewritten")


def run(weights: Any = None, source: str | Path | int | None = None, **flags: Any) -> Path:
    """Detect with flags as keywords (`conf_thres=0.4`), from a program. Return the folder with the results.

    Raises UserError, also for mistakes in the keywords.
    """
    with unchanged_process():
        return main({"weights": weights, "source": source, **flags})


def main(argv: Arguments = None) -> Path:
    """Run the command line `argv`. Return the folder with the results."""
    options, typed = parse_args(argv)
    require_writable(options.project)
    text = options.source if "source" in typed else default_source()
    shown = remove_credentials(text)
    with open_source(text, vid_stride=options.vid_stride, cut=options.cut, streams=options.streams) as source:
        files = find_weights(options.weights, typed="weights" in typed, exported=True)
        require_images(options, source, shown)
        predictor = build_predictor(options, files, typed)
        follow = options.track and follow_objects(options, source, predictor)
        source.pixels = predictor.model.pixels
        outputs = build_outputs(options, dict(predictor.names), source, files[0].name)
        show = options.view_img and can_show_windows()
        if options.view_img and not show:
            console.warn("--view-img: no window can be opened here. Images are not shown")
        speed = detect(source, predictor, outputs, show=show, as_json=options.json, follow=follow or None)
    if predictor.tiles:
        predictor.tiles.summarise(predictor.model.device)
    summarise(outputs, speed, shown, options)
    if options.update:
        strip(files[0])
    require_written(outputs)
    return outputs.folder


if __name__ == "__main__":
    run_command(main, closes_files=True)
