"""Supervisor of one training: runs a command and kills it when the process that started it dies. Run as a script.

    python -I supervise.py COMMAND ...

Standard input is a pipe that the parent holds open and never writes to. It closes when the parent exits, even after
kill -9 or a crash. The command and all its children are then killed; SIGTERM to the supervisor does the same.
Exit status: that of the command, or 128 + n if signal n ended it.
"""

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress


def main(command: list[str]) -> int:
    """Run the command. Return its exit status."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)

    def kill(*_: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # its process group: data workers too

    def kill_when_parent_dies() -> None:
        while os.read(0, 1):
            pass
        kill()

    signal.signal(signal.SIGTERM, kill)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    threading.Thread(target=kill_when_parent_dies, daemon=True).start()
    status = child.wait()
    kill()  # children that outlived the command
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
