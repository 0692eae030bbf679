"""Trial run of a model in a process of its own, for libraries that a damaged file can crash or hang.

The process imports the library and NumPy, no PyTorch, so that it starts in less than a second.
"""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError
from utils.files import ROOT
from utils.formats import import_extra

DEADLINE = 120.0  # seconds; a yolov5x of 1280 pixels takes a tenth of it on a slow computer
ADVICE = "the file is damaged, export it again"
WINDOWS_CRASH = 0xC0000000  # exit codes of exceptions of the system begin here


def require_trial_run(path: Path, kind: str, *arguments: object) -> None:
    """Raise UserError if a run on a blank image crashes or hangs.

    kind: a key of RUNS, whose function gets the absolute path and the arguments. Its exceptions are ignored: opening
    the model here raises them again.
    """
    command = [sys.executable, "-m", __name__, kind, str(path.absolute()), *map(str, arguments)]
    try:
        code = subprocess.run(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, timeout=DEADLINE
        ).returncode
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{path}: {kind} does not end within {DEADLINE:.0f} s on a blank image: {ADVICE}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot start {sys.executable} to try it: {error.strerror}") from error
    if code < 0 or code >= WINDOWS_CRASH:
        name = signal.strsignal(-code) if code < 0 else hex(code)
        raise UserError(f"{path}: {kind} crashes on a blank image ({name}): {ADVICE}")


def load_ncnn(graph: Path, half: bool, threads: int) -> Any:
    """Return a network of ncnn with the weights beside its .param file, None if ncnn refuses them."""
    net = import_extra("ncnn", "ncnn", str(graph)).Net()
    net.opt.use_vulkan_compute = False
    for name in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
        setattr(net.opt, name, half)
    if threads:
        net.opt.num_threads = threads
    refused = net.load_param(str(graph)) or net.load_model(str(graph.with_suffix(".bin")))
    return None if refused else net


def run_ncnn(graph: str, half: str, threads: str, *shape: str) -> None:
    ncnn = import_extra("ncnn", "ncnn", graph)
    net = load_ncnn(Path(graph), half == "True", int(threads))
    with net.create_extractor() as extractor:
        extractor.input(net.input_names()[0], ncnn.Mat(np.zeros([int(side) for side in shape], np.float32)))
        for name in net.output_names():
            np.array(extractor.extract(name)[1]).sum()


def run_tflite(path: str, threads: str) -> None:
    litert = import_extra("ai_edge_litert.interpreter", "tflite", path)
    interpreter = litert.Interpreter(model_path=path, num_threads=int(threads) or None)
    interpreter.allocate_tensors()
    for details in interpreter.get_input_details():
        interpreter.set_tensor(details["index"], np.zeros(details["shape"], details["dtype"]))
    interpreter.invoke()
    for details in interpreter.get_output_details():
        interpreter.get_tensor(details["index"]).sum()


RUNS = {"ncnn": run_ncnn, "LiteRT": run_tflite}

if __name__ == "__main__":
    RUNS[sys.argv[1]](*sys.argv[2:])
