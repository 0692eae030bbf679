"""The page of check.py in a real browser: it opens from disk, every control works, and hostile names are only shown."""

import json

import cv2
import numpy as np
import pytest
from browser import open_browser

import check

pytestmark = pytest.mark.long
NAMES = ["<script>document.title='run'</script>", "a \"quoted\" 'name'", "🦀 crab", "שלום", "</style><img src=x>"]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Return the page of a data set with hostile names and something of every level."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    files = ['"><script>alert(1)', "emoji 🦀", "שלום עולם", "it's & <b>", "x" * 150]
    for split in ("train", "val"):
        for part in ("images", "labels"):
            (folder / part / split).mkdir(parents=True)
        for k, name in enumerate(files):
            image = cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), (320, 240), interpolation=cv2.INTER_CUBIC)
            encoded = cv2.imencode(".jpg", image)[1].tobytes()
            twin = folder / "images" / "train" / f"{files[0]}.jpg"
            (folder / "images" / split / f"{name}.jpg").write_bytes(
                twin.read_bytes() if split == "val" and k == 0 else encoded
            )
            rows = f"{k % 4} 0.5 0.5 0.3 0.3\n{(k + 1) % 4} 0.2 0.2 0.004 0.004\n"
            (folder / "labels" / split / f"{name}.txt").write_text(rows)
    spec = {"path": str(folder), "train": "images/train", "val": "images/val", "names": NAMES}
    (folder / "data.yaml").write_text(json.dumps(spec, ensure_ascii=False))
    return check.run(folder / "data.yaml", project=str(folder / "runs")).save_dir / "report.html"


@pytest.fixture(scope="module")
def driver():
    with open_browser() as driver:
        yield driver


@pytest.fixture
def page(driver, report):
    """Return the driver with the page opened from disk."""
    driver.get(report.as_uri())
    return driver


def shown(page) -> list[str]:
    """Return the names of the checks whose findings are visible."""
    codes = page.find_elements("css selector", ".finding .tags code")
    return [code.text for code in codes if code.is_displayed()]


def test_hostile_names_are_shown_and_nothing_is_run_or_loaded(page, report):
    assert page.title.startswith("Check of ")
    rows = page.find_elements("css selector", "table.bars tbody th")
    assert [row.text for row in rows] == NAMES
    assert not page.find_elements("css selector", "main script, main img, bdi *")
    assert not [entry for entry in page.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    requests = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert not [url for url in requests if not url.startswith(("data:", "file:"))]


def test_an_added_script_is_not_run(page):
    page.execute_script(
        "const added = document.createElement('script'); added.textContent = 'document.title = \"run\"';"
        "document.body.append(added); document.body.insertAdjacentHTML('beforeend', '<b onclick=\"1\">x</b>');"
    )
    assert page.title.startswith("Check of ")


def test_the_filters_hide_findings_and_say_how_many_are_shown(page):
    all_names = shown(page)
    assert "copy-in-two-splits" in all_names and len(all_names) > 3
    page.find_element("id", "words").send_keys("two-splits")
    assert set(shown(page)) == {"copy-in-two-splits"}
    assert page.find_element("id", "shown").text == f"1 of {len(all_names)} findings"
    assert [h.text for h in page.find_elements("css selector", ".level h2") if h.is_displayed()] == ["Errors"]
    page.find_element("id", "words").clear()
    page.find_element("id", "words").send_keys("no such words")
    assert shown(page) == []
    page.get(page.current_url)
    options = {option.text: option for option in page.find_elements("css selector", "#split option")}
    options["val"].click()
    splits = page.find_elements("css selector", ".finding:not([hidden])")
    assert {finding.get_attribute("data-split") for finding in splits} <= {"val", ""}


def test_boxes_are_switched_and_lists_are_copied(page):
    box = page.find_element("css selector", ".boxes rect")
    assert box.is_displayed()
    page.find_element("id", "boxes").click()
    assert not box.is_displayed()
    page.find_element("css selector", ".list summary").click()
    button = page.find_element("css selector", ".list button")
    button.click()
    assert button.text in ("Copied", "Copy")
    field = page.find_element("id", "words")
    field.send_keys("\ue009v")  # Ctrl+V
    first = page.find_element("css selector", ".list textarea").get_attribute("value").splitlines()[0]
    assert first in field.get_attribute("value")


@pytest.mark.parametrize("width", [320, 390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_screen_and_text_has_contrast(page, width, scheme):
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    page.get(page.current_url)
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    for selector in ("h1", ".advice", ".tags", ".level h2", "summary", ".count"):
        assert contrast(page, selector) >= 4.5, selector  # WCAG 2, level AA
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def contrast(page, selector: str) -> float:
    """Return the contrast of the first element's text with what is behind it (WCAG 2)."""
    colors = page.execute_script(
        "const element = document.querySelector(arguments[0]); let behind = element, color = 'rgba(0, 0, 0, 0)';"
        "while (behind && color === 'rgba(0, 0, 0, 0)') {"
        "  color = getComputedStyle(behind).backgroundColor; behind = behind.parentElement; }"
        "return [getComputedStyle(element).color, color];",
        selector,
    )
    light, dark = sorted((luminance(color) for color in colors), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(color: str) -> float:
    channels = [int(part) / 255 for part in color[color.index("(") + 1 : -1].split(",")[:3]]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_images_and_controls_have_names_for_screen_readers(page):
    for image in page.find_elements("css selector", "svg.thumbnail"):
        assert image.get_attribute("aria-label") and image.get_attribute("role") == "img"
    for control in page.find_elements("css selector", "input, select, textarea"):
        assert control.accessible_name or not control.is_displayed()
    levels = [heading.tag_name for heading in page.find_elements("css selector", "h1, h2, h3")]
    assert levels[0] == "h1" and levels.count("h1") == 1


def test_keys_reach_every_control(page):
    reached = set()
    body = page.find_element("tag name", "body")
    for _ in range(12):
        body.send_keys("\ue004")  # Tab
        active = page.switch_to.active_element
        reached.add(active.get_attribute("id") or active.get_attribute("class") or active.tag_name)
    assert {"skip", "words", "split", "boxes"} <= reached
