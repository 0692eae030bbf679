"""Predictor: from images to detections, with a tiny and with a trained model."""

from dataclasses import astuple

import cv2
import numpy as np
import pytest
import torch

from models.loading import load_ensemble
from models.yolo import DetectionModel
from utils.boxes import pairwise_iou, xywh_to_xyxy
from utils.checkpoint import describe_model, write_checkpoint
from utils.images.sources import open_source
from utils.inference.nms_settings import NmsSettings
from utils.inference.predictor import Predictor


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Return the checkpoint of an untrained model with 3 classes."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "tiny.pt"
    write_checkpoint(file, {"model": describe_model(DetectionModel("yolov5n.yaml", num_classes=3))}, kind="weights")
    return file


def test_detections_know_their_image(weights):
    image = np.zeros((48, 64, 3), np.uint8)
    predictor = Predictor(load_ensemble([weights]), (64, 64), NmsSettings(1e-4, max_det=3))
    first, second = predictor([image, image], ["a.jpg", "b.jpg"])
    assert (first.path, second.path, first.shape, first.input_shape) == ("a.jpg", "b.jpg", (48, 64), (64, 64))
    assert first.names == {0: "0", 1: "1", 2: "2"} and predictor([image])[0].path == ""
    named = Predictor(predictor.model, (64, 64), names={0: "a", 1: "b", 2: "c"})
    assert named([image])[0].names == {0: "a", 1: "b", 2: "c"} and predictor([]) == []


@pytest.mark.parametrize("shapes, batches", [
    ([(48, 64), (48, 64)], [2]),
    ([(48, 64), (96, 128), (24, 32)], [3]),  # of one size for the network
    ([(32, 64), (64, 32)], [1, 1]),
    ([(48, 64)], [1]),
])  # fmt: skip
def test_a_batch_finds_what_single_images_do(weights, shapes, batches, monkeypatch):
    predictor = Predictor(load_ensemble([weights]), (64, 64), NmsSettings(1e-4, max_det=3))
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (*shape, 3), dtype=np.uint8) for shape in shapes]
    alone = [predictor([image])[0] for image in images]
    sizes, forward = [], predictor.model.forward

    def counted(x, **options):
        sizes.append(len(x))
        return forward(x, **options)

    monkeypatch.setattr(predictor.model, "forward", counted)
    together = predictor(images)
    assert sizes == batches and len(together) == len(images)
    for one, other in zip(alone, together, strict=True):
        assert one.input_shape == other.input_shape and len(one.rows) == 3
        assert np.allclose(one.rows, other.rows, atol=1e-4)
        assert min(astuple(other.speed)) > 0


@pytest.fixture(scope="module")
def published(reference):
    """Return a predictor with the published yolov5n."""
    file = reference / "weights" / "yolov5n.pt"
    if not file.exists():
        pytest.skip(f"{file} is absent")
    return Predictor(load_ensemble([file], "cpu"), (640, 640), NmsSettings(conf_thres=0.5))


def test_sure_detections_are_labelled_objects(published, reference):
    """Nearly every detection over 0.5 on images of coco128 overlaps a label of its class by half or more."""
    hits = total = 0
    for stem in ("000000000036", "000000000072", "000000000081", "000000000077"):
        image = cv2.imread(str(reference / f"datasets/coco128/images/train2017/{stem}.jpg"))
        labels = np.loadtxt(reference / f"datasets/coco128/labels/train2017/{stem}.txt", ndmin=2)
        height, width = image.shape[:2]
        boxes = torch.as_tensor(xywh_to_xyxy(labels[:, 1:]) * [width, height, width, height]).float()
        (result,) = published([image])
        assert max(result.input_shape) == 640 and all(side % 32 == 0 for side in result.input_shape)
        overlap = pairwise_iou(torch.as_tensor(result.boxes_xyxy), boxes).numpy()
        same = result.classes[:, None] == labels[None, :, 0]
        hits += int(((overlap >= 0.5) & same).any(axis=1).sum())
        total += len(result.rows)
        assert result.shape == (height, width)
        assert (np.diff(result.confidence) <= 0).all()
    assert total >= 4 and hits / total >= 0.75


def test_a_tall_image_is_boxed_by_both_its_sides(published):
    """Nothing on a grey image. The input is the smallest rectangle of multiples of the stride."""
    (result,) = published([np.full((300, 90, 3), 114, dtype=np.uint8)])
    assert result.input_shape == (640, 192) and result.rows.shape == (0, 6)


def test_sources_and_predictor_fit_together(published, reference):
    source = open_source(reference / "datasets/coco128/images/train2017/000000000081.jpg")
    ((only,),) = [published([frame.image]) for frame in source]
    assert only.classes[0] == 4  # an aeroplane; the highest confidence comes first
