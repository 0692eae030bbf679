"""detect.py: from pictures and videos to boxes, files and log lines."""

import csv
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

import detect
from detect import Detector, Found, OutputNames, Outputs, Speed, Timing
from models.yolo import DetectionModel
from utils.boxes import pairwise_iou, xywh_to_xyxy
from utils.checkpoint import describe_model, write_checkpoint
from utils.errors import UserError
from utils.sources import Frame, open_source

NAMES = {0: "person", 1: "bus", 2: "wine glass/cup"}
IMAGE = np.full((100, 200, 3), 120, dtype=np.uint8)
ROWS = np.array([[20, 10, 60, 50, 0.5, 1], [0, 0, 100, 100, 0.876, 0]], dtype=np.float32)
NOTHING = np.zeros((0, 6), dtype=np.float32)


def frame(path="/a/cat.jpg", kind="image", number=0, fps=0.0, image=IMAGE):
    return Frame(image, path, kind, "prefix: ", number, fps, max(number - 1, 0) / (fps or 1))


def found(rows):
    return Found(rows, (64, 128), Timing(1.0, 41.54, 2.0))


def files_below(folder):
    return sorted(str(file.relative_to(folder)) for file in Path(folder).rglob("*") if file.is_file())


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A checkpoint of an untrained model with 3 classes."""
    torch.manual_seed(0)
    model = DetectionModel("yolov5n.yaml", num_classes=3)
    model.names = NAMES
    file = tmp_path_factory.mktemp("weights") / "tiny.pt"
    write_checkpoint(file, {"model": describe_model(model)}, kind="weights")
    return file


@pytest.fixture
def pictures(tmp_path):
    """Two pictures of one name in two folders, one more of that stem, and a short video of it too."""
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
    """main() with few, weak detections: the model is untrained."""
    small = ["--imgsz", "64", "--conf-thres", "0.0001", "--max-det", "2", "--device", "cpu"]
    place = ["--project", str(tmp_path / "out"), "--name", name]
    return detect.main(["--weights", str(weights), "--source", str(source), *small, *place, *flags])


# ---- one frame's outputs


def test_text_is_normalised_with_the_lowest_score_first(tmp_path):
    Outputs(tmp_path, NAMES, text=True, pictures=False).write(frame(), ROWS)
    assert (tmp_path / "labels/cat.txt").read_text() == "1 0.2 0.3 0.2 0.4\n0 0.25 0.5 0.5 1\n"


def test_text_as_corners_with_confidence(tmp_path):
    Outputs(tmp_path, NAMES, text=True, pictures=False, corners=True, confidence=True).write(frame(), ROWS)
    assert (tmp_path / "labels/cat.txt").read_text() == "1 0.1 0.1 0.3 0.5 0.5\n0 0 0 0.5 1 0.876\n"


@pytest.mark.parametrize(
    "kind, number, file", [("video", 7, "cat_7.txt"), ("screen", 1, "cat_1.txt"), ("image", 0, "cat.txt")]
)
def test_text_file_of_a_frame(tmp_path, kind, number, file):
    path = "cat" if kind == "screen" else "/a/cat.mp4"
    Outputs(tmp_path, NAMES, text=True, pictures=False).write(frame(path, kind, number), ROWS)
    assert files_below(tmp_path) == [f"labels/{file}"]


def test_text_of_an_earlier_run_is_replaced_or_removed(tmp_path):
    for rows, expected in [(ROWS, 2), (ROWS[:1], 1), (NOTHING, None)]:
        outputs = Outputs(tmp_path, NAMES, text=True, pictures=False)
        outputs.write(frame(), rows)
        file = tmp_path / "labels/cat.txt"
        assert (len(file.read_text().splitlines()) if file.exists() else None) == expected
        assert outputs.label_files == (expected is not None)


def test_table(tmp_path):
    for _ in range(2):  # the second run starts the file anew
        outputs = Outputs(tmp_path, NAMES | {1: 'a "bus", red'}, table=True, pictures=False)
        outputs.write(frame(), NOTHING)
        outputs.write(frame(), ROWS)
        outputs.close()
    with open(tmp_path / "predictions.csv", newline="") as file:
        rows = list(csv.reader(file))
    header = ["Image Name", "Prediction", "Confidence"]
    assert rows == [header, ["cat.jpg", 'a "bus", red', "0.50"], ["cat.jpg", "person", "0.88"]]


def test_crops_are_a_little_larger_than_the_boxes(tmp_path):
    image = IMAGE.copy()
    image[10:50, 20:60] = (0, 0, 255)
    boxes = [[20, 10, 60, 50, 0.5, 2], [150, 60, 199, 99, 0.6, 2], [150, 60, 200, 100, 0.7, 0]]
    rows = np.array(boxes, dtype=np.float32)
    for _ in range(2):  # a second run into the folder writes the same files
        outputs = Outputs(tmp_path, NAMES, crops=True, pictures=False)
        outputs.write(frame(image=image), rows)
    assert files_below(tmp_path) == [
        "crops/person/cat.jpg",
        "crops/wine glass_cup/cat.jpg",
        "crops/wine glass_cup/cat2.jpg",
    ]
    crop = cv2.imread(str(tmp_path / "crops/wine glass_cup/cat.jpg"))
    assert crop.shape == (51, 51, 3)  # 40 * 1.02 + 10 = 50.8, from 4.6 and 14.6 to 55.4 and 65.4
    assert (crop[8:40, 8:40, 2] > 200).all() and (crop[:3, :3] < 160).all()
    assert cv2.imread(str(tmp_path / "crops/wine glass_cup/cat2.jpg")).shape == (46, 56, 3)  # clipped at the border


def test_a_crop_does_not_take_the_name_of_anothers(tmp_path):
    outputs = Outputs(tmp_path, NAMES, crops=True, pictures=False)
    outputs.write(frame("/a/cat2.jpg"), ROWS[:1])
    outputs.write(frame("/a/cat.jpg"), np.repeat(ROWS[:1], 2, axis=0))
    assert files_below(tmp_path) == ["crops/bus/cat.jpg", "crops/bus/cat2.jpg", "crops/bus/cat3.jpg"]


def test_annotated_picture(tmp_path):
    before = IMAGE.copy()
    Outputs(tmp_path, NAMES, hide_labels=True, line_width=1).write(frame("/a/cat.png"), ROWS[:1])
    drawn = cv2.imread(str(tmp_path / "cat.png"))
    assert np.array_equal(IMAGE, before) and drawn.shape == IMAGE.shape
    assert tuple(drawn[50, 40]) == (0xEB, 0xDB, 0x0B) and tuple(drawn[30, 40]) == (120, 120, 120)
    assert (drawn != IMAGE).any(axis=2).sum() == 2 * (41 + 39)  # nothing but the box


@pytest.mark.parametrize(
    "style, expected",
    [
        ({}, "bus 0.50"),
        ({"hide_conf": True}, "bus"),
        ({"hide_labels": True}, ""),
        ({"hide_labels": True, "hide_conf": True}, ""),
    ],
)
def test_label(tmp_path, style, expected):
    assert Outputs(tmp_path, NAMES, **style)._label(ROWS[0]) == expected


def test_a_picture_format_that_cannot_be_written_becomes_jpg(tmp_path):
    Outputs(tmp_path, NAMES).write(frame("/a/cat.DNG"), ROWS)
    assert files_below(tmp_path) == ["cat.jpg"]


def test_a_result_never_overwrites_its_source(tmp_path):
    cv2.imwrite(str(tmp_path / "cat.png"), IMAGE)
    with pytest.raises(UserError, match="overwrite its own source"):
        Outputs(tmp_path, NAMES).write(frame(str(tmp_path / "cat.png")), ROWS)
    assert np.array_equal(cv2.imread(str(tmp_path / "cat.png")), IMAGE)


def test_videos_have_the_rate_and_size_of_their_frames(tmp_path):
    outputs = Outputs(tmp_path, NAMES)
    for number in range(1, 5):
        outputs.write(frame("/a/cat.avi", "video", number, fps=12.5), ROWS)
    outputs.write(frame("/a/dog.mov", "video", 1, fps=5.0, image=IMAGE[:48, :64]), NOTHING)
    outputs.write(frame("/a/dog.mov", "video", 2, fps=5.0), NOTHING)  # another size: fitted to the first
    outputs.close()
    read, keys = {}, (cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FRAME_WIDTH)
    for name in ("cat.mp4", "dog.mp4"):
        capture = cv2.VideoCapture(str(tmp_path / name))
        read[name] = [capture.get(key) for key in keys]
    assert read == {"cat.mp4": [12.5, 4, 200], "dog.mp4": [5, 2, 64]}


def test_streams_are_written_side_by_side(tmp_path):
    outputs = Outputs(tmp_path, NAMES)
    for number in range(1, 4):
        for path in ("rtsp://host/a?x=1", "0"):
            outputs.write(frame(path, "stream", number, fps=10.0), NOTHING)
    outputs.close()
    assert files_below(tmp_path) == ["0.mp4", "rtsp___host_a_x_1.mp4"]
    assert cv2.VideoCapture(str(tmp_path / "0.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 3


@pytest.mark.parametrize(
    "times, values",
    [
        ([], []),
        ([0.0, 0.1, 0.2], [0, 1, 2]),  # at the rate of the file: one frame each
        ([0.0, 0.1, 0.4, 0.5], [0, 1, 1, 1, 2, 3]),  # two were left out: the one before stays
        ([0.0, 0.04, 0.06, 0.1], [0, 2]),  # faster than the file: it is time that counts
        ([0.3, 0.4], [0, 0, 0, 0, 1]),  # the first comes late
    ],
)
def test_a_video_plays_as_long_as_it_took(tmp_path, times, values):
    video = detect.VideoFile(tmp_path / "x.mp4", 10.0, (48, 64))
    for i, time in enumerate(times):
        video.write(np.full((48, 64, 3), 40 * i, dtype=np.uint8), time)
    video.close()
    capture, seen = cv2.VideoCapture(str(tmp_path / "x.mp4")), []
    while (read := capture.read())[0]:
        seen.append(round(float(read[1].mean()) / 40))
    assert seen == values


def test_every_source_has_a_name_of_its_own():
    names = OutputNames()
    paths = ["/a/cat.jpg", "/b/cat.jpg", "/a/cat.png", "/a/cat_2.jpg", "/a/x_7.jpg"]
    stems = {path: names.stem(frame(path)) for path in paths}
    stems["/a/x.mp4"] = names.stem(frame("/a/x.mp4", "video", 1))  # its frame 7 would be x_7 as well
    assert list(stems.values()) == ["cat", "cat_2", "cat_3", "cat_2_2", "x_7", "x_2"]
    assert names.stem(frame("/b/cat.jpg")) == "cat_2"


# ---- log lines and options


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
    assert detect.input_size(imgsz, 32) == expected


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
def test_wrong_options_are_named_before_a_folder_is_made(weights, pictures, tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        run(weights, pictures / "a", tmp_path, *flags)
    assert not (tmp_path / "out").exists()


def test_unknown_flag_names_the_nearest(capsys):
    with pytest.raises(SystemExit) as error:
        detect.main(["--save-text"])
    assert error.value.code == 2 and "--save-txt" in capsys.readouterr().err


def test_default_source(tmp_path, monkeypatch):
    """data/images where it is, else the built-in data set's validation pictures."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(detect, "ROOT", tmp_path)
    spec = SimpleNamespace(sources=lambda split: [tmp_path / split])
    monkeypatch.setattr(detect, "acquire", lambda data: spec if data == f"{tmp_path}/data/shapes.yaml" else None)
    assert detect.default_source() == str(tmp_path / "val")
    (tmp_path / "data/images").mkdir(parents=True)
    assert Path(detect.default_source()).resolve() == tmp_path / "data/images"


