"""Files of a detection run: their names, their content, and a second run into the same folder."""

import csv
import shutil
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pytest

from utils.errors import UserError, explain
from utils.images.frames import Frame
from utils.output.detection_files import Outputs
from utils.output.result_names import OutputNames

NAMES = {0: "person", 1: "bus", 2: "wine glass/cup"}
IMAGE = np.full((100, 200, 3), 120, dtype=np.uint8)
ROWS = np.array([[20, 10, 60, 50, 0.5, 1], [0, 0, 100, 100, 0.876, 0]], dtype=np.float32)
NOTHING = np.zeros((0, 6), dtype=np.float32)


def frame(path="/a/cat.jpg", kind="image", number=0, fps=0.0, image=IMAGE):
    return Frame(image, path, kind, "prefix: ", number, fps, max(number - 1, 0) / (fps or 1))


def files_below(folder):
    return sorted(str(file.relative_to(folder)) for file in Path(folder).rglob("*") if file.is_file())


# ---- one frame's outputs


def test_text_is_normalised_with_the_lowest_score_first(tmp_path):
    Outputs(tmp_path, NAMES, text=True, images=False).write(frame(), ROWS)
    assert (tmp_path / "labels/cat.txt").read_text() == "1 0.2 0.3 0.2 0.4\n0 0.25 0.5 0.5 1\n"


def test_text_as_corners_with_confidence(tmp_path):
    Outputs(tmp_path, NAMES, text=True, images=False, corners=True, confidence=True).write(frame(), ROWS)
    assert (tmp_path / "labels/cat.txt").read_text() == "1 0.1 0.1 0.3 0.5 0.5\n0 0 0 0.5 1 0.876\n"


@pytest.mark.parametrize(
    "kind, number, file", [("video", 7, "cat_7.txt"), ("screen", 1, "cat_1.txt"), ("image", 0, "cat.txt")]
)
def test_text_file_of_a_frame(tmp_path, kind, number, file):
    path = "cat" if kind == "screen" else "/a/cat.mp4"
    Outputs(tmp_path, NAMES, text=True, images=False).write(frame(path, kind, number), ROWS)
    assert files_below(tmp_path) == [f"labels/{file}"]


def test_text_of_an_earlier_run_is_replaced_or_removed(tmp_path):
    for rows, expected in [(ROWS, 2), (ROWS[:1], 1), (NOTHING, None)]:
        outputs = Outputs(tmp_path, NAMES, text=True, images=False)
        outputs.write(frame(), rows)
        file = tmp_path / "labels/cat.txt"
        assert (len(file.read_text().splitlines()) if file.exists() else None) == expected
        assert outputs.label_files == (expected is not None)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_keeps_the_earlier_text(tmp_path, monkeypatch):
    outputs = Outputs(tmp_path, NAMES, text=True, images=False)
    outputs.write(frame(), ROWS)
    before = (tmp_path / "labels/cat.txt").read_text()
    monkeypatch.setattr("utils.files.open", lambda *_: open("/dev/full", "wb"), raising=False)  # noqa: SIM115
    with pytest.raises(OSError, match="No space left"):
        outputs.write(frame(), ROWS[:1])
    assert files_below(tmp_path) == ["labels/cat.txt"] and (tmp_path / "labels/cat.txt").read_text() == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_names_the_table(tmp_path):
    (tmp_path / "predictions.csv").symlink_to("/dev/full")
    outputs = Outputs(tmp_path, NAMES, table=True, images=False)
    for work in (lambda: outputs.write(frame(), ROWS), outputs.close):
        with pytest.raises(OSError, match="No space left") as error:
            work()
        assert error.value.filename == str(tmp_path / "predictions.csv")


@pytest.mark.parametrize("kinds", [{"text": True}, {"images": True}, {"table": True}], ids="-".join)
def test_a_folder_that_is_removed_is_named_in_one_line(tmp_path, kinds):
    folder = tmp_path / "exp"
    folder.mkdir()
    outputs = Outputs(folder, NAMES, **{"images": False, **kinds})
    shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError) as error, closing(outputs):
        outputs.write(frame(), ROWS)
    line, code = explain(error.value)
    assert code == 1 and line.startswith(f"error: {folder}") and "removed" in line


