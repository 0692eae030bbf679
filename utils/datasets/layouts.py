"""Data sets as labelling tools, exports and archives leave them: folders without a data set YAML that fits them.

Nothing is written. The forms are recognised in the order of `find_layout`.
"""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from utils.console import info
from utils.datasets.image_files import label_path
from utils.datasets.inventory import (
    Inventory,
    is_coco,
    is_description,
    is_voc,
    read_class_names,
    split_of,
    take_inventory,
)
from utils.datasets.spec import SPLITS, DatasetYaml, read_dataset_yaml
from utils.datasets.stated_paths import existing_end
from utils.errors import UserError
from utils.files import read_regular, read_yaml

YAML_NAMES = ("data.yaml", "dataset.yaml", "data.yml", "dataset.yml")
COCO_WITHOUT_BOXES = ("captions", "panoptic", "stuff", "image_info", "person_keypoints")
LOOKED_FOR = (
    "a data set YAML, darknet's obj.data, COCO JSON, Pascal VOC XML, and images with YOLO labels (a folder labels/ "
    "beside images/, or .txt files beside the images) with classes.txt or obj.names"
)
XML_FOLDERS = ("annotations", "xmls", "xml", "labels")  # beside a folder of images, in any case of letters
IMAGE_FOLDERS = ("jpegimages", "images", "data", "imgs", "img")
MAX_TRIED = 20  # XML files that are looked at; the first of them may be damaged
MAX_TEXT = 1 << 20  # bytes of darknet's description

Groups = dict[str, list[str]]  # entries by split, "" if no name says which


def find_layout(folder: Path, *, required: Sequence[str] = ()) -> DatasetYaml:
    """Return the data set in a folder. Its names are {} if its annotations have them.

    A data set YAML must name the splits `required`.

    Such a YAML comes first, then darknet's obj.data, then what files there are. Raises UserError with what
    was looked for and found, and what to type, if there is nothing or more than one data set.
    """
    found = take_inventory(folder)
    if (yaml_file := _find_yaml(found)) is not None:
        return read_dataset_yaml(yaml_file, required=required)
    if (
        data_file := _pick(found, [name for name in found.files if name.endswith(".data")], "darknet files")
    ) is not None:
        return read_darknet(data_file)
    kinds = {"YOLO labels": _yolo_groups(found), "COCO JSON": _coco_groups(found), "Pascal VOC XML": _voc_groups(found)}
    kinds = {kind: groups for kind, groups in kinds.items() if groups}
    if not kinds:
        advice = (
            "Export the labels as COCO, Pascal VOC or YOLO: other forms are not read"
            if found.images
            else "There is no image in it: export the images too, or put them beside the labels"
        )
        raise UserError(f"--data {folder}: no data set: looked for {LOOKED_FOR}; found {found.describe()}. {advice}")
    kind, *others = kinds
    if others and kind != "YOLO labels":
        texts = [f"{other} ({_list_entries(kinds[other])})" for other in kinds]
        raise UserError(f"--data {folder}: found {' and '.join(texts)}: give the one that counts: --data {folder}/...")
    for other in others:
        entries = _list_entries(kinds[other])
        info(f"{folder}: the YOLO labels are read, not the {other} ({entries}). Give --data {folder}/... to read that")
    names = _find_names(found, kinds[kind]) if kind == "YOLO labels" else {}
    return DatasetYaml(folder, str(folder.absolute()), _by_split(folder, kinds[kind]), names, [])


def single_source(file: Path) -> DatasetYaml:
    """Return the data set of one COCO JSON or one list of images, all of them to train on."""
    names: dict[int, str] = {}
    if file.suffix.lower() == ".txt":
        described = [path.name for path in sorted(file.parent.iterdir()) if is_description(path.name)]
        beside = Inventory(file.parent, files=described)
        names = _find_names(beside, {})
    return DatasetYaml(file, str(file.parent.absolute()), {"train": [file.name], "val": [], "test": []}, names, [])


def read_darknet(file: Path) -> DatasetYaml:
    """Return the data set of darknet's `obj.data`: lines `train = train.txt`, `valid = …`, `names = obj.names`.

    Its paths are as seen from darknet's folder. The ends of them that exist beside the file count.
    """
    try:
        text = read_regular(file, MAX_TEXT).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read as text: {error}") from error
    pairs = (line.partition("=") for line in text.splitlines() if line.strip()[:1] not in ("", "#"))
    values = {key.strip(): value.strip() for key, _, value in pairs}
    places = {}
    for key in ("train", "valid", "val", "test", "names"):
        if values.get(key):
            end = existing_end(values[key], file.parent)
            if end is None:
                raise UserError(
                    f"{file}: {key} = {values[key]}: not found; no end of this path exists in {file.parent}"
                )
            places[key] = end
    if "names" not in places:
        raise UserError(f"{file}: no line `names = obj.names`, which names the classes")
    names = read_class_names(file.parent / places["names"])
    count = values.get("classes", "")
    if count.isdecimal() and int(count) != len(names):
        info(f"{file}: classes = {count}, but {places['names']} has {len(names)} names. The names count")
    val = [places[key] for key in ("valid", "val") if key in places][:1]
    entries = {"train": _entry(places, "train"), "val": val, "test": _entry(places, "test")}
    return DatasetYaml(file, str(file.parent.absolute()), entries, dict(enumerate(names)), [])


