"""HTML pages from templates: one file each, which opens from disk and loads nothing.

Text of users is escaped. A content policy in the page allows its own style and script alone, by their digests.
"""

import base64
import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from utils.files import atomic_write

FOLDER = Path(__file__).resolve().parent
MAX_PAGE_BYTES = 5_000_000


def write_page(file: str | Path, template: str, content: dict[str, Any]) -> None:
    """Write a page from a template of this folder, atomically. `content` holds the template's variables."""
    text = render_page(template, content)
    with atomic_write(file) as stream:
        stream.write(text.encode("utf-8", "backslashreplace"))  # names of files may be no UTF-8


def render_page(template: str, content: dict[str, Any]) -> str:
    """Return a page. Raises jinja2.UndefinedError for a variable that `content` lacks."""
    style, script = ((FOLDER / name).read_text(encoding="utf-8") for name in ("style.css", "script.js"))
    return (
        _environment()
        .get_template(template)
        .render(
            content,
            style=Markup(style),
            script=Markup(script),
            policy=f"default-src 'none'; img-src data:; style-src {_digest(style)}; "
            f"script-src {_digest(script)}; base-uri 'none'; form-action 'none'",
        )
    )


@lru_cache(maxsize=1)
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _digest(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
