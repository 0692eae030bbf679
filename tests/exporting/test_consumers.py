"""Exports in the programs of other people: each finds what detect.py finds."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest

import export
from utils.detections import Detections
from utils.inference.nms_settings import NmsSettings
from utils.inference.open_model import open_exported
from utils.inference.predictor import Predictor
from utils.inference.runtime import RuntimeSettings

SIDE = 320
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def image(reference) -> np.ndarray:
    """Return a photo with people and other objects, BGR, in the shape of the network's input."""
    photo = cv2.imread(str(reference / "datasets" / "coco128" / "images" / "train2017" / "000000000241.jpg"))
    return cv2.resize(photo, (SIDE, SIDE))


@pytest.fixture(scope="module")
def exported(reference, tmp_path_factory):
    """Return a function that exports yolov5n with more flags, once for each of them."""
    folder, made = tmp_path_factory.mktemp("exports"), {}

    def make(*flags: str) -> Path:
        if flags not in made:
            weights = folder / f"{'-'.join(flags).replace('--', '') or 'plain'}.pt"
            weights.symlink_to(reference / "weights" / "yolov5n.pt")
            words = ["--weights", weights, "--include", "onnx", "--imgsz", SIDE, "--no-verify", *flags]
            made[flags] = export.main(list(map(str, words)))[0]
        return made[flags]

    return make


def network_input(image: np.ndarray) -> np.ndarray:
    """Return (1, 3, H, W) RGB in 0…1."""
    return np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1))[None].astype(np.float32) / 255


def run(file: Path, image: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_inputs()] == ["images"]
    (output,) = session.run(["output0"], {"images": network_input(image)})
    return output


def assert_same(output: np.ndarray, expected: np.ndarray) -> None:
    """Compare outputs. Of layouts with one class a row, rows without a score may have another best class."""
    assert output.shape == expected.shape
    if expected.shape[2] == 6:
        scored = expected[..., 4] > 0.01
        output, expected = output[scored], expected[scored]
        assert len(expected)
    assert np.allclose(output, expected, atol=2e-2, rtol=1e-3)


def detect(file: Path, image: np.ndarray, **settings: object) -> Detections:
    """Return what detect.py finds with an export."""
    model = open_exported(file, RuntimeSettings())
    return Predictor(model, (SIDE, SIDE), NmsSettings(**settings))([image])[0]


def parse_like_frigate(output: np.ndarray) -> np.ndarray:
    """Read the output of `yolo-generic` by Frigate's published rule.

    Columns are objects: cx, cy, w, h in pixels, then scores of classes. Those of a best score above 0.4 are suppressed
    by OpenCV at an overlap of 0.4, over all classes. Return at most 20 rows: class, score, top, left, bottom, right in
    0…1.
    """
    objects = output[0].T
    best = objects[:, 4:].argmax(1)
    scores = objects[np.arange(len(objects)), 4 + best]
    corners = objects[:, :2] - objects[:, 2:4] / 2
    boxes = np.concatenate((corners, objects[:, 2:4]), axis=1)
    kept = cv2.dnn.NMSBoxes(boxes.tolist(), scores.tolist(), 0.4, 0.4)[:20]
    left, top, width, height = boxes[kept].T / SIDE
    return np.stack((best[kept], scores[kept], top, left, top + height, left + width), axis=1)


def test_frigate_reads_the_layout_yolov8(exported, image):
    file = exported("--layout", "yolov8")
    output = run(file, image)
    assert output.shape == (1, 84, 6300)
    rows = parse_like_frigate(output)
    found = detect(file, image, conf_thres=0.4, iou_thres=0.4, max_det=20, agnostic=True)
    assert len(rows) == len(found) >= 3
    assert np.array_equal(rows[:, 0], found.classes) and np.allclose(rows[:, 1], found.confidence, atol=1e-6)
    corners = (rows[:, [3, 2, 5, 4]] * SIDE).clip(0, SIDE)
    assert np.allclose(corners, found.boxes_xyxy, atol=1e-3)


def parse_like_deepstream(output: np.ndarray, threshold: float, overlap: float) -> np.ndarray:
    """Read rows x1, y1, x2, y2 in pixels of the input, score, class, as DeepStream does with cluster-mode 2.

    Rows above the threshold are cut to the input, then suppressed within each class. Return them by score.
    """
    rows = output[0][output[0][:, 4] >= threshold]
    rows[:, :4] = rows[:, :4].clip(0, SIDE)
    kept = []
    for row in rows[rows[:, 4].argsort()[::-1]]:
        if all(one[5] != row[5] or iou(one, row) <= overlap for one in kept):
            kept.append(row)
    return np.array(kept)


