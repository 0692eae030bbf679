"""Faults of the machine during a run: full and read-only disks, signals, killed workers, too little memory."""

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from kill_and_resume import STARTED, descendants, start
from tiny_training import train_flags

import train
from models.yolo import DetectionModel
from utils import errors
from utils.autobatch import advice_on_memory
from utils.checkpoint import read_checkpoint
from utils.config import TrainOptions
from utils.datasets.labels import load_index
from utils.distributed import explain_unexpected
from utils.errors import UserError
from utils.files import atomic_write
from utils.inference.evaluate import evaluate
from utils.inference.nms_settings import VAL_NMS
from utils.inference.observer import StopHook
from utils.inference.reporting import ConsoleTable
from utils.inference.tile_pass import WHOLE
from utils.loading.loader import LoadSettings, make_loader
from utils.schedule import multi_scale_size
from utils.training import loaders, startup
from utils.training.signals import EXIT_CODE, SIGNALS, Interrupted, SignalHandler

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def arguments(data, cfg, folder, *extra, epochs=3):
    return train_flags(data, cfg, folder, "--noplots", *extra, epochs=epochs)


def state_of(folder: Path) -> dict:
    return read_checkpoint(folder / "run" / "weights" / "last.pt")


def fault_during(monkeypatch, epoch: int, begin, end) -> None:
    """Call `begin` after `epoch` is trained and before it is saved, and `end` an epoch later."""
    original, made = train.RunFolder.on_epoch, []

    class Noted(train.Checkpoints):
        def __init__(self, *args, **named):
            super().__init__(*args, **named)
            made.append(self)

    def on_epoch(self, run, report):
        made[-1].is_saved()
        begin() if report.epoch == epoch else end() if report.epoch == epoch + 1 else None
        original(self, run, report)

    monkeypatch.setattr(train, "Checkpoints", Noted)
    monkeypatch.setattr(train.RunFolder, "on_epoch", on_epoch)


# ---- disks


def open_full_disk(*_):
    return open("/dev/full", "wb")  # the code under test closes it


