"""Findings on names of images and label files."""

import unicodedata

from scanned_sets import findings_of, places, scan, scan_rows, write_image, write_set

from utils.checking.file_names import check_label_files, check_names

ROW = "0 .5 .5 .2 .2\n"


def test_ordinary_names_have_no_finding(tmp_path):
    data = scan_rows(tmp_path, ROW, ROW, "")
    assert findings_of(check_names, data) == findings_of(check_label_files, data) == {}


def test_names_that_differ_only_in_case_or_in_the_form_of_accents(tmp_path):
    names = ["a.jpg", "A.JPG", *(unicodedata.normalize(form, "traín.jpg") for form in ("NFC", "NFD"))]
    found = findings_of(
        check_names, scan(write_set(tmp_path, {"train": dict.fromkeys(names, ROW), "val": {"b.jpg": ROW}}))
    )
    assert list(found) == ["same-but-case"] and found["same-but-case"].count == 2


def test_one_name_in_several_folders(tmp_path):
    found = findings_of(
        check_names, scan(write_set(tmp_path, {"train": {"a.jpg": ROW}, "val": {"a.jpg": ROW, "b.jpg": ROW}}))
    )
    assert list(found) == ["same-name"] and places(found["same-name"]) == ["a.jpg"]


def test_links(tmp_path):
    file = write_set(tmp_path / "set", {"train": {"a.jpg": ROW}, "val": {"b.jpg": ROW}})
    (tmp_path / "set/images/train/c.jpg").symlink_to(write_image(tmp_path / "elsewhere.jpg"))
    found = findings_of(check_names, scan(file))
    assert list(found) == ["link"] and found["link"].examples[0].detail == f"-> {tmp_path}/elsewhere.jpg"


def test_images_of_a_kind_that_is_not_read(tmp_path):
    file = write_set(tmp_path, {"train": {"a.jpg": ROW}, "val": {"b.jpg": ROW}})
    for name in ("train/phone/1.HEIC", "train/2.avif", "val/notes.md", "val/.3.heic"):
        (tmp_path / "images" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "images" / name).write_bytes(b"")
    found = findings_of(check_names, scan(file))
    assert list(found) == ["unread-image"] and places(found["unread-image"]) == ["2.avif", "1.HEIC"]
    assert found["unread-image"].text.endswith("not read: .avif .heic")


def test_label_files_of_no_image_beside_it_and_of_several(tmp_path):
    file = write_set(tmp_path, {"train": {"a.jpg": ROW, "a.png": ROW, "b.jpg": None}, "val": {"c.jpg": ROW}})
    (tmp_path / "labels/train/stray.txt").write_text(ROW)
    (tmp_path / "images/train/b.txt").write_text(ROW)
    found = findings_of(check_label_files, scan(file))
    assert {check: places(finding) for check, finding in found.items()} == {
        "label-beside-image": ["b.txt"],
        "orphan-label": ["stray.txt"],
        "shared-label": ["a.txt"],
        "no-label-file": ["b.jpg"],
    }
    assert found["label-beside-image"].level == "error"


def test_label_files_that_are_nearly_named_like_an_image_are_an_error(tmp_path):
    file = write_set(tmp_path, {"train": {"a.jpg": ROW, "b#1.JPG": None}, "val": {"c.jpg": ROW}})
    (tmp_path / "labels/train/B_1.txt").write_text(ROW)
    (tmp_path / "labels/train/other.txt").write_text(ROW)
    found = findings_of(check_label_files, scan(file))
    assert found["misnamed-label"].level == "error" and found["misnamed-label"].examples[0].detail == "for b#1.JPG?"
    assert places(found["misnamed-label"]) == ["B_1.txt"] and places(found["orphan-label"]) == ["other.txt"]


def test_images_without_a_label_file_are_a_note_if_they_are_few(tmp_path):
    images = {f"{k}.jpg": ROW for k in range(20)}
    for absent, level in ((2, "note"), (3, "warning")):
        rows = {name: None if k < absent else row for k, (name, row) in enumerate(images.items())}
        folder = tmp_path / level
        found = findings_of(check_label_files, scan(write_set(folder, {"train": rows, "val": {"a.jpg": ROW}})))
        assert list(found) == ["no-label-file"] and found["no-label-file"].level == level
        assert found["no-label-file"].count == absent and found["no-label-file"].figures == {"share": absent / 20}


def test_a_split_without_labels_is_an_error_where_it_is_trained_on(tmp_path):
    file = write_set(tmp_path, {"train": {"a.jpg": None}, "val": {"b.jpg": ""}})
    findings = list(check_label_files(scan(file)))
    assert [(one.check, one.split, one.level) for one in findings] == [
        ("no-labels", "train", "error"), ("no-labels", "val", "warning"),
    ]  # fmt: skip
    assert "labels/train/a.txt" in findings[0].advice