def iou(one: np.ndarray, other: np.ndarray) -> float:
    sides = np.minimum(one[2:4], other[2:4]) - np.maximum(one[:2], other[:2])
    shared = sides.clip(0).prod()
    return shared / ((one[2:4] - one[:2]).prod() + (other[2:4] - other[:2]).prod() - shared)


def test_deepstream_reads_its_layout(exported, image):
    file = exported("--layout", "deepstream")
    output = run(file, image)
    assert output.shape == (1, 6300, 6)
    rows = parse_like_deepstream(output, 0.25, 0.45)
    found = detect(file, image, conf_thres=0.25, iou_thres=0.45)
    assert len(rows) == len(found) >= 4
    assert np.array_equal(rows[:, 5], found.classes) and np.allclose(rows[:, :5], found.rows[:, :5], atol=1e-3)


def test_layouts_agree(exported, image):
    """The same objects are in each layout, so that a program may choose the one that it can read."""
    expected = detect(exported(), image).rows
    assert len(expected) >= 4
    for flags in (("--layout", "yolov8"), ("--layout", "deepstream")):
        assert np.allclose(detect(exported(*flags), image).rows, expected, atol=1e-3)


@pytest.fixture(scope="module", params=["4.11", "4"])
def old_opencv(request) -> str:
    """Return a Python with an OpenCV before 5, in an environment that is kept beside the project's own."""
    folder = ROOT / f".venv-opencv-{request.param}"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        package = f"opencv-python-headless=={request.param}.*"
        installed = subprocess.run([python, "-m", "pip", "install", "--quiet", package], capture_output=True, text=True)
        if installed.returncode:
            pytest.skip(f"no {package}: {installed.stderr.strip().splitlines()[-1]}")
        (folder / "ready").touch()
    return str(python)


def run_opencv(python: str, file: Path, image: np.ndarray, folder: Path) -> tuple[str, np.ndarray]:
    """Return the version of an OpenCV and its output."""
    np.save(folder / "input.npy", network_input(image))
    words = [python, ROOT / "tests" / "exporting" / "opencv_reader.py", file, folder / "input.npy", folder / "out.npy"]
    ran = subprocess.run(list(map(str, words)), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout.strip(), np.load(folder / "out.npy")


@pytest.mark.long
@pytest.mark.parametrize("flags", [(), ("--layout", "yolov8"), ("--layout", "deepstream"), ("--dynamo",)], ids=str)
def test_older_opencv_reads_the_file(old_opencv, exported, image, tmp_path, flags):
    version, output = run_opencv(old_opencv, exported(*flags), image, tmp_path)
    assert version.startswith("4.")
    assert_same(output, run(exported(*flags), image))


@pytest.mark.long
@pytest.mark.parametrize("flags", [(), ("--layout", "yolov8"), ("--layout", "deepstream"), ("--dynamo",)], ids=str)
def test_opencv_5_reads_the_file(exported, image, tmp_path, flags):
    version, output = run_opencv(sys.executable, exported(*flags), image, tmp_path)
    assert int(version.split(".")[0]) >= 5
    assert_same(output, run(exported(*flags), image))


@pytest.mark.long
@pytest.mark.parametrize(
    "flags", [(), ("--layout", "yolov8"), ("--layout", "deepstream"), ("--dynamic",), ("--nms",)], ids=str
)
def test_openvino_reads_the_file(exported, image, flags):
    openvino = pytest.importorskip("openvino")
    model = openvino.Core().compile_model(
        exported(*flags), "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    )
    output = model(network_input(image))[0]
    assert_same(output, run(exported(*flags), image))


@pytest.mark.long
def test_supervision_takes_the_arrays(exported, image):
    supervision = pytest.importorskip("supervision")
    found = detect(exported(), image)
    taken = supervision.Detections(xyxy=found.boxes_xyxy, confidence=found.confidence, class_id=found.classes)
    assert len(taken) == len(found) >= 4
    people = taken[taken.class_id == 0]
    assert len(people) == (found.classes == 0).sum() >= 1
    assert np.array_equal(people.xyxy, found.boxes_xyxy[found.classes == 0])
    again = taken.with_nms(threshold=0.45)
    assert len(again) == len(taken), "suppressed already"
    drawn = supervision.BoxAnnotator().annotate(image.copy(), taken)
    assert (drawn != image).any()
