"""Training in several processes: the same numbers as in one, no hang, and automatic resume after a restart."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
import yaml
from kill_and_resume import descendants

import train
from utils.checkpoint import read_checkpoint
from utils.config import Hyperparameters, TrainOptions
from utils.device import amp_dtype
from utils.distributed import Distributed, launch_token
from utils.errors import UserError
from utils.training.ddp import wrap_model

ROOT = Path(__file__).resolve().parents[1]
WORKER = ROOT / "tests" / "distributed_worker.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
STANDALONE = ["--standalone"]  # on a free port
LIMIT = 400  # seconds; enough on a busy machine, and a hang takes longer

pytestmark = pytest.mark.slow


def environment(**changes: str) -> dict[str, str]:
    """Return the environment for a test's processes: one thread, no variables of a torchrun around the tests."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("TORCHELASTIC", "MASTER_"))}
    for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        inherited.pop(key, None)
    return {**inherited, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **changes}


class Started(subprocess.Popen):
    """Running command whose output goes to a file, since a full pipe would block it."""

    def __init__(self, command, *, cwd=ROOT):
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 output() closes it
        super().__init__(
            [str(word) for word in command],
            cwd=cwd,
            env=environment(),
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )

    def read_log(self) -> str:
        return os.pread(self.log.fileno(), 1 << 24, 0).decode(errors="replace")

    def output(self) -> str:
        """Return all that the ended command and its workers printed."""
        with self.log:
            self.log.seek(0)
            return self.log.read().decode(errors="replace")

    def end(self) -> str:
        """End the command in a way that lets torchrun end its workers. Return the output."""
        self.terminate()
        try:
            self.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()
            self.wait()
        return self.output()


def finish(process: Started, limit: float = LIMIT) -> str:
    """Wait for the command and return its output. After `limit` seconds end it and fail."""
    try:
        process.wait(limit)
        return process.output()
    except subprocess.TimeoutExpired:
        pytest.fail(f"hangs: {process.end()[-3000:]}")


def launch(*command, code=0, cwd=ROOT) -> str:
    process = Started(command, cwd=cwd)
    output = finish(process)
    assert (process.returncode == 0) == (code == 0), output[-3000:]
    return output


def wait_until(condition, process: Started, limit: float = LIMIT) -> None:
    deadline = time.monotonic() + limit
    while not condition():
        ended = process.poll() is not None
        if ended and condition():
            return
        if ended or time.monotonic() > deadline:
            pytest.fail(f"ended, or took too long: {process.end()[-3000:]}")
        time.sleep(0.05)


def read_rows(folder: Path) -> list[dict[str, float]]:
    """Return the rows of results.csv, none if it does not exist yet."""
    file = folder / "results.csv"
    if not file.is_file():
        return []
    with open(file, newline="") as stream:
        return [{key.strip(): float(value) for key, value in row.items()} for row in csv.DictReader(stream)]


def options(data, cfg, project: Path, name: str, *extra, epochs: int, batch: int = 12) -> list[str]:
    words = [
        "--data", data, "--cfg", cfg, "--imgsz", 64, "--batch-size", batch, "--epochs", epochs, "--workers", 0,
        "--project", project, "--name", name, "--exist-ok", "--noplots", "--amp", "off", "--nbs", 64, *extra,
    ]  # fmt: skip
    return [str(word) for word in words]


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def long_run(tiny_data, tiny_cfg, project):
    """Return a function that makes the flags of a training that saves after each optimizer step."""

    def words(name: str) -> list[str]:
        return options(tiny_data, tiny_cfg, project, name, "--save-minutes", "0.0001", epochs=6)

    return words


@pytest.fixture(scope="module")
def whole(long_run, project) -> Path:
    """Train with these flags in two processes without interruption. Return the run folder."""
    launch(*TORCHRUN, *STANDALONE, "--nproc_per_node", 2, ROOT / "train.py", *long_run("whole"))
    return project / "whole"