def test_a_full_quota_is_one_line_and_training_continues(tiny_data, tiny_cfg, tmp_path, monkeypatch, capfd):
    """The system allows no file over 64 KiB for one epoch."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    seen = []

    def forbid():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
        seen.append(state_of(tmp_path)["epoch"])

    def allow():
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        seen.append(state_of(tmp_path)["epoch"])

    fault_during(monkeypatch, 1, forbid, allow)
    try:
        train.main(arguments(tiny_data, tiny_cfg, tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert seen == [1, 1] and state_of(tmp_path)["epoch"] == 3  # the old file stayed, later ones were written
    lines = [line for line in capfd.readouterr().err.splitlines() if "could not be written" in line]
    message = "last.pt could not be written: File too large. The previous file is kept, and it is tried again."
    assert len(lines) in (1, 2) and message in lines[-1]
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO], ids=lambda n: errno.errorcode[n]
)
def test_no_file_can_be_written_for_an_epoch(tiny_data, tiny_cfg, tmp_path, monkeypatch, capfd, number):
    def refuse(path, *_):
        raise OSError(number, os.strerror(number), str(path))

    fault_during(
        monkeypatch,
        1,
        lambda: monkeypatch.setattr("utils.files.open", refuse, raising=False),
        lambda: monkeypatch.delattr("utils.files.open"),
    )
    train.main(arguments(tiny_data, tiny_cfg, tmp_path))
    assert state_of(tmp_path)["epoch"] == 3
    lines = [line for line in capfd.readouterr().err.splitlines() if "could not be written" in line]
    assert any("results.csv" in line and os.strerror(number) in line for line in lines) and len(lines) <= 3
    rows = (tmp_path / "run" / "results.csv").read_text().splitlines()
    assert [row.split(",")[0].strip() for row in rows] == ["epoch", "0", "1", "2"]  # the missing rows were added later


@pytest.mark.parametrize("best", [0, 1], ids=["the first", "the second"])
def test_the_best_epoch_is_kept_although_the_disk_was_full(tiny_data, tiny_cfg, tmp_path, monkeypatch, best):
    """best.pt is written as soon as there is room, since no later epoch may be as good."""
    original = train.validate

    def validate(run, *others):
        return replace(
            original(run, *others), precision=0.0, recall=0.0, map50=0.0, map=1.0 if run.progress.epoch == best else 0.1
        )

    monkeypatch.setattr(train, "validate", validate)
    fault_during(
        monkeypatch,
        best,
        lambda: monkeypatch.setattr("utils.files.open", open_full_disk, raising=False),
        lambda: monkeypatch.delattr("utils.files.open"),
    )
    train.main(arguments(tiny_data, tiny_cfg, tmp_path, epochs=best + 3))
    assert read_checkpoint(tmp_path / "run" / "weights" / "best.pt")["epoch"] == best + 1  # finished epochs
    assert state_of(tmp_path)["epoch"] == best + 3 and state_of(tmp_path)["best_fitness"] == pytest.approx(0.9)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_disk_that_is_full_while_a_checkpoint_is_written(tiny_data, tiny_cfg, tmp_path, monkeypatch, capfd):
    fault_during(
        monkeypatch,
        1,
        lambda: monkeypatch.setattr("utils.files.open", open_full_disk, raising=False),
        lambda: monkeypatch.delattr("utils.files.open"),
    )
    train.main(arguments(tiny_data, tiny_cfg, tmp_path))
    assert state_of(tmp_path)["epoch"] == 3
    assert "last.pt could not be written: No space left on device" in capfd.readouterr().err


def fill_disk_for(monkeypatch, *names: str) -> list[str]:
    """Let no file of these names be written, while they are in the list that is returned."""
    full, original = list(names), os.replace

    def replace(source, target):
        if Path(target).name in full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(source, target)

    monkeypatch.setattr(os, "replace", replace)
    return full


FILES = ("last.pt", "best.pt", "epoch0.pt", "results.csv", "opt.yaml", "hyp.yaml", "labels.jpg", "train_batch0.jpg")


def test_what_could_not_be_written_is_written_once_there_is_room(tiny_data, tiny_cfg, tmp_path, monkeypatch, capfd):
    full, trained, begin = fill_disk_for(monkeypatch, *FILES), train.RunFolder.on_trained, train.Checkpoints.begin
    made = []

    def on_trained(self, run):
        assert not made[0].is_saved() and self.plotter.finish()  # all has been tried
        full.clear()
        trained(self, run)

    monkeypatch.setattr(train.Checkpoints, "begin", lambda self, run: made.append(self) or begin(self, run))
    monkeypatch.setattr(train.RunFolder, "on_trained", on_trained)
    train.main(train_flags(tiny_data, tiny_cfg, tmp_path, "--save-period", "1", epochs=1))
    run, (out, err) = tmp_path / "run", capfd.readouterr()
    assert all((run / name).exists() or (run / "weights" / name).exists() for name in FILES)
    assert state_of(tmp_path)["epoch"] == 1 and len((run / "results.csv").read_text().splitlines()) == 2
    assert f"Results saved to {run}" in out and err.count("could not be written") == len(FILES)


@pytest.mark.parametrize(
    "missing, resumed",
    [(["last.pt", "results.csv", "hyp.yaml"], True), (["best.pt"], True), (["results.csv"], False)],
    ids=["several", "the best", "a table"],
)
def test_what_is_missing_at_the_end_is_an_error(tiny_data, tiny_cfg, tmp_path, monkeypatch, capfd, missing, resumed):
    full, begin = fill_disk_for(monkeypatch, *missing[2:]), train.Checkpoints.begin

    def begin_then_fill(self, run):
        begin(self, run)
        self.is_saved()
        full.extend(missing)

    with monkeypatch.context() as patch:
        patch.setattr(train.Checkpoints, "begin", begin_then_fill)
        with pytest.raises(UserError) as error:
            train.main(arguments(tiny_data, tiny_cfg, tmp_path, epochs=1))
    line, run = str(error.value), tmp_path / "run"
    assert all(f"{name}" in line for name in missing) and line.count(str(run)) == len(missing) + resumed
    assert "could not be written, also at the end: No space left on device. Make room on the disk" in line
    assert "Results saved" not in capfd.readouterr().out
    full.clear()
    if resumed:
        assert line.endswith(f", then type python train.py --resume {run}")
        train.main(["--resume", str(run)])
        assert state_of(tmp_path)["epoch"] == 1 and (run / "weights" / "best.pt").exists()
        assert f"Results saved to {run}" in capfd.readouterr().out


def test_the_last_row_is_written_when_a_signal_stops_the_run(tiny_data, tiny_cfg, tmp_path, monkeypatch):
    full, original = fill_disk_for(monkeypatch, "results.csv"), train.prepare_images

    def prepare(run, images):
        if run.progress.iteration == 4:
            full.clear()
            os.kill(os.getpid(), signal.SIGTERM)
        return original(run, images)

    monkeypatch.setattr(train, "prepare_images", prepare)
    with pytest.raises(SystemExit) as end:
        train.main(arguments(tiny_data, tiny_cfg, tmp_path, "--nbs", "8"))
    assert end.value.code == 75 and len((tmp_path / "run" / "results.csv").read_text().splitlines()) == 2


def test_a_signal_is_not_reported_as_saved_if_the_disk_is_full(tiny_data, tiny_cfg, tmp_path, monkeypatch, capfd):
    original = train.prepare_images

    def prepare(run, images):
        if run.progress.iteration == 4:
            monkeypatch.setattr("utils.files.open", open_full_disk, raising=False)
            os.kill(os.getpid(), signal.SIGTERM)
        return original(run, images)

    monkeypatch.setattr(train, "prepare_images", prepare)
    with pytest.raises(SystemExit) as end:
        train.main(arguments(tiny_data, tiny_cfg, tmp_path))
    assert end.value.code == 1 and "could NOT be saved" in capfd.readouterr().out
    assert state_of(tmp_path)["epoch"] == 1


def test_a_run_folder_that_cannot_be_created_is_one_line(tiny_data, tiny_cfg, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot create the folder .*; give another --project"):
        train.main(arguments(tiny_data, tiny_cfg, tmp_path / "file"))


@pytest.mark.parametrize(
    "error, code, text",
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "x/opt.yaml"),
            1,
            "error: x/opt.yaml: No space left on device",
        ),
        (UserError("bad\n\x1b[31mthing"), 1, "error: bad  [31mthing\n"),
        (UserError("x" * 5000), 1, "... (5000 characters)"),
        (KeyboardInterrupt(), 130, "Interrupted"),
    ],
    ids=["disk", "control characters", "endless", "Ctrl-C"],
)
def test_errors_that_a_user_can_fix_are_one_line(handlers, capsys, error, code, text):
    def main():
        raise error

    with pytest.raises(SystemExit) as end:
        errors.run(main)
    printed = capsys.readouterr().err
    assert end.value.code == code and text in printed and len(printed.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "error, advice",
    [
        (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
        (OSError(errno.ENFILE, "Too many open files in system"), "close other programs"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "ulimit -u"),
        (RuntimeError("can't start new thread"), "ulimit -u"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "ulimit -v"),
        (MemoryError(), "ulimit -v"),
        (RuntimeError("could not create a primitive"), "ulimit -v"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "ulimit -v"),
        (ImportError("x.so: cannot open shared object file: Too many open files"), "ulimit -n"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "ulimit -v"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_shortages_of_the_machine_are_one_line(error, advice):
    line, code = errors.explain(error)
    assert code == 1 and line.startswith("error: too ") and advice in line and "\n" not in line


def test_errors_of_the_imports_are_one_line():
    """A limit of the address space that the libraries do not fit in, and no folder for temporary files."""
    code = "import tempfile; tempfile._candidate_tempdir_list = lambda: [];"
    code += "from utils.errors import silence_ctrl_c_during_imports as silence; silence('__main__'); "
    for fails, advice in (("tempfile.gettempdir()", "set TMPDIR"), ("raise MemoryError", "ulimit -v")):
        done = subprocess.run(
            [sys.executable, "-c", code + fails], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1 and advice in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


def test_leftovers_of_a_killed_writer_are_removed(tiny_data, tiny_cfg, tmp_path):
    train.main(arguments(tiny_data, tiny_cfg, tmp_path, epochs=1))
    leftover = tmp_path / "run" / "weights" / ".last.pt.0123abcd.tmp"
    leftover.write_bytes(b"half")
    train.main(["--resume", str(tmp_path / "run"), "--epochs", "2"])
    assert not leftover.exists()


# A power cut after any step of writing a file leaves the old file or the complete new one.
@pytest.mark.parametrize("cut", ["write", "fsync", "replace"])
def test_a_power_cut_at_any_step_leaves_the_old_file_or_the_new_one(tmp_path, monkeypatch, cut):
    target = tmp_path / "last.pt"
    target.write_bytes(b"old")
    pid = os.fork()
    if pid == 0:
        if cut != "write":
            setattr(os, cut, lambda *_: os._exit(9))
        with atomic_write(target) as file:
            file.write(b"half of the new")
            os._exit(9) if cut == "write" else file.write(b" file")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    assert target.read_bytes() == b"old"


# ---- signals


@pytest.mark.slow
def test_a_signal_to_all_processes_of_a_run_saves_it(tiny_data, tiny_cfg, tmp_path):
    """Ctrl-C and schedulers signal the workers too, which must continue until the step is done."""
    name = "SIGINT"
    process = start(arguments(tiny_data, tiny_cfg, tmp_path / "a b", "--workers", "2", epochs=500), tmp_path / "log")
    assert process.wait_for_text(STARTED, 120) is not None
    time.sleep(2)
    for pid in [*descendants(process.pid), process.pid]:
        os.kill(pid, getattr(signal, name))
    assert process.wait(60) == EXIT_CODE, process.log.read_text()
    printed = process.log.read_text()
    assert (
        f"Interrupted ({name}), the state is saved. Resume with: python train.py --resume '{tmp_path}/a b/run'"
        in printed
    )
    assert "Traceback" not in printed and state_of(tmp_path / "a b")["iteration"] > 0
    assert not descendants(process.pid)


@pytest.mark.slow
def test_a_second_signal_stops_at_once(tmp_path):
    code = (
        "import time\nfrom utils.training.signals import SignalHandler\nwith SignalHandler():\n"
        "    print('ready', flush=True)\n    time.sleep(1)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        assert process.poll() is None  # the first signal is only recorded
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 128 + signal.SIGINT and time.monotonic() - started < 10


@pytest.mark.slow
def test_ctrl_c_under_torchrun_saves_the_run(tiny_data, tiny_cfg, tmp_path):
    """torchrun repeats the signal to processes that have already received it. That is not a second signal."""
    process = start(arguments(tiny_data, tiny_cfg, tmp_path, epochs=500), tmp_path / "log", processes=2)
    assert process.wait_for_text("/499", 200) is not None
    time.sleep(1)
    for pid in [*descendants(process.pid), process.pid]:
        os.kill(pid, signal.SIGINT)
    assert process.wait(60) not in (None, 0)
    assert "Interrupted (SIGINT), the state is saved" in process.log.read_text() and state_of(tmp_path)["iteration"] > 0


@dataclass
class Measured:
    """Stand-in for Metrics."""

    measure: object = None
    thresholds: tuple[float, ...] = ()


@pytest.mark.parametrize(
    "processes, extra, expected", [(1, [], ["evaluate"]), (2, [], ["save", "evaluate"]), (2, ["nosave"], ["evaluate"])]
)
def test_several_processes_save_before_they_validate(monkeypatch, processes, extra, expected):
    """torchrun kills them half a minute after a signal, and a validation may take longer."""
    seen = []
    options = SimpleNamespace(nosave="nosave" in extra, single_cls=False, fitness=TrainOptions.fitness)
    group = SimpleNamespace(world_size=processes, share_buffers=lambda _: None)
    run = SimpleNamespace(
        distributed=group,
        options=options,
        ema=SimpleNamespace(ema=None),
        validation_autocast=None,
        val_loader=None,
        loss=None,
        data=SimpleNamespace(names={}),
        validation_nms=lambda: VAL_NMS,
        validation_views=lambda: WHOLE,
    )

    def evaluate(*_, **__):
        seen.append("evaluate")
        return Measured()

    monkeypatch.setattr(train, "evaluate", evaluate)
    train.validate(run, SimpleNamespace(save=lambda _: seen.append("save")), SignalHandler())
    assert seen == expected


def test_signals_are_recorded_echoes_ignored_and_handlers_restored():
    before = signal.getsignal(signal.SIGTERM)
    with SignalHandler(echo_seconds=60) as interruption:
        assert not interruption.signal_name
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)  # it would end the process if it were no echo
        assert interruption.signal_name == "SIGUSR1"
        interruption.echo_seconds = 0
        with pytest.raises(Interrupted, match="SIGUSR1"):
            interruption.raise_if_signalled()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")
@pytest.mark.parametrize("action, names", [(signal.SIG_DFL, "SIGHUP"), (signal.SIG_IGN, "")], ids=["terminal", "nohup"])
def test_a_terminal_that_hangs_up_stops_the_run_unless_nohup_says_otherwise(action, names):
    before = signal.signal(signal.SIGHUP, action)
    try:
        with SignalHandler() as handler:
            os.kill(os.getpid(), signal.SIGHUP)
        assert handler.signal_name == names and signal.getsignal(signal.SIGHUP) is action
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("ending", [False, True], ids=["after an epoch", "of the best weights"])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_signal_ends_a_validation_between_two_batches(tiny_data, tiny_cfg, tmp_path, monkeypatch, processes, ending):
    """It does not end one while a data worker waits for an answer. With several processes none stops."""
    seen = []

    def evaluate(*_, observers, **__):
        for batch in range(3):
            for observer in observers:
                observer.before_batch()
            seen.append(batch)
            os.kill(os.getpid(), signal.SIGTERM) if batch == 1 else None
            seen.append("read")
        return Measured()

    monkeypatch.setattr(train, "evaluate", evaluate)
    monkeypatch.setattr(train, "load_model", lambda _: torch.nn.Identity())
    group = SimpleNamespace(
        world_size=processes, is_main=True, device="cpu", share_buffers=lambda _: None, on_main=lambda work: work()
    )
    options = SimpleNamespace(nosave=False, single_cls=False, noplots=True, fitness=TrainOptions.fitness, tile=0)
    run = SimpleNamespace(
        distributed=group,
        options=options,
        ema=SimpleNamespace(ema=None),
        validation_autocast=None,
        val_loader=None,
        loss=None,
        data=SimpleNamespace(names={}, val=SimpleNamespace(most_labels=1)),
        validation_nms=lambda **_: VAL_NMS,
        validation_views=lambda **_: WHOLE,
    )
    checkpoints = SimpleNamespace(save=lambda _: seen.append("save"), written_best=str, keep_advice=lambda _: None)
    with SignalHandler() as interruption, suppress(Interrupted):
        (partial(train.finish, folder=None) if ending else train.validate)(run, checkpoints, interruption)
    assert interruption.signal_name == "SIGTERM"
    batches = [entry for entry in seen if entry != "save"]
    assert batches == [0, "read", 1, "read", *([2, "read"] if processes == 2 else [])]
    assert seen.count("save") == (not ending)


def test_the_hook_before_each_batch_can_end_an_evaluation(tiny_data, tiny_cfg, capsys, monkeypatch):
    monkeypatch.setattr("utils.console.shows_bars", lambda: True)
    model, calls = DetectionModel(tiny_cfg, num_classes=2), []

    def before_batch():
        calls.append(1)
        if len(calls) == 3:  # the first call is before the first batch
            raise Interrupted("SIGTERM")

    loader = make_loader(
        load_index(tiny_data.parent / "images" / "train", 2, progress=False),
        imgsz=64,
        batch_size=2,
        loading=LoadSettings(workers=0),
    )
    assert len(loader) > 2
    with pytest.raises(Interrupted):
        evaluate(model, loader, observers=[ConsoleTable(model.names), StopHook(before_batch)])
    assert len(calls) == 3 and capsys.readouterr().err.endswith("\r")  # the bar is cleared, so a line can follow


def test_a_worker_is_silent_if_the_main_process_is_gone(capfd):
    """The sending thread of a data worker loses its connection if the main process is killed during a transfer."""
    code = """
