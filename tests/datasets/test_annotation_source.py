"""COCO and Pascal VOC read in place: the same index as label files, no file beside the data."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from drawn_set import DRAWN, NAMES, Drawn, coco_content, voc_text, write_coco, write_images, write_voc, write_yolo
from small_splits import write_labels

from utils.datasets.annotation_source import AnnotationSource, find_annotation_source, image_folders
from utils.datasets.label_index import LabelIndex
from utils.datasets.labels import UnknownClass, find_split_images, load_split
from utils.datasets.locate import fill_names, locate_dataset, read_dataset
from utils.datasets.spec import DatasetSpec, DatasetYaml
from utils.datasets.splits import load_splits
from utils.errors import UserError

KEPT = Path(__file__).resolve().parents[1] / "kept/annotations"


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch) -> Path:
    """Return the folder of the label caches of one test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/anchorage/labels"


def describe(root: Path, *train: Path, names: tuple[str, ...] = (), val: Path | None = None) -> DatasetSpec:
    entries = {"train": list(map(str, train)), "val": [str(val or train[0])], "test": []}
    return DatasetYaml(root / "data.yaml", str(root), entries, dict(enumerate(names)), []).resolve([])


def load(root: Path, *sources: Path, names: tuple[str, ...] = (), **settings) -> LabelIndex:
    return load_split(describe(root, *sources, names=names), "train", progress=False, **settings)


# By form: folder of the images, place of the annotations, and the source that a data set YAML would name.
COCO_FORMS = {
    "images beside the JSON": ("", "_annotations.coco.json"),
    "images/ beside the JSON": ("images", "result.json"),
    "annotations/ and train2017/": ("train2017", "annotations/instances_train2017.json"),
    "annotations/ and images/train/": ("images/train", "annotations/instances_train.json"),
    "data/ and labels.json": ("data", "labels.json"),
    "file_name with folders": ("x/y", "set.json"),
}
VOC_FORMS = {
    "XML beside the images": ("", "", ""),
    "Annotations/ and JPEGImages/": ("JPEGImages", "Annotations", ""),
    "images/ and annotations/": ("images/train", "annotations/train", "images/train"),
    "data/ and labels/ of XML": ("data", "labels", ""),
    "ImageSets/Main/train.txt": ("JPEGImages", "Annotations", "ImageSets/Main/train.txt"),
    "pixels from 1": ("JPEGImages", "Annotations", ""),
}
FORMS = (*COCO_FORMS, *VOC_FORMS)


def write_form(folder: Path, form: str) -> Path:
    """Write the drawn set in a form. Return the source that a data set YAML would name."""
    if form == "label files":
        return write_yolo(folder)
    if form in COCO_FORMS:
        images, file = COCO_FORMS[form]
        write_images(folder / images)
        content = coco_content()
        for image in content["images"]:
            image["file_name"] = "x/y/" * (images == "x/y") + image["file_name"]
        return write_coco(folder / file, content)
    images, xmls, source = VOC_FORMS[form]
    drawn = [*DRAWN, Drawn("other.png", 32, 32, [(0, 1, 2, 3, 4)])] if source.endswith(".txt") else DRAWN
    write_images(folder / images, drawn)
    write_voc(folder / xmls, drawn, **({"first": 1, "database": "The VOC2007 Database"} if "from 1" in form else {}))
    if source.endswith(".txt"):
        (folder / source).parent.mkdir(parents=True)
        (folder / source).write_text("".join(f"{image.name[:-4]}\n" for image in DRAWN))
    return folder / source


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_index(tmp_path, form):
    expected = load(tmp_path, write_form(tmp_path / "yolo", "label files"), names=NAMES)
    source = write_form(tmp_path / "set", form)
    before = files_below(tmp_path / "set")
    for index in (load(tmp_path, source), load(tmp_path, source), load(tmp_path, source, names=NAMES)):
        assert [Path(path).name for path in index.paths] == [Path(path).name for path in expected.paths]
        for name in ("shapes", "labels", "offsets", "segment_offsets", "points"):
            assert np.array_equal(getattr(index, name), getattr(expected, name)), name
            assert getattr(index, name).dtype == getattr(expected, name).dtype
        assert (index.counts, index.messages) == (expected.counts, []) and len(index.ignored) == 0
    assert describe(tmp_path, source).names == dict(enumerate(NAMES))
    assert files_below(tmp_path / "set") == before


