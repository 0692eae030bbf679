"""The page of a check: what is on it, and how large it may become."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from test_image_copies import ROW, jpeg, scan, scene

from utils.checking.findings import MAX_EXAMPLES, Example, Finding
from utils.checking.page import MAX_IMAGES, write_check_page
from utils.output.pages.page import MAX_PAGE_BYTES

HOSTILE = "\"><script>document.title='run'</script> & 'x' 🦀 \u202eאב"


def page_of(folder: Path, data, findings: list[Finding]) -> str:
    write_check_page(folder / "report.html", data, findings, typed="data.yaml")
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def data(tmp_path):
    return scan(tmp_path, {"train": {"a.jpg": (jpeg(scene(0)), ROW)}, "val": {"b.jpg": (jpeg(scene(1)), "")}})


def test_without_findings_the_page_shows_the_data(tmp_path, data):
    text = page_of(tmp_path, data, [])
    assert "There is no error and no warning." in text and 'class="finding"' not in text
    assert "<td>320 x 240</td><td>128 x 96 px</td>" in text  # of train, at 640 px


def test_findings_are_grouped_by_level_with_images_lists_and_figures(tmp_path, data):
    image = data.splits["train"].index.paths[0]
    box = (0.0, 0.5, 0.5, 0.2, 0.2)
    places = tuple(Example("l.txt", k, "why", image, (box,)) for k in range(1, 31))
    findings = [
        Finding("note", "fit", "some-note", 1, "n", "do nothing"),
        Finding("error", "labels", "some-error", 31, "e", "do it", "train", places, {"share": 0.25, "most": 1234}),
        Finding("warning", "splits", "pair", 1, "w", "look", "val", (Example(image, image=image, beside=image),)),
    ]
    text = page_of(tmp_path, data, findings)
    order = [text.index(f'<section id="{level}"') for level in ("error", "warning", "note")]
    assert order == sorted(order) and "There are errors" in text
    error, warning, _ = re.split(r"<section id=\"(?:warning|note)\"", text)
    assert error.count("<figure>") == MAX_IMAGES and error.count("<title>label: a</title>") == MAX_IMAGES
    assert "l.txt:1\nl.txt:2\n" in error and "List of 30 of 31" in error
    assert "<dd>0.25</dd>" in error and "<dd>1,234</dd>" in error
    assert warning.count("<image ") == 2 and warning.count("<figure>") == 1


def test_boxes_differ_by_their_line_and_a_legend_says_which_is_which(tmp_path, data):
    image, box = data.splits["train"].index.paths[0], (0.0, 0.5, 0.5, 0.2, 0.2)
    example = Example("l.txt", 1, "", image, (box, box), roles=("label", "suggestion"))
    findings = [
        Finding("warning", "label errors", "label-shifted", 1, "t", "a", examples=(example,)),
        Finding("note", "labels", "giant-box", 1, "t", "a", examples=(Example("l.txt", 1, "", image, (box,)),)),
    ]
    shifted, giant = page_of(tmp_path, data, findings).split("<article")[1:]
    assert 'aria-label="l.txt:1, label: a, suggested box: a"' in shifted
    assert '<rect class="label"' in shifted and '<rect class="suggestion"' in shifted
    legend = re.search(r'<ul class="legend".*?</ul>', shifted, re.DOTALL)[0]
    assert [words.strip() for words in re.findall(r"</svg>(.*?)</li>", legend)] == ["label", "suggested box"]
    assert 'class="legend"' not in giant  # all boxes are of one kind


def test_names_are_shown_and_never_run(tmp_path):
    name = HOSTILE.replace("/", "-") + ".jpg"
    data = scan(tmp_path, {"train": {name: (jpeg(scene(0)), ROW)}})
    data.spec.names[0] = HOSTILE
    example = data.splits["train"].image_example(0, HOSTILE, with_boxes=True)
    finding = Finding("error", HOSTILE, HOSTILE, 1, HOSTILE, HOSTILE, HOSTILE, (example,), {HOSTILE: HOSTILE})
    text = page_of(tmp_path, data, [finding])
    assert text.count("<script>") == 1 and text.count("&lt;script&gt;") > 8


def test_a_page_of_many_findings_with_long_names_stays_small(tmp_path):
    folder = tmp_path / ("x" * 200) / ("y" * 200) / ("z" * 200)
    noise = np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8)
    data = scan(folder, {"train": {"a.png": (cv2.imencode(".png", noise)[1].tobytes(), ROW * 1)}})
    image = data.splits["train"].index.paths[0]
    boxes = tuple((0.0, 0.5, 0.5, 0.01 * k, 0.3) for k in range(1, 60))
    examples = tuple(Example(image, k, "d" * 300, image, boxes, image) for k in range(MAX_EXAMPLES))
    findings = [Finding("error", "g", f"check-{k}", 10**6, "t", "a", "", examples) for k in range(40)]
    text = page_of(tmp_path, data, findings)
    assert MAX_PAGE_BYTES / 3 < len(text.encode()) < MAX_PAGE_BYTES
    assert all(f"<code>check-{k}</code>" in text for k in range(40))
    shown = [article.count("<figure>") for article in text.split("<article")[1:]]
    assert min(shown) >= 1 and max(shown) - min(shown) <= 1  # each has its first images


def test_images_that_are_gone_are_no_error(tmp_path, data):
    example = Example("gone.jpg", image=str(tmp_path / "gone.jpg"))
    text = page_of(tmp_path, data, [Finding("error", "g", "c", 1, "t", "a", "", (example,))])
    assert "<figure>" not in text and ">gone.jpg</textarea>" in text
