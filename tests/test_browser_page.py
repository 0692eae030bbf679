"""The page docs/browser in a real browser: it shows the boxes that detect.py finds.

Needs Chromium and its driver (Debian: chromium chromium-driver), selenium, and npm for the page's runtime.
"""

import functools
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest
from browser import open_browser

import export
from utils.inference.nms_settings import NmsSettings
from utils.inference.open_model import open_exported
from utils.inference.predictor import Predictor
from utils.inference.runtime import RuntimeSettings

PAGE = Path(__file__).resolve().parents[1] / "docs" / "browser"
SECONDS = 90  # that the browser may take for a model or an image
pytestmark = pytest.mark.long


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


class Page:
    """The page in a browser, driven as a person would."""

    def __init__(self, driver, address: str):
        self.driver = driver
        driver.get(address)

    def text(self, name: str) -> str:
        return self.driver.find_element("id", name).text

    def wait_for(self, words: str, *, is_error: bool = False) -> None:
        """Wait until the status line holds `words`. An error that the page shows instead fails the test."""
        status, end = self.driver.find_element("id", "status"), time.monotonic() + SECONDS
        while words not in status.text and time.monotonic() < end:
            assert is_error or "error" not in status.get_attribute("class"), status.text
            time.sleep(0.1)
        assert words in status.text, status.text
        assert ("error" in status.get_attribute("class")) == is_error

    def choose(self, file: Path) -> None:
        self.driver.find_element("id", "file").send_keys(str(file))

    def rows(self) -> list[list[str]]:
        """Return the cells of the table of objects."""
        rows = self.driver.find_elements("css selector", "#rows tr")
        return [[cell.text for cell in row.find_elements("tag name", "td")] for row in rows]

    def drop(self, file: Path) -> None:
        """Drop a file onto the page. It is handed over by an input element, as scripts read no files."""
        field = self.driver.execute_script(
            "const input = document.createElement('input'); input.type = 'file'; input.id = 'dropped';"
            "document.body.append(input); input.onchange = () => {"
            "  const transfer = new DataTransfer(); transfer.items.add(input.files[0]); input.remove();"
            "  document.body.dispatchEvent(new DragEvent('drop', {dataTransfer: transfer, bubbles: true}));"
            "}; return input;"
        )
        field.send_keys(str(file))


@pytest.fixture(scope="module")
def driver():
    with open_browser("use-fake-device-for-media-stream", "use-fake-ui-for-media-stream") as driver:
        yield driver


@pytest.fixture(scope="module")
def runtime() -> Path:
    """Return the folder with the runtime of the page, installed as the guide says."""
    if not (PAGE / "node_modules" / "onnxruntime-web").is_dir():
        if not shutil.which("npm"):
            pytest.skip("no npm, which installs the runtime of the page")
        words = ["npm", "install", "--silent", "--no-package-lock", "--prefix", str(PAGE)]
        installed = subprocess.run(words, capture_output=True, text=True)
        assert installed.returncode == 0, installed.stderr
    return PAGE / "node_modules"


@pytest.fixture(scope="module")
def site(runtime, tmp_path_factory) -> Iterator[tuple[Path, str]]:
    """Serve a copy of the page. Yield its folder and its address."""
    folder = tmp_path_factory.mktemp("site")
    for file in PAGE.glob("*.*"):
        if file.suffix in (".html", ".js"):
            shutil.copy(file, folder)
    (folder / "node_modules").symlink_to(runtime)
    handler = functools.partial(QuietHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}/index.html"
        server.shutdown()
        thread.join()


def make_onnx(reference: Path, folder: Path, *flags: str) -> Path:
    weights = folder / "best.pt"
    weights.unlink(missing_ok=True)
    weights.symlink_to(reference / "weights" / "yolov5n.pt")
    words = ["--weights", weights, "--include", "onnx", "--imgsz", 320, "--no-verify", *flags]
    return export.main(list(map(str, words)))[0]