def assert_same_run(one: Path, other: Path) -> None:
    assert (one / "results.csv").read_bytes() == (other / "results.csv").read_bytes()
    first, second = (read_checkpoint(folder / "weights" / "last.pt") for folder in (one, other))
    for part in ("model", "ema"):
        for name, value in first[part]["state_dict"].items():
            assert torch.equal(value, second[part]["state_dict"][name]), name


# ---- the number of processes does not change the result --------------------------------------------------------------


@pytest.fixture(scope="module")
def pretrained(tiny_cfg, project) -> Path:
    """Train weights that find some of the built-in shapes. Metrics of random weights depend on the last bit."""
    flags = "--device cpu --optimizer AdamW --hyp data/quickstart/hyp.yaml --nbs 16".split()
    train.main(options("data/shapes.yaml", tiny_cfg, project, "pretrained", *flags, epochs=10, batch=16))
    return project / "pretrained" / "weights" / "best.pt"


@pytest.mark.parametrize("optimizer", ["SGD", "Muon"])
def test_two_processes_train_as_one_does(pretrained, tiny_cfg, project, optimizer):
    """Learning rates are low, because large steps would destroy the weights and make all metrics noise again."""
    rates = {"lr0": 0.001, "warmup_bias_lr": 0.001, "muon_lr": 0.001}
    if optimizer == "Muon":  # and the schedules of a recipe
        rates |= {
            "size_start": 0.5,
            "size_epochs": 0.5,
            "close_mosaic": 1,
            "ema_decay": 0.99,
            "ema_tau": 10.0,
            "cls_rise": 5.0,
        }
    (project / "gentle.yaml").write_text(yaml.safe_dump({**Hyperparameters().to_dict(), **rates}))

    def words(name):
        flags = ["--weights", pretrained, "--device", "cpu", "--hyp", project / "gentle.yaml"]
        flags += ["--optimizer", optimizer]
        return options("data/shapes.yaml", tiny_cfg, project, name, *flags, epochs=2, batch=64)

    names = f"one {optimizer}", f"two {optimizer}"
    launch(sys.executable, WORKER, "keep", *words(names[0]))
    launch(*TORCHRUN, *STANDALONE, "--nproc_per_node", 2, WORKER, "keep", *words(names[1]))
    one, two = (read_rows(project / name) for name in names)
    assert len(one) == len(two) == 2 and one[-1]["metrics/mAP_0.5"] > 0.01
    for a, b in zip(one, two):
        assert b == pytest.approx(a, abs=1e-4), a["epoch"]
        assert b["train/box_loss"] == pytest.approx(a["train/box_loss"], rel=1e-3)


@pytest.fixture(scope="module")
def measured(pretrained_tiny, tiny_data, tiny_cfg, project):
    """Return gradients and validation metrics by number of processes."""
    found = {}
    for count in (1, 2, 3):
        out = project / f"measured{count}.pt"
        launcher = [*TORCHRUN, *STANDALONE, "--nproc_per_node", count] if count > 1 else [sys.executable]
        launch(*launcher, WORKER, "measure", out, tiny_cfg, pretrained_tiny, tiny_data.parent / "images" / "val")
        found[count] = torch.load(out, weights_only=False)
    return found


@pytest.fixture(scope="module")
def pretrained_tiny(tiny_data, tiny_cfg, project) -> Path:
    flags = "--device cpu --hyp hyp.no-augmentation.yaml".split()
    train.main(options(tiny_data, tiny_cfg, project, "pretrained tiny", *flags, epochs=20))
    return project / "pretrained tiny" / "weights" / "best.pt"


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("layers", ["all", "frozen"])  # a static graph, and a graph with frozen layers
def test_the_averaged_gradient_equals_that_of_one_process(measured, count, layers):
    one, several = measured[1][layers], measured[count][layers]
    assert one.keys() == several.keys() and len(one) > 100
    for name, gradient in one.items():
        limit = 1e-5 * max(float(gradient.abs().max()), 1.0)
        assert float((several[name] - gradient).abs().max()) <= limit, name


@pytest.mark.parametrize("count", [2, 3])
def test_validation_counts_each_image_once_and_gives_the_same_metrics(measured, count):
    one, several = measured[1]["validation"], measured[count]["validation"]
    assert several["metrics"] == pytest.approx(one["metrics"], abs=1e-7) and one["metrics"][3] > 0
    assert torch.equal(several["confusion"], one["confusion"])
    assert torch.allclose(several["ap"], one["ap"], atol=1e-7)


