"""Twenty small programs as users write them for a YOLOv5 detector, each run as it is in a folder of its own.

They share one process with a tiny model. All but the last ones see nothing of this project but `torch.hub.load`.
"""

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from models.yolo import DetectionModel
from utils.checkpoint import describe_model, write_checkpoint

ROOT = Path(__file__).resolve().parents[1]

# Each program finds the names FOLDER (of the project), DATA (its YAML) and CFG, and in its folder best.pt, bus.jpg,
# zidane.jpg, images/ and clip.mp4. The model finds two objects or more in everything.
PROGRAMS = {
    "first steps": """
import torch
model = torch.hub.load(FOLDER, "custom", "best.pt", source="local")
results = model("zidane.jpg")
results.print()
assert len(results.xyxy) == 1 and results.xyxy[0].shape[1] == 6
""",
    "a batch of everything": """
import cv2, torch
from pathlib import Path
from PIL import Image
model = torch.hub.load(FOLDER, "custom", path="best.pt", source="local", device="cpu")
batch = [Image.open("zidane.jpg"), cv2.imread("bus.jpg")[..., ::-1], "zidane.jpg", Path("bus.jpg")]
results = model(batch, size=128)
results.save()
assert sorted(os.listdir("runs/detect/exp")) == ["bus.jpg", "image1.jpg", "zidane.jpg", "zidane2.jpg"]
assert len(results) == 4 and torch.equal(results.xyxy[1], results.xyxy[3])
""",
    "a table, sorted": """
import torch
model = torch.hub.load(FOLDER, "custom", path="best.pt", source="local")
table = model("bus.jpg", size=128).pandas().xyxy[0]
ordered = table.sort_values("xmin")
names = table["name"].value_counts().to_dict()
assert ordered["xmin"].is_monotonic_increasing and sum(names.values()) == len(table)
assert set(names) <= {"dark", "bright"}
ordered.to_csv("found.csv", index=False)
assert open("found.csv").readline().strip() == "xmin,ymin,xmax,ymax,confidence,class,name"
""",
    "JSON for a web service": """
import io, json, torch
from PIL import Image
model = torch.hub.load(FOLDER, "custom", path="best.pt", source="local")
def answer(body):
    image = Image.open(io.BytesIO(body))
    return model(image, size=128).pandas().xyxy[0].to_json(orient="records")
records = json.loads(answer(open("zidane.jpg", "rb").read()))
assert {"xmin", "name", "confidence", "class"} <= set(records[0]) and isinstance(records[0]["class"], int)
""",
    "own thresholds": """
import torch
model = torch.hub.load(FOLDER, "custom", path="best.pt", source="local")
everything = len(model("bus.jpg", size=128).xyxy[0])
model.conf = 0.26
model.iou = 0.3
model.agnostic = True
model.multi_label = False
model.classes = [1]
model.max_det = 3
model.amp = False
found = model("bus.jpg", size=128).xyxy[0]
assert 0 < len(found) <= 3 < everything and set(found[:, 5].tolist()) == {1.0} and found[:, 4].min() > 0.26
""",
    "crops": """
import torch
model = torch.hub.load(FOLDER, "custom", path="best.pt", source="local")
crops = model(["bus.jpg", "zidane.jpg"], size=128).crop(save=True)
labels = {crop["label"].split()[0] for crop in crops}
assert labels == set(os.listdir("runs/detect/exp/crops")) and all(crop["im"].ndim == 3 for crop in crops)
assert float(crops[0]["conf"]) > 0.25 and int(crops[0]["cls"]) in (0, 1)
""",
    "boxes drawn by the program": """
import cv2, torch
model = torch.hub.load(FOLDER, "custom", path="best.pt", source="local")
frame = cv2.imread("bus.jpg")
results = model(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), size=128)
for *box, confidence, cls in results.xyxy[0].tolist():
    x1, y1, x2, y2 = map(int, box)
    cv2.rectangle(frame, (x1, y1), (x2, y2), (0, 255, 0), 2)
    text = f"{model.names[int(cls)]} {confidence:.2f}"
    cv2.putText(frame, text, (x1, y1 + 9), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 255))
assert not (frame == cv2.imread("bus.jpg")).all()
""",
    "labels and coordinates": """
import torch
model = torch.hub.load(FOLDER, "custom", path="best.pt", source="local")
def score_frame(frame):
    model.to("cpu")
    results = model([frame], size=128)
    return results.xyxyn[0][:, -1].numpy(), results.xyxyn[0][:, :-1].numpy()
labels, coordinates = score_frame("bus.jpg")
assert len(labels) == len(coordinates) > 0 and coordinates.shape[1] == 5 and coordinates.max() <= 1
""",
    "a video, frame by frame": """
import cv2, torch
model = torch.hub.load(FOLDER, "custom", path="best.pt", source="local")
capture = cv2.VideoCapture("clip.mp4")
count = 0
while capture.isOpened():
    ok, frame = capture.read()
    if not ok:
        break
    shown = model(frame[:, :, ::-1], size=128).render()[0]
    assert shown.shape == frame.shape
    count += 1
capture.release()
assert count == 4
""",
    "a video written again": """
import cv2, numpy as np, torch
model = torch.hub.load(FOLDER, "custom", path="best.pt", source="local")
capture = cv2.VideoCapture("clip.mp4")
size = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
writer = cv2.VideoWriter("out.mp4", cv2.VideoWriter.fourcc(*"mp4v"), 5, size)
while True:
    ok, frame = capture.read()
    if not ok:
        break
    results = model(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), size=128)
    writer.write(cv2.cvtColor(np.squeeze(results.render()), cv2.COLOR_RGB2BGR))
writer.release(), capture.release()
assert os.path.getsize("out.mp4") > 1000
""",
    "counting": """
import collections, glob, torch
model = torch.hub.load(FOLDER, "custom", path="best.pt", source="local", _verbose=False)
total = collections.Counter()
for file in sorted(glob.glob("images/*.jpg")):
    results = model(file, size=128)
    for cls in results.pred[0][:, -1].unique():
        total[results.names[int(cls)]] += int((results.pred[0][:, -1] == cls).sum())
assert total["dark"] + total["bright"] >= 4
""",
    "test-time augmentation": """
import torch
model = torch.hub.load(FOLDER, "custom", path="best.pt", source="local")
plain, augmented = model("bus.jpg", size=128), model("bus.jpg", size=128, augment=True)
assert plain.s == augmented.s and not torch.equal(plain.xywh[0], augmented.xywh[0])
""",
    "an ensemble": """
import torch
model = torch.hub.load(FOLDER, "custom", path=["best.pt", "best.pt"], source="local")
assert len(model("bus.jpg", size=128).xyxy[0]) > 0 and model.names == {0: "dark", 1: "bright"}
""",
    "a tensor, and the network's own output": """
import torch
model = torch.hub.load(FOLDER, "custom", path="best.pt", source="local")
output = model(torch.zeros(2, 3, 128, 128))[0]
assert output.shape == (2, 3 * (16 * 16 + 8 * 8 + 4 * 4), 7) and not output.requires_grad
""",
    "the bare network, to be trained further": """
import torch
model = torch.hub.load(FOLDER, "custom", path="best.pt", source="local", autoshape=False).train()
levels = model(torch.rand(1, 3, 64, 64))
sum(level.mean() for level in levels).backward()
assert any(parameter.grad is not None for parameter in model.parameters())
""",
    "supervision": """
import cv2, supervision as sv, torch
model = torch.hub.load(FOLDER, "custom", path="best.pt", source="local")
image = cv2.imread("bus.jpg")
results = model(image[:, :, ::-1], size=128)
detections = sv.Detections.from_yolov5(results)
assert len(detections) == len(results.xyxy[0]) > 0
only = detections[(detections.class_id == 0) & (detections.confidence > 0.25)]
drawn = sv.BoxAnnotator().annotate(scene=image.copy(), detections=only)
assert (drawn != image).any() and only.class_id.max() == 0
named = results.detections[0].to_supervision()
assert named.data["class_name"][0] == results.names[int(named.class_id[0])]
""",
    "results, one image at a time": """
import torch
model = torch.hub.load(FOLDER, "custom", path="best.pt", source="local")
results = model(["bus.jpg", "zidane.jpg"], size=128)
for one, name in zip(results.tolist(), ["bus.jpg", "zidane.jpg"]):
    assert one.files == [name] and one.n == 1
    one.print()
print(results, len(results), results.t, results.s, results.names)
""",
    "training in a notebook": """
sys.path.insert(0, FOLDER)
import train
short = dict(imgsz=64, epochs=1, batch_size=8, workers=0, noplots=True)
result = train.run(data=DATA, cfg=CFG, weights="", device="cpu", **short)
assert result.best.is_file() and result.save_dir.name == "exp"
""",
    "validation and detection": """
sys.path.insert(0, FOLDER)
import detect, val
results, maps, times = val.run(data=DATA, weights="best.pt", imgsz=64, batch_size=4, workers=0, device="cpu")
p, r, map50, map_ = results[:4]
assert 0 <= map_ <= map50 <= 1 and len(maps) == 2
folder = detect.run(weights="best.pt", source="images", imgsz=(128, 128), conf_thres=0.3, save_txt=True, device="cpu")
assert len(os.listdir(folder / "labels")) == 2
""",
    "flags as a namespace": """
sys.path.insert(0, FOLDER)
sys.argv = ["detect.py", "--weights", "best.pt", "--source", "bus.jpg"]
import detect
opt = detect.parse_opt()
opt.imgsz, opt.nosave, opt.save_csv = [128], True, True
folder = detect.main(opt)
assert (folder / "predictions.csv").is_file() and not (folder / "bus.jpg").exists()
""",
}

