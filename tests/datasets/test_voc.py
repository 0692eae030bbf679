"""Pascal VOC XML to label files: the same objects, everything skipped is counted, DOCTYPEs refused."""

import time
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from test_yolo_writer import rows, write_image

from data.scripts.voc_to_yolo import main
from utils.datasets.labels import load_index
from utils.datasets.voc import EDGES, NoDoctype
from utils.errors import UserError
from utils.files import read_yaml


def voc_object(name: str = "ape", box=(20, 20, 60, 40), difficult: str = "<difficult>0</difficult>") -> str:
    edges = "".join(f"<{edge}>{value}</{edge}>" for edge, value in zip(EDGES, box, strict=True))
    return f"<object><name>{name}</name>{difficult}<bndbox>{edges}</bndbox></object>"


def voc(
    *objects: str, size: str = "<size><width>200</width><height>100</height></size>", filename: str = "a.jpg"
) -> str:
    return f"<annotation><filename>{filename}</filename>{size}{''.join(objects)}</annotation>"


def convert_voc(tmp_path: Path, xml: str | bytes, *flags: str, stem: str = "a") -> Path:
    folder = tmp_path / "in"
    write_image(folder / "a.jpg")
    (folder / f"{stem}.xml").write_bytes(xml if isinstance(xml, bytes) else xml.encode())
    main(["--output", str(tmp_path / "out"), *flags, "--split", "train", str(folder), str(folder)])
    return tmp_path / "out"


@pytest.mark.parametrize(
    "xml, flags, expected",
    [
        (voc(), ["--names", "ape"], []),  # a background
        (voc(voc_object()), [], [[0, 0.2, 0.3, 0.2, 0.2]]),
        (voc(voc_object()), ["--pascal"], [[0, 0.1975, 0.295, 0.205, 0.21]]),  # pixels 20...60 of 1...: edges 19 and 60
        (voc(voc_object(box=("20.0", "20.0", " 60 ", "40"))), [], [[0, 0.2, 0.3, 0.2, 0.2]]),
        (voc(voc_object(), size="<size><width>0</width><height>0</height></size>"), [], [[0, 0.2, 0.3, 0.2, 0.2]]),
        (voc(voc_object(), size=""), [], [[0, 0.2, 0.3, 0.2, 0.2]]),
        (voc(voc_object("zoo"), voc_object("ape")), [], [[1, 0.2, 0.3, 0.2, 0.2], [0, 0.2, 0.3, 0.2, 0.2]]),
        (
            voc(voc_object("zoo"), voc_object("ape")),
            ["--names", "zoo", "ape"],
            [[0, 0.2, 0.3, 0.2, 0.2], [1, 0.2, 0.3, 0.2, 0.2]],
        ),
        (voc(voc_object(), voc_object()), [], [[0, 0.2, 0.3, 0.2, 0.2]]),  # twice the same
        (voc(voc_object(box=(-20, 20, 900, 40))), [], [[0, 0.5, 0.3, 1, 0.2]]),  # cut
        (voc(voc_object(box=(60, 40, 20, 20))), [], [[0, 0.2, 0.3, 0.2, 0.2]]),  # upside down
        (voc(voc_object(), size="<size><width>wide</width><height>9</height></size>"), [], [[0, 0.2, 0.3, 0.2, 0.2]]),
        (voc(f"<objects>{voc_object()}</objects>"), [], [[0, 0.2, 0.3, 0.2, 0.2]]),  # nested
        (voc(voc_object()).replace("<annotation>", '<annotation xmlns="urn:x">'), [], [[0, 0.2, 0.3, 0.2, 0.2]]),
        (
            voc("<object><name>ape</name><polygon><x1>20</x1><y1>20</y1><x2>60</x2><y2>40</y2></polygon></object>"),
            [],
            [[0, 0.2, 0.3, 0.2, 0.2]],
        ),
        (
            voc(
                "<object><name>ape</name><polygon><pt><x>20</x><y>20</y></pt><pt><x>60</x><y>40</y></pt></polygon></object>"
            ),
            [],
            [[0, 0.2, 0.3, 0.2, 0.2]],
        ),
        (
            voc(voc_object(), voc_object("zoo", difficult="<difficult>1</difficult>")),
            ["--names", "ape", "zoo"],
            [[0, 0.2, 0.3, 0.2, 0.2]],
        ),
        (voc(voc_object("zoo", difficult="<difficult>1</difficult>")), ["--difficult"], [[0, 0.2, 0.3, 0.2, 0.2]]),
        (voc(voc_object(difficult="")), [], [[0, 0.2, 0.3, 0.2, 0.2]]),
        (voc(voc_object(), voc_object("zoo")), ["--names", "ape", "--skip-unknown"], [[0, 0.2, 0.3, 0.2, 0.2]]),
    ],
)
def test_voc_rows(tmp_path, xml, flags, expected):
    assert rows(convert_voc(tmp_path, xml, *flags), "train", "a") == expected