def validation_flags(weights, data, project: Path, name: str, *extra) -> list[str]:
    words = [
        "val.py", "--weights", weights, "--data", data, "--imgsz", 64, "--batch-size", 3, "--workers", 0, "--device",
        "cpu", "--project", project, "--name", name, "--json", *extra,
    ]  # fmt: skip
    return [str(word) for word in words]


def test_two_processes_validate_as_one_does(pretrained_tiny, tiny_data, tmp_path):
    """The last step has a batch for one of them only: 8 images in batches of 3."""
    files = ["--save-txt", "--save-conf", "--save-json"]
    documents = {}
    for name, launcher in (("one", [sys.executable]), ("two", [*TORCHRUN, *STANDALONE, "--nproc_per_node", 2])):
        output = launch(*launcher, *validation_flags(pretrained_tiny, tiny_data, tmp_path, name, *files))
        lines = [line for line in output.splitlines() if line.startswith("{")]
        documents[name] = json.loads(lines[0])["results"][0]
        assert len(lines) == 1 and output.count("Speed: ") == 1 and documents[name].pop("milliseconds")
    assert documents["one"] == documents["two"] and documents["one"]["map"] > 0
    contents = [{file.name: file.read_bytes() for file in (tmp_path / name).rglob("*.*")} for name in documents]
    assert contents[0] == contents[1] and {"best_predictions.json", "val_batch2_pred.jpg"} <= contents[0].keys()


@pytest.mark.parametrize(
    "extra, expected",
    [
        (["--task", "study"], "error: --task study measures times, in one process: start python val.py"),
        (["--data", "absent.yaml"], "error: --data absent.yaml: no such data set YAML"),
        (["--save-json", "--annotations", "README.md"], "error: README.md: not a COCO annotations file"),
    ],
)
def test_a_validation_that_cannot_start_is_one_line(pretrained_tiny, tiny_data, tmp_path, extra, expected):
    words = validation_flags(pretrained_tiny, tiny_data, tmp_path, "x", *extra)
    output = launch(*TORCHRUN, *STANDALONE, "--nproc_per_node", 2, *words, code=1)
    assert output.count(expected) == output.count("error: ") == 1 and not (tmp_path / "x").exists()


# ---- commands that users type ----------------------------------------------------------------------------------------


def test_four_processes_by_the_card(tiny_cfg, project):
    """A list of GPUs on a machine without any means the CPU, which is reported."""
    output = launch(
        *TORCHRUN, "--nproc_per_node", 4, "train.py", "--cfg", tiny_cfg, "--imgsz", 64, "--epochs", 1, "--device",
        "0,1,2,3", "--project", project, "--name", "four", "--noplots",
    )  # fmt: skip
    assert output.count("WARNING: --device 0,1,2,3: no GPU found") == 1
    assert "x 4, torch" in output and output.count("1 epochs completed") == 1  # only rank 0 prints
    assert len(read_rows(project / "four")) == 1
    last = read_checkpoint(project / "four" / "weights" / "last.pt")
    assert (
        last["options"]["batch_size"] == 16 and last["iteration"] == 40
    )  # the batch size is the total of all processes


def test_a_dry_run_of_two_processes_is_reported_once_and_leaves_no_folder(tiny_data, tiny_cfg, project):
    words = options(tiny_data, tiny_cfg, project, "dry", "--dry-run", epochs=6)
    output = launch(*TORCHRUN, *STANDALONE, "--nproc_per_node", 2, WORKER, "dry", *words)
    assert output.count("Time: ") == output.count("6 epochs with 12 steps") == output.count("without --dry-run") == 1
    assert not (project / "dry").exists()


def test_the_bare_command_of_the_card_starts(tmp_path):
    """The default model, size and data train until the end of the first batch."""
    command = Path(sys.executable).with_name("torchrun")
    process = Started([command, "--nproc_per_node", 4, ROOT / "train.py"], cwd=tmp_path)
    folder = tmp_path / "runs" / "train" / "exp"
    wait_until((folder / "train_batch0.jpg").is_file, process)
    output = process.end()
    assert "x 4, torch" in output and "the state is saved" in output and (folder / "weights" / "last.pt").is_file()