import os, socket, sys, time
from multiprocessing.resource_sharer import DupFd
from utils.loading.loader import _init_data_worker

_init_data_worker(0)
(address, key), pid = DupFd(0)._id, os.getpid()
for _ in range(3):
    with socket.socket(socket.AF_UNIX) as there:
        there.connect(address)
time.sleep(0.2)
print("its own errors show:", file=sys.stderr, flush=True)
for error in EOFError("quiet"), ConnectionResetError("quiet"), OSError(28, "disk"):
    sys.excepthook(type(error), error, None)
time.sleep(60)
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=50, check=False).returncode == 28
    printed = capfd.readouterr().err
    assert printed == "its own errors show:\nOSError: [Errno 28] disk\n"


@pytest.fixture
def handlers():
    """Restore the signal handlers after the test, and begin with SIGINT as in a fresh program."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(1)


def test_an_echo_from_torchrun_is_ignored_until_the_process_ends(handlers, monkeypatch):
    now, original = [0.0], signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("utils.training.signals.time.monotonic", lambda: now[0])
    with SignalHandler(echo_seconds=3):
        pass
    assert signal.getsignal(signal.SIGTERM) is original  # there was no signal, so no echo follows
    with SignalHandler(echo_seconds=3):
        os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)  # while loaders close and the last state is written
    assert signal.getsignal(signal.SIGTERM) is not original
    now[0] = 3.5
    with pytest.raises(KeyboardInterrupt):  # if the program continues
        press_ctrl_c()
    assert signal.getsignal(signal.SIGTERM) is original


def test_torchrun_does_not_cut_off_an_error_message(handlers, monkeypatch):
    """Torchrun ends the other processes while they report the lost connection."""
    now, ended = [0.0], []

    def original(*_):
        ended.append(True)

    signal.signal(signal.SIGTERM, original)
    monkeypatch.setattr("utils.training.signals.time.monotonic", lambda: now[0])
    with suppress(RuntimeError), SignalHandler(echo_seconds=3):
        raise RuntimeError("Connection closed by peer")
    os.kill(os.getpid(), signal.SIGTERM)
    assert not ended and signal.getsignal(signal.SIGTERM) is not original
    now[0] = 3.5
    with pytest.raises(KeyboardInterrupt):  # if the program continues
        press_ctrl_c()
    assert signal.getsignal(signal.SIGTERM) is original
    with suppress(RuntimeError), SignalHandler():
        raise RuntimeError("in a program that torchrun did not start")
    assert signal.getsignal(signal.SIGTERM) is original


# Ctrl-C during a fork reaches the first Python function after it, which is one of the logging module. `work` gets the
# image folder.
CTRL_C_DURING_A_FORK = """
import ctypes, functools, os, sys
signals = map(ctypes.CDLL(None)["raise"], [2])
os.register_at_fork(after_in_parent=functools.partial(next, signals, None))
import logging
import utils.machine
utils.machine.usable_cores = lambda: 2
from utils.loading.loader import LoadSettings, make_loader
from utils.errors import run
from utils.datasets.labels import load_index
from utils.parallel_map import parallel_map

