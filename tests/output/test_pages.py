"""HTML pages: self-contained, escaped and small, with boxes where they belong."""

import re
from html.parser import HTMLParser

import cv2
import jinja2
import numpy as np
import pytest

from utils.output.pages import page as page_module
from utils.output.pages.page import FOLDER, render_page, write_page
from utils.output.pages.thumbnails import LONG_SIDE, MAX_DESCRIBED, ROLES, make_thumbnail

NAMES = {0: "a", 1: "b"}


@pytest.fixture
def image(tmp_path) -> str:
    path = tmp_path / "image.png"
    cv2.imwrite(str(path), np.full((200, 400, 3), 128, np.uint8))
    return str(path)


def test_a_thumbnail_shows_the_whole_image_with_its_boxes(image):
    made = make_thumbnail(image, [(1, 0.5, 0.5, 0.2, 0.4), (0, 2.0, 0.5, 0.1, 0.1)], NAMES)
    assert (made.width, made.height, made.is_cut) == (LONG_SIDE, LONG_SIDE // 2, False)
    (box,) = made.boxes  # the other one is outside
    assert (box.left, box.top, box.width, box.height, box.name) == (0.4, 0.3, 0.2, 0.4, "b")
    assert made.uri.startswith("data:image/jpeg;base64,")


def test_a_small_box_is_shown_from_near_and_stays_in_its_place(image):
    made = make_thumbnail(image, [(0, 0.01, 0.5, 0.02, 0.04)], NAMES, cut=True)  # 8 x 8 px at the left border
    assert made.is_cut and (made.width, made.height) == (LONG_SIDE, LONG_SIDE // 2)  # 96 x 48 px of the image
    (box,) = made.boxes
    assert (box.left, box.width) == (0, round(8 / 96, 4)) and box.top == pytest.approx(20 / 48, abs=1e-3)
    assert not make_thumbnail(image, [(0, 0.5, 0.5, 0.5, 0.5)], NAMES, cut=True).is_cut
    pair = make_thumbnail(image, [(0, 0.45, 0.5, 0.02, 0.04), (0, 0.55, 0.5, 0.02, 0.04)], NAMES, cut=True)
    left, right = pair.boxes  # 48 px from end to end, in the middle of a part of 384 px
    assert pair.is_cut and left.left == pytest.approx(0.4375, abs=2e-3)
    assert right.left + right.width == pytest.approx(0.5625, abs=2e-3)


def test_the_boxes_are_described_in_words_with_their_role(image):
    boxes = [(0, 0.5, 0.5, 0.2, 0.2), (1, 0.4, 0.5, 0.2, 0.2), (0, 0.3, 0.5, 0.2, 0.2)]
    made = make_thumbnail(image, boxes, NAMES, roles=["label", "suggestion"])
    assert made.description == "label: a, suggested box: b, label: a"
    assert make_thumbnail(image, boxes[:1] * (MAX_DESCRIBED + 1), NAMES).description == f"{MAX_DESCRIBED + 1} boxes"
    assert make_thumbnail(image, [], NAMES).description == "no boxes"


def test_boxes_that_are_no_numbers_and_files_that_are_no_images(image, tmp_path):
    assert make_thumbnail(image, [(0, float("nan"), 0.5, 0.1, 0.1)], NAMES).boxes == []
    (tmp_path / "text.jpg").write_text("no image")
    assert make_thumbnail(str(tmp_path / "text.jpg"), [], NAMES) is None
    assert make_thumbnail(str(tmp_path / "absent.jpg"), [], NAMES) is None


def empty_content(**changes) -> dict:
    levels = [{"name": name, "title": f"{name}s", "findings": []} for name in ("error", "warning", "note")]
    content = dict(title="t", source="s", imgsz=640, verdict="v", levels=levels, roles=ROLES, splits=[], classes=[])
    return {**content, **changes}


def test_a_variable_that_is_missing_is_an_error():
    with pytest.raises(jinja2.UndefinedError):
        render_page("check.html", {})


def test_text_is_escaped_and_the_policy_allows_the_own_script_only():
    hostile = "</title></style><script>alert(1)</script><img src=x onerror=alert(2)>"
    text = render_page("check.html", empty_content(title=hostile, source=hostile, verdict=hostile))
    assert text.count("<script>") == 1 and "<img" not in text and "</style><" not in text.split("<style>")[0]
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)[1]
    assert "default-src &#39;none&#39;" in policy and "unsafe" not in policy and "http" not in policy


def test_the_digests_are_those_of_what_the_page_holds():
    text = render_page("check.html", empty_content())
    for tag in ("style", "script"):
        inner = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)[1]
        assert page_module._digest(inner).replace("'", "&#39;").replace("+", "+") in text


class Addresses(HTMLParser):
    """Collects what a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]


def test_a_page_loads_nothing():
    parser = Addresses()
    parser.feed(render_page("check.html", empty_content()))
    assert parser.found and all(address.startswith(("#", "data:")) for address in parser.found)
    style = (FOLDER / "style.css").read_text() + (FOLDER / "script.js").read_text()
    assert not re.search(r"url\(|@import|https?:|fetch\(|XMLHttp|import\(", style)


def test_names_of_files_that_are_no_utf_8_are_written(tmp_path):
    write_page(tmp_path / "report.html", "check.html", empty_content(title="caf\udce9"))
    assert "caf\\udce9" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