def test_the_old_launcher_and_early_stopping(tiny_data, tiny_cfg, project):
    """`python -m torch.distributed.launch` passes --local-rank. All processes stop at the same epoch."""
    launcher = [sys.executable, "-m", "torch.distributed.launch", "--nproc_per_node", 2, "--master_port", free_port()]
    flags = "--patience 1 --freeze 3 --save-period 1 --hyp hyp.no-augmentation.yaml".split()
    output = launch(*launcher, "train.py", *options(tiny_data, tiny_cfg, project, "old", *flags, epochs=30))
    first, last = (
        read_checkpoint(project / "old" / "weights" / name)["model"]["state_dict"] for name in ("epoch0.pt", "last.pt")
    )
    frozen = {name for name in first if int(name.split(".")[1]) < 3}
    assert frozen and {name for name in first if torch.equal(first[name], last[name])} >= frozen
    assert any(not torch.equal(first[name], last[name]) for name in first.keys() - frozen)
    assert "x 2, torch" in output and "Stopped: no better fitness" in output and len(read_rows(project / "old")) < 30


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def test_two_machines_train_together(long_run, whole, project):
    """Two torchrun agents with a c10d rendezvous give the result of two processes under one torchrun."""
    rendezvous = [
        "--nnodes", 2, "--nproc_per_node", 1, "--rdzv_backend", "c10d", "--rdzv_id", "two-machines",
        "--rdzv_endpoint", f"localhost:{free_port()}",
    ]  # fmt: skip
    agents = [Started([*TORCHRUN, *rendezvous, ROOT / "train.py", *long_run("machines")]) for _ in range(2)]
    outputs = [finish(agent) for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], outputs
    assert sum("6 epochs completed" in output for output in outputs) == 1
    assert_same_run(whole, project / "machines")


# ---- errors end all processes, with a clear message and soon ---------------------------------------------------------


def test_a_batch_that_does_not_divide_is_one_clear_line():
    group = Distributed(0, 2, torch.device("cpu"), local_rank=0)
    with pytest.raises(UserError, match="--batch-size 13 must be a multiple of the 2 processes: 12, for instance"):
        group.use("cpu", 13)
    assert group.use("cpu", 12).world_size == group.use("cpu", -1).world_size == 2


def test_a_mistake_found_by_rank_0_ends_all_processes(tiny_cfg, tmp_path):
    output = launch(
        *TORCHRUN,
        *STANDALONE,
        "--nproc_per_node",
        2,
        "train.py",
        *options("absent.yaml", tiny_cfg, tmp_path, "x", epochs=1),
        code=1,
    )
    assert output.count("error: --data absent.yaml: no such data set YAML") == 1
    assert "Error: --data" not in output.split("torch.distributed.elastic")[0]  # no traceback of ours


def test_a_rank_with_other_flags_ends_all(tiny_data, tiny_cfg, tmp_path):
    """A wrapper adds a flag on one rank, as two command lines on two machines would."""
    wrapper = tmp_path / "wrapper.sh"
    wrapper.write_text(f'#!/bin/bash\n[ $RANK = 1 ] && more="--evolve 2"\nexec {sys.executable} train.py "$@" $more\n')
    wrapper.chmod(0o755)
    words = options(tiny_data, tiny_cfg, tmp_path, "x", epochs=1)
    output = launch(*TORCHRUN, *STANDALONE, "--nproc_per_node", 2, "--no-python", wrapper, *words, code=1)
    assert output.count("error: rank 1 has --evolve 2, rank 0 has no --evolve: start all processes with") == 1


def test_an_evolution_under_torchrun_is_one_clear_line(tmp_path):
    output = launch(
        *TORCHRUN, *STANDALONE, "--nproc_per_node", 2, "train.py", "--evolve", "--data", "absent.yaml", code=1
    )
    assert output.count("error: --evolve starts its own processes") == 1
    assert output.count("exitcode  : 1 ") == 2 and "absent.yaml" not in output