def test_voc_says_what_it_skipped(tmp_path, capsys):
    convert_voc(
        tmp_path,
        voc(
            voc_object(),
            voc_object("zoo"),
            voc_object(box=(9, 9, 9, 9)),
            voc_object(),
            voc_object(difficult="<difficult>1</difficult>"),
        ),
        "--names",
        "ape",
        "--skip-unknown",
    )
    printed = capsys.readouterr().out
    for line in ("objects of the unknown class 'zoo'", "boxes without area", "repeated rows", "difficult objects"):
        assert f"skipped: 1 {line}" in printed


def test_voc_image_is_found_by_the_name_that_the_xml_gives(tmp_path):
    out = convert_voc(tmp_path, voc(voc_object(), filename="C:\\somewhere\\a.jpg"), stem="other")
    assert len(rows(out, "train", "a")) == 1 and (out / "images/train/a.jpg").is_file()


def test_voc_absent_images_are_counted(tmp_path, capsys):
    write_image(tmp_path / "in" / "a.jpg")
    (tmp_path / "in" / "gone.xml").write_text(voc(voc_object(), filename="gone.jpg"))
    convert_voc(tmp_path, voc(voc_object()))
    assert "skipped: 1 XML files whose image is not in" in capsys.readouterr().out


def test_voc_list_chooses_files(tmp_path):
    for stem in ("a", "b", "c"):
        write_image(tmp_path / f"jpg/{stem}.jpg")
        (tmp_path / f"{stem}.xml").write_text(voc(voc_object(), filename=f"{stem}.jpg"))
    (tmp_path / "val.txt").write_text("c  1\na -1\n\n")
    main(
        [
            "--output",
            str(tmp_path / "out"),
            "--split",
            "val",
            str(tmp_path),
            str(tmp_path / "jpg"),
            str(tmp_path / "val.txt"),
        ]
    )
    assert {f.stem for f in (tmp_path / "out/labels/val").iterdir()} == {"a", "c"}
    assert read_yaml(tmp_path / "out/out.yaml")["train"] == "images/val"


@pytest.mark.parametrize("line", ["a", "JPEGImages/a.jpg", "/elsewhere/a.jpg 1", "..\\\\a.jpg"])
def test_voc_lists_may_hold_paths_and_names_without_a_file(tmp_path, capsys, line):
    write_image(tmp_path / "jpg/a.jpg")
    (tmp_path / "a.xml").write_text(voc(voc_object()))
    (tmp_path / "val.txt").write_text(f"zzz\n{line}\n")
    words = [
        "--output",
        str(tmp_path / "out"),
        "--split",
        "val",
        *(str(tmp_path / name) for name in ("", "jpg", "val.txt")),
    ]
    main(words)
    assert len(rows(tmp_path / "out", "val", "a")) == 1
    assert "skipped: 1 names in lists that have no XML file" in capsys.readouterr().out
    (tmp_path / "val.txt").write_text("zzz\n")
    with pytest.raises(UserError, match=r"val\.txt: none of its 1 names has an XML file"):
        main(words)


BOMB = (
    "<!DOCTYPE a [<!ENTITY x 'ha'>"
    + "".join(f"<!ENTITY x{k} '{('&x%s;' % (k - 1 if k > 1 else '')) * 10}'>" for k in range(1, 10))
    + "]>"
)


@pytest.mark.parametrize(
    "xml",
    [
        BOMB + "<annotation>&x9;</annotation>",
        ("<?xml version='1.0' encoding='utf-16'?>" + BOMB + "<annotation>&x9;</annotation>").encode("utf-16"),
        b"<?xml version='1.0' encoding='cp037'?>" + (BOMB + "<annotation>&x9;</annotation>").encode("cp037"),
        "<!DOCTYPE annotation SYSTEM 'file:///etc/passwd'>" + voc(voc_object()),
        "<!DOCTYPE a [<!ENTITY f SYSTEM 'file:///etc/passwd'>]>" + voc(voc_object("&f;")),
    ],
    ids=["bomb", "utf-16 bomb", "ebcdic bomb", "outside definition", "outside file"],
)
def test_voc_refuses_doctypes_at_once(tmp_path, xml):
    start = time.process_time()
    with pytest.raises(UserError, match=r"a\.xml: .*(DOCTYPE|not XML)"):
        convert_voc(tmp_path, xml)
    assert time.process_time() - start < 2
    assert not (tmp_path / "out").exists()


def test_voc_parser_itself_stops_at_a_doctype():
    """The search in the bytes is the first guard, this is the second."""
    with pytest.raises(UserError, match="DOCTYPE"):
        ET.fromstring("<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>", parser=ET.XMLParser(target=NoDoctype()))


