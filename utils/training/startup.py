"""What a training was asked to do: the command line, and the run that it goes on with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.config import Hyperparameters, TrainOptions
from utils.device import select_device
from utils.download import fetch_typed
from utils.errors import UserError
from utils.files import ROOT, increment_path, require_writable
from utils.training.launch_record import find_launch
from utils.training.resume import changed_options, find_run, read_state, refuse_if_done, run_folder


@dataclass(frozen=True)
class Request:
    """The options, which of them the user typed, and the checkpoint of the run to go on with (None for a new run).

    folder: where this launch began to write before its launcher restarted it, None at first.
    """

    options: TrainOptions
    typed: frozenset[str]
    resumed: dict | None
    folder: Path | None = None


def understand(given: dict[str, Any], launchers: Sequence[str]) -> Request:
    """What is to be done: with `--resume` the options are those of the resumed run, then those typed.

    launchers: those of all processes. A run that they began before a restart of theirs is gone on with, unasked.
    """
    given = fetch_typed(given)
    resume = given.pop("resume", False)
    folder = find_launch(given.get("project", TrainOptions.project), launchers)
    if folder is not None:
        resume = (folder / "weights" / "last.pt").is_file() and str(folder)
        if resume and given.get("batch_size") == -1:
            del given["batch_size"]  # found the first time, and kept
        print(f"Restarted by the launcher: going on with {folder}")
    if not resume:
        require_writable(given.get("project", TrainOptions.project))
        return Request(TrainOptions(**given), frozenset(given), None, folder)
    checkpoint = find_run(resume, given.get("project", TrainOptions.project))
    content = read_state(checkpoint)
    options = changed_options(content, checkpoint, given)
    if folder is None:
        refuse_if_done(checkpoint, content.get("epoch"), options.epochs, given)
    if "device" not in given and not any(launchers):
        expect_device(options.device)
    return Request(options, frozenset(given), content, folder)


def expect_device(device: str) -> None:
    """UserError where a machine lacks the device that a run was begun on, and nobody has typed another."""
    try:
        select_device(device)
    except UserError as error:
        raise UserError(
            f"--resume: the run was begun with --device {device}, which is not here: add --device cpu, or "
            "a GPU that is here, such as --device 0"
        ) from error


def open_run_folder(request: Request) -> Path:
    """The folder that this run writes into: the one it began in, or the next free number."""
    options = request.options
    begun = run_folder(Path(options.resume)) if options.resume else None
    if request.folder is not None or begun is not None:
        return request.folder or begun
    name = Path(options.cfg or options.weights or "exp").stem if options.name == "cfg" else options.name
    return increment_path(Path(options.project) / name, options.exist_ok)


def read_hyperparameters(request: Request) -> Hyperparameters:
    """Of the resumed run, unless another file is typed; else of `--hyp`."""
    if request.resumed and "hyp" not in request.typed:
        return Hyperparameters.from_dict(request.resumed["hyp"], request.options.resume)
    return Hyperparameters.load(request.options.hyp, ROOT, ROOT / "data" / "hyps")
