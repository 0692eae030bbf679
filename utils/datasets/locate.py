"""From the text of `--data` to a data set whose pictures are there: found, drawn (the built-in one) or downloaded."""

from pathlib import Path

from utils.datasets.shapes import make_shapes
from utils.datasets.spec import DatasetSpec, MissingData
from utils.download import fetch, unpack
from utils.errors import UserError
from utils.files import ROOT, datasets_folders, find_file

BUILT_IN = ROOT / "data" / "shapes.yaml"


def acquire(data: str, progress: bool = True) -> DatasetSpec:
    """The data set that `data` (path or name of a YAML) describes, with its pictures in place.

    Missing pictures are drawn for the built-in set, or fetched from the URLs of the YAML's `download:`; code in
    `download:` is never run. Raises UserError when the YAML or the pictures cannot be found.
    """
    file = find_yaml(data)
    try:
        return DatasetSpec.load(file, datasets_folders())
    except MissingData as missing:
        if file.resolve() == BUILT_IN:
            make_shapes(ROOT / "datasets" / "shapes", progress=progress)
        elif missing.download:
            _download(missing, progress)
        else:
            raise
    return DatasetSpec.load(file, datasets_folders())


def find_yaml(data: str) -> Path:
    """The data set YAML that `data` names. UserError with the places looked at."""
    folders = [Path.cwd() / "data", ROOT, ROOT / "data"]
    file = find_file(data, *folders)
    if Path(data).is_dir():
        raise UserError(f"--data {data}: a folder: give the data set YAML, which names the folders of pictures")
    if file is None or file.suffix.lower() not in (".yaml", ".yml"):
        places = ", ".join(dict.fromkeys(map(str, [Path.cwd(), *folders])))
        raise UserError(f"--data {data}: no such data set YAML; looked in {places}")
    return file


def _download(missing: MissingData, progress: bool) -> None:
    """Fetch every URL of the YAML and unpack it into `datasets` of this project, whatever other folders are looked in.

    What goes wrong is told together with where the data was looked for: it may be here, in another place.
    """
    for url in missing.download:
        if not url.startswith(("http://", "https://")):
            raise UserError(
                f"{missing.file}: download: only http(s) addresses of .zip or .tar archives are fetched, "
                f"code is never run; get the data by hand and correct `path:`. {missing}"
            )
    folder = ROOT / "datasets"
    print(f"{missing.entries} not found in {missing.places}; fetching {', '.join(missing.download)} to {folder}")
    try:
        for url in missing.download:
            archive = fetch(url, folder / url.rsplit("/", 1)[-1].split("?")[0], progress=progress)
            unpack(archive, folder)
            archive.unlink()
    except UserError as error:
        raise UserError(f"{error}. {missing}") from error
