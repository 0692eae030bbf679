"""Matrix of exports: formats, layouts, heads and input shapes agree with PyTorch, or are refused with a reason.

The whole matrix is long (`make test-long`). Part of it runs in the default suite, with a tiny model.
"""

from pathlib import Path

import cv2
import pytest
import torch
import yaml

from benchmarks.export_matrix import (
    MODELS,
    VARIANTS,
    make_request,
    prove_model,
    random_model,
    sample_images,
    spread_head,
)
from models.loading import load_model
from models.yolo import DetectionModel
from utils.errors import UserError
from utils.exporting.detection_pairs import PairRule, pair_detections, sum_pairings
from utils.exporting.proof_images import open_proof_images
from utils.exporting.request import ExportRequest
from utils.exporting.writers import WRITERS, write_format
from utils.formats import FORMATS
from utils.images.tiles import Tiling
from utils.inference.open_model import open_exported
from utils.inference.predictor import Predictor
from utils.inference.runtime import RuntimeSettings

ROOT = Path(__file__).resolve().parents[2]
FLOAT = [variant for variant in VARIANTS if variant != "half"]
# What a format cannot hold: (format, variant) -> part of the reason.
REFUSED = {
    ("ncnn", "nms"): "omit --nms",
    ("ncnn", "deepstream"): "ncnn has no operator for",
    ("ncnn", "batch 16"): "omit --batch-size",
    ("ncnn", "dynamic"): "omit --dynamic",
    ("tflite", "nms"): "omit --nms",
    ("tflite", "dynamic"): "omit --dynamic",
    ("tflite", "half"): "omit --half",
}


@pytest.fixture
def kind(request):
    """Return the format of a test, which is skipped if a package or device is absent. CI has those of its part."""
    try:
        WRITERS[request.param].check(ExportRequest((64, 64)), DetectionModel("yolov5n.yaml"))
    except UserError as absent:
        pytest.skip(str(absent))
    return request.param


def require_agreement(rows, *, least_found, least_matched=0.995):
    """Assert that each file agrees, has found objects, and that only the expected ones are refused."""
    assert rows
    for row in rows:
        expected = REFUSED.get((row.format, row.variant))
        if expected or row.proof is None:
            assert expected and row.proof is None and expected in row.refused, row.cells()
            continue
        others = [text for text in row.proof.differences if "have a partner" not in text]
        assert not others and row.proof.pairing.share >= least_matched, row.cells()
        assert row.proof.pairing.reference >= least_found, row.cells()


def write_yaml(folder, root, images, names):
    file = folder / f"{root.name}.yaml"
    file.write_text(f"path: {root}\ntrain: {images}\nval: {images}\nnames: {names}\n")
    return file


@pytest.fixture(scope="module")
def coco128(reference, tmp_path_factory):
    """Write a YAML of coco128 and return it."""
    names = yaml.safe_load((ROOT / "data" / "coco128.yaml").read_text())["names"]
    return write_yaml(tmp_path_factory.mktemp("data"), reference / "datasets" / "coco128", "images/train2017", names)


@pytest.fixture(scope="module")
def boards(reference, tmp_path_factory):
    """Write a YAML of images of circuit boards, whose sides are as 3 to 4, and return it."""
    root = reference / "datasets" / "microcontrollers"
    return write_yaml(tmp_path_factory.mktemp("data"), root, "images/val", ["a", "b", "c", "d"])


def open_images(data, model, shape, count):
    return open_proof_images(str(data), typed=False, names=model.names, shape=shape, count=count)


