"""Sources of a split that are no label files: a COCO JSON, a Pascal VOC folder, a list of VOC names."""

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from utils.datasets.annotation_cache import AnnotationCache
from utils.datasets.annotations import NamedIndex, build_index
from utils.datasets.coco import read_instances
from utils.datasets.image_files import label_path, walk_files
from utils.datasets.label_cache import stamp_each
from utils.datasets.remarks import Remarks
from utils.datasets.voc import read_voc
from utils.errors import UserError
from utils.images.suffixes import IMAGE_SUFFIXES
from utils.pixel_format import PixelFormat

XML_FOLDERS = ("annotations", "xmls", "xml", "labels")  # beside a folder of images, in any case of letters
IMAGE_FOLDERS = ("jpegimages", "images", "data", "imgs", "img")


class AnnotationSource(NamedTuple):
    """Place of the annotations of a source, and of their images."""

    kind: Literal["coco", "voc"]
    file: Path  # JSON, or folder of XML files
    folders: tuple[Path, ...]  # of images; of VOC one
    listing: Path | None = None  # names of the images of a VOC split

    def load(self, pixels: PixelFormat, *, title: str, progress: bool, cache: bool = True) -> NamedIndex:
        """Return the index of images that are decoded to `pixels`, from the cache if it is valid.

        Raises UserError if the annotations or the pixels cannot be used.
        """
        files = self._known_files()
        store = AnnotationCache.of_source(list(map(str, self.places)), files, pixels)
        cached = store.read() if cache else None
        if cached is not None:
            return cached
        remarks, stamps = Remarks(), stamp_each(files or [str(self.file)])
        if self.kind == "coco":
            annotations = read_instances(self.file, self.folders, remarks)
        else:
            annotations = read_voc(self.file, self.folders[0], self.listing, remarks)
        if not annotations.images:
            first = next(iter(remarks.remarks()), "it names none")
            raise UserError(f"{self.listing or self.file}: none of its images can be used; {first}")
        if files is None:
            paths = sorted(image.path for image in annotations.images)
            files, stamps = [str(self.file), *paths], np.concatenate([stamps, stamp_each(paths)])
        name = str(self.listing or self.file)
        built = build_index(annotations, name, remarks, pixels=pixels, title=title, progress=progress)
        if cache and built.is_lasting:
            store.write(built.named, files, stamps)
        return built.named

    @property
    def places(self) -> list[Path]:
        """Files and folders that the index depends on."""
        return [self.file, *self.folders, *([self.listing] if self.listing else [])]

    def _known_files(self) -> list[str] | None:
        """Return all files that the index is made of, None if only the annotations name them."""
        if self.kind == "coco":
            return None
        listed = [str(self.listing)] if self.listing else []
        return [*listed, *sorted(_walk(self.file, {".xml"})), *sorted(_walk(self.folders[0], IMAGE_SUFFIXES))]


def _walk(folder: Path, suffixes: Collection[str]) -> Iterable[str]:
    return walk_files(str(folder), suffixes)


def find_annotation_source(path: Path, root: Path) -> AnnotationSource | None:
    """Return what is behind a source of a split, None if its labels are label files.

    A .json is a COCO file. A folder is one of Pascal VOC if there are XML files in it, in its Annotations/ or beside
    it, and no label files. A list in ImageSets/ names images of the folder above. `root` is `path:` of the data set.
    """
    if path.suffix.lower() == ".json" and not path.is_dir():
        return AnnotationSource("coco", path, tuple(image_folders(path, root)))
    if path.suffix.lower() == ".txt" and path.is_file():
        base = next((parent.parent for parent in path.parents if parent.name.lower() == "imagesets"), None)
        pair = _voc_folders(base) if base else None
        return AnnotationSource("voc", pair[0], (pair[1],), path) if pair else None
    pair = _voc_folders(path) if path.is_dir() else None
    return AnnotationSource("voc", pair[0], (pair[1],)) if pair else None


def find_names(
    splits: Mapping[str, Sequence[Path]], root: Path, pixels: PixelFormat, *, progress: bool = True
) -> list[str]:
    """Return the class names in the annotations of all splits, none if there are only label files.

    Those of COCO files come first, in their order, then those of Pascal VOC, which have none, alphabetically.
    """
    sources = [source for paths in splits.values() for source in find_sources(paths, root)]
    loaded = {
        source: source.load(pixels, title=f"Scanning {source.file}...", progress=progress)
        for source in dict.fromkeys(sources)
    }
    coco, voc = (
        [name for source, named in loaded.items() if source.kind == kind for name in named.names]
        for kind in ("coco", "voc")
    )
    return list(dict.fromkeys([*coco, *sorted(voc)]))


def find_sources(paths: Iterable[Path], root: Path) -> Iterator[AnnotationSource]:
    """Yield the sources among the paths of a split whose labels are no label files."""
    yield from filter(None, (find_annotation_source(path, root) for path in paths))


def image_folders(file: Path, root: Path) -> list[Path]:
    """Return the folders where images of a COCO JSON are looked for, the most likely first.

    They are its own, the one above annotations/, and `root`, each with images/ and data/ in it. A folder named like the
    file is first: train2017/ for instances_train2017.json.
    """
    above = [file.parent.parent] if file.parent.name.lower().startswith("annotation") else []
    name = file.stem.removeprefix("instances_").removeprefix("annotations_")
    found = []
    for base in (file.parent, *above, root):
        found += [base / name, base / "images" / name, base, base / "images", base / "data"]
    unique: dict[str, Path] = {}
    for folder in found:
        unique.setdefault(os.path.realpath(folder), folder)
    existing = [folder for folder in unique.values() if folder.is_dir()]
    return existing or [file.parent]


def _voc_folders(folder: Path) -> tuple[Path, Path] | None:
    """Return the folder of XML files and that of their images."""
    below = _subfolders(folder)
    for name in XML_FOLDERS:
        xmls = below.get(name)
        if xmls and _has_annotations(xmls):
            images = next((below[image] for image in IMAGE_FOLDERS if image in below), folder)
            return xmls, images
    if _has_annotations(folder):
        return folder, folder
    parts = folder.parts  # of images/train the XML files may be in annotations/train
    for k in reversed(range(len(parts))):
        if parts[k].lower() in IMAGE_FOLDERS:
            beside = _subfolders(Path(*parts[:k]))
            for name in XML_FOLDERS:
                xmls = beside[name].joinpath(*parts[k + 1 :]) if name in beside else None
                if xmls and xmls.is_dir() and _has_annotations(xmls):
                    return xmls, folder
            return None
    return None


def _subfolders(folder: Path) -> dict[str, Path]:
    """Return the folders in a folder by their names in small letters, none if it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name.lower(): folder / entry.name for entry in entries if entry.is_dir()}
    except OSError:
        return {}


def _has_annotations(folder: Path) -> bool:
    """Return whether there are XML files in a folder, and no label files, which count where there are both."""
    labels = os.path.dirname(label_path(os.path.join(folder, "x.jpg")))
    if labels != str(folder) and _has_text_file(labels):
        return False  # before a folder of a million images is listed
    try:
        names = os.listdir(folder)
    except OSError:
        return False
    stems = {os.path.splitext(name)[0] for name in names if name.lower().endswith(".xml")}
    return bool(stems) and not any(name[:-4] in stems for name in names if name.lower().endswith(".txt"))


def _has_text_file(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(entry.name.lower().endswith(".txt") for entry in entries)
    except OSError:
        return False