def test_classes_are_matched_by_name(tmp_path):
    source = write_form(tmp_path / "set", "images beside the JSON")
    index = load(tmp_path, source, names=("cow", "dog", "ant", "bee"))
    assert index.labels[:, 0].tolist() == [2, 0, 3, 3, 3, 2]
    assert load(tmp_path, source, names=("dog",), single_cls=True).labels[:, 0].tolist() == [0] * 6
    wanted = load(tmp_path, source, names=("bee", "ant"), any_class=True).labels[:, 0]
    assert wanted.tolist() == [1, 2, 0, 0, 0, 1]


def test_a_class_that_the_yaml_lacks_is_named(tmp_path):
    source = write_form(tmp_path / "set", "XML beside the images")
    with pytest.raises(
        UnknownClass, match="set: 1 objects of classes that .*data.yaml does not name, the first is 'cow'"
    ):
        load(tmp_path, source, names=("ant", "bee"))


def test_a_yaml_without_names(tmp_path):
    write_form(tmp_path / "train", "images beside the JSON")
    write_images(tmp_path / "valid")
    content = coco_content()
    content["categories"].append({"id": 99, "name": "dog"})
    write_coco(tmp_path / "valid/_annotations.coco.json", content)
    yaml = tmp_path / "set.yaml"
    yaml.write_text("train: train/_annotations.coco.json\nval: valid/_annotations.coco.json\n")
    assert fill_names(read_dataset(str(yaml))).names == {0: "ant", 1: "bee", 2: "cow", 3: "dog"}
    assert locate_dataset(str(yaml)).num_classes == 4


def test_a_yaml_without_names_of_label_files(tmp_path):
    write_form(tmp_path, "label files")
    (tmp_path / "set.yaml").write_text("train: images\nval: images\n")
    with pytest.raises(UserError, match="set.yaml: `names:` is missing"):
        fill_names(read_dataset(str(tmp_path / "set.yaml")))


def test_images_where_the_path_of_the_yaml_says(tmp_path):
    write_images(tmp_path / "pixels")
    file = write_coco(tmp_path / "labels/x.json")
    assert len(load(tmp_path / "pixels", file)) == len(DRAWN)


def test_sources_of_several_forms_are_one_split_in_the_order_of_paths(tmp_path):
    sources = [
        write_form(tmp_path / name, form) for name, form in zip("ced", ("label files", *FORMS[::6]), strict=True)
    ]
    index = load(tmp_path, *sources, names=NAMES)
    assert list(index.paths) == sorted(index.paths) and len(index) == 3 * len(DRAWN)
    assert index.labels[:3].tolist() == index.labels[6:9].tolist()
    assert find_split_images(describe(tmp_path, *sources, names=NAMES), "train") == list(index.paths)


def test_the_cache_is_valid_while_nothing_changed(tmp_path, caches, monkeypatch):
    source = write_form(tmp_path / "set", "images beside the JSON")
    load(tmp_path, source)
    assert len(list(caches.iterdir())) == 1
    with monkeypatch.context() as patch:
        patch.setattr("utils.datasets.annotation_source.read_instances", None)  # a second reading would fail
        assert len(load(tmp_path, source).labels) == 6
    write_images(tmp_path / "set", DRAWN[:1])
    content = coco_content()
    content["annotations"].pop()
    write_coco(source, content)
    assert len(load(tmp_path, source).labels) == 5
    shutil.copy(tmp_path / "set/a.png", tmp_path / "set/c.png")  # another size
    assert load(tmp_path, source).shapes.tolist()[2] == [32, 64]


def test_a_new_xml_file_makes_the_cache_invalid(tmp_path):
    source = write_form(tmp_path / "set", "Annotations/ and JPEGImages/")
    (source / "Annotations/b.xml").rename(tmp_path / "b.xml")
    first = load(tmp_path, source)
    assert first.counts.missing == 1 and len(first.labels) == 5  # like an image without a label file
    (tmp_path / "b.xml").rename(source / "Annotations/b.xml")
    assert len(load(tmp_path, source).labels) == 6


