"""Runs a command and sees that it does not outlive whoever asked for it. Started as a script by trainings.

    python -I supervise.py COMMAND …

Standard input is a pipe whose other end the asking process holds and never writes to: it closes when that process ends,
even by kill -9 or a crash. The command and all its children are then killed, and when the guard is asked to end.
Exit status: that of the command; 128 + n where signal n ended it.
"""

import os
import signal
import subprocess
import sys
import threading


def main(command: list[str]) -> int:
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)

    def kill(*_: object) -> None:
        try:
            os.killpg(child.pid, signal.SIGKILL)  # its own group: data workers too
        except ProcessLookupError:
            pass

    def kill_when_parent_dies() -> None:
        while os.read(0, 1):
            pass
        kill()

    signal.signal(signal.SIGTERM, kill)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the asking process's affair
    threading.Thread(target=kill_when_parent_dies, daemon=True).start()
    status = child.wait()
    kill()  # what the command has left behind
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
