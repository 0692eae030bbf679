"""Fixtures that several test files share."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def reference() -> Path:
    """Folder with reference numbers, data and weights; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("ANCHORAGE_REFERENCE", ROOT / ".." / "shared")).resolve()
    if not (folder / "golden").is_dir():
        pytest.skip(f"reference folder {folder} is absent (set ANCHORAGE_REFERENCE)")
    return folder