@pytest.mark.parametrize(
    "kind, expected",
    [("error", r"\[rank 1\] LookupError: what a bug raises"), ("disk", r"error: results.csv: No space left on device")],
)
def test_a_process_that_fails_ends_all(tiny_data, tiny_cfg, tmp_path, kind, expected):
    process = Started(
        [
            *TORCHRUN,
            *STANDALONE,
            "--nproc_per_node",
            2,
            WORKER,
            kind,
            *options(tiny_data, tiny_cfg, tmp_path, "x", epochs=50),
        ]
    )
    wait_until(lambda: re.search(expected, process.read_log()), process)
    started = time.monotonic()
    output = finish(process)
    assert process.returncode and time.monotonic() - started < 60
    assert "lost contact with another process" in output


def test_an_image_that_one_process_cannot_read_ends_all_with_the_state_saved(tiny_data, tiny_cfg, tmp_path):
    words = options(tiny_data, tiny_cfg, tmp_path, "x", "--cache", "off", epochs=50)
    output = launch(*TORCHRUN, *STANDALONE, "--nproc_per_node", 2, WORKER, "data", *words, code=1)
    assert len(re.findall(r"error: .+png: gone; the state is saved. Resume with: ", output)) == 1
    assert "exitcode  : 75 " in output and "lost contact" not in output
    saved = read_checkpoint(tmp_path / "x" / "weights" / "last.pt")
    assert (saved["epoch"], saved["step"], saved["iteration"]) == (1, 1, 3)


def test_a_killed_process_ends_all(long_run, project):
    process = Started([*TORCHRUN, *STANDALONE, "--nproc_per_node", 2, ROOT / "train.py", *long_run("ended")])
    wait_until(lambda: len(read_rows(project / "ended")) >= 2, process)  # the state is saved after the row of the epoch
    other = set(descendants(process.pid)) - {json.loads((project / "ended" / "launch.json").read_text())["process"]}
    started = time.monotonic()
    os.kill(max(other), signal.SIGKILL)  # the second worker is the last one started
    finish(process)
    assert process.returncode and time.monotonic() - started < 60
    assert read_checkpoint(project / "ended" / "weights" / "last.pt")["epoch"] >= 1


def test_a_non_finite_batch_of_one_process_is_skipped_by_all(tiny_data, tiny_cfg, tmp_path):
    launch(
        *TORCHRUN,
        *STANDALONE,
        "--nproc_per_node",
        2,
        WORKER,
        "nan",
        *options(tiny_data, tiny_cfg, tmp_path, "x", epochs=2),
    )
    last = read_checkpoint(tmp_path / "x" / "weights" / "last.pt")
    assert last["guard"]["skipped"] == 1 and last["epoch"] == 2
    assert all(torch.isfinite(value).all() for value in last["model"]["state_dict"].values())


# ---- resume ----------------------------------------------------------------------------------------------------------


def test_an_interrupted_run_of_two_processes_resumes_exactly(long_run, whole, project):
    process = Started([*TORCHRUN, *STANDALONE, "--nproc_per_node", 2, ROOT / "train.py", *long_run("stopped")])
    folder = project / "stopped"
    wait_until(lambda: len(read_rows(folder)) >= 2, process)
    process.send_signal(signal.SIGTERM)  # torchrun forwards it
    assert "the state is saved" in finish(process) and len(read_rows(folder)) < 6
    launch(*TORCHRUN, *STANDALONE, "--nproc_per_node", 2, ROOT / "train.py", "--resume", folder)
    assert_same_run(whole, folder)


def test_a_run_of_two_processes_is_resumed_in_one(long_run, project):
    folder = project / "fewer"
    process = Started([*TORCHRUN, *STANDALONE, "--nproc_per_node", 2, ROOT / "train.py", *long_run("fewer")])
    wait_until(lambda: len(read_rows(folder)) >= 2, process)
    process.send_signal(signal.SIGTERM)
    assert "the state is saved" in finish(process)
    output = launch(sys.executable, ROOT / "train.py", "--resume", folder)
    assert "processes 2 -> 1: no longer exact to the bit" in output, output[-3000:]
    assert [row["epoch"] for row in read_rows(folder)] == list(range(6))


