"""Background thread that draws charts while training or validation continues."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait


class Plotter:
    """Draws in one background thread, in the order of submission. A picture that fails costs one line, not the run.

    What is submitted must not be changed afterwards. close(), or leaving the `with` block, waits for the last picture;
    an error that leaves the block does not, and what is not begun is not drawn then.
    """

    def __init__(self, report: Callable[[str], None] = print):
        self._report = report
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="plots")
        self._last: Future | None = None

    def submit(self, function: Callable, *args, **kwargs) -> None:
        self._last = self._pool.submit(self._draw, function, args, kwargs)

    def close(self) -> None:
        """Wait for the last picture; Ctrl-C leaves out those that are not begun."""
        try:
            if self._last is not None:
                wait([self._last])  # not by shutdown: Ctrl-C amid that and Python ends under a thread that still draws
        except BaseException:
            self._leave()
            raise
        self._pool.shutdown()

    def _leave(self) -> None:
        """Leave out what is not begun; Python itself waits at its end for what is."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._last = None

    def __enter__(self) -> "Plotter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        self.close() if kind is None else self._leave()

    def _draw(self, function: Callable, args: tuple, kwargs: dict) -> None:
        try:
            function(*args, **kwargs)
        except Exception as error:  # a background thread has nobody above it who could catch this
            name = getattr(function, "__name__", "picture")
            self._report(f"warning: {name} was not drawn: {type(error).__name__}: {error}")
