"""The JSON document of a check: plain values, and null for what JSON lacks."""

import json
import math
from pathlib import Path

from scanned_sets import scan_rows

from utils.checking.document import describe_check
from utils.checking.findings import Example, Finding


def test_every_value_is_plain(tmp_path):
    example = Example("a.txt", 3, image="a.jpg", boxes=((1.0, 0.5, 0.5, 1 / 3, 0.2),))
    figures = {"share": 1 / 3, "none": math.nan, "count": 3, "name": "x"}
    findings = [
        Finding("note", "labels", "a", 1, "text", "advice", "train", (example, Example("b.txt")), figures),
        Finding("error", "files", "b", 2, "text", "advice"),
    ]
    data = scan_rows(tmp_path, "0 .5 .5 .2 .2\n", "")
    document = describe_check(data, findings, typed="https://me:secret@host/a.yaml", save_dir=Path("runs"))
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert (
        document["errors"] == document["notes"] == 1 and document["warnings"] == 0 and "secret" not in document["data"]
    )
    assert document["splits"] == [{"split": "train", "images": 2, "labels": 1}] and document["names"] == [
        "ship",
        "tree",
    ]
    worst, note = document["findings"]
    assert worst["check"] == "b" and worst["split"] is None and worst["examples"] == worst["figures"] == []
    assert [figure["value"] for figure in note["figures"]] == [0.333333, None, 3, "x"]
    assert note["examples"][0]["boxes"] == [[1, 0.5, 0.5, 0.333333, 0.2]] and note["examples"][1]["line"] is None
    assert note["examples"][0]["roles"] == ["label"] and note["examples"][1]["roles"] == []
