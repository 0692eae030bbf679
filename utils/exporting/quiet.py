"""Silence for libraries that warn and log about their own code."""

import io
import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager, redirect_stdout


@contextmanager
def quiet_libraries() -> Generator[None]:
    """Drop Python warnings, log messages that are no errors, and what is printed: progress bars and banners."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
