"""detect.py: from images, videos and streams to boxes, files and log lines."""

import functools
import http.server
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from media_files import write_image

import detect
from detect import DetectOptions
from models import loading
from models.yolo import DetectionModel
from utils.boxes import xywh_to_xyxy
from utils.checkpoint import describe_model, write_checkpoint
from utils.cli import SuggestingParser, add_flags
from utils.detections import Detections
from utils.errors import UserError
from utils.files import ROOT
from utils.images.frames import Frame, Source
from utils.metrics import Speed
from utils.output.detection_files import Outputs

NAMES = {0: "person", 1: "bus", 2: "wine glass/cup"}
IMAGE = np.full((100, 200, 3), 120, dtype=np.uint8)
ROWS = np.array([[0, 0, 100, 100, 0.876, 0], [20, 10, 60, 50, 0.5, 1]], dtype=np.float32)
NOTHING = np.zeros((0, 6), dtype=np.float32)


def frame(path="/a/cat.jpg", kind="image", number=0, fps=0.0, image=IMAGE):
    return Frame(image, path, kind, "prefix: ", number, fps, max(number - 1, 0) / (fps or 1))


def found(rows):
    return Detections(rows, IMAGE.shape[:2], input_shape=(64, 128), speed=Speed(1.0, 41.54, 2.0))