def test_names_from_the_data_file_only_where_the_model_has_none(tmp_path, capsys):
    (tmp_path / "data.yaml").write_text("names: [cat, dog]\n")
    data = str(tmp_path / "data.yaml")
    unnamed = SimpleNamespace(num_classes=2, names={0: "0", 1: "1"})
    assert detect.class_names(unnamed, data) == {0: "cat", 1: "dog"}
    assert "names no classes" in capsys.readouterr().out
    assert detect.class_names(SimpleNamespace(num_classes=2, names={0: "a", 1: "b"}), data) == {0: "a", 1: "b"}
    more = SimpleNamespace(num_classes=3, names={})  # than the file has
    assert detect.class_names(more, data) == {0: "0", 1: "1", 2: "2"}


def test_speed_is_a_mean_over_the_frames():
    speed = Speed()
    assert "Speed: 0.0ms" in str(speed)  # stopped before the first frame
    speed.add(Found(NOTHING, (64, 64), Timing(1.0, 10.0, 0.0)))
    speed.add(Found(NOTHING, (64, 128), Timing(3.0, 30.0, 1.0)))
    assert str(speed) == "Speed: 2.0ms pre-process, 20.0ms inference, 0.5ms NMS per image at shape (1, 3, 64, 128)"


# ---- the whole command line


