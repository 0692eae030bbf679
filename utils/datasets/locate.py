"""Location of a data set from the text of `--data`. Missing images are drawn or downloaded."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from utils.addresses import remove_credentials
from utils.console import info
from utils.datasets.division import Division
from utils.datasets.inventory import is_list
from utils.datasets.layouts import find_layout, read_darknet, relocate, single_source
from utils.datasets.shapes import make_shapes
from utils.datasets.spec import DatasetSpec, DatasetYaml, MissingData, read_dataset_yaml
from utils.download import fetch, unpack
from utils.errors import UserError
from utils.files import ROOT, datasets_folders, find_file

DATASET_SUFFIXES = (".yaml", ".yml", ".data", ".json")
ARCHIVE_SUFFIXES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
EXPECTED = "a data set YAML, a folder, darknet's obj.data, a COCO JSON or a text file that lists images"
BUILT_IN = ROOT / "data" / "shapes.yaml"


def locate_dataset(
    data: str, progress: bool = True, *, division: Division | None = None, required: Sequence[str] = ("train", "val")
) -> DatasetSpec:
    """Return the data set that `data` names, with its images in place. See `read_dataset` and `locate_images`."""
    return locate_images(read_dataset(data, division=division, required=required), progress=progress)


def read_dataset(
    data: str, *, division: Division | None = None, required: Sequence[str] = ("train", "val")
) -> DatasetYaml:
    """Return what `--data` names: a data set YAML, a folder, darknet's obj.data, a COCO JSON or a list of images.

    Its images may be absent. `division` makes train and val of one set of images. Raises UserError with the places
    searched, for a data set without one of the splits `required`, and for a division of one that has both.
    """
    source = find_dataset(data)
    suffix = source.suffix.lower()
    if source.is_dir():
        dataset = _follow(find_layout(source, required=() if division else required))
    elif suffix == ".data":
        dataset = read_darknet(source)
    elif suffix in (".json", ".txt"):
        dataset = single_source(source)
    else:
        dataset = read_dataset_yaml(source, required=() if division else required)
    present = [split for split in ("train", "val") if dataset.entries[split]]
    if division:
        if len(present) != 1:
            problem = "has its own val: omit --split" if present else "has neither train nor val images"
            raise UserError(f"--split {division}: {dataset.file} {problem}")
        entries = {**dataset.entries, "train": dataset.entries[present[0]], "val": []}
        return replace(dataset, entries=entries, division=division)
    for split in required:
        if not dataset.entries.get(split):
            raise UserError(f"{dataset.file}: no {split} images{_advise_split(dataset, split)}")
    return dataset


def _follow(dataset: DatasetYaml) -> DatasetYaml:
    """Return the data set of a folder, with the paths of another machine in its YAML followed below that."""
    try:
        dataset.resolve(datasets_folders())
    except MissingData:
        return relocate(dataset) or dataset
    return dataset


def fill_names(dataset: DatasetYaml) -> DatasetYaml:
    """Return the data set with class names. Those that only its annotations have are read from there."""
    return dataset if dataset.names else replace(dataset, names=locate_images(dataset).names)


def _advise_split(dataset: DatasetYaml, split: str) -> str:
    """Return what to type for a data set that lacks `split`."""
    present = {split: ", ".join(entries) for split, entries in dataset.entries.items() if entries}
    found = "; ".join(f"{split}: {entries}" for split, entries in present.items())
    if split == "test":
        advice = ". Add `test:` to a data set YAML, or choose another --task"
    elif {"train", "val"} & present.keys():
        advice = ". Add --split 0.8 to train on 80 % of the images and validate on the others"
    else:
        advice = ""
    return f" (only {found or 'none'}){advice}"


def find_dataset(data: str) -> Path:
    """Return the folder or file that `data` names. Raises UserError with the places searched."""
    folders = [Path.cwd() / "data", ROOT, ROOT / "data"]
    file = Path(data) if os.path.isdir(data) else find_file(data, *folders)
    suffix = file.suffix.lower() if file else ""
    if file is None or not (file.is_dir() or suffix in DATASET_SUFFIXES or (suffix == ".txt" and is_list(file))):
        if file:
            advice = "Unpack it and give the folder" if suffix in ARCHIVE_SUFFIXES else f"Give {EXPECTED}"
            raise UserError(f"--data {data}: this file is no data set. {advice}")
        places = ", ".join(dict.fromkeys(map(str, [Path.cwd(), *folders])))
        raise UserError(f"--data {data}: no such data set YAML or folder; looked in {places}")
    return file


def locate_images(dataset: DatasetYaml, progress: bool = True) -> DatasetSpec:
    """Return the data set with its images in place.

    Missing images are drawn for the built-in set, or fetched from the URLs of `download:`. Code in `download:` is
    never run. Raises UserError if the images cannot be found.
    """
    try:
        return dataset.resolve(datasets_folders())
    except MissingData as missing:
        if dataset.file.resolve() == BUILT_IN:
            make_shapes(ROOT / "datasets" / "shapes", progress=progress)
        elif dataset.download:
            _download(dataset.download, missing, progress, dataset=dataset)
        else:
            raise
    return dataset.resolve(datasets_folders())


def _download(urls: list[str], missing: MissingData, progress: bool, *, dataset: DatasetYaml) -> None:
    """Fetch every URL and unpack them into this project's `datasets` folder. Archives that were there stay.

    Errors also list the folders searched, since the data may be on this machine under another path.
    """
    for url in urls:
        if not url.startswith(("http://", "https://")):
            raise UserError(
                f"{dataset.file}: download: only http(s) addresses of .zip or .tar archives are fetched, "
                f"code is never run; get the data by hand and correct `path:`. {missing}"
            )
    folder = ROOT / "datasets"
    shown = ", ".join(map(remove_credentials, urls))
    info(f"{missing.entries} not found in {missing.places}; fetching {shown} to {folder}")
    archives = {name_archive(url, number, urls): url for number, url in enumerate(urls)}
    fetched = [folder / name for name in archives if not (folder / name).exists()]
    try:
        for name, url in archives.items():
            fetch(url, folder / name, progress=progress)
        unpack([folder / name for name in archives], folder, own=dataset.folder_name)
    except UserError as error:
        raise UserError(f"{error}. {missing}") from error
    for archive in fetched:
        archive.unlink()


def name_archive(url: str, number: int, urls: list[str]) -> str:
    """Return the file name in a URL. Of several with the same name each gets its number in front."""
    names = [one.split("?")[0].rsplit("/", 1)[-1] for one in urls]
    return names[number] if names.count(names[number]) == 1 else f"{number}-{names[number]}"
