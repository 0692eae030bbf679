"""Images of five channels and 16 bits, from training to every kind of file and call that runs the model."""

import cv2
import numpy as np
import pytest
import torch
import yaml

import detect
import export
import hubconf
import train
import val
from utils.errors import UserError
from utils.pixel_format import PixelFormat

FIVE = PixelFormat(5, 16)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Write twelve images of five pages of 16 bits with a bright or a dark square, and return their YAML."""
    folder = tmp_path_factory.mktemp("five")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for part in ("images", "labels"):
            (folder / part / split).mkdir(parents=True)
        for k in range(12):
            image = rng.integers(20_000, 30_000, (64, 64, 5)).astype(np.uint16)
            image[16:40, 16:40] = 65_000 if k % 2 else 500
            pages = [np.ascontiguousarray(page) for page in image.transpose(2, 0, 1)]
            assert cv2.imwritemulti(str(folder / f"images/{split}/{k}.tiff"), pages)
            (folder / f"labels/{split}/{k}.txt").write_text(f"{k % 2} .4375 .4375 .375 .375\n")
    file = folder / "five.yaml"
    content = {
        "train": "images/train",
        "val": "images/val",
        "names": ["dark", "bright"],
        "channels": 5,
        "bit_depth": 16,
    }
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.fixture(scope="module")
def best(data, tiny_cfg, tmp_path_factory):
    """Return the weights of a short training that was interrupted and resumed."""
    settings = dict(
        imgsz=64, batch_size=4, workers=0, device="cpu", noplots=True, project=str(tmp_path_factory.mktemp("runs"))
    )
    first = train.run(data=data, cfg=tiny_cfg, weights="", epochs=1, **settings)
    train.run(resume=str(first.save_dir / "weights/last.pt"), epochs=2)
    return first.save_dir / "weights/best.pt"


def test_programs_follow_the_weights(best, data, tmp_path):
    measured = val.run(data=data, weights=best, imgsz=64, workers=0, device="cpu", project=tmp_path / "val")
    assert measured.metrics.map50 >= 0 and (measured.save_dir / "val_batch0_labels.jpg").is_file()
    settings = dict(weights=best, imgsz=64, conf_thres=0.0, max_det=2, device="cpu", save_txt=True, save_crop=True)
    found = detect.run(source=data.parent / "images/val", **settings, project=tmp_path / "detect")
    assert len(list((found / "labels").iterdir())) == 12
    assert cv2.imread(str(found / "3.tiff")).shape == (64, 64, 3)  # drawn on the first three channels


def test_exports_agree_and_say_what_they_take(best, data, tmp_path):
    [file] = export.run(weights=best, include=["torchscript"], data=data, imgsz=64, verify_images=4)
    model = hubconf.custom(str(file), _verbose=False)
    assert model.model.pixels == FIVE
    assert model.model.metadata.to_properties()["channels"] == "5"
    with pytest.raises(UserError, match=r"takes images of 5 channels of 16 bits, which data/coco128.yaml lacks"):
        export.run(weights=best, include=["torchscript"], imgsz=64)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["onnx", "openvino", "ncnn", "tflite"])
def test_every_format_takes_five_channels(best, data, kind):
    if kind == "tflite":
        pytest.importorskip("litert_torch")
    words = ["--weights", best, "--include", kind, "--data", data, "--imgsz", 64, "--verify-images", 4]
    [file] = export.main(list(map(str, words)))  # it would exit with 3 if the export differed
    assert hubconf.custom(str(file), _verbose=False).model.pixels == FIVE


def test_arrays_and_files_give_the_same(best, data):
    model, file = hubconf.custom(str(best), _verbose=False, device="cpu"), data.parent / "images/val/3.tiff"
    model.conf = 0.0
    pages = np.dstack(cv2.imreadmulti(str(file), flags=cv2.IMREAD_UNCHANGED)[1])
    expected = model(str(file), size=64)
    assert expected.s == (1, 5, 64, 64) and expected.ims[0].shape == (64, 64, 3)
    floats = pages / np.float32(65535)
    for array in (pages, pages.transpose(2, 0, 1), floats, torch.from_numpy(floats)):
        assert torch.allclose(model(array, size=64).xyxy[0], expected.xyxy[0], atol=1e-3)
    with pytest.raises(ValueError, match=r"an array of shape \(64, 64, 3\) is no image of 5 channels of 16 bits"):
        model(pages[:, :, :3])


def test_other_images_are_one_line(best, tiny_data, tmp_path):
    other = yaml.safe_load(tiny_data.read_text()) | {"channels": 3, "path": str(tiny_data.parent)}
    (tmp_path / "d.yaml").write_text(yaml.safe_dump(other))
    with pytest.raises(UserError, match=r"d.yaml: channels: 3, but .*best.pt takes images of 5 channels of 16 bits"):
        val.run(data=tmp_path / "d.yaml", weights=best, imgsz=64)
    with pytest.raises(UserError, match=r"has 3 channels, expected 5 \(channels: 5\)"):
        val.run(data=tiny_data, weights=best, imgsz=64)