def test_all_outputs_end_to_end(weights, pictures, tmp_path, capsys):
    flags = ["--save-txt", "--save-conf", "--save-csv", "--save-crop", "--vid-stride", "2"]
    folder = run(weights, f"{pictures}/*/*", tmp_path, *flags)
    assert folder == tmp_path / "out" / "exp"
    written = [file for file in files_below(folder) if not file.startswith("crops")]
    texts = [f"labels/{stem}.txt" for stem in ("cat", "cat_2", "cat_3", "cat_4_1", "cat_4_2", "cat_4_3")]
    assert written == sorted(["cat.jpg", "cat_2.jpg", "cat_3.png", "cat_4.mp4", "predictions.csv", *texts])
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
    assert lines[-1].startswith("Next: ")


def test_running_again_into_the_folder_changes_nothing(weights, pictures, tmp_path):
    flags = ["--save-txt", "--save-csv", "--save-crop", "--exist-ok"]
    folder = run(weights, pictures / "b", tmp_path, *flags)
    before = {file: (folder / file).read_bytes() for file in files_below(folder) if not file.endswith(".mp4")}
    run(weights, pictures / "b", tmp_path, *flags)
    assert before == {file: (folder / file).read_bytes() for file in files_below(folder) if not file.endswith(".mp4")}