def relocate(dataset: DatasetYaml) -> DatasetYaml | None:
    """Return the data set of a YAML from another machine with the ends of its paths that exist below the YAML's folder.

    None if one of them has no such end, or if two of them have the same.
    """
    folder, moved = dataset.file.absolute().parent, {}
    for entry in dict.fromkeys(entry for split in ("train", "val") for entry in dataset.entries[split]):
        end = existing_end(f"{dataset.root}/{entry}", folder)
        if end is None or end in moved.values():
            return None
        moved[entry] = end
    for entry in dataset.entries["test"]:
        moved.setdefault(entry, existing_end(f"{dataset.root}/{entry}", folder) or entry)
    entries = {split: [moved[entry] for entry in group] for split, group in dataset.entries.items()}
    texts = ", ".join(f"{entry} -> {end}" for entry, end in moved.items())
    info(f"{dataset.file}: the paths in it are not here; those below its folder are used: {texts}")
    return replace(dataset, root=str(folder), entries=entries)


def _entry(places: dict[str, str], key: str) -> list[str]:
    return [places[key]] if key in places else []


# ---- which file describes the data set -------------------------------------------------------------------------------


def _find_yaml(found: Inventory) -> Path | None:
    """Return the YAML that names splits and classes, at the highest level that has one."""
    described = [name for name in found.files if PurePosixPath(name).suffix.lower() in (".yaml", ".yml")]
    fitting = [name for name in described if {"train", "val"} & _keys_of(found.root / name)]
    fitting = _highest(fitting)
    usual = [name for name in fitting if PurePosixPath(name).name.lower() in YAML_NAMES]
    return _pick(found, usual or fitting, "data set YAMLs")


def _keys_of(file: Path) -> set[str]:
    try:
        return set(map(str, read_yaml(file)))
    except UserError:
        if file.name.lower() in YAML_NAMES:
            raise
        return set()


def _highest(names: list[str]) -> list[str]:
    """Return those of the paths that have the fewest parts."""
    least = min((name.count("/") for name in names), default=0)
    return [name for name in names if name.count("/") == least]


def _pick(found: Inventory, names: list[str], kind: str) -> Path | None:
    """Return the only one of the files at the highest level, None if there is none."""
    names = _highest(names)
    if len(names) > 1:
        raise UserError(
            f"--data {found.root}: several {kind}: {', '.join(names)}: give one: --data {found.root / names[0]}"
        )
    return found.root / names[0] if names else None


# ---- images and annotations by split ---------------------------------------------------------------------------------


def _yolo_groups(found: Inventory) -> Groups:
    """Return the folders of images that have labels, or the list files of splits, by split."""
    labelled = {folder for folder in found.images if _has_labels(found, folder)}
    if not labelled:
        return {}
    if "train" in found.lists:
        return {split: _highest(names) for split, names in found.lists.items()}
    groups: Groups = {}
    for folder in found.images:
        if folder in labelled or split_of(folder):
            groups.setdefault(split_of(folder) or "", []).append(folder)
        elif not any(folder.startswith(f"{other}/") for other in labelled if other):
            info(f"{found.root}: {found.images[folder]} images in {folder or '.'} are ignored: no labels, no split")
    return {split: _topmost(folders) for split, folders in groups.items()}


def _has_labels(found: Inventory, folder: str) -> bool:
    """Return whether there are text files where the labels of a folder of images are expected."""
    labels = Path(label_path(found.root / folder / "x.jpg")).parent
    if labels.is_relative_to(found.root):
        return found.labels[labels.relative_to(found.root).as_posix().removeprefix(".")] > 0
    return labels.is_dir() and any(name.endswith(".txt") for name in os.listdir(labels))


def _coco_groups(found: Inventory) -> Groups:
    """Return the COCO JSON files by split."""
    names = [name for name in found.files if name.lower().endswith(".json") and is_coco(found.root / name)]
    boxes = [name for name in names if not PurePosixPath(name).name.lower().startswith(COCO_WITHOUT_BOXES)]
    groups: Groups = {}
    for name in boxes or names:
        groups.setdefault(split_of(name) or "", []).append(name)
    return groups