def test_a_damaged_cache_is_read_again(tmp_path, caches):
    source = write_form(tmp_path / "set", "images beside the JSON")
    load(tmp_path, source)
    [cache] = caches.iterdir()
    data = cache.read_bytes()
    for damaged in (b"", data[: len(data) // 2], data.replace(b"labels", b"lobels")):
        cache.write_bytes(damaged)
        assert len(load(tmp_path, source).labels) == 6


def test_crowds_and_difficult_objects_are_ignored_regions(tmp_path):
    write_images(tmp_path / "coco")
    content = coco_content()
    content["annotations"][1]["iscrowd"] = 1
    write_coco(tmp_path / "coco/x.json", content)
    write_images(tmp_path / "voc")
    write_voc(tmp_path / "voc")
    text = voc_text(DRAWN[0]).replace("<difficult>0", "<difficult>1")
    (tmp_path / "voc/a.xml").write_text(text.replace("<difficult>1", "<difficult>0", 1))
    for source in ("coco/x.json", "voc"):
        index = load(tmp_path, tmp_path / source, names=NAMES)
        assert index.labels[:, 0].tolist() == [0, 1, 1, 1, 0] and index.ignored_images.tolist() == [0]
        assert index.regions(0).tolist() == [[2, (10 + 63) / 128, 36 / 64, 53 / 64, 28 / 32]]
        assert len(index.regions(1)) == 0


def test_a_training_without_any_object_does_not_start(tmp_path):
    write_images(tmp_path)
    file = write_coco(tmp_path / "x.json", coco_content() | {"annotations": []})
    with pytest.raises(
        UserError, match="data.yaml: the training images have no labels at all. The annotations hold no"
    ):
        load_splits(describe(tmp_path, file))


def test_label_files_win_over_xml_files(tmp_path):
    write_images(tmp_path / "set")
    write_voc(tmp_path / "set")
    assert find_annotation_source(tmp_path / "set", tmp_path)
    write_labels(tmp_path / "set/a.txt", "0 .5 .5 .1 .1\n")
    assert find_annotation_source(tmp_path / "set", tmp_path) is None


def test_polygons_and_masks_become_outlines(tmp_path):
    write_images(tmp_path)
    content = coco_content()
    triangle, far = [0, 0, 16, 0, 16, 16], [20, 8, 24, 8, 24, 16]
    content["annotations"][0]["segmentation"] = [triangle]
    content["annotations"][1]["segmentation"] = [triangle, far]
    # 64 rows, 32 columns: columns 3 to 20 of rows 5 to 39
    runs = [3 * 64 + 5, *[35, 29] * 17, 35, 64 - 40 + 11 * 64]
    content["annotations"][2] |= {"segmentation": {"size": [64, 32], "counts": runs}, "bbox": []}
    index = load(tmp_path, write_coco(tmp_path / "x.json", content))
    one, two = index.polygons(0)
    assert (one * (64, 32)).tolist() == [[0, 0], [16, 0], [16, 16]]
    assert {tuple(point) for point in (two * (64, 32)).tolist()} >= {(20, 8), (24, 8), (24, 16), (16, 0)}
    assert index.boxes(0)[1].tolist() == [2, (10 + 63) / 128, 36 / 64, 53 / 64, 28 / 32]  # still that of `bbox`
    assert (index.boxes(1)[0, 1:] * 64).tolist() == [24, 22.5, 36, 35]
    [mask] = index.polygons(1)
    assert (mask * (32, 64)).min(0).tolist() == [3.5, 5.5] and (mask * (32, 64)).max(0).tolist() == [20.5, 39.5]


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda data: data["annotations"][0].update(category_id=77),
            "1 annotations of unknown categories (annotation 1",
        ),
        (lambda data: data["annotations"][0].update(image_id=77), "1 annotations of images that are not listed"),
        (lambda data: data["annotations"][0].update(bbox=[1, 2]), "1 annotations without a box or an outline"),
        (
            lambda data: data["annotations"][0].update(bbox=[99, 99, 5, 5]),
            "1 boxes without area inside the image (annot",
        ),
        (lambda data: data["annotations"].insert(0, data["annotations"][0]), "1 objects that repeat an earlier one"),
        (lambda data: data["annotations"].append(3), "1 entries of 'annotations' that are no objects (6: 3)"),
        (lambda data: data["images"].append({"id": 1, "file_name": "no.png"}), "1 images that are not in "),
        (lambda data: data["images"].append({"id": 1, "file_name": "../../etc/passwd"}), "1 images that are not in "),
        (
            lambda data: data["annotations"][0].update(segmentation={"size": [32, 64], "counts": [1]}),
            "1 outlines cannot be used, the boxes are used (annotation 1: run-length mask: 1 pixels",
        ),
    ],
)
def test_what_is_skipped_is_said(tmp_path, change, message):
    write_images(tmp_path)
    content = coco_content()
    change(content)
    index = load(tmp_path, write_coco(tmp_path / "x.json", content))
    [said] = index.messages
    assert said.startswith(f"{tmp_path / 'x.json'}: ") and message in said
    assert len(index) == len(DRAWN)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{\n\n oops", r"x\.json:3: not JSON"),
        ("[]", "no list 'images'"),
        (json.dumps(coco_content() | {"categories": []}), "'categories' is empty"),
        (json.dumps(coco_content() | {"images": [{"id": 3, "file_name": "q.png"}]}), "none of its 1 images is found"),
        (json.dumps(coco_content() | {"images": [{"id": 3, "file_name": n} for n in "ab"]}), "1 image ids occur twice"),
        (json.dumps(coco_content() | {"images": []}), "none of its images can be used; skipped: 6 annot"),
    ],
)
def test_mistakes_are_one_line(tmp_path, text, message):
    write_images(tmp_path)
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path, tmp_path / "x.json")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_is_not_opened(tmp_path):
    write_images(tmp_path)
    write_voc(tmp_path, DRAWN[1:])
    for name in ("x.json", "a.xml"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match="x.json: cannot be read: not a regular file"):
        load(tmp_path, tmp_path / "x.json")
    assert "not a regular file" in load(tmp_path, tmp_path).messages[0]


