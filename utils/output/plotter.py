"""Background thread that draws charts while training or validation continues."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from utils.console import warn


class Plotter:
    """Context manager that draws in one background thread, in the order of submission.

    A chart that fails costs one warning, not the run. Arguments of submit() must not be changed afterwards.
    close(), or leaving the `with` block, waits for the last chart. An error that leaves the block does not wait:
    charts that have not begun are not drawn then.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="plots")
        self._last: Future[None] | None = None

    def submit(self, function: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        """Draw with `function` in the background."""
        self._last = self._pool.submit(_draw, function, args, kwargs)

    def close(self) -> None:
        """Wait for the last chart. Ctrl-C cancels those that have not begun."""
        try:
            if self._last is not None:
                # Not by shutdown(): Ctrl-C during that lets Python end while the thread still draws.
                wait([self._last])
        except BaseException:
            self._cancel()
            raise
        self._pool.shutdown()

    def _cancel(self) -> None:
        """Cancel the charts that have not begun. Python itself waits at its exit for the one that has."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._last = None

    def __enter__(self) -> "Plotter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close() if kind is None else self._cancel()


def _draw(function: Callable[..., object], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    try:
        function(*args, **kwargs)
    except Exception as error:  # nothing above a background thread could catch it
        name = getattr(function, "__name__", "chart")
        warn(f"{name} was not drawn: {type(error).__name__}: {error}")
