"""Images of a split: found in folders and list files, each with the path of its label file."""

import errno
import os

import pytest
from small_splits import write_image, write_labels

from utils.datasets.image_files import find_images, label_path
from utils.datasets.labels import load_index
from utils.errors import UserError


@pytest.mark.parametrize("image, label", [
    ("/a/images/b/images/c.d.jpg", "/a/images/b/labels/c.d.txt"),  # the last folder `images`, the last suffix
    ("/x/y.jpg", "/x/y.txt"),  # no such folder: beside the image
    ("images/z.png", "labels/z.txt"),  # a relative path may begin with it
    ("my_images/z.png", "my_images/z.txt"),  # part of a name is not a folder
    ("/images/images/z.png", "/images/labels/z.txt"),
    ("/a/images.jpg", "/a/images.txt"),
])  # fmt: skip
def test_label_path(image, label):
    assert label_path(image) == label


def test_images_are_found_in_any_depth_with_any_case_and_sorted(tmp_path):
    for name in ("b/z.JPG", "b/deep/er/y.Png", "a.webp", "b/notes.md", ".hidden/x.jpg", "b/._z.jpg", "b/jpg"):
        write_labels(tmp_path / name, "x")
    found = [os.path.relpath(path, tmp_path) for path in find_images(tmp_path)]
    assert found == ["a.webp", "b/deep/er/y.Png", "b/z.JPG"]


def test_a_link_to_a_parent_does_not_lead_in_circles(tmp_path):
    write_image(tmp_path / "a/x.png")
    (tmp_path / "a/again").symlink_to(tmp_path)
    assert len(find_images(tmp_path / "a")) == 1


def test_list_files(tmp_path, monkeypatch):
    beside, here = write_image(tmp_path / "lists/images/a.png"), write_image(tmp_path / "cwd/images/b.png")
    absolute = write_image(tmp_path / "other/c.png")
    text = f"./images/a.png\r\nimages/a.png\nimages/b.png\n\n{absolute}\nnotes.md\n"
    split = write_labels(tmp_path / "lists/train.txt", b"\xef\xbb\xbf" + text.encode())
    monkeypatch.chdir(here.parents[1])
    assert find_images(split) == sorted([str(beside), str(beside), "images/b.png", str(absolute)])


def test_sources_may_mix_folders_lists_and_single_images(tmp_path):
    one, two, three = (write_image(tmp_path / f"{name}/x.png") for name in "abc")
    split = write_labels(tmp_path / "list.txt", f"{two}\n")
    assert find_images([three, tmp_path / "a", split]) == [str(one), str(two), str(three)]


def test_an_absent_source_or_one_without_images_is_an_error(tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist"):
        find_images(tmp_path / "nowhere")
    with pytest.raises(UserError, match="val: no images in"):
        load_index(tmp_path, 1, prefix="val: ", progress=False)
    with pytest.raises(UserError, match="not a text file"):
        find_images(write_labels(tmp_path / "list.txt", b"\xff\xfe\x00"))


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    write_image(tmp_path / "a/x.png")
    write_image(tmp_path / "b/x.png")
    scandir = os.scandir

    def fail(folder):
        if os.fspath(folder).rstrip("/").endswith("b"):
            raise OSError(errno.EIO, "Input/output error")
        return scandir(folder)

    monkeypatch.setattr("utils.files.RETRY_DELAYS", (0, 0))
    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(UserError, match="/b/ cannot be listed: Input/output error"):
        find_images(tmp_path)


def test_a_loop_of_links_is_no_folder(tmp_path):
    image = write_image(tmp_path / "a/x.png")
    (tmp_path / "a/loop").symlink_to(tmp_path / "a/loop")
    assert find_images(tmp_path) == [str(image)]


def test_lists_written_on_windows(tmp_path):
    image = write_image(tmp_path / "images/train/a.png")
    split = write_labels(tmp_path / "train.txt", b"images\\train\\a.png\r\n.\\images\\train\\a.png\r\n")
    assert find_images(split) == [str(image)] * 2


def test_a_link_to_a_list_leads_to_the_images_beside_either(tmp_path):
    image = write_image(tmp_path / "far/images/a.png")
    write_labels(tmp_path / "far/train.txt", "./images/a.png\n")
    (tmp_path / "near").mkdir()
    (tmp_path / "near/train.txt").symlink_to(tmp_path / "far/train.txt")
    assert find_images(tmp_path / "near/train.txt") == [str(image)]
    near = write_image(tmp_path / "near/images/a.png")
    assert find_images(tmp_path / "near/train.txt") == [str(near)]


def test_labels_beside_images_count_where_there_is_no_folder_of_labels(tmp_path):
    image = tmp_path / "images" / "day" / "a.jpg"
    image.parent.mkdir(parents=True)
    expected = tmp_path / "labels" / "day" / "a.txt"
    (image.parent / "classes.txt").touch()
    assert label_path(image) == str(expected)  # nothing that may be a label
    image.with_name("b.txt").touch()
    assert label_path(image) == str(image.with_suffix(".txt"))
    (tmp_path / "labels").mkdir()
    assert label_path(image) == str(expected)