RUNNER = """
import contextlib, io, os, runpy, shutil, sys, traceback
names, root = {names!r}, {root!r}
for number, name in enumerate(names):
    folder = os.path.join(root, str(number))
    shutil.copytree(os.path.join(root, "given"), folder)
    os.chdir(folder)
    path, argv = list(sys.path), list(sys.argv)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            runpy.run_path(os.path.join(root, f"program{{number}}.py"), {settings!r} | {{"os": os, "sys": sys}})
        print(f"passed: {{name}}", flush=True)
    except BaseException:
        print(f"failed: {{name}}\\n{{traceback.format_exc()}}", flush=True)
    sys.path[:], sys.argv[:] = path, argv
"""


@pytest.fixture(scope="module")
def outcomes(tiny_data, tiny_cfg, tmp_path_factory):
    """Run all programs in one process. Return what it printed."""
    root = tmp_path_factory.mktemp("programs")
    write_given(root / "given", tiny_cfg)
    for number, program in enumerate(PROGRAMS.values()):
        (root / f"program{number}.py").write_text(program)
    settings = {"FOLDER": str(ROOT), "DATA": str(tiny_data), "CFG": str(tiny_cfg)}
    script = RUNNER.format(names=list(PROGRAMS), root=str(root), settings=settings)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, timeout=500,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    return done.stdout + done.stderr


def write_given(folder, cfg):
    """Write what the programs find in their folder."""
    (folder / "images").mkdir(parents=True)
    torch.manual_seed(0)
    model = DetectionModel(cfg, num_classes=2)
    model.names = {0: "dark", 1: "bright"}
    with torch.no_grad():
        for convolution in model.head.m:
            convolution.bias.view(3, -1)[:, 4] += 6
    write_checkpoint(folder / "best.pt", {"model": describe_model(model)}, kind="weights")
    rng = np.random.default_rng(0)
    writer = cv2.VideoWriter(str(folder / "clip.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 5, (128, 96))
    for name in ("bus", "zidane", "images/a", "images/b"):
        image = rng.integers(0, 256, (96, 128, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{name}.jpg"), image)
        writer.write(image)
    writer.release()


@pytest.mark.parametrize("name", PROGRAMS)
def test_program(outcomes, name):
    assert f"passed: {name}\n" in outcomes, outcomes[-6000:]


def test_there_are_twenty():
    assert len(PROGRAMS) == 20
