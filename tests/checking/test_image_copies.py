"""Copies, nearly equal images and sequences, in drawn data sets."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from utils.checking.fingerprints import take_fingerprints
from utils.checking.image_copies import check_copies
from utils.checking.scan import ScannedData, scan_dataset
from utils.datasets.spec import DatasetSpec

ROW = "0 0.5 0.5 0.2 0.2\n"


def scene(seed: int) -> np.ndarray:
    """Return an image of soft blobs (240, 320, 3): no two seeds look alike."""
    return cv2.resize(np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8), (320, 240), None, 0, 0, 2)


def jpeg(image: np.ndarray, quality: int = 95) -> bytes:
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def scan(folder: Path, splits: dict[str, dict[str, tuple[bytes, str]]]) -> ScannedData:
    """Write splits {split: {name: (image, labels)}} and scan them."""
    for split, images in splits.items():
        for part in ("images", "labels"):
            (folder / part / split).mkdir(parents=True)
        for name, (image, labels) in images.items():
            (folder / "images" / split / name).write_bytes(image)
            (folder / "labels" / split / name).with_suffix(".txt").write_text(labels)
    sources = {split: [folder / "images" / split] for split in splits}
    spec = DatasetSpec(folder / "data.yaml", folder, sources, {0: "a", 1: "b"})
    return scan_dataset(spec, 640, progress=False)


def check(data: ScannedData) -> dict[str, list[tuple[str, str]]]:
    """Return the names of each pair by check. An image without another has an empty one."""
    return {
        finding.check: [(Path(example.file).name, Path(example.beside).name) for example in finding.examples]
        for finding in check_copies(data, progress=False)
    }


def changed(image: np.ndarray, how: str) -> bytes:
    """Return a file of the same image after what people do to images."""
    if how == "brighter":
        return jpeg(np.clip(image * 1.15 + 8, 0, 255).astype(np.uint8))
    if how == "png":
        return cv2.imencode(".png", image)[1].tobytes()
    if how == "16 bits":
        return cv2.imencode(".png", image.astype(np.uint16) * 16)[1].tobytes()  # 12 of them
    if how == "smaller":
        return jpeg(cv2.resize(image, (160, 120), interpolation=cv2.INTER_AREA))
    if how == "gray":
        return jpeg(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY))
    return jpeg(image, 40)


def test_no_finding_where_images_differ(tmp_path):
    splits = {split: {f"{k}.jpg": (jpeg(scene(10 * n + k)), ROW) for k in range(4)} for n, split in enumerate("tv")}
    assert check(scan(tmp_path, {"train": splits["t"], "val": splits["v"]})) == {}


@pytest.mark.parametrize("how", ["compressed", "smaller", "brighter", "gray", "png", "16 bits"])
def test_a_changed_image_in_two_splits_is_found(tmp_path, how):
    others = {f"{k}.jpg": (jpeg(scene(k)), ROW) for k in range(1, 4)}
    train = {"one.jpg": (jpeg(scene(0)), ROW), **others}
    name = "two.png" if how in ("png", "16 bits") else "two.jpg"
    data = scan(tmp_path, {"train": train, "val": {name: (changed(scene(0), how), ROW)}})
    assert check(data) == {"same-image-in-two-splits": [(name, "one.jpg")]}


def test_a_mirrored_image_in_two_splits_is_found(tmp_path):
    others = {f"{k}.jpg": (jpeg(scene(k)), ROW) for k in range(1, 4)}
    row, mirrored, elsewhere = (f"0 {x} 0.5 0.2 0.2\n" for x in (0.3, 0.7, 0.4))
    symmetric = np.concatenate((scene(9), scene(9)[:, ::-1]), axis=1)
    train = {"one.jpg": (jpeg(scene(0)), row), "five.jpg": (jpeg(scene(5)), row), "s.jpg": (jpeg(symmetric), "")}
    val = {
        "two.jpg": (jpeg(scene(0)[:, ::-1], 60), mirrored),
        "six.jpg": (jpeg(scene(5)[:, ::-1]), elsewhere),  # the labels disagree
        "t.jpg": (jpeg(symmetric, 60), ""),  # its own mirror image is reported once
    }
    assert check(scan(tmp_path, {"train": {**train, **others}, "val": val})) == {
        "same-image-in-two-splits": [("t.jpg", "s.jpg")],
        "mirror-image-in-two-splits": [("two.jpg", "one.jpg")],
    }


def test_mirrored_fingerprints_are_those_of_mirrored_images(tmp_path):
    for k in range(5):
        cv2.imwrite(str(tmp_path / f"{k}.png"), scene(k))
        cv2.imwrite(str(tmp_path / f"{k}m.png"), scene(k)[:, ::-1])
    found, expected = (
        take_fingerprints([f"{tmp_path}/{k}{end}.png" for k in range(5)], progress=False) for end in ("", "m")
    )
    assert np.array_equal(found.mirrored().copies, expected.copies)
    differing = np.unpackbits((found.mirrored().hashes ^ expected.hashes).view(np.uint8))
    assert differing.sum() <= 5  # equal neighbours are brighter on neither side


def test_files_that_are_the_same_are_errors_across_splits_and_warnings_within(tmp_path):
    train = {name: (jpeg(scene(0)), ROW) for name in ("a.jpg", "b.jpg")}
    data = scan(tmp_path, {"train": train, "val": {"c.jpg": (jpeg(scene(0)), ROW)}})
    levels = {finding.check: (finding.level, finding.count) for finding in check_copies(data, progress=False)}
    assert levels == {"copy-in-two-splits": ("error", 1), "copy": ("warning", 1)}
    assert check(data) == {"copy-in-two-splits": [("c.jpg", "a.jpg")], "copy": [("b.jpg", "a.jpg")]}


def test_flat_images_are_compared_by_their_files_only(tmp_path):
    train = {f"{level}.jpg": (jpeg(np.full((64, 64, 3), level, np.uint8)), "") for level in (0, 90, 200)}
    train["same.jpg"] = train["90.jpg"]
    assert check(scan(tmp_path, {"train": train})) == {"copy": [("same.jpg", "90.jpg")]}


def test_copies_with_other_labels_contradict_each_other(tmp_path):
    rows = {"a.jpg": ROW, "b.jpg": ROW.replace("0 ", "1 ", 1), "c.jpg": ROW.replace("0.2 0.2", "0.21 0.2")}
    data = scan(tmp_path, {"train": {name: (jpeg(scene(0)), row) for name, row in rows.items()}})
    assert check(data)["copies-labelled-differently"] == [("b.jpg", "a.jpg")]


def test_a_fixed_camera_with_another_object_is_no_copy(tmp_path):
    image = scene(0)
    other = cv2.circle(image.copy(), (60, 60), 6, (0, 0, 0), -1)
    moved = ROW.replace("0.5 0.5", "0.19 0.25")
    data = scan(tmp_path, {"train": {"a.jpg": (jpeg(image), ROW)}, "val": {"b.jpg": (jpeg(other), moved)}})
    assert check(data) == {}


def frames(count: int, step: float) -> list[np.ndarray]:
    """Return frames of a camera that pans over a wide scene, by a share of the image's width a frame."""
    wide = cv2.resize(np.random.default_rng(7).integers(0, 256, (6, 80, 3), np.uint8), (3200, 240), None, 0, 0, 2)
    return [wide[:, round(320 * step * k) :][:, :320] for k in range(count)]