def loader_of(folder, **settings):
    return make_loader(load_index(folder, 2), imgsz=64, batch_size=4, loading=LoadSettings(**settings))

def work(images):
    {work}
    print("not interrupted")

run(lambda: work(sys.argv[1]))
"""


def accept_ctrl_c() -> None:
    """Enable Ctrl-C, which background programs ignore."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.parametrize(
    "work",
    [
        "list(parallel_map(abs, range(20), cpu_bound=True))",
        "global loader; loader = loader_of(images, workers=2); list(loader)",
        "list(loader_of(images, workers=1, cores=2))",
    ],
    ids=["parallel map", "data workers", "helpers"],
)
def test_ctrl_c_during_a_fork_is_handled(tiny_data, work):
    """CPython discards it there and leaves a lock of the logging module held, which deadlocks a drawing thread."""
    done = subprocess.run(
        [sys.executable, "-c", CTRL_C_DURING_A_FORK.format(work=work), str(tiny_data.parent / "images" / "train")],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=100,
        preexec_fn=accept_ctrl_c,
    )
    assert done.returncode == 130 and "not interrupted" not in done.stdout, done.stderr
    assert "Exception" not in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.endswith("Interrupted. Saved checkpoints are intact.\n")


def test_a_session_that_ran_a_program_handles_ctrl_c_as_before():
    code = """
import runpy, signal
for name in ("train", "val", "detect"):
    try:
        runpy.run_path(f"{name}.py", run_name="__main__")
    except SystemExit:
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
"""
    done = subprocess.run(
        [sys.executable, "-c", code, "--help"],
        cwd=ROOT,
        env=ENVIRONMENT,
        preexec_fn=accept_ctrl_c,
        timeout=120,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout.count("usage:") == 3, done.stderr


@pytest.mark.parametrize("ignored, code", [(False, -signal.SIGINT), (True, 7)], ids=["foreground", "background"])
@pytest.mark.parametrize("program", ["train.py", "val.py", "detect.py"])
def test_ctrl_c_during_the_imports_prints_nothing(tmp_path, program, ignored, code):
    (tmp_path / "torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nraise SystemExit(7)\n")
    done = subprocess.run(
        [sys.executable, ROOT / program],
        capture_output=True,
        text=True,
        timeout=60,
        env={**ENVIRONMENT, "PYTHONPATH": str(tmp_path)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.SIG_DFL),
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


@pytest.mark.parametrize("where", ["in main", "while drawing", "at exit"])
def test_ctrl_c_in_a_program(tmp_path, where):
    """A drawing in progress is finished and no other is started. At exit nothing is printed."""
    code = """
import atexit, os, signal, sys, threading, time
from pathlib import Path
from utils.errors import run
from utils.output.plotter import Plotter

def draw(file):
    time.sleep(1)
    file.touch()

def main():
    if sys.argv[1] == "while drawing":
        with Plotter() as plotter:
            for name in "abc":
                plotter.submit(draw, Path(name))
            threading.Timer(0.4, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    elif sys.argv[1] == "in main":
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(30)
    else:
        atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))

signal.signal(signal.SIGINT, signal.SIG_DFL)  # as train.py does
run(main)
"""
    (tmp_path / "program.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "program.py", where],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        env={**ENVIRONMENT, "PYTHONPATH": str(ROOT)},
        preexec_fn=accept_ctrl_c,
    )
    if where != "at exit":
        assert (done.returncode, done.stderr) == (130, "\nInterrupted. Saved checkpoints are intact.\n")
        assert {file.name for file in tmp_path.iterdir()} - {"program.py"} == ({"a"} if "drawing" in where else set())
    else:
        assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_a_run_is_saved_by_time_within_an_epoch(tiny_data, tiny_cfg, tmp_path, monkeypatch):
    original, seen = train.Checkpoints.save, []

    def save(self, run, *args, **named):
        seen.append((run.progress.epoch, run.progress.step))
        original(self, run, *args, **named)

    monkeypatch.setattr(train.Checkpoints, "save", save)
    train.main(arguments(tiny_data, tiny_cfg, tmp_path, "--nbs", "8", "--save-minutes", "0.0000001", epochs=2))
    assert seen == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3), (2, 0)]


