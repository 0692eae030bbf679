"""Download of missing data sets: into their own folder, and never over data of the user's."""

import shutil
import zipfile

import pytest

from utils.datasets import locate
from utils.datasets.locate import locate_dataset
from utils.errors import UserError

IMAGES = [("theirs/images/train/1.jpg", "x"), ("theirs/images/val/1.jpg", "x")]


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    """Return the folder of data sets of a project elsewhere."""
    folder = tmp_path / "project" / "datasets"
    folder.mkdir(parents=True)
    monkeypatch.setattr(locate, "ROOT", folder.parent)
    monkeypatch.setattr(locate, "datasets_folders", lambda: [folder])
    return folder


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """Return a function that puts archives on a server, and returns a data set YAML with their addresses."""

    def fetch(url, destination, **_):
        if not destination.exists():
            shutil.copy(tmp_path / "served" / url.replace("://", "_").replace("/", "_"), destination)
        return destination

    def put(archives, path="theirs"):
        (tmp_path / "served").mkdir(exist_ok=True)
        for url, entries in archives.items():
            make_zip(tmp_path / "served" / url.replace("://", "_").replace("/", "_"), entries)
        file = tmp_path / "theirs.yaml"
        lines = [f"path: {path}", "train: images/train", "val: images/val", "names: [a]", f"download: {list(archives)}"]
        file.write_text("\n".join(lines))
        return str(file)

    monkeypatch.setattr(locate, "fetch", fetch)
    return put


def make_zip(file, entries):
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in entries:
            archive.writestr(name, content)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("path", ["theirs", "../datasets/theirs", "datasets/theirs"])
def test_missing_images_are_fetched_and_the_archive_removed(datasets, serve, path):
    (datasets / "theirs" / "labels").mkdir(parents=True)  # a part of it is here
    located = locate_dataset(serve({"http://host/theirs.zip": IMAGES}, path))
    assert located.root == datasets / "theirs" and names(datasets) == ["theirs"]


def test_archives_of_one_name_are_all_unpacked(datasets, serve):
    locate_dataset(serve({"http://host/train/a.zip": IMAGES[:1], "http://host/val/a.zip": IMAGES[1:]}))
    assert names(datasets) == ["theirs"]


def test_an_archive_never_changes_other_data(datasets, serve):
    own = datasets / "mine" / "labels" / "1.txt"
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    locate_dataset(serve({"http://host/theirs.zip": [*IMAGES, ("mine/labels/1.txt", "theirs")]}))
    shutil.rmtree(datasets / "theirs")
    data = serve({"http://host/theirs.zip": [*IMAGES, ("mine/labels/2.txt", "theirs")]})
    with pytest.raises(UserError, match=r"the archive holds mine, but .*mine exists.* looked in"):
        locate_dataset(data)
    assert own.read_text() == "mine" and names(own.parent) == ["1.txt"]


@pytest.mark.parametrize("entries", [IMAGES, [("photos/1.jpg", "the only copy")]])
def test_an_archive_of_the_users_own_is_kept(datasets, serve, entries):
    make_zip(datasets / "theirs.zip", entries)
    before = (datasets / "theirs.zip").read_bytes()
    data = serve({"http://host/theirs.zip": []})
    if entries is IMAGES:
        locate_dataset(data)
    else:
        with pytest.raises(UserError, match="not found"):
            locate_dataset(data)
    assert (datasets / "theirs.zip").read_bytes() == before


def test_an_address_is_announced_without_its_password(datasets, serve, capsys):
    locate_dataset(serve({"http://me:secret@host/theirs.zip": IMAGES}))
    out = capsys.readouterr().out
    assert "fetching http://host/theirs.zip to" in out and "secret" not in out
