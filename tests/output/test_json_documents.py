"""`--json`: the documents are those that docs/json.md describes, field by field, and stdout holds nothing else."""

import csv
import json
import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny_training import train_flags

import check as check_program
import detect
import export
import train
import val
from utils import console, errors
from utils.detections import Detections
from utils.errors import Terminated, UserError
from utils.images.frames import Frame
from utils.metrics import Speed
from utils.output.json_documents import describe_frame, to_line
from utils.training.observer import Observer

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "json.md").read_text(encoding="utf-8")
TYPES = {"text": str, "integer": int, "number": float, "boolean": bool, "list": list, "null": type(None)}


def table(title: str) -> dict[str, str]:
    """Return the first two columns of the table under a title of the page."""
    section = PAGE.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]
    rows = [line.split("|")[1:3] for line in section.splitlines() if line.startswith("|")][2:]
    return {field.strip().strip("`"): kind.strip() for field, kind in rows}


DIAGNOSIS = ("results[].sizes", "results[].levels", "results[].errors", "results[].worst_images")


def leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Yield the path and the value of everything in a document that is neither an object nor a list."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from leaves(part, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for part in value:
            yield from leaves(part, f"{path}[]")
    else:
        yield path, value


def check(documents: list[dict], title: str, *, without: tuple[str, ...] = ()) -> None:
    """Check that the fields are those of the table, each of its type, and that all of the table occur.

    without: beginnings of fields that these documents lack.
    """
    described = {path: kind for path, kind in table(title).items() if not path.startswith(without)}
    found = [leaf for document in documents for leaf in leaves(document)]
    assert {path for path, _ in found} == described.keys()
    for path, value in found:
        kinds = tuple(TYPES[kind] for kind in described[path].split(" or "))
        assert type(value) in kinds, (path, value)


@pytest.fixture(scope="module")
def weights(tiny_data, tiny_cfg, tmp_path_factory) -> str:
    """Train the tiny model for an epoch, and return its weights."""
    folder = tmp_path_factory.mktemp("trained")
    train.main(train_flags(tiny_data, tiny_cfg, folder, "--noplots", epochs=1))
    return str(folder / "run" / "weights" / "best.pt")


def val_flags(weights, data, folder, *extra):
    fixed = "--imgsz 64 --batch-size 4 --workers 0 --device cpu --json --project".split()
    return ["--weights", weights, "--data", str(data), *fixed, str(folder), *extra]


def test_the_document_of_val_is_the_one_described(weights, tiny_data, tmp_path, capsys):
    metrics = val.main(val_flags(weights, tiny_data, tmp_path))
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    check([document], "val.py")
    assert document["results"][0]["map50"] == round(metrics.map50, 6) and document["results"][0]["images"] == 8
    assert [row["name"] for row in document["results"][0]["classes"]] == ["dark", "bright"]
    assert document["save_dir"] == str(tmp_path / "exp") and "Results saved to" in printed.err