# ---- workers and memory


@pytest.fixture
def loader(tiny_data):
    index = load_index(tiny_data.parent / "images" / "train", 2, progress=False)
    with_workers = make_loader(index, imgsz=64, batch_size=4, loading=LoadSettings(workers=2))
    yield with_workers
    with_workers.close()


def test_workers_ignore_the_signals_of_the_run_and_end_with_the_loader(loader):
    batches = iter(loader)
    next(batches), next(batches)  # one from each worker: both have started
    workers = [worker.pid for worker in loader._loader._iterator._workers]
    for pid in workers:
        for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
            os.kill(pid, getattr(signal, name))
    assert sum(1 for _ in batches) == len(loader) - 2
    loader.close()
    assert not any(os.path.exists(f"/proc/{pid}") for pid in workers)
    assert sum(1 for _ in loader) == len(loader)  # new ones are started on demand


def test_workers_end_even_if_no_thread_can_be_started(loader, monkeypatch):
    """Python refuses, at exit, the new thread that torch needs to stop its pin-memory thread."""
    next(iter(loader))
    iterator = loader._loader._iterator
    processes = list(iterator._workers)
    iterator._pin_memory_thread, iterator._pin_memory_thread_done_event = None, threading.Event()

    def refused(_):
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(iterator._worker_result_queue, "put", refused)
    loader.close()
    for process in processes:
        process.join(10)
    assert len(processes) == 2 and not any(process.is_alive() for process in processes)


