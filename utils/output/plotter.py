"""Background thread that draws charts while training or validation continues."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

from utils.console import warn
from utils.pending_files import PendingFiles


class Plotter:
    """Context manager that draws in one background thread, in the order of submission.

    A chart that fails costs one warning, not the run. One that cannot be written is drawn again at the end. Arguments
    of submit() must not be changed afterwards.
    close(), or leaving the `with` block, waits for the last chart. An error that leaves the block does not wait:
    charts that have not begun are not drawn then.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="plots")
        self._last: Future[None] | None = None
        self._pending = PendingFiles()
        self.unwritten: dict[Path, str] = {}  # charts that could not be written, with the reasons; known after `finish`

    def submit(self, function: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        """Draw with `function` in the background."""
        self._last = self._pool.submit(self._draw, function, args, kwargs)

    def finish(self) -> dict[Path, str]:
        """Wait for the last chart, and draw those again that could not be written. Return what is still missing.

        Ctrl-C cancels those that have not begun.
        """
        try:
            if self._last is not None:
                # Not by shutdown(): Ctrl-C during that lets Python end while the thread still draws.
                wait([self._last])
            if self._pending:
                self.unwritten = self._pool.submit(self._pending.retry).result()
        except BaseException:
            self._cancel()
            raise
        return self.unwritten

    def close(self) -> None:
        """Finish, and end the thread."""
        self.finish()
        self._end()

    def _cancel(self) -> None:
        """Cancel the charts that have not begun. Python itself waits at its exit for the one that has."""
        self._end(wait=False, cancel_futures=True)

    def _end(self, **how: bool) -> None:
        self._pool.shutdown(**how)
        self._last, self._pending = None, PendingFiles()

    def __enter__(self) -> "Plotter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close() if kind is None else self._cancel()

    def _draw(self, function: Callable[..., object], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        draw, files = partial(function, *args, **kwargs), [*args, *kwargs.values()]
        try:
            draw()
        except Exception as error:  # nothing above a background thread could catch it
            file = next((file for file in files if isinstance(file, Path) and str(file) == _name_of(error)), None)
            if file:
                self._pending.write(file, lambda _: draw())
            else:
                name = getattr(function, "__name__", "chart")
                warn(f"{name} was not drawn: {type(error).__name__}: {error}")


def _name_of(error: Exception) -> str | None:
    """Return the file that could not be written, None for other errors."""
    return error.filename if isinstance(error, OSError) else None