def test_an_image_with_a_broken_xml_file_is_no_background(tmp_path):
    write_images(tmp_path)
    write_voc(tmp_path)
    (tmp_path / "b.xml").write_text("<annotation><object>")
    (tmp_path / "bad.xml").write_text("<!DOCTYPE x><annotation/>")
    index = load(tmp_path, tmp_path)
    assert [Path(path).name for path in index.paths] == ["a.png", "c.png", "d.png"]
    assert index.counts.corrupt == 2 and "2 XML files that cannot be used" in index.messages[0]


def test_a_source_says_where_its_images_are_looked_for(tmp_path):
    for folder in ("annotations", "images/val", "val"):
        (tmp_path / folder).mkdir(parents=True)
    source = find_annotation_source(tmp_path / "annotations/instances_val.json", tmp_path)
    assert source == AnnotationSource(
        "coco",
        tmp_path / "annotations/instances_val.json",
        tuple(tmp_path / name for name in ("annotations", "val", "images/val", "", "images")),
    )


def test_coco128_is_the_same_as_json(reference, tmp_path):
    folder = reference / "datasets/coco128"
    yolo = load(folder, folder / "images/train2017", names=tuple(map(str, range(80))))
    coco = load(folder, folder / "instances_train2017.json")
    assert [Path(path).name for path in coco.paths] == [Path(path).name for path in yolo.paths]
    assert np.abs(coco.labels - yolo.labels).max() < 1e-6 and np.array_equal(coco.offsets, yolo.offsets)
    assert (len(coco.ignored), coco.counts) == (10, yolo.counts)


TOOLS = {  # what they wrote is in tests/kept/annotations; folder of the images in it
    "datumaro_coco": "images/train",
    "datumaro_voc": "JPEGImages",
    "fiftyone_coco": "data",
    "fiftyone_voc": "data",
    "labelstudio_coco": "images",
    "labelstudio_voc": "images",
    "supervision_coco": "images",
    "supervision_voc": ".",
}