def test_the_reason_in_an_nccl_error_is_not_cut_off():
    error = RuntimeError("NCCL error in: NCCLUtils.cpp:93, unhandled cuda error\nLast error:\nDuplicate GPU detected")
    assert "Duplicate GPU detected" in explain_unexpected(error)
    assert explain_unexpected(RuntimeError("gloo: Connection closed\nmore")).count("\n") == 0


def test_a_killed_worker_is_one_line(tiny_data, tiny_cfg, tmp_path, monkeypatch, capsys):
    original, killed = train.prepare_images, []

    def prepare(run, images):
        if not killed:
            killed.append(run.train_loader._loader._iterator._workers[0].pid)
            os.kill(killed[0], signal.SIGKILL)
            time.sleep(1)  # the step takes until the death is noticed
        return original(run, images)

    monkeypatch.setattr(train, "prepare_images", prepare)
    monkeypatch.setattr(loaders, "cores_for_loading", lambda device: None)
    monkeypatch.setattr("utils.console._is_terminal", lambda stream: True)
    with pytest.raises(UserError, match="data workers was killed, probably out of memory: use --workers 1"):
        train.main(arguments(tiny_data, tiny_cfg, tmp_path, "--workers", "2"))
    shown = capsys.readouterr().err
    assert "0/2" in shown and shown.endswith("\n")  # the bar is closed, so a line can follow