def test_table(tmp_path):
    for _ in range(2):  # the second run replaces the file
        outputs = Outputs(tmp_path, NAMES | {1: 'a "bus", red'}, table=True, images=False)
        outputs.write(frame(), NOTHING)
        outputs.write(frame(), ROWS)
        outputs.close()
    with open(tmp_path / "predictions.csv", newline="") as file:
        rows = list(csv.reader(file))
    header = ["Image Name", "Prediction", "Confidence"]
    assert rows == [header, ["cat.jpg", 'a "bus", red', "0.50"], ["cat.jpg", "person", "0.88"]]


def test_tracks_are_in_text_table_and_drawing(tmp_path):
    outputs = Outputs(tmp_path, NAMES, table=True, text=True, confidence=True, images=False, tracks=True)
    rows = np.concatenate((ROWS.astype(np.float64), [[0], [16777217]]), axis=1)  # beyond the whole numbers of float32
    outputs.write(frame(), rows)
    outputs.close()
    table = (tmp_path / "predictions.csv").read_text().splitlines()
    assert table[0].split(",")[3:] == ["Track ID"]
    assert [line.split(",")[3] for line in table[1:]] == ["", "16777217"]
    lines = [line.split() for line in (tmp_path / "labels" / "cat.txt").read_text().splitlines()]
    assert [len(line) for line in lines] == [6, 7] and lines[1][6] == "16777217"
    assert [outputs._label(row) for row in rows] == [f"{NAMES[1]} 0.50", f"{NAMES[0]} #16777217 0.88"]


def test_rows_of_videos_and_streams_have_times(tmp_path):
    outputs = Outputs(tmp_path, NAMES, table=True, timed=True, images=False)
    outputs.write(frame("/a/cat.mp4", "video", 6, fps=20.0), ROWS[:1])
    outputs.write(Frame(IMAGE, "0", "stream", "", 7, 5.0, 1.5, 1_796_000_000.1254), ROWS[1:])
    outputs.close()
    header, *rows = csv.reader((tmp_path / "predictions.csv").read_text().splitlines())
    assert header == ["Image Name", "Prediction", "Confidence", "Frame", "Seconds", "UTC"]
    assert rows == [
        ["cat.mp4", "bus", "0.50", "6", "0.250", ""],
        ["0", "person", "0.88", "7", "1.500", "2026-11-30T00:53:20.125Z"],
    ]


def test_a_result_without_sound_is_a_line(tmp_path, capsys):
    (tmp_path / "a.avi").write_bytes(b"strh" + bytes(4) + b"auds")
    outputs = Outputs(tmp_path / "run", NAMES)
    outputs.folder.mkdir()
    for name in ("a.avi", "a.avi", "b.avi"):
        outputs.write(frame(str(tmp_path / name), "video", 1, fps=5.0), NOTHING)
    outputs.close()
    assert capsys.readouterr().out == f"{tmp_path}/a.avi: the result is without its sound\n"


def test_crops_are_a_little_larger_than_the_boxes(tmp_path):
    image = IMAGE.copy()
    image[10:50, 20:60] = (0, 0, 255)
    boxes = [[20, 10, 60, 50, 0.5, 2], [150, 60, 199, 99, 0.6, 2], [150, 60, 200, 100, 0.7, 0]]
    rows = np.array(boxes, dtype=np.float32)
    for _ in range(2):  # a second run into the folder writes the same files
        outputs = Outputs(tmp_path, NAMES, crops=True, images=False)
        outputs.write(frame(image=image), rows)
    assert files_below(tmp_path) == [
        "crops/person/cat.jpg",
        "crops/wine glass_cup/cat.jpg",
        "crops/wine glass_cup/cat2.jpg",
    ]
    crop = cv2.imread(str(tmp_path / "crops/wine glass_cup/cat.jpg"))
    assert crop.shape == (51, 51, 3)  # 40 * 1.02 + 10 = 50.8, from 4.6 and 14.6 to 55.4 and 65.4
    assert (crop[8:40, 8:40, 2] > 200).all() and (crop[:3, :3] < 160).all()
    assert cv2.imread(str(tmp_path / "crops/wine glass_cup/cat2.jpg")).shape == (46, 56, 3)  # clipped at the border


