"""Experiment trackers of `--log`: a process each sends what is new in the run folder (tracker_process.py)."""

import json
import platform
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from utils import console
from utils.addresses import remove_credentials
from utils.cli import to_flags
from utils.environment import child_environment, variable
from utils.files import ROOT
from utils.output import tracker_process
from utils.output.trackers import Start, list_files
from utils.training.observer import EpochReport, Observer
from utils.training.resume import run_folder_of
from utils.training.run import Run

PACKAGES = {"comet": "comet_ml"}  # whose names are not those of the tools
# Variables that keep a package from reporting to its makers. The user's own values count.
NO_TELEMETRY = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
    "COMET_ERROR_TRACKING_ENABLE": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
# This project is where Python first looks for modules, not the current folder, which may have others of these names.
LAUNCH = f"import sys; sys.path[0] = {str(ROOT)!r}; from utils.output.tracker_process import main; sys.exit(main())"
SECONDS = 60.0  # that a tracker may take after the end of a run
BYTES_PER_SECOND = 1e6  # at which weights are uploaded at least


def installed_tools(tools: Sequence[str]) -> list[str]:
    """Return those of `tools` that are installed. Print a line for each of the others."""
    packages = {tool: PACKAGES.get(tool, tool) for tool in tools}
    missing = [tool for tool, package in packages.items() if find_spec(package) is None]
    for tool in missing:
        console.warn(
            f"--log {tool}: the package is not installed. Type pip install {packages[tool]}, or for all tools "
            'pip install ".[loggers]" in the folder of this project'
        )
    return [tool for tool in packages if tool not in missing]


class Loggers(Observer):
    """Processes that log a run to the tools of `--log`. `locate` returns the run folder, which may be renamed."""

    def __init__(self, locate: Callable[[], Path]):
        self._locate, self._processes, self._finished = locate, list[LoggerProcess](), False

    def on_start(self, run: Run) -> None:
        """Start a process for each tool that is installed."""
        options, folder = run.options, self._locate().absolute()
        resumed = bool(options.resume) and run_folder_of(Path(str(options.resume))) == folder.resolve()
        for tool in installed_tools(options.log):
            start = Start(
                tool=tool,
                folder=str(folder),
                name=folder.name,
                project=options.log_project,
                config=describe(run),
                resumed=resumed,
                stale={} if resumed else list_files(folder),
                seconds=SECONDS + self._weights_seconds(run),
            )
            try:
                self._processes.append(LoggerProcess(start))
            except OSError as error:
                console.warn(f"--log {tool}: no process can be started ({error}). The training continues without it")

    def _weights_seconds(self, run: Run) -> float:
        """Return how long the upload of two weights files may take, with the state of the optimizer and the EMA."""
        numbers = sum(value.numel() for value in run.model.parameters()) if run.options.log_weights else 0
        return 16 * numbers / BYTES_PER_SECOND

    def on_epoch(self, run: Run, report: EpochReport) -> None:
        """Report a folder that was renamed."""
        folder = self._locate().absolute() if self._processes else None
        for process in self._processes:
            process.follow(str(folder))

    def on_end(self, run: Run) -> None:
        """Let the processes send the images of the run and, with `--log-weights`, its weights."""
        files = [self._locate().absolute() / "weights" / name for name in ("best.pt", "last.pt")]
        weights = [str(file) for file in files if run.options.log_weights and file.is_file()]
        for process in self._processes:
            process.end("finished", weights)
        self._finished = True

    def close(self) -> None:
        """Wait for the processes, each of which has a deadline."""
        for process in self._processes:
            process.end("interrupted", [])
        for process in self._processes:
            process.wait(complain=self._finished)
        self._processes.clear()


class LoggerProcess:
    """Process that sends a run to one tool. No method of it waits, except `wait`."""

    def __init__(self, start: Start):
        self.start, self._folder = start, start.folder
        settings = {name: variable(name) or value for name, value in NO_TELEMETRY.items()}
        with open(Path(start.folder) / f"log-{start.tool}.txt", "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", LAUNCH],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                encoding="utf-8",
                errors="replace",
                env=child_environment(**settings),
                start_new_session=True,
            )
        self._thread = threading.Thread(target=self._print, name=f"log-{start.tool}", daemon=True)
        self._thread.start()
        self._send(asdict(start))

    def _send(self, message: dict[str, Any]) -> None:
        """Send a message. There are a few in a run, fewer than a pipe holds."""
        stdin = self._process.stdin
        with suppress(OSError):  # the process has ended
            if stdin and not stdin.closed:
                stdin.write(json.dumps(message) + "\n")
                stdin.flush()

    def _print(self) -> None:
        """Print the lines of the process."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            kind, _, text = line.strip().partition(" ")
            shown = re.sub(r"\S+://\S+", lambda found: remove_credentials(found[0]), text)
            (console.warn if kind == "warning" else console.info)(shown)

    def follow(self, folder: str) -> None:
        """Report where the run folder is now."""
        if folder != self._folder:
            self._folder = folder
            self._send({"folder": folder})

    def end(self, how: str, weights: Sequence[str]) -> None:
        """Request the end, unless that was done: `finished` with all that is left, or `interrupted`."""
        self._send({"end": how, "weights": list(weights)})
        with suppress(OSError):
            if self._process.stdin:
                self._process.stdin.close()

    def wait(self, *, complain: bool) -> None:
        """Wait for the end of the process, and kill it after its deadline. Warn if it has not sent everything."""
        limit = self.start.seconds if complain else tracker_process.LAST_SECONDS
        try:
            status = self._process.wait(limit + tracker_process.LAST_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        self._thread.join()
        if self._process.stdout:
            self._process.stdout.close()
        if status and complain:
            console.warn(
                f"--log {self.start.tool}: not everything was logged within {limit:.0f} s after the end. The reason is "
                f"in {Path(self._folder) / f'log-{self.start.tool}.txt'}, and all rows are in results.csv"
            )


def describe(run: Run) -> dict[str, Any]:
    """Return what a tool shows as configuration: flags, hyperparameters, the command and the versions."""
    options, environment = run.options, run.environment
    flags = {name: _plain(value) for name, value in options.to_dict().items() if not name.startswith("evolve")}
    typed = {name: flags[name] for name in sorted(options.typed & flags.keys())}
    versions = {name: environment[name] for name in ("torch", "numpy", "opencv", "device") if name in environment}
    return {
        "command": shlex.join(["python", "train.py", *(["--resume"] if options.resume else []), *to_flags(typed)]),
        **{name: " ".join(map(str, value)) if isinstance(value, list) else value for name, value in flags.items()},
        **{f"hyp/{name}": value for name, value in run.hyp.to_dict().items()},
        **{f"version/{name}": value for name, value in versions.items()},
        "version/python": platform.python_version(),
    }


def _plain(value: Any) -> Any:
    """Return the value of an option without credentials, "" for None."""
    return remove_credentials(value) if isinstance(value, str) else "" if value is None else value