def _voc_groups(found: Inventory) -> Groups:
    """Return the folders of images with VOC annotations by split, or the lists of ImageSets/Main."""
    groups: Groups = {}
    for folder in found.images:
        xmls = _xml_folder(folder, found)
        if xmls is None or not any(is_voc(found.root / xmls / name) for name in found.xmls[xmls][:MAX_TRIED]):
            continue
        lists = f"{xmls.rpartition('/')[0]}/ImageSets/Main".lstrip("/")
        sets = {split: f"{lists}/{split}.txt" for split in SPLITS}
        present = {split: file for split, file in sets.items() if (found.root / file).is_file()}
        for split, entry in (present or {split_of(folder) or "": folder}).items():
            groups.setdefault(split, []).append(entry)
    return {split: _topmost(folders) for split, folders in groups.items()}


def _xml_folder(folder: str, found: Inventory) -> str | None:
    """Return the folder of XML files of a folder of images: itself, or Annotations/train for JPEGImages/train."""
    if folder in found.xmls:
        return folder
    by_case, parts = {name.lower(): name for name in found.xmls}, folder.lower().split("/")
    for k in reversed(range(len(parts))):
        for name in XML_FOLDERS if parts[k] in IMAGE_FOLDERS else ():
            if (other := "/".join([*parts[:k], name, *parts[k + 1 :]])) in by_case:
                return by_case[other]
    return None


def _topmost(folders: Iterable[str]) -> list[str]:
    """Return the folders that are not below others of them."""
    kept: list[str] = []
    for folder in sorted(folders, key=lambda name: (name.count("/") + bool(name), name)):
        if not any(folder == other or other == "" or folder.startswith(f"{other}/") for other in kept):
            kept.append(folder)
    return kept


def _by_split(folder: Path, groups: Groups) -> Groups:
    """Return the entries of train, val and test. Entries of no split are those to train on if there are no others.

    Raises UserError for entries without a split beside those of splits, and for several JSON files of one split.
    """
    unnamed = groups.pop("", [])
    if unnamed and {"train", "val"} & groups.keys():
        raise UserError(
            f"--data {folder}: {_list_entries(groups)}, and {', '.join(name or '.' for name in unnamed)} which belongs "
            f"to no split: move it into one, or give a data set YAML with `path: {folder}`, `train:`, `val:` and "
            "`names:`"
        )
    groups = {split: groups.get(split, unnamed if split == "train" else []) for split in SPLITS}
    for split, entries in groups.items():
        if len(entries) > 1 and entries[0].lower().endswith(".json"):
            raise UserError(
                f"--data {folder}: several COCO files{f' of {split}' if unnamed != entries else ''}: "
                f"{', '.join(entries)}: give one: --data {folder / entries[0]}"
            )
    return {split: [entry or "." for entry in entries] for split, entries in groups.items()}


def _list_entries(groups: Groups) -> str:
    return "; ".join(
        f"{split + ': ' if split else ''}{', '.join(entry or '.' for entry in entries)}"
        for split, entries in groups.items()
    )


# ---- class names -----------------------------------------------------------------------------------------------------


def _find_names(found: Inventory, groups: Groups) -> dict[int, str]:
    """Return the class names of YOLO labels. Raises UserError if no file has them, or if files differ."""
    texts = [name for name in found.files if re.search(r"\.(names|labels|txt)$|(^|/)notes\.json$", name.lower())]
    by_file = {name: tuple(read_class_names(found.root / name)) for name in texts}
    by_file |= {name: names for name in found.files if (names := _names_of_yaml(found.root / name))}
    by_file = {name: names for name, names in by_file.items() if names}
    usual = {name: names for name, names in by_file.items() if not name.lower().endswith("predefined_classes.txt")}
    by_file = usual or by_file
    if len(set(by_file.values())) > 1:
        listed = ", ".join(f"{name} ({len(names)} names)" for name, names in by_file.items())
        raise UserError(
            f"--data {found.root}: files with different class names: {listed}: give a data set YAML with "
            f"`path: {found.root}`, `train:`, `val:` and `names:`"
        )
    if not by_file:
        raise UserError(
            f"--data {found.root}: YOLO labels ({_list_entries(groups)}), but no class names: looked for classes.txt, "
            f"obj.names, _darknet.labels and notes.json; give a data set YAML with `path: {found.root}`, `train:`, "
            "`val:` and `names:`"
        )
    return dict(enumerate(next(iter(by_file.values()))))


def _names_of_yaml(file: Path) -> tuple[str, ...]:
    """Return the class names in a YAML that names no splits, none for another file."""
    if file.suffix.lower() not in (".yaml", ".yml"):
        return ()
    try:
        names = read_yaml(file).get("names")
    except UserError:
        return ()
    names = names if isinstance(names, list) else list(names.values()) if isinstance(names, dict) else []
    return tuple(map(str, names))