def can_mount() -> bool:
    if not shutil.which("unshare"):
        return False
    probe = ["unshare", "-m", "sh", "-c", "mount -t tmpfs -o size=100k tmpfs /dev/shm"]
    return subprocess.run(probe, capture_output=True).returncode == 0


@pytest.mark.slow
def test_too_little_shared_memory_names_the_flag(tiny_data, tiny_cfg, tmp_path):
    if not can_mount():
        pytest.skip("needs the right to mount a small /dev/shm")
    command = " ".join(
        f"'{word}'"
        for word in [sys.executable, "train.py", *arguments(tiny_data, tiny_cfg, tmp_path, "--workers", "2")]
    )
    shell = f"mount -t tmpfs -o size=100k tmpfs /dev/shm && exec {command}"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", shell], cwd=ROOT, capture_output=True, text=True, timeout=200, env=ENVIRONMENT
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "too little shared memory for 2 data workers: use --workers 1" in done.stderr


@pytest.mark.parametrize("place", ["prepare_images", "build_loaders"])
def test_too_little_gpu_memory_names_the_batch_to_try(tiny_data, tiny_cfg, tmp_path, monkeypatch, place):
    def out_of_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(train, place, out_of_memory)
    with pytest.raises(
        UserError, match="out of GPU memory at --batch-size 8, --imgsz 64: try --batch-size 4, or --batch-size -1"
    ):
        train.main(arguments(tiny_data, tiny_cfg, tmp_path))


@pytest.mark.parametrize(
    "batch, shares, advice",
    [
        (16, 1, "--batch-size 8,"),
        (2, 1, "--batch-size 1,"),
        (24, 4, "--batch-size 12,"),
        (8, 3, "--batch-size 3,"),
        (6, 4, "--batch-size 4,"),
        (1, 1, "--imgsz 320"),
        (4, 4, "--imgsz 320"),
        (-1, 1, "--imgsz 320"),
    ],
)
def test_the_batch_to_try_is_smaller_and_fits_the_processes(batch, shares, advice):
    with pytest.raises(UserError, match=f"try {advice}"), advice_on_memory(batch, 640, shares):
        raise torch.OutOfMemoryError


def test_the_batch_is_found_at_the_largest_size_that_is_trained(tiny_data, tiny_cfg, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(startup, "find_batch_of_each", lambda model, imgsz, autocast, device: seen.append(imgsz) or 8)
    for extra in ([], ["--multi-scale"]):
        train.main([*arguments(tiny_data, tiny_cfg, tmp_path, "--batch-size", "-1", *extra, epochs=1)])
    drawn = {multi_scale_size(np.random.default_rng(seed), 64, 32) for seed in range(200)}
    assert seen == [64, max(drawn)] and max(drawn) > 64