@pytest.mark.parametrize(
    "xml, flags, message",
    [
        ("<annotation>", [], r"a\.xml: not XML"),
        ("", [], r"a\.xml: not XML"),
        ("<?xml version='1.0' encoding='klingon'?><a/>", [], r"a\.xml: not XML"),
        (voc("<object><name>ape</name></object>"), [], r"<bndbox> of ape is \['', '', '', ''\]: expected 4 finite"),
        (voc(voc_object(box=(1, 2, "x", 4))), [], "<bndbox> of ape .* expected 4 finite"),
        (voc(voc_object(box=(1, 2, "inf", 4))), [], "<bndbox> of ape .* expected 4 finite"),
        (voc(voc_object("")), [], "an <object> has no <name>"),
        (
            voc(voc_object("zoo"), voc_object("dog"), voc_object("dog")),
            ["--names", "ape"],
            r"--names lacks: 'dog' \(2\), 'zoo' \(1\); add them to --names, or give --skip-unknown",
        ),
        (voc(), [], "so there are no class names; give --names"),
    ],
)
def test_voc_mistakes_are_one_clear_error_and_leave_nothing(tmp_path, xml, flags, message):
    with pytest.raises(UserError, match=message) as caught:
        convert_voc(tmp_path, xml, *flags)
    assert "\n" not in str(caught.value)
    assert {f.name for f in tmp_path.iterdir()} == {"in"}


def test_voc_one_odd_file_does_not_end_the_conversion(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "b.jpg").write_bytes(b"no image")
    (tmp_path / "in" / "b.xml").write_text(voc(voc_object(), size="", filename="b.jpg"))
    (tmp_path / "in" / "broken.xml").write_text("<annotation>")
    (tmp_path / "in" / "._a.xml").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")  # of a Mac, beside each file
    out = convert_voc(tmp_path, voc(voc_object(), voc_object(""), voc_object(box=(1, 2, 3, ""))))
    assert rows(out, "train", "a") == [[0, 0.2, 0.3, 0.2, 0.2]]
    printed = capsys.readouterr().out
    assert "skipped: 2 XML files that cannot be used" in printed and "._a.xml" not in printed
    assert "b.jpg: its size is needed, but it cannot be read" in printed and "broken.xml: not XML" in printed
    assert (
        "skipped: 2 objects without a name or a box" in printed and "<bndbox> of ape is ['1', '2', '3', '']" in printed
    )


def test_voc_files_in_subfolders(tmp_path, capsys):
    """Images are in subfolders too, or all in one folder. Two files do not share an image."""
    for name in ("x", "y", "z"):
        (tmp_path / "xml" / name).mkdir(parents=True)
        (tmp_path / "xml" / name / "a.xml").write_text(voc(voc_object(), filename=""))
    for name in ("x/a.jpg", "a.jpg"):
        write_image(tmp_path / "jpg" / name)
    main(["--output", str(tmp_path / "out"), "--split", "train", str(tmp_path / "xml"), str(tmp_path / "jpg")])
    assert [len(rows(tmp_path / "out", "train", stem)) for stem in ("x/a", "a")] == [1, 1]
    printed = capsys.readouterr().out
    assert "train: 2 images, 2 objects" in printed and "skipped: 1 XML files whose image another one has" in printed


def test_voc_folder_without_xml(tmp_path):
    with pytest.raises(UserError, match=r"no \.xml file in it"):
        main(["--output", str(tmp_path / "out"), "--split", "train", str(tmp_path), str(tmp_path)])


def test_fruit_voc_converts_and_reads_back(reference, tmp_path, capsys):
    source = reference / "datasets" / "fruit_voc"
    splits = [
        word
        for name, folder in (("train", "train"), ("val", "test"))
        for word in ("--split", name, str(source / folder), str(source / folder))
    ]
    main(["--output", str(tmp_path / "fruit"), *splits])
    assert "train: 240 images, 465 objects" in capsys.readouterr().out
    data = read_yaml(tmp_path / "fruit" / "fruit.yaml")
    assert list(data["names"].values()) == ["apple", "banana", "orange"]
    index = load_index([tmp_path / "fruit" / data["train"]], 3, cache=False, progress=False)
    assert len(index) == 240 and len(index.labels) == 465 and index.messages == []


def test_voc_xml_of_another_kind_is_no_background(tmp_path):
    with pytest.raises(UserError, match=r"a\.xml: its root is <metadata>, expected the <annotation>"):
        convert_voc(tmp_path, "<metadata><camera>x</camera></metadata>", "--names", "ape")


@pytest.mark.parametrize(
    "content, message", [(b"a\xff\n", "txt: cannot be read as UTF-8 text"), (b"ELSEWHERE/b\n", "none of its 1 names")]
)
def test_voc_lists_that_cannot_be_used_are_one_line(content, message, tmp_path):
    write_image(tmp_path / "in/a.jpg")
    (tmp_path / "elsewhere").mkdir()
    for name in ("in/a", "elsewhere/b"):
        (tmp_path / f"{name}.xml").write_text(voc(voc_object()))
    (tmp_path / "list.txt").write_bytes(content.replace(b"ELSEWHERE", str(tmp_path / "elsewhere").encode()))
    folders = [str(tmp_path / "in")] * 2
    with pytest.raises(UserError, match=message):
        main(["--output", str(tmp_path / "out"), "--split", "train", *folders, str(tmp_path / "list.txt")])
