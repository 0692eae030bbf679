"""Names of result files: unique, legal, and listed where they differ from their sources."""

import pytest

from utils.images.frames import Frame
from utils.output.result_names import OutputNames, RenamedTable, class_folders, spreadsheet_cell, unique_names


def image(path):
    return Frame(None, path, "image", "")


@pytest.mark.parametrize(
    "text, cell",
    [
        ("", ""),
        ("cat", "cat"),
        ('=HYPERLINK("http://x","y")', '\'=HYPERLINK("http://x","y")'),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@SUM(1)", "'@SUM(1)"),
        ("a\r\nb", "a b"),  # one row is one line
        ("a=b", "a=b"),
    ],
)
def test_spreadsheets_run_no_cell(text, cell):
    assert spreadsheet_cell(text) == cell


@pytest.mark.parametrize(
    "names, folders",
    [
        ([], []),
        (["cat", "wine glass/cup"], ["cat", "wine glass_cup"]),
        (["a/b", "a:b", "a_b"], ["a_b_2", "a_b_3", "a_b"]),  # the legal name keeps itself
        (["Cat", "cat"], ["Cat", "cat_2"]),  # the same on Windows and macOS
        (["..", "cat", "cat"], ["_", "cat", "cat"]),  # one name is one class
        (["图" * 100], ["图" * 78]),  # 300 bytes
    ],
)
def test_each_class_has_a_crop_folder_of_its_own(names, folders):
    found = class_folders(dict(enumerate(names)))
    assert [found[name] for name in names] == folders


@pytest.mark.parametrize(
    "paths, stems",
    [
        (["/a/Cat.jpg", "/b/cat.jpg"], ["Cat", "cat_2"]),
        (["/a/caf\u00e9.jpg", "/b/cafe\u0301.jpg"], ["caf\u00e9", "cafe\u0301_2"]),  # one name in two Unicode forms
        ([f"/a/{'图' * 81}.png", f"/b/{'图' * 81}.png"], ["图" * 81, f"{'图' * 78}_2"]),
    ],
)
def test_names_that_some_file_systems_take_for_one(paths, stems):
    names = OutputNames()
    assert [names.stem(image(path)) for path in paths] == stems
    assert len({name.casefold() for name in unique_names(paths).values()}) == len(paths)
    assert all(len(f".{name}.jpeg".encode()) < 256 for name in (*stems, *unique_names(paths).values()))


def test_changed_names_are_listed_with_their_sources(tmp_path):
    (tmp_path / "renamed.csv").write_text("of an earlier run")
    names = OutputNames(RenamedTable(tmp_path))
    names.stem(image("/a/cat.jpg"))
    assert not (tmp_path / "renamed.csv").exists()
    for path in ("/b/cat.jpg", "/c/cat.jpg", "/c/cat.jpg"):
        names.stem(image(path))
    assert (tmp_path / "renamed.csv").read_text() == "Result,Source\ncat_2,/b/cat.jpg\ncat_3,/c/cat.jpg\n"