def files_below(folder):
    return sorted(str(file.relative_to(folder)) for file in Path(folder).rglob("*") if file.is_file())


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Return the checkpoint of an untrained model with 3 classes."""
    torch.manual_seed(0)
    model = DetectionModel("yolov5n.yaml", num_classes=3)
    model.names = NAMES
    file = tmp_path_factory.mktemp("weights") / "tiny.pt"
    write_checkpoint(file, {"model": describe_model(model)}, kind="weights")
    return file


@pytest.fixture
def images(tmp_path):
    """Write two images of one name in two folders, one more of that stem, and a short video of it too."""
    rng = np.random.default_rng(0)
    for name in ("in/a/cat.jpg", "in/b/cat.jpg", "in/b/cat.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / name), rng.integers(0, 255, (48, 64, 3), dtype=np.uint8))
    writer = cv2.VideoWriter(str(tmp_path / "in/b/cat.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 12, (64, 48))
    for _ in range(6):
        writer.write(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8))
    writer.release()
    return tmp_path / "in"


def run(weights, source, tmp_path, *flags, name="exp"):
    """Run main() with few, weak detections: the model is untrained."""
    small = ["--imgsz", "64", "--conf-thres", "0.0001", "--max-det", "2", "--device", "cpu"]
    place = ["--project", str(tmp_path / "out"), "--name", name]
    return detect.main(["--weights", str(weights), "--source", str(source), *small, *place, *flags])


# ---- options and log lines

DETECT_FLAGS = {
    "--weights": ["yolov5s.pt"], "--source": "data/images", "--data": "data/coco128.yaml", "--imgsz": [640],
    "--img": [640], "--img-size": [640], "--conf-thres": 0.25, "--iou-thres": 0.45, "--max-det": 1000, "--device": "",
    "--view-img": False, "--save-txt": False, "--save-format": 0, "--save-csv": False, "--save-conf": False,
    "--save-crop": False, "--nosave": False, "--classes": None, "--agnostic-nms": False, "--augment": False,
    "--update": False, "--project": "runs/detect", "--name": "exp", "--exist-ok": False, "--line-thickness": 3,
    "--hide-labels": False, "--hide-conf": False, "--half": False, "--dnn": False, "--vid-stride": 1,
    "--runtime": "pytorch", "--json": False, "--save-labels": None, "--track": False, "--track-buffer": 30,
    "--tile": 0, "--tile-overlap": 0.2,
    "--start": None, "--end": None,
    "--stream-timeout": 15.0, "--stream-retries": None, "--segment-minutes": 0.0,
}  # fmt: skip


def test_no_flag_of_the_command_line_vanishes():
    options, known = DetectOptions(), add_flags(SuggestingParser(), DetectOptions)._option_string_actions
    assert known.keys() - {"-h", "--help"} == DETECT_FLAGS.keys()
    for flag, default in DETECT_FLAGS.items():
        assert getattr(options, known[flag].dest) == default, flag
        several = flag in ("--weights", "--imgsz", "--img", "--img-size", "--classes", "--conf-thres")
        assert known[flag].nargs == (0 if default is False else "+" if several else None), flag


def test_typed_values_have_their_types():
    words = "--img 480 640 --conf 0.5 --classes 0 2 --weights a.pt b.pt --save_txt --source 0 --vid-stride 3"
    options, typed = detect.parse_args(words.split())
    assert (options.imgsz, options.conf_thres, options.classes) == ([480, 640], 0.5, [0, 2])
    assert (options.weights, options.source, options.vid_stride) == (["a.pt", "b.pt"], "0", 3)
    assert typed == {"imgsz", "conf_thres", "classes", "weights", "save_txt", "source", "vid_stride"}


@pytest.mark.parametrize(
    "classes, text",
    [
        ([], "prefix: 64x128 (no detections), 41.5ms"),
        ([1], "prefix: 64x128 1 bus, 41.5ms"),
        ([1, 0, 0, 0], "prefix: 64x128 3 persons, 1 bus, 41.5ms"),
    ],
)
def test_log_line(classes, text):
    rows = np.zeros((len(classes), 6), dtype=np.float32)
    rows[:, 5] = classes
    assert detect.describe(frame(), found(rows), NAMES) == text


@pytest.mark.parametrize(
    "imgsz, expected", [([640], (640, 640)), ([480, 640], (480, 640)), ([100, 33], (128, 64)), ([1], (32, 32))]
)
def test_input_size(imgsz, expected):
    model = SimpleNamespace(fixed_shape=None, size_multiple=32)
    assert detect.input_shape(imgsz, model) == expected


def test_a_model_of_stride_16_gets_images_of_sides_of_32(tmp_path):
    file = tmp_path / "p34.pt"
    write_checkpoint(file, {"model": describe_model(DetectionModel("yolov5-p34.yaml", num_classes=2))}, kind="weights")
    options = DetectOptions(device="cpu", imgsz=[80], conf_thres=0.9)
    predictor = detect.build_predictor(options, [file])
    assert predictor.imgsz == (96, 96) and predictor([np.zeros((64, 96, 3), np.uint8)])[0].input_shape == (64, 96)
    assert predictor([np.zeros((40, 96, 3), np.uint8)])[0].input_shape == (64, 96)  # not 48


@pytest.mark.parametrize("cfg, grid", [("yolov5-p34.yaml", 32), ("yolov5n.yaml", 32), ("yolov5-p7.yaml", 128)])
def test_sides_are_multiples_of_32_at_least(cfg, grid):
    assert DetectionModel(cfg, num_classes=1).size_multiple == grid


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--imgsz", "1", "2", "3"], "height and width"),
        (["--imgsz", "0"], "--imgsz 0"),
        (["--dnn"], "--dnn"),
        (["--classes", "3"], "classes 0 to 2"),
        (["--classes", "-1"], "classes 0 to 2"),
        (["--conf-thres", "25"], "--conf-thres 25"),
        (["--line-thickness", "0"], "--line-thickness 0"),
        (["--vid-stride", "0"], "--vid-stride 0"),
        (["--weights", "absent.pt"], "absent.pt"),
        (["--source", "absent.jpg"], "absent.jpg"),
    ],
)
def test_wrong_options_are_named_before_a_folder_is_made(weights, images, tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        run(weights, images / "a", tmp_path, *flags)
    assert not (tmp_path / "out").exists()


def test_unknown_flag_names_the_nearest(capsys):
    with pytest.raises(SystemExit) as error:
        detect.main(["--save-text"])
    assert error.value.code == 2 and "--save-txt" in capsys.readouterr().err


def test_default_source(tmp_path, monkeypatch):
    """The source is data/images, else the built-in validation images, else one line that says what to type."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(detect, "ROOT", tmp_path / "project")
    monkeypatch.setattr(detect, "datasets_folders", lambda: [tmp_path / "x", tmp_path / "project/datasets"])
    with pytest.raises(UserError, match="--source YOUR_IMAGES"):
        detect.default_source()
    for folder in ("project/datasets/shapes/images/val", "project/data/images", "data/images"):
        (tmp_path / folder).mkdir(parents=True)
        assert Path(detect.default_source()).resolve() == tmp_path / folder


