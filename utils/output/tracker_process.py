"""Process that sends a training's figures to one experiment tracker.

It is a process of its own: a tracker that fails, hangs, or changes the Python that it runs in costs no training. It
reads results.csv and the images of the run folder, and records in `log-<tool>.json` there what the tracker has. So a
resumed run continues in the same logged run, and what a tracker missed is sent later.

Standard input: a line of JSON with the fields of Start, {"folder": ...} if the run folder is renamed, {"end": ...}.
Standard output: lines for the user, each with `info` or `warning` in front. All else goes to standard error.
PyTorch is not imported, so that the process is small.
"""

import csv
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from utils.output.trackers import TRACKERS, Record, Start, Tracker, changed_at, list_files

POLL_SECONDS = 2.0  # between looks into the run folder
MAX_PAUSE = 60.0  # seconds between tries of a tracker that fails
LAST_SECONDS = 5.0  # for the rest of an interrupted run, which a resumed one sends in any case


class Sender:
    """Sender of what is new in the run folder, in the order of the epochs, each thing once."""

    def __init__(self, start: Start, announce: Callable[[str], None]):
        self.start, self.folder, self._announce = start, Path(start.folder), announce
        self.record = Record.read(start) if start.resumed else Record()
        self.tracker: Tracker | None = None

    def send(self, *, images: bool = True, weights: tuple[str, ...] = ()) -> None:
        """Send new rows, new images, and the weights files named. What fails is sent by the next call."""
        tracker = self.tracker = self.tracker or self._open()
        for epoch, values in self._rows().items():
            if epoch > self.record.epoch:
                tracker.log(epoch, values)
                self.record.epoch = epoch
                self._save()
        for name, time_changed in list_files(self.folder).items() if images else ():
            if name != "results.csv" and time_changed not in (self.start.stale.get(name), self.record.files.get(name)):
                tracker.log_image(self.folder / name, max(self.record.epoch, 0))
                self.record.files[name] = time_changed
                self._save()
        for file in weights:
            tracker.log_weights(Path(file))

    def _open(self) -> Tracker:
        tracker = TRACKERS[self.start.tool](self.start, self.record)
        self.record.id, self.record.epoch = tracker.id, max(self.record.epoch, tracker.last_epoch)
        self._save()
        self._announce(tracker.place)
        return tracker

    def _save(self) -> None:
        self.record.write(self.folder, self.start.tool)

    def _rows(self) -> dict[int, dict[str, float]]:
        """Return the rows of results.csv: epoch -> column -> value."""
        file = self.folder / "results.csv"
        if changed_at(file) in (0, self.start.stale.get(file.name)):
            return {}
        with file.open(newline="") as stream:
            titles, *rows = [[cell.strip() for cell in row] for row in csv.reader(stream)]
        return {int(row[0]): dict(zip(titles[1:], map(float, row[1:]), strict=True)) for row in rows}


# ---- the process


class Inbox(threading.Thread):
    """Thread that reads the messages of the training. The end of the pipe means that the training was killed."""

    def __init__(self, start: Start):
        super().__init__(daemon=True)
        self.start_message, self.folder = start, start.folder
        self.ended, self.finished, self.weights = threading.Event(), False, ()

    def run(self) -> None:
        """Read until the end. From then on this process has a deadline."""
        with suppress(ValueError):  # the training was killed in the middle of a line
            for line in sys.stdin:
                message = json.loads(line)
                self.folder = message.get("folder", self.folder)
                if "end" in message:
                    self.finished, self.weights = message["end"] == "finished", tuple(message["weights"])
                    break
        timer = threading.Timer(self.start_message.seconds if self.finished else LAST_SECONDS, os._exit, [1])
        timer.daemon = True
        timer.start()
        self.ended.set()


def main() -> int:
    """Send until the training ends. Return 0 if the tracker has everything."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the training, which ends this process
    output = os.dup(1)
    os.dup2(2, 1)  # what the tracker prints belongs into the log

    def show(kind: str, text: str) -> None:
        with suppress(OSError):  # the training was killed
            os.write(output, f"{kind} {text}\n".encode())

    start = Start(**json.loads(sys.stdin.readline()))
    inbox = Inbox(start)
    inbox.start()
    sender = Sender(start, lambda place: show("info", f"Logging to {start.tool}: {place}"))
    pause, failed = 0.0, False
    while True:
        ended = inbox.ended.wait(pause)
        sender.folder = Path(inbox.folder)
        try:
            sender.send(images=inbox.finished or not ended, weights=inbox.weights)
            if ended and sender.tracker:
                sender.tracker.close(finished=inbox.finished)
            if failed:
                show("info", f"--log {start.tool}: it works again, and has all epochs")
            pause, failed = POLL_SECONDS, False
        except Exception as error:
            traceback.print_exc()
            if not failed:
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                show("warning", f"--log {start.tool}: {reason}. The training continues, and it is tried again")
            pause, failed = min(max(2 * pause, POLL_SECONDS), MAX_PAUSE), True
        if ended:
            return int(failed)