@pytest.mark.parametrize("tool", TOOLS)
def test_what_labelling_tools_wrote_gives_the_same_index(tmp_path, tool):
    shutil.copytree(KEPT / tool, tmp_path / "set")
    write_images(tmp_path / "set" / TOOLS[tool])
    dataset = read_dataset(str(tmp_path / "set"), required=())
    [split] = (split for split, entries in dataset.entries.items() if entries)
    require_drawn(load_split(dataset.resolve([]), split, progress=False))


def require_drawn(index: LabelIndex) -> None:
    """Check that an index has the boxes of the drawn set, in the order of the images."""
    assert [Path(path).name for path in index.paths] == [image.name for image in DRAWN] and index.messages == []
    for i, image in enumerate(DRAWN):
        cls, x, y, w, h = (index.boxes(i) * (1, *[image.width, image.height] * 2)).T
        found = np.stack([cls, x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1)
        assert np.abs(found - np.reshape(image.objects, (-1, 5))).max(initial=0) < 1e-4


def write_supervision(images: Path, folder: Path) -> None:
    sv = pytest.importorskip("supervision")
    found = {}
    for image in DRAWN:
        rows = np.array(image.objects, float).reshape(-1, 5)
        found[str(images / image.name)] = sv.Detections(xyxy=rows[:, 1:], class_id=rows[:, 0].astype(int))
    dataset = sv.DetectionDataset(classes=list(NAMES), images=list(found), annotations=found)
    dataset.as_coco(images_directory_path=str(folder / "coco"), annotations_path=str(folder / "coco/x.json"))
    voc = str(folder / "voc")
    dataset.as_pascal_voc(images_directory_path=voc, annotations_directory_path=voc)


def write_datumaro(images: Path, folder: Path) -> None:
    dm = pytest.importorskip("datumaro")
    marks = {"difficult": False, "truncated": False, "occluded": False}
    items = [
        dm.DatasetItem(
            id=image.name[:-4],
            subset="train",
            media=dm.Image.from_file(path=str(images / image.name)),
            annotations=[
                dm.Bbox(x1, y1, x2 - x1, y2 - y1, label=c, id=k + 1, group=k + 1, attributes=marks)
                for k, (c, x1, y1, x2, y2) in enumerate(image.objects)
            ],
        )
        for image in DRAWN
    ]
    dataset = dm.Dataset.from_iterable(items, categories=list(NAMES))
    dataset.export(str(folder / "coco"), "coco_instances", save_media=True)
    dataset.export(str(folder / "voc"), "voc_detection", save_media=True)


def write_fiftyone(images: Path, folder: Path) -> None:
    labels, metadata, coco, voc = (
        pytest.importorskip(f"fiftyone.{name}") for name in ("core.labels", "core.metadata", "utils.coco", "utils.voc")
    )
    exporters = (
        coco.COCODetectionDatasetExporter(export_dir=str(folder / "coco"), classes=list(NAMES)),
        voc.VOCDetectionDatasetExporter(export_dir=str(folder / "voc")),
    )
    for exporter in exporters:
        with exporter:
            for name, W, H, objects in DRAWN:
                found = [
                    labels.Detection(label=NAMES[c], bounding_box=[x1 / W, y1 / H, (x2 - x1) / W, (y2 - y1) / H])
                    for c, x1, y1, x2, y2 in objects
                ]
                size = metadata.ImageMetadata(width=W, height=H, num_channels=3)
                exporter.export_sample(str(images / name), labels.Detections(detections=found), metadata=size)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("write", [write_supervision, write_datumaro, write_fiftyone])
def test_what_labelling_tools_write_today_gives_the_same_index(tmp_path, write):
    write_images(tmp_path / "images")
    write(tmp_path / "images", tmp_path / "set")
    for form in ("coco", "voc"):
        dataset = read_dataset(str(tmp_path / "set" / form), required=())
        [split] = (split for split, entries in dataset.entries.items() if entries)
        require_drawn(load_split(dataset.resolve([]), split, progress=False))


def test_each_folder_of_images_is_named_once(tmp_path, monkeypatch):
    (tmp_path / "set/images").mkdir(parents=True)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    folders = image_folders(tmp_path / "set/c.json", tmp_path / "work/../set")
    assert folders == [tmp_path / "set", tmp_path / "set/images"]
