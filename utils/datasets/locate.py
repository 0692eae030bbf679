"""Location of a data set from the text of `--data`. Missing images are drawn or downloaded."""

from pathlib import Path

from utils.addresses import remove_credentials
from utils.console import info
from utils.datasets.shapes import make_shapes
from utils.datasets.spec import DatasetSpec, DatasetYaml, MissingData, read_dataset_yaml
from utils.download import fetch, unpack
from utils.errors import UserError
from utils.files import ROOT, datasets_folders, find_file

BUILT_IN = ROOT / "data" / "shapes.yaml"


def locate_dataset(data: str, progress: bool = True) -> DatasetSpec:
    """Return the data set that `data` (path or name of a YAML) describes, with its images in place.

    Raises UserError if the YAML or the images cannot be found; see `locate_images`.
    """
    return locate_images(read_dataset(data), progress=progress)


def read_dataset(data: str) -> DatasetYaml:
    """Return what `--data` names. Its images may be absent. Raises UserError with the places searched."""
    return read_dataset_yaml(find_dataset_yaml(data))


def find_dataset_yaml(data: str) -> Path:
    """Return the data set YAML that `data` names. Raises UserError with the places searched."""
    folders = [Path.cwd() / "data", ROOT, ROOT / "data"]
    file = find_file(data, *folders)
    if Path(data).is_dir():
        raise UserError(f"--data {data}: a folder: give the data set YAML, which names the folders of images")
    if file is None or file.suffix.lower() not in (".yaml", ".yml"):
        places = ", ".join(dict.fromkeys(map(str, [Path.cwd(), *folders])))
        raise UserError(f"--data {data}: no such data set YAML; looked in {places}")
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