@pytest.fixture(scope="module")
def photo(reference, tmp_path_factory) -> Path:
    """Return a PNG file: of a JPEG, browsers and OpenCV read pixels that differ by a level."""
    source = reference / "datasets" / "coco128" / "images" / "train2017" / "000000000241.jpg"
    file = tmp_path_factory.mktemp("photo") / "photo.png"
    assert cv2.imwrite(str(file), cv2.imread(str(source)))
    return file


def expected_rows(model: Path, photo: Path, size: int, **settings: float) -> tuple[list[str], np.ndarray]:
    """Return class names, and rows (n, 5) of score and corners, as detect.py finds them."""
    predictor = Predictor(open_exported(model, RuntimeSettings()), (size, size), NmsSettings(**settings))
    found = predictor([cv2.imread(str(photo))])[0]
    names = [predictor.names[index] for index in found.classes]
    return names, np.column_stack((found.confidence, found.boxes_xyxy))


def compare(page: Page, model: Path, photo: Path, size: int = 320, **settings: float) -> int:
    """Check that the page lists what detect.py finds. Return the number of objects."""
    names, expected = expected_rows(model, photo, size, **settings)
    rows = page.rows()
    assert [row[0] for row in rows] == names
    assert np.allclose(np.array([row[1:] for row in rows], float), expected, atol=[0.003, 1, 1, 1, 1])
    return len(rows)


@pytest.mark.parametrize(
    "flags", [(), ("--layout", "yolov8"), ("--layout", "deepstream"), ("--nms",), ("--half",)], ids=str
)
def test_the_page_finds_what_detect_finds(site, driver, reference, photo, flags):
    folder, address = site
    model = make_onnx(reference, folder, *flags)
    page = Page(driver, address)
    page.wait_for("Drop an image")
    assert "best.onnx: 80 classes, 320 x 320" in page.text("model")
    page.choose(photo)
    page.wait_for("objects in")
    assert compare(page, model, photo) >= 4
    assert not [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]


def test_a_dynamic_model_a_drop_and_another_threshold(site, driver, reference, photo):
    folder, address = site
    model = make_onnx(reference, folder, "--dynamic")
    page = Page(driver, address)
    page.wait_for("Drop an image")
    page.drop(photo)
    page.wait_for("objects in")
    assert compare(page, model, photo, 640) >= 4
    driver.execute_script(
        "const slider = document.getElementById('confidence'); slider.value = 0.6;"
        "slider.dispatchEvent(new Event('input')); document.getElementById('status').textContent = '';"
    )
    page.wait_for("in")
    assert page.text("confidence-value") == "0.60"
    assert 1 <= compare(page, model, photo, 640, conf_thres=0.6) < 20
    pixels = driver.execute_script(
        "const canvas = document.getElementById('canvas'); return [canvas.width, canvas.height];"
    )
    assert pixels == list(cv2.imread(str(photo)).shape[1::-1])


def test_the_camera_runs_until_it_is_stopped(site, driver, reference):
    folder, address = site
    make_onnx(reference, folder)
    page = Page(driver, address)
    page.wait_for("Drop an image")
    button = driver.find_element("id", "camera")
    button.click()
    page.wait_for("in ")
    assert button.text == "Stop the camera"
    button.click()
    assert button.text == "Start the camera"


def test_files_that_are_no_model_or_image_are_reported(site, driver, reference, photo, tmp_path):
    folder, address = site
    (folder / "best.onnx").unlink(missing_ok=True)
    page = Page(driver, address)
    page.wait_for("There is no best.onnx")
    for name, content, words in (
        ("a.onnx", b"no model", "this is no ONNX file"),
        ("a.txt", b"text", "a.txt is no image that this browser reads"),
        ("b.onnx", make_onnx(reference, tmp_path, "--layout", "raw").read_bytes(), "export it with --layout"),
    ):
        (tmp_path / name).write_bytes(content)
        page.choose(tmp_path / name)
        page.wait_for(words, is_error=True)
    page.choose(make_onnx(reference, tmp_path))
    page.wait_for("Drop an image")
    page.choose(photo)
    page.wait_for("objects in")