@pytest.mark.parametrize("step, is_found", [(0.02, True), (0.9, False)])
def test_a_sequence_in_two_splits_is_found_by_names_and_images(tmp_path, step, is_found):
    splits = {"train": {}, "val": {}}
    for k, image in enumerate(frames(10, step)):
        splits["val" if k % 3 == 2 else "train"][f"clip_{k:04}.jpg"] = jpeg(image), f"0 0.{k}5 0.5 0.02 0.2\n"
    found = [f for f in check_copies(scan(tmp_path, splits), progress=False) if f.check == "sequence-in-two-splits"]
    assert [(f.count, dict(f.figures)) for f in found] == ([(1, {"images": 10})] if is_found else [])
    for finding in found:
        (example,) = finding.examples
        assert example.detail == "clip_*: 7 of train and 3 of val"
        assert (Path(example.file).name, Path(example.beside).name) == ("clip_0002.jpg", "clip_0001.jpg")


def test_files_that_cannot_be_decoded_are_left_to_other_checks(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0no image")
    (tmp_path / "whole.jpg").write_bytes(jpeg(scene(0)))
    files = [str(tmp_path / name) for name in ("broken.jpg", "whole.jpg", "absent.jpg")]
    assert take_fingerprints(files, progress=False).readable.tolist() == [False, True, False]


def test_an_image_turned_by_exif_is_the_upright_one(tmp_path):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a turn to the right
    upright = Image.fromarray(np.ascontiguousarray(scene(0)[:, :, ::-1]))
    upright.save(tmp_path / "upright.png")
    upright.rotate(90, expand=True).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    prints = take_fingerprints([str(tmp_path / name) for name in ("upright.png", "turned.jpg")], progress=False)
    assert np.abs(np.diff(prints.copies.astype(int), axis=0)).max() <= 3
