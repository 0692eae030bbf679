"""The one kind of error that a user's mistake raises, and the edge where it becomes one line."""

import sys
from collections.abc import Callable


class UserError(ValueError):
    """Something the user gave is wrong: the message is one line that says what, where, and what to type instead."""


def run(main: Callable[[], object]) -> None:
    """Run a command line's `main`; a UserError becomes one line on stderr and exit code 1, with no traceback."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
