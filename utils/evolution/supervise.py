"""Supervisor of one training: runs a command and kills it when the process that started it dies. Run as a script.

    python -I supervise.py COMMAND ...

Standard input is a pipe that the parent holds open and never writes to. It closes when the parent exits, even after
kill -9 or a crash. The supervisor, the command and all its children are one process group, which is then killed;
SIGTERM to the supervisor does the same. The parent can kill the group as well, even if the supervisor is stopped.
Exit status: that of the command, or 128 + n if signal n ended it.
"""

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress


def kill_group(leader: int) -> None:
    """Kill the process group of `leader`, also those of its processes that are stopped. Windows: the process tree."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):  # macOS: no permission for a group of zombies
            os.killpg(leader, signal.SIGKILL)
    else:
        subprocess.run(["taskkill", "/F", "/T", "/PID", str(leader)], capture_output=True, check=False)


def main(command: list[str]) -> int:
    """Run the command. Return its exit status."""
    with suppress(AttributeError, PermissionError):  # Windows has no groups; the parent has made this one a leader
        os.setsid()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def kill(*_: object) -> None:
        kill_group(os.getpid())

    def kill_when_parent_dies() -> None:
        while os.read(0, 1):
            pass
        kill()

    signal.signal(signal.SIGTERM, kill)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    threading.Thread(target=kill_when_parent_dies, daemon=True).start()
    status = child.wait()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