def test_a_typed_source_is_never_replaced(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(detect, "default_source", lambda: pytest.fail("the default was requested"))
    with pytest.raises(UserError, match="data/images: does not exist"):
        detect.main(["--weights", str(weights), "--source", "data/images"])


@pytest.fixture
def no_weights_here(monkeypatch, tmp_path):
    """Make a project without weights, in which a download becomes an empty file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "ROOT", tmp_path)
    monkeypatch.setattr(loading, "fetch_published", lambda name, target: target)
    return tmp_path


def test_default_weights_are_not_downloaded(no_weights_here, images):
    message = "type --weights runs/train/exp/weights/best.pt, or --weights yolov5s.pt"
    with pytest.raises(UserError, match=message) as error:
        detect.main(["--source", str(images / "a")])
    assert "\n" not in str(error.value)
    (no_weights_here / "yolov5s.pt").touch()
    assert detect.find_weights(["yolov5s.pt"], typed=False) == [Path("yolov5s.pt")]


def test_weights_that_are_typed_are_downloaded(no_weights_here):
    assert detect.find_weights(["yolov5s.pt"], typed=True) == [no_weights_here / "weights/yolov5s.pt"]
    with pytest.raises(UserError, match="mine.pt: no such file"):
        detect.find_weights(["mine.pt"], typed=True)


def test_names_from_the_data_file_only_where_the_model_has_none(tmp_path, capsys):
    (tmp_path / "data.yaml").write_text("names: [cat, dog]\n")
    data = str(tmp_path / "data.yaml")
    unnamed = SimpleNamespace(num_classes=2, names={0: "0", 1: "1"})
    assert detect.class_names(unnamed, data) == {0: "cat", 1: "dog"}
    assert "names no classes" in capsys.readouterr().out
    assert detect.class_names(SimpleNamespace(num_classes=2, names={0: "a", 1: "b"}), data) == {0: "a", 1: "b"}
    more = SimpleNamespace(num_classes=3, names={})  # than the file has
    assert detect.class_names(more, data) == {0: "0", 1: "1", 2: "2"}


# ---- the whole command line


def test_all_outputs_end_to_end(weights, images, tmp_path, capsys):
    flags = ["--save-txt", "--save-conf", "--save-csv", "--save-crop", "--vid-stride", "2"]
    folder = run(weights, f"{images}/*/*", tmp_path, *flags)
    assert folder == tmp_path / "out" / "exp"
    written = [file for file in files_below(folder) if not file.startswith("crops")]
    texts = [f"labels/{stem}.txt" for stem in ("cat", "cat_2", "cat_3", "cat_4_1", "cat_4_2", "cat_4_3")]
    tables = ["predictions.csv", "renamed.csv"]
    assert written == sorted(["cat.jpg", "cat_2.jpg", "cat_3.png", "cat_4.mp4", *tables, *texts])
    rows = np.array([line.split() for file in texts for line in (folder / file).read_text().splitlines()], dtype=float)
    assert rows.shape == (12, 6) and rows[:, 1:].min() >= 0 and rows[:, 1:].max() <= 1
    pixels = xywh_to_xyxy(rows[:, 1:5]) * [64, 48, 64, 48]
    assert np.allclose(pixels, pixels.round(), atol=1e-3)
    for file in texts:
        scores = [float(line.split()[-1]) for line in (folder / file).read_text().splitlines()]
        assert scores == sorted(scores)
    capture = cv2.VideoCapture(str(folder / "cat_4.mp4"))
    assert (capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)) == (6, 3)
    assert sum(file.startswith("crops") for file in files_below(folder)) == 12
    lines = capsys.readouterr().out.splitlines()
    assert sum("64x64 " in line or "48x64 " in line for line in lines) == 6
    assert any(line.startswith("Speed: ") and "ms inference" in line for line in lines)
    assert "6 labels saved to" in lines[-3] and lines[-2] == f"Results saved to {folder}"
    assert lines[-1] == "Next: look at them"  # there is no other kind of result


@pytest.mark.parametrize(
    "tool, file",
    [
        ("cvat", "annotations.xml"),
        ("labelstudio", "label-studio.json"),
        ("coco", "instances_default.json"),
        ("yolo", "yolo/classes.txt"),
    ],
)
def test_labels_for_a_tool_are_written_of_images_only(weights, images, tmp_path, capsys, tool, file):
    folder = run(weights, f"{images}/*/*", tmp_path, "--nosave", "--save-labels", tool)
    extra = {"labelstudio": ["label-studio.xml"], "yolo": [f"yolo/cat{end}.txt" for end in ("", "_2", "_3")]}
    assert files_below(folder) == sorted([file, "renamed.csv", *extra.get(tool, [])])
    text = (folder / extra.get(tool, [file])[0]).read_text() if tool == "yolo" else (folder / file).read_text()
    boxes = {"cvat": "<box ", "labelstudio": "original_width", "coco": "bbox", "yolo": "\n"}
    assert text.count(boxes[tool]) == (2 if tool == "yolo" else 6)  # two detections in each of three images
    output = capsys.readouterr()
    assert "To import them" in output.out and "--save-labels skips 1 videos" in output.err


def test_tracks_are_written_to_every_file(weights, tmp_path, capsys):
    writer = cv2.VideoWriter(str(tmp_path / "still.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 12, (64, 48))
    for _ in range(3):
        writer.write(np.full((48, 64, 3), 90, np.uint8))
    writer.release()
    flags = ("--track", "--save-txt", "--save-csv", "--json")
    folder = run(weights, tmp_path / "still.mp4", tmp_path, *flags)
    tracks = [[one["track"] for one in json.loads(line)["detections"]] for line in capsys.readouterr().out.splitlines()]
    assert len(tracks) == 3 and all(sorted(ids) == [1, 2] for ids in tracks)
    table = (folder / "predictions.csv").read_text().splitlines()
    assert [line.split(",")[-1] for line in table] == ["Track ID", *(str(one) for ids in tracks for one in ids[::-1])]
    texts = [(folder / "labels" / f"still_{number}.txt").read_text().splitlines() for number in (1, 2, 3)]
    assert [[int(line.split()[5]) for line in lines[::-1]] for lines in texts] == tracks
    assert (folder / "still.mp4").exists()


def test_a_sequence_of_images_is_followed_in_the_order_of_its_numbers(weights, images, tmp_path, capsys):
    for number in (9, 10, 11):
        write_image(tmp_path / "walk" / f"f{number}.png")
    run(weights, tmp_path / "walk", tmp_path, "--track", "--nosave", "--json")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(line["source"]).stem for line in lines] == ["f9", "f10", "f11"]
    assert all(sorted(one["track"] for one in line["detections"]) == [1, 2] for line in lines)
    with pytest.raises(UserError, match="--track: these images are no sequence"):
        run(weights, images / "a", tmp_path, "--track")
    with pytest.raises(UserError, match="--track-buffer 0: must be 1 or more"):
        run(weights, tmp_path / "walk", tmp_path, "--track", "--track-buffer", "0")
    with pytest.raises(UserError, match="--track-buffer 90 needs --track"):
        run(weights, tmp_path / "walk", tmp_path, "--track-buffer", "90")


def test_labels_for_a_tool_need_images(weights, images, tmp_path):
    with pytest.raises(UserError, match="--save-labels: --source .*cat.mp4 has no images.*ffmpeg"):
        run(weights, images / "b" / "cat.mp4", tmp_path, "--save-labels", "cvat")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "given, named",
    [
        ([], "--save-txt"),
        (["--save-txt"], "--save-crop"),
        (["--save-txt", "--save-crop"], "--save-csv"),
        (["--save-crop"], "--save-txt"),
    ],
)
def test_what_to_type_next_is_what_was_not_requested(weights, images, tmp_path, capsys, given, named):
    run(weights, images / "a", tmp_path, *given)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("Next: ") and last.endswith(f" --imgsz 64 {named}")


def test_running_again_into_the_folder_changes_nothing(weights, images, tmp_path):
    flags = ["--save-txt", "--save-csv", "--save-crop", "--exist-ok"]
    folder = run(weights, images / "b", tmp_path, *flags)
    before = {file: (folder / file).read_bytes() for file in files_below(folder) if not file.endswith(".mp4")}
    run(weights, images / "b", tmp_path, *flags)
    assert before == {file: (folder / file).read_bytes() for file in files_below(folder) if not file.endswith(".mp4")}


def test_a_list_gets_annotated_images_too(weights, images, tmp_path):
    (tmp_path / "list.txt").write_text(f"{images}/a\n{images}/b/cat.png\n")
    assert files_below(run(weights, tmp_path / "list.txt", tmp_path)) == ["cat.jpg", "cat_2.png", "renamed.csv"]


def test_nosave_writes_nothing_and_says_so(weights, images, tmp_path, capsys):
    assert files_below(run(weights, images / "a", tmp_path, "--nosave")) == []
    assert "Nothing was saved" in capsys.readouterr().out


def test_unreadable_images_are_skipped(weights, images, tmp_path, capsys):
    (images / "a" / "broken.jpg").write_bytes(b"?")
    assert files_below(run(weights, images / "a", tmp_path)) == ["cat.jpg"]
    assert "broken.jpg skipped" in capsys.readouterr().err


@pytest.mark.parametrize("extra", [[], ["--save-csv"]], ids=["", "csv"])
def test_nothing_readable_is_an_error_and_leaves_no_folder(weights, tmp_path, extra):
    (tmp_path / "broken.jpg").write_bytes(b"?")
    with pytest.raises(UserError, match="nothing could be read"):
        run(weights, tmp_path / "broken.jpg", tmp_path, *extra)
    assert files_below(tmp_path) == ["broken.jpg"] and not list(tmp_path.rglob("exp*"))


def test_nothing_readable_leaves_the_results_of_an_earlier_run(weights, images, tmp_path):
    folder = run(weights, images / "a", tmp_path)
    (tmp_path / "broken.jpg").write_bytes(b"?")
    with pytest.raises(UserError, match="nothing could be read"):
        run(weights, tmp_path / "broken.jpg", tmp_path, "--exist-ok")
    assert files_below(folder) == ["cat.jpg"]


def test_half_and_view_img_go_on_without(weights, images, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(detect, "can_show_windows", lambda: False)
    assert files_below(run(weights, images / "a", tmp_path, "--half", "--view-img")) == ["cat.jpg"]
    text = capsys.readouterr().err
    assert "--half needs a GPU" in text and "--view-img: no window" in text


class Given(Source):
    """Yields the rounds it was given, and raises what is among them."""

    def __init__(self, *rounds):
        self._rounds = rounds

    def rounds(self):
        for entry in self._rounds:
            if isinstance(entry, BaseException):
                raise entry
            yield entry


def test_interrupting_keeps_what_is_done(tmp_path, capsys):
    source = Given([frame("/a/cat.mp4", "video", 1, fps=5.0)], KeyboardInterrupt())
    speed = detect.detect(source, lambda images, paths: [found(ROWS)], Outputs(tmp_path, NAMES))
    assert speed.num_images == 1 and "stopped" in capsys.readouterr().out
    assert cv2.VideoCapture(str(tmp_path / "cat.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 1


def test_frames_of_a_round_get_their_own_rows(tmp_path, capsys):
    """Both streams go to the predictor together."""
    rounds = [[frame("a", "stream", n, fps=5.0), frame("b", "stream", n, fps=5.0)] for n in range(2)]
    requested = []

    def predict(images, paths):
        requested.append((len(images), paths))
        return [found(ROWS[:1]), found(NOTHING)]

    speed = detect.detect(Given(*rounds), predict, Outputs(tmp_path, NAMES, text=True, images=False))
    assert requested == [(2, ["a", "b"])] * 2 and speed.num_images == 4
    assert files_below(tmp_path) == ["labels/a_0.txt", "labels/a_1.txt"]


def test_q_in_a_window_ends_after_the_round(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(cv2, "imshow", lambda name, image: shown.append((name, image.shape)))
    monkeypatch.setattr(cv2, "waitKey", lambda wait: ord("q"))
    monkeypatch.setattr(cv2, "destroyAllWindows", lambda: None)
    rounds = [[frame("a", "stream", n, fps=5.0), frame("b", "stream", n, fps=5.0)] for n in range(3)]
    outputs = Outputs(tmp_path, NAMES, images=False)
    speed = detect.detect(Given(*rounds), lambda images, paths: [found(ROWS)] * 2, outputs, show=True)
    assert speed.num_images == 2 and shown == [("a", IMAGE.shape), ("b", IMAGE.shape)]


@pytest.fixture
def web(tmp_path):
    """Yield the address of a local web server over tmp_path."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_list_of_streams(weights, images, tmp_path, web, capsys):
    """Two videos over HTTP: a line for each of their frames, a video for each."""
    for name in ("one", "two"):
        (tmp_path / name).write_bytes((images / "b/cat.mp4").read_bytes())
    (tmp_path / "cameras.streams").write_text(f"{web}/one\n# off\n{web}/two\n")
    folder = run(weights, tmp_path / "cameras.streams", tmp_path)
    stem = web.replace(":", "_").replace("/", "_")
    assert files_below(folder) == [f"{stem}_one.mp4", f"{stem}_two.mp4", "renamed.csv"]
    lines = capsys.readouterr().out.splitlines()
    for i, name in enumerate(("one", "two")):
        assert 1 <= sum(line.startswith(f"{i}: {web}/{name}: 64x64 ") for line in lines) <= 6


def test_augment_and_ensemble(weights, images, tmp_path):
    folder = run(weights, images / "a", tmp_path, "--augment", "--save-txt", "--weights", str(weights), str(weights))
    assert files_below(folder) == ["cat.jpg", "labels/cat.txt"]


def test_update_strips_the_weights(weights, images, tmp_path):
    full = tmp_path / "full.pt"
    content = {"model": describe_model(DetectionModel("yolov5n.yaml", num_classes=3)), "optimizer": {"x": 1}}
    write_checkpoint(full, content)
    size = full.stat().st_size
    run(full, images / "a", tmp_path, "--update", "--nosave")
    assert full.stat().st_size < 0.6 * size and "optimizer" not in torch.load(full, weights_only=True)


def test_update_leaves_files_of_yolov5_as_they_are(reference, images, tmp_path, capsys):
    theirs = tmp_path / "theirs.pt"
    theirs.write_bytes((reference / "weights" / "yolov5n.pt").read_bytes())
    folder = run(theirs, images / "a", tmp_path, "--update")
    assert theirs.read_bytes() == (reference / "weights" / "yolov5n.pt").read_bytes() and files_below(folder)
    assert f"--update: {theirs} stays as it is" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name, code", [("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_terminated_detection_keeps_its_results(weights, tmp_path, name, code):
    video = cv2.VideoWriter(str(tmp_path / "long.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 25, (64, 48))
    for _ in range(3000):
        video.write(np.zeros((48, 64, 3), np.uint8))
    video.release()
    command = [sys.executable, str(ROOT / "detect.py"), "--weights", str(weights), "--source", "long.mp4", "--imgsz"]
    flags = ["32", "--conf-thres", "0", "--max-det", "1", "--save-csv", "--project", "out"]
    before = signal.signal(getattr(signal, name), signal.SIG_DFL)  # `nohup` ignores SIGHUP, and children inherit that
    process = subprocess.Popen([*command, *flags], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    signal.signal(getattr(signal, name), before)
    assert process.stdout
    for line in process.stdout:
        if "(9/" in line:
            process.send_signal(getattr(signal, name))
            break
    process.communicate(timeout=60)
    rows = (tmp_path / "out/exp/predictions.csv").read_text().splitlines()
    assert process.returncode == code and len(rows) >= 10
    assert cv2.VideoCapture(str(tmp_path / "out/exp/long.mp4")).read()[0]