def test_a_killed_worker_is_restarted_and_the_run_is_exact(long_run, whole, project):
    process = Started(
        [*TORCHRUN, *STANDALONE, "--nproc_per_node", 2, "--max-restarts", 3, ROOT / "train.py", *long_run("killed")]
    )
    folder = project / "killed"
    wait_until(lambda: len(read_rows(folder)) >= 2, process)
    os.kill(json.loads((folder / "launch.json").read_text())["process"], signal.SIGKILL)
    output = finish(process)
    assert process.returncode == 0 and f"Restarted by torchrun: resuming {folder}" in output, output[-3000:]
    assert_same_run(whole, folder)


# ---- Distributed -----------------------------------------------------------------------------------------------------


def test_one_process_needs_no_group(monkeypatch):
    for key in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(key, raising=False)
    assert launch_token() == ""
    with Distributed.join().session() as group:
        assert (group.world_size, group.is_main, group.any(True), group.gather(3)) == (1, True, True, [3])
        assert group.on_main(lambda: 5) == 5 and group.use("cpu").devices == (torch.device("cpu"),)
        with pytest.raises(UserError, match="absent"):
            group.on_main(lambda: (_ for _ in ()).throw(UserError("absent")))


def test_torchrun_with_one_process_is_a_group_of_one(monkeypatch):
    for key, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "none"}.items():
        monkeypatch.setenv(key, value)
    group = Distributed.join()
    assert (group.world_size, group.local_rank) == (1, 0) and launch_token() == launch_token() != ""
    assert group.use("cpu", 3).device.type == "cpu"


def test_an_environment_without_a_rendezvous_is_reported(monkeypatch):
    for key in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="RANK is set but MASTER_ADDR is not: start with torchrun"):
        Distributed.join()


def two_gpus() -> Distributed:
    cards = torch.device("cuda", 0), torch.device("cuda", 1)
    return Distributed(0, 1, cards[0], cards)


@pytest.mark.parametrize(
    "argv, expected",
    [
        (["train.py", "--data", "my data.yaml", "--device", "0,1"], "train.py --data 'my data.yaml' --device 0,1"),
        (["notebook.py", "-f", "x"], "train.py ... --device 0,1"),  # these words are not flags of train.py
    ],
)
def test_one_process_for_several_gpus_prints_the_better_command(monkeypatch, capsys, argv, expected):
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(torch.nn, "DataParallel", lambda model, device_ids: (model, device_ids))  # needs no GPU
    model = torch.nn.Linear(1, 1)
    assert two_gpus().wrap(model) == (model, [0, 1])
    assert capsys.readouterr().err == (
        f"WARNING: one process for 2 GPUs is slow. Type torchrun --nproc_per_node 2 {expected}\n"
    )


def test_one_process_for_several_gpus_computes_in_fp16():
    """The replicas of DataParallel would do so with --amp bf16 too, without a message."""
    card = torch.device("cuda", 0)
    assert (
        amp_dtype("auto", card, data_parallel=True) == torch.float16
        and amp_dtype("off", card, data_parallel=True) is None
    )
    with pytest.raises(UserError, match="--amp bf16 needs a process for each GPU: start with torchrun"):
        amp_dtype("bf16", card, data_parallel=True)


@pytest.mark.parametrize(
    "group", [Distributed(0, 1, torch.device("cpu"), (torch.device("cpu"),)), two_gpus()], ids=["CPU", "DataParallel"]
)
def test_sync_bn_without_effect_is_reported(monkeypatch, capsys, group):
    monkeypatch.setattr(torch.nn, "DataParallel", lambda model, device_ids: model)
    model = torch.nn.BatchNorm2d(1)
    assert wrap_model(model, TrainOptions(sync_bn=True), group, static=True) is model
    wrap_model(model, TrainOptions(), group, static=True)
    assert capsys.readouterr().err.count("WARNING: --sync-bn has no effect with fewer than two processes on GPUs") == 1