def test_a_study_has_a_result_for_each_size(weights, tiny_data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(val, "STUDY_SIZES", [32, 64])
    val.main(val_flags(weights, tiny_data, tmp_path, "--task", "study"))
    document = json.loads(capsys.readouterr().out)
    check([document], "val.py", without=DIAGNOSIS)
    assert [result["imgsz"] for result in document["results"]] == [32, 64]


def test_the_lines_of_detect_are_the_ones_described(weights, tiny_data, tmp_path, capsys):
    images = tiny_data.parent / "images" / "val"
    flags = f"--weights {weights} --imgsz 64 --device cpu --nosave --json --max-det 3 --project {tmp_path}".split()
    detect.main([*flags, "--source", str(images), "--conf-thres", "0.0001"])
    printed = capsys.readouterr()
    lines = [json.loads(line) for line in printed.out.splitlines()]
    check(lines, "detect.py")
    assert [Path(line["source"]).name for line in lines] == [f"{number}.png" for number in range(8)]
    assert all((line["width"], line["height"]) == (96, 64) and len(line["detections"]) == 3 for line in lines)
    confidences = [one["confidence"] for one in lines[0]["detections"]]
    assert confidences == sorted(confidences, reverse=True)
    assert "image 1/8" in printed.err
    detect.main([*flags, "--source", str(images / "0.png"), "--conf-thres", "1"])
    assert json.loads(capsys.readouterr().out)["detections"] == []


def test_the_document_of_export_is_the_one_described(weights, tiny_data, tmp_path, capsys):
    copy = tmp_path / "copy.pt"
    copy.write_bytes(Path(weights).read_bytes())
    flags = f"--weights {copy} --include torchscript --imgsz 64 --verify-images 2 --json --data".split()
    export.main([*flags, str(tiny_data)])
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    reports = document.pop("reports")
    assert table("export.py").pop("reports[]") == "list" and len(reports) == 1
    assert {path for path, _ in leaves(document)} == table("export.py").keys() - {"reports[]"}
    assert document["agrees"] is True and reports[0]["agrees"] is True
    assert document["files"] == [
        {
            "format": "torchscript",
            "file": str(copy.with_suffix(".torchscript")),
            "bytes": reports[0]["files"][0]["bytes"],
        }
    ]
    assert "Run it" in printed.err
    export.main([*flags, str(tiny_data), "--no-verify"])
    document = json.loads(capsys.readouterr().out)
    assert document["agrees"] is None and document["reports"] == []


def test_a_frame_without_credentials_and_without_nan():
    frame = Frame(np.zeros((4, 6, 3), np.uint8), "rtsp://me:secret@host/1", "stream", "1: ", 7, 30.0, 0.25)
    rows = np.array([[0, 1, 2, 3.14159, np.nan, 1]], np.float32)
    line = json.loads(to_line(describe_frame(frame, Detections(rows, (4, 6), speed=Speed(1, 2, 3)), {1: "naïve"})))
    assert line["source"] == "rtsp://host/1" and line["frame"] == 7 and line["seconds"] == 0.25
    assert line["detections"] == [
        {"class": 1, "name": "naïve", "confidence": None, "xyxy": [0, 1, 2, 3.14], "track": None}
    ]


def test_an_error_leaves_no_document(weights, tmp_path, capsys):
    with pytest.raises(UserError):
        val.main(val_flags(weights, tmp_path / "absent.yaml", tmp_path))
    assert capsys.readouterr().out == ""


def test_a_reader_that_has_ended_is_one_line(monkeypatch, tmp_path):
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as stream:
        monkeypatch.setattr("sys.stdout", stream)
        with pytest.raises(BrokenPipeError) as caught:
            console.data("{}")
    assert errors.explain(caught.value) == ("error: --json: the program that reads the results has ended", 1)


# ---- results.csv and exit codes


def test_results_csv_is_read_as_scripts_for_yolov5_do(weights):
    """They take columns by position, after the titles are stripped."""
    with open(Path(weights).parents[1] / "results.csv", newline="") as file:
        titles, *rows = list(csv.reader(file))
    titles = [title.strip() for title in titles]
    listed = re.findall(r"`([^`]+)`", PAGE.split("in this order:", 1)[1].split("\n## ", 1)[0])
    assert titles == listed
    plotted = "box_loss obj_loss cls_loss precision recall box_loss obj_loss cls_loss mAP_0.5 mAP_0.5:0.95".split()
    assert [titles[index].split("/")[1] for index in (1, 2, 3, 4, 5, 8, 9, 10, 6, 7)] == plotted
    assert [len(row) for row in rows] == [14] and all(np.isfinite([float(cell) for cell in rows[0]]))


class StopAtOnce(Observer):
    """Observer that sends this process SIGTERM."""

    def on_batch(self, run, report):
        signal.raise_signal(signal.SIGTERM)


def test_the_document_of_check_is_the_one_described(tiny_data, tmp_path, capsys):
    shutil.copytree(tiny_data.parent, tmp_path / "set")
    with open(tmp_path / "set/labels/train/0.txt", "a") as file:
        file.write("0 .1 .1 .4 .4\n")  # leaves the image
    found = check_program.run(data=tmp_path / "set" / tiny_data.name, project=tmp_path, json=True)
    printed = capsys.readouterr().out
    document = json.loads(printed)
    assert printed == to_line(document) + "\n"
    assert document == json.loads((found.save_dir / "findings.json").read_text())
    check([document], "check.py")
    assert [one["check"] for one in document["findings"]] == [one.check for one in found.findings]


def raising(error):
    def main():
        raise error

    return main


def test_exit_codes_are_those_of_the_table(weights, tiny_data, tiny_cfg, tmp_path, monkeypatch):
    assert threading.current_thread() is threading.main_thread()
    monkeypatch.setattr("sys.argv", ["a program"])
    training = train_flags(tiny_data, tiny_cfg, tmp_path, "--noplots")
    programs = {
        0: lambda: val.main(val_flags(weights, tiny_data, tmp_path / "val")),
        1: lambda: val.main(val_flags(weights, "absent.yaml", tmp_path / "val")),
        2: lambda: val.main(["--no-such-flag"]),
        75: lambda: train.main(training, [StopAtOnce()]),
        129: raising(Terminated(signal.SIGHUP)),
        130: raising(KeyboardInterrupt()),
        143: raising(Terminated(signal.SIGTERM)),
    }
    assert {int(code) for code in table("Exit codes")} == {*programs, 3}
    for code, main in programs.items():
        try:
            errors.run(main)
            ended = 0
        except SystemExit as end:
            ended = end.code
        assert ended == code