def test_crops_of_two_sources_have_different_names(tmp_path):
    outputs = Outputs(tmp_path, NAMES, crops=True, images=False)
    outputs.write(frame("/a/cat2.jpg"), ROWS[:1])
    outputs.write(frame("/a/cat.jpg"), np.repeat(ROWS[:1], 2, axis=0))
    assert files_below(tmp_path) == ["crops/bus/cat.jpg", "crops/bus/cat2.jpg", "crops/bus/cat3.jpg"]


def test_names_of_crops_are_never_used_twice(tmp_path):
    """Numbers are counted, files are not remembered: their number grows for weeks."""
    outputs, made = Outputs(tmp_path, NAMES, images=False), []
    for stem in [
        "a",
        "a1",
        "a12",
        "a2",
        "a",
        "a",
        "a1",
        "a02",
        "a0",
        "7",
        *["a"] * 12,
        "a1",
        "a2",
        "a1",
        "a0",
        *["7"] * 8,
    ]:
        made.append(outputs._crop_file(tmp_path, stem).name)
    assert len(set(made)) == len(made)
    assert made[:8] == ["a.jpg", "a1.jpg", "a12.jpg", "a2.jpg", "a3.jpg", "a4.jpg", "a13.jpg", "a02.jpg"]
    assert len(outputs._crop_numbers) == 7


def test_annotated_image(tmp_path):
    before = IMAGE.copy()
    Outputs(tmp_path, NAMES, hide_labels=True, line_width=1).write(frame("/a/cat.png"), ROWS[:1])
    drawn = cv2.imread(str(tmp_path / "cat.png"))
    assert np.array_equal(IMAGE, before) and drawn.shape == IMAGE.shape
    assert tuple(drawn[50, 40]) == (0xEB, 0xDB, 0x0B) and tuple(drawn[30, 40]) == (120, 120, 120)
    assert (drawn != IMAGE).any(axis=2).sum() == 2 * (41 + 39)  # nothing but the box


@pytest.mark.parametrize(
    "style, expected",
    [
        ({}, "bus 0.50"),
        ({"hide_conf": True}, "bus"),
        ({"hide_labels": True}, ""),
        ({"hide_labels": True, "hide_conf": True}, ""),
    ],
)
def test_label(tmp_path, style, expected):
    assert Outputs(tmp_path, NAMES, **style)._label(ROWS[0]) == expected


def test_an_image_format_that_cannot_be_written_becomes_jpg(tmp_path):
    Outputs(tmp_path, NAMES).write(frame("/a/cat.DNG"), ROWS)
    assert files_below(tmp_path) == ["cat.jpg"]


def test_a_result_never_overwrites_its_source(tmp_path):
    cv2.imwrite(str(tmp_path / "cat.png"), IMAGE)
    with pytest.raises(UserError, match="overwrite its own source"):
        Outputs(tmp_path, NAMES).write(frame(str(tmp_path / "cat.png")), ROWS)
    assert np.array_equal(cv2.imread(str(tmp_path / "cat.png")), IMAGE)


def test_videos_have_the_rate_and_size_of_their_frames(tmp_path):
    outputs = Outputs(tmp_path, NAMES)
    for number in range(1, 5):
        outputs.write(frame("/a/cat.avi", "video", number, fps=12.5), ROWS)
    outputs.write(frame("/a/dog.mov", "video", 1, fps=5.0, image=IMAGE[:48, :64]), NOTHING)
    outputs.write(frame("/a/dog.mov", "video", 2, fps=5.0), NOTHING)  # another size: fitted to the first
    outputs.close()
    read, keys = {}, (cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FRAME_WIDTH)
    for name in ("cat.mp4", "dog.mp4"):
        capture = cv2.VideoCapture(str(tmp_path / name))
        read[name] = [capture.get(key) for key in keys]
    assert read == {"cat.mp4": [12.5, 4, 200], "dog.mp4": [5, 2, 64]}