@pytest.mark.parametrize("kind, variants", [
    ("onnx", ["yolov5", "nms"]),
    ("torchscript", ["raw", "deepstream"]),
    pytest.param("onnx", FLOAT, marks=pytest.mark.long),
    pytest.param("torchscript", FLOAT, marks=pytest.mark.long),
], indirect=["kind"])  # fmt: skip
def test_files_of_a_tiny_model_agree(kind, variants, tiny_cfg, tiny_data, tmp_path):
    torch.manual_seed(0)
    model = DetectionModel(tiny_cfg, num_classes=2).eval()
    model.names = {0: "dark", 1: "bright"}
    model = spread_head(model, sample_images(str(tiny_data), (64, 96)), share=0.02).fuse()
    images = open_images(tiny_data, model, (64, 96), 0)
    rows = prove_model(model, "tiny", images, formats=[kind], variants=variants, folder=tmp_path)
    require_agreement(rows, least_found=3)


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", WRITERS, indirect=True)
def test_yolov5n_agrees_on_coco128(kind, reference, coco128, tmp_path):
    model = load_model(reference / "weights" / "yolov5n.pt")
    images = open_images(coco128, model, (640, 640), 0)
    rows = prove_model(model, "yolov5n", images, formats=[kind], variants=list(VARIANTS), folder=tmp_path)
    require_agreement(rows, least_found=400)
    assert all(row.proof.observation.metrics is not None for row in rows if row.proof)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", WRITERS, indirect=True)
@pytest.mark.parametrize("name", MODELS)
def test_other_heads_agree(name, kind, boards, tmp_path):
    """Images fill the input: in uniform padding random weights give equal confidences, which noise ranks.

    They do so elsewhere now and then, too.
    """
    shape = 192, 256
    model = random_model(name, sample_images(str(boards), shape))
    images = open_images(boards, model, shape, 16)
    variants = FLOAT if name == "yolov5s" else ["yolov5", "raw", "nms"]
    rows = prove_model(model, name, images, formats=[kind], variants=variants, folder=tmp_path)
    require_agreement(rows, least_found=16, least_matched=0.99)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", WRITERS, indirect=True)
def test_a_trained_model_agrees(kind, trained, tiny_data, tmp_path):
    model = load_model(trained)
    images = open_images(tiny_data, model, (64, 96), 0)
    rows = prove_model(model, "trained", images, formats=[kind], variants=FLOAT, folder=tmp_path)
    require_agreement(rows, least_found=3)


@pytest.fixture(scope="module")
def trained(tiny_data, tiny_cfg, tmp_path_factory):
    """Train a tiny model until it finds about half of the boxes of the tiny data. Return its weights."""
    from tiny_training import train_flags

    import train

    project = tmp_path_factory.mktemp("trained")
    hyp = str(ROOT / "data" / "quickstart" / "hyp.yaml")
    recipe = ["--optimizer", "AdamW", "--hyp", hyp, "--nbs", "8"]
    train.main(train_flags(tiny_data, tiny_cfg, project, "--noplots", *recipe, epochs=100))
    return project / "run" / "weights" / "best.pt"


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", WRITERS, indirect=True)
@pytest.mark.parametrize("variant, least_matched", [
    ("yolov5", 0.99),  # fixed shape, batch of 1
    ("batch 16", 0.99),  # more than the tiles of an image
    ("dynamic", 0.99),
    ("nms", 0.99),
])  # fmt: skip
def test_tiles_give_the_boxes_of_the_weights(kind, variant, least_matched, reference, tmp_path):
    """Images and tiles are square, so that an input of fixed shape has no other padding than a free one."""
    if (kind, variant) in REFUSED:
        pytest.skip(f"{kind} refuses it: {REFUSED[kind, variant]}")
    model = load_model(reference / "weights" / "yolov5n.pt")
    request = make_request(variant, (192, 192), 32)
    path = write_format(FORMATS[kind], model, tmp_path / "yolov5n.pt", request)
    exported = open_exported(path, RuntimeSettings(half=request.half))
    files = sorted((reference / "datasets" / "coco128" / "images" / "train2017").glob("*.jpg"))
    images = [image[:416, :416] for image in map(cv2.imread, map(str, files)) if min(image.shape[:2]) >= 416][:12]
    found = []
    for network in (model, exported):
        predictor = Predictor(network, (192, 192), tiling=Tiling(256))
        found.append([torch.from_numpy(result.rows) for result in predictor(images)])
        assert (predictor.tiles.num_images, predictor.tiles.num_tiles) == (12, 48)
    pairing = sum_pairings(pair_detections(a, b, PairRule(), 0.25).counts for a, b in zip(*found, strict=True))
    assert pairing.reference >= 30 and pairing.share >= least_matched, pairing