def test_a_list_gets_annotated_pictures_too(weights, pictures, tmp_path):
    (tmp_path / "list.txt").write_text(f"{pictures}/a\n{pictures}/b/cat.png\n")
    assert files_below(run(weights, tmp_path / "list.txt", tmp_path)) == ["cat.jpg", "cat_2.png"]


def test_nosave_writes_nothing_and_says_so(weights, pictures, tmp_path, capsys):
    assert files_below(run(weights, pictures / "a", tmp_path, "--nosave")) == []
    assert "Nothing was saved" in capsys.readouterr().out


def test_unreadable_pictures_are_passed_over(weights, pictures, tmp_path, capsys):
    (pictures / "a" / "broken.jpg").write_bytes(b"?")
    assert files_below(run(weights, pictures / "a", tmp_path)) == ["cat.jpg"]
    assert "broken.jpg skipped" in capsys.readouterr().out


def test_nothing_readable_is_an_error(weights, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"?")
    with pytest.raises(UserError, match="nothing could be read"):
        run(weights, tmp_path / "broken.jpg", tmp_path)


def test_half_and_view_img_go_on_without(weights, pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(detect, "can_show_windows", lambda: False)
    assert files_below(run(weights, pictures / "a", tmp_path, "--half", "--view-img")) == ["cat.jpg"]
    text = capsys.readouterr().out
    assert "--half needs a GPU" in text and "--view-img: no window" in text


def test_interrupting_keeps_what_is_done(tmp_path, capsys):
    def frames():
        yield frame("/a/cat.mp4", "video", 1, fps=5.0)
        raise KeyboardInterrupt

    speed = detect.detect(frames(), lambda image: found(ROWS), Outputs(tmp_path, NAMES))
    assert speed.frames == 1 and "stopped" in capsys.readouterr().out
    assert cv2.VideoCapture(str(tmp_path / "cat.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 1


def test_augment_and_ensemble(weights, pictures, tmp_path):
    folder = run(weights, pictures / "a", tmp_path, "--augment", "--save-txt", "--weights", str(weights), str(weights))
    assert files_below(folder) == ["cat.jpg", "labels/cat.txt"]


def test_update_strips_the_weights(weights, pictures, tmp_path):
    full = tmp_path / "full.pt"
    content = {"model": describe_model(DetectionModel("yolov5n.yaml", num_classes=3)), "optimizer": {"x": 1}}
    write_checkpoint(full, content)
    size = full.stat().st_size
    run(full, pictures / "a", tmp_path, "--update", "--nosave")
    assert full.stat().st_size < 0.6 * size and "optimizer" not in torch.load(full, weights_only=True)


# ---- a trained model


@pytest.fixture(scope="module")
def published(reference):
    """The published yolov5n as a detector."""
    file = reference / "weights" / "yolov5n.pt"
    if not file.exists():
        pytest.skip(f"{file} is absent")
    return Detector(detect.load_ensemble([file], "cpu"), torch.device("cpu"), (640, 640), conf_thres=0.5)


def test_sure_detections_are_labelled_objects(published, reference):
    """On pictures of coco128, nearly every detection over 0.5 overlaps a label of its class by half or more."""
    hits = total = 0
    for picture in ("000000000036", "000000000072", "000000000081", "000000000077"):
        image = cv2.imread(str(reference / f"datasets/coco128/images/train2017/{picture}.jpg"))
        labels = np.loadtxt(reference / f"datasets/coco128/labels/train2017/{picture}.txt", ndmin=2)
        height, width = image.shape[:2]
        boxes = torch.as_tensor(xywh_to_xyxy(labels[:, 1:]) * [width, height, width, height]).float()
        result = published(image)
        assert max(result.input_shape) == 640 and all(side % 32 == 0 for side in result.input_shape)
        overlap = pairwise_iou(torch.as_tensor(result.rows[:, :4]), boxes).numpy()
        same = result.rows[:, 5:6] == labels[None, :, 0]
        hits += int(((overlap >= 0.5) & same).any(axis=1).sum())
        total += len(result.rows)
        assert (result.rows[:, :4] == result.rows[:, :4].round()).all()
        assert (np.diff(result.rows[:, 4]) >= 0).all()
    assert total >= 4 and hits / total >= 0.75


def test_a_tall_picture_is_boxed_by_both_its_sides(published):
    """Nothing on a grey picture; the input is the smallest rectangle of multiples of the stride."""
    result = published(np.full((300, 90, 3), 114, dtype=np.uint8))
    assert result.input_shape == (640, 192) and result.rows.shape == (0, 6)


def test_sources_and_detector_fit_together(published, reference):
    source = open_source(reference / "datasets/coco128/images/train2017/000000000081.jpg")
    (only,) = [published(frame.image) for frame in source]
    assert only.rows[-1, 5] == 4  # an aeroplane, and the surest comes last
