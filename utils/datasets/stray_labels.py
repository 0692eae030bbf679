"""Label files that no image takes, and label files that several images take."""

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

from utils.datasets.image_files import is_image, label_path
from utils.datasets.label_folders import NOT_LABELS

NAMED = 3  # files that a message names


class StrayLabels(NamedTuple):
    """Label files of a split that do not belong to one image each."""

    unused: list[str]  # in a folder of labels, but named like no image
    beside: list[str]  # beside the images, though label files have a folder of their own
    shared: list[tuple[str, str]]  # label file, and the names of the images that take it
    absent: list[tuple[str, int]]  # folder of labels that does not exist, and its number of images

    def messages(self) -> list[str]:
        """Return a warning for each kind that occurs."""
        found = []
        if self.unused:
            found.append(
                f"{len(self.unused)} label files belong to no image: {_first(self.unused)}. "
                "Give each the name of its image with .txt for the suffix (letter case counts)"
            )
        if self.beside:
            folder = os.path.dirname(label_path(f"{os.path.splitext(self.beside[0])[0]}.jpg"))
            found.append(
                f"{len(self.beside)} label files lie beside their images and are not read: {_first(self.beside)}. "
                f"Move them to {folder}"
            )
        if self.shared:
            named = [f"{label} ({images})" for label, images in self.shared]
            found.append(
                f"{len(self.shared)} label files are used for several images each: {_first(named)}. "
                "Rename images that are not the same"
            )
        if self.absent:
            named = [f"{folder} (of {count} images)" for folder, count in self.absent]
            found.append(
                f"{len(self.absent)} folders of labels do not exist: {_first(named)}. "
                "Their images count as backgrounds. If they are, make the folders"
            )
        return found


def find_stray_labels(paths: Iterable[str], *, whole_folders: bool) -> StrayLabels:
    """Compare the text files in the folders of labels with those that the images take.

    Without `whole_folders` (from a list file) other images may have the other labels. Then, and where labels lie beside
    images, a label file counts only if its name resembles that of an image without labels.
    """
    stray, some_exist = StrayLabels([], [], [], []), False
    for folder, images in _by_folder(paths).items():
        labels = label_path(f"{folder}x.jpg").removesuffix("x.txt")
        if labels != folder and not os.path.isdir(labels):
            stray.absent.append((labels, len(images)))
        else:
            some_exist = True
        listed, taken = _text_files(labels), set(map(_label_name, images))
        unused = listed - taken - NOT_LABELS
        if not whole_folders or labels == folder:
            missing = {resembling(name) for name in taken - listed}
            unused = {name for name in unused if resembling(name) in missing}
        stray.unused.extend(sorted(labels + name for name in unused))
        if labels != folder:
            stray.beside.extend(sorted(folder + name for name in (_text_files(folder) & taken) - listed))
        if len(taken) < len(images):
            shared = {name: users for name, users in _takers(images).items() if len(users) > 1 and name in listed}
            stray.shared.extend((labels + name, ", ".join(sorted(users))) for name, users in sorted(shared.items()))
    if not some_exist:  # the summary of the scan says where labels are expected
        stray.absent.clear()
    return stray


def _by_folder(paths: Iterable[str]) -> dict[str, list[str]]:
    """Return the names of the images in each folder."""
    folders: dict[str, list[str]] = defaultdict(list)
    for folder, group in groupby(paths, lambda path: path[: path.rfind(os.sep) + 1]):
        folders[folder] += [path[len(folder) :] for path in group]
    return folders


def _label_name(image: str) -> str:
    return f"{image[: image.rfind('.')]}.txt"


def _takers(images: list[str]) -> dict[str, set[str]]:
    """Return the names of label files, and of the images that take them."""
    takers: dict[str, set[str]] = defaultdict(set)
    for name in images:
        takers[_label_name(name)].add(name)
    return takers


def _text_files(folder: str) -> set[str]:
    """Return the names of the text files in a folder, none if it is absent or cannot be listed."""
    try:
        return {name for name in os.listdir(folder or os.curdir) if name[-4:].lower() == ".txt" and name[0] != "."}
    except OSError:
        return set()


def resembling(name: str) -> str:
    """Return what is left of a file name without suffixes, case, Unicode form, and the sign for other characters."""
    stem = os.path.splitext(name)[0]
    while is_image(stem):
        stem = os.path.splitext(stem)[0]
    plain = unicodedata.normalize("NFC", stem).casefold()
    return "".join(letter if letter.isalnum() else "_" for letter in plain)


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + ", ..." * (len(names) > NAMED)