def test_streams_are_written_side_by_side(tmp_path):
    outputs = Outputs(tmp_path, NAMES)
    for number in range(1, 4):
        for path in ("rtsp://host/a?x=1", "0"):
            outputs.write(frame(path, "stream", number, fps=10.0), NOTHING)
    outputs.close()
    assert files_below(tmp_path) == ["0.mp4", "renamed.csv", "rtsp___host_a_x_1.mp4"]
    assert cv2.VideoCapture(str(tmp_path / "0.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 3


def test_sources_have_unique_names():
    names = OutputNames()
    paths = ["/a/cat.jpg", "/b/cat.jpg", "/a/cat.png", "/a/cat_2.jpg", "/a/x_7.jpg"]
    stems = {path: names.stem(frame(path)) for path in paths}
    stems["/a/x.mp4"] = names.stem(frame("/a/x.mp4", "video", 1))  # its frame 7 would be x_7 as well
    assert list(stems.values()) == ["cat", "cat_2", "cat_3", "cat_2_2", "x_7", "x_2"]
    assert names.stem(frame("/b/cat.jpg")) == "cat_2"


@pytest.mark.parametrize(
    "source, other", [("v.avi", "v.mp4"), ("x.dng", "x.jpg"), ("x.png", "labels/x.txt"), ("a.jpg", "crops/bus/a.jpg")]
)
def test_a_result_never_overwrites_another_source(tmp_path, source, other):
    (tmp_path / other).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / other).write_bytes(b"a user's own")
    kind = "video" if source == "v.avi" else "image"
    outputs = Outputs(tmp_path, NAMES, text=True, crops=True, sources=[f"/a/{source}", str(tmp_path / other)])
    with pytest.raises(UserError, match="overwrite another source"):
        outputs.write(frame(f"/a/{source}", kind, int(kind == "video"), fps=5.0), ROWS[:1])
    assert (tmp_path / other).read_bytes() == b"a user's own"


def test_a_video_is_not_written_into_the_file_behind_a_link(tmp_path):
    (tmp_path / "mine.mp4").write_bytes(b"a user's own")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "v.mp4").symlink_to(tmp_path / "mine.mp4")
    outputs = Outputs(tmp_path / "run", NAMES)
    outputs.write(frame("/a/v.avi", "video", 1, fps=5.0), NOTHING)
    outputs.close()
    assert (tmp_path / "mine.mp4").read_bytes() == b"a user's own" and not (tmp_path / "run" / "v.mp4").is_symlink()


def test_a_video_that_cannot_be_written_costs_no_other(tmp_path, monkeypatch):
    outputs = Outputs(tmp_path, NAMES)
    with monkeypatch.context() as patch:
        closed = {"__init__": lambda *_: None, "isOpened": lambda _: False, "fourcc": lambda *_: 0}
        patch.setattr(cv2, "VideoWriter", type("Closed", (), closed))
        outputs.write(frame("/a/one.avi", "video", 1, fps=5.0), NOTHING)
        outputs.write(frame("/a/one.avi", "video", 2, fps=5.0), NOTHING)
    outputs.write(frame("/a/two.avi", "video", 1, fps=5.0), NOTHING)
    outputs.close()
    assert files_below(tmp_path) == ["two.mp4"] and outputs.unwritten == [tmp_path / "one.mp4"]


def test_rows_are_in_the_table_at_once(tmp_path):
    outputs = Outputs(tmp_path, {0: "=1+1", 1: "a\nb"}, images=False, table=True)
    outputs.write(frame("/a/caf\udce9.jpg"), ROWS)
    lines = (tmp_path / "predictions.csv").read_text(encoding="utf-8").splitlines()  # before close()
    assert lines[1:] == ["caf\\udce9.jpg,a b,0.50", "caf\\udce9.jpg,'=1+1,0.88"]
    outputs.close()


def test_classes_of_similar_names_have_folders_of_their_own(tmp_path):
    outputs = Outputs(tmp_path, {0: "a/b", 1: "a:b"}, images=False, crops=True)
    outputs.write(frame(), ROWS)
    assert files_below(tmp_path) == ["crops/a_b/cat.jpg", "crops/a_b_2/cat.jpg", "renamed.csv"]
    assert (tmp_path / "renamed.csv").read_text() == "Result,Source\ncrops/a_b_2,a:b\n"
