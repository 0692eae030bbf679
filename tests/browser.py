"""Chromium without a window, for tests of pages. Needs chromium and chromium-driver (Debian), and selenium."""

import shutil
from collections.abc import Generator
from contextlib import contextmanager

import pytest


@contextmanager
def open_browser(*words: str) -> Generator:
    """Yield selenium's driver of a browser with these switches. Skip the test where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver")
    browser, program = shutil.which("chromium"), shutil.which("chromedriver")
    if not browser or not program:
        pytest.skip("no Chromium with its driver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    usual = ("headless=new", "no-sandbox", "disable-gpu", "disable-background-networking", "disable-dev-shm-usage")
    for word in (*usual, *words):
        options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(program))
    try:
        yield driver
    finally:
        driver.quit()
