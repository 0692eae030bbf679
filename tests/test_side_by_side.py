"""Simultaneous and long trainings: separate folders, a label cache that is never stale, constant memory."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import train
from utils.checkpoint import read_checkpoint
from utils.config import Hyperparameters
from utils.datasets import label_cache, labels
from utils.datasets.labels import load_index
from utils.errors import UserError
from utils.loading.image_cache import RamCache
from utils.loading.loader import LoadSettings, make_loader
from utils.training import loaders
from utils.training.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[1]


def arguments(data, cfg, folder, *extra):
    return [
        "--data",
        str(data),
        "--cfg",
        str(cfg),
        "--imgsz",
        "64",
        "--batch-size",
        "8",
        "--device",
        "cpu",
        "--amp",
        "off",
        "--noplots",
        "--project",
        str(folder),
        *extra,
    ]


@pytest.fixture
def own_data(tiny_data, tmp_path) -> Path:
    """Copy the tiny data, for tests that change it."""
    folder = Path(shutil.copytree(tiny_data.parent, tmp_path / "own data"))
    return folder / "tiny.yaml"


def scan(data: Path):
    return load_index(data.parent / "images" / "train", 2, progress=False)


def record_scans(monkeypatch) -> list:
    """Return a list that grows by one with each scan that the cache does not answer."""
    original, seen = labels._scan_all, []
    monkeypatch.setattr(labels, "_scan_all", lambda *args: seen.append(1) or original(*args))
    return seen


# ---- at the same moment


@pytest.mark.slow
def test_trainings_started_at_the_same_moment_use_separate_folders(own_data, tiny_cfg, tmp_path):
    command = [
        sys.executable,
        "train.py",
        *arguments(own_data, tiny_cfg, tmp_path / "runs", "--epochs", "1", "--workers", "0"),
    ]
    before = sorted(own_data.parent.rglob("*"))
    together = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")},
        )
        for _ in range(2)
    ]
    printed = [process.communicate(timeout=300)[0] for process in together]
    assert [process.returncode for process in together] == [0, 0], printed
    folders = {re.search(r"Logging to (.*)", text).group(1) for text in printed}
    assert len(folders) == 2 and {Path(folder).name for folder in folders} == {"exp", "exp2"}
    one, other = (read_checkpoint(Path(folder) / "weights" / "last.pt") for folder in sorted(folders))
    assert one["epoch"] == other["epoch"] == 1 and one["means"] == other["means"]
    assert sorted(own_data.parent.rglob("*")) == before
    assert sorted(path.suffix for path in (tmp_path / "cache/anchorage/labels").iterdir()) == [".cache"] * 2


def test_a_cache_written_by_several_processes_at_once_is_valid(own_data, monkeypatch):
    code = (
        "import sys; from utils.datasets.labels import load_index; "
        "print(len(load_index(sys.argv[1], 2, progress=False).labels))"
    )
    folder = own_data.parent / "images" / "train"
    together = [
        subprocess.Popen([sys.executable, "-c", code, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    counts = {process.communicate(timeout=120)[0].strip() for process in together}
    seen = record_scans(monkeypatch)
    assert counts == {str(len(scan(own_data).labels))} and not seen


def test_a_second_training_in_the_same_folder_is_refused(tmp_path):
    code = (
        "import sys; from pathlib import Path; "
        "from utils.training.open_folder import lock_run; f = lock_run(Path(sys.argv[1])); "
        "print('held', flush=True); input()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another process is training in this folder"):
            RunFolder(tmp_path)
        holder.kill()
    with RunFolder(tmp_path):  # the lock ended with the process
        pass


# ---- the label cache


@pytest.mark.parametrize("change", ["label", "label with its old time", "image", "classes", "parser"])
def test_a_change_of_anything_leads_to_a_new_scan(own_data, monkeypatch, change):
    scan(own_data)
    seen = record_scans(monkeypatch)
    scan(own_data)
    assert not seen
    label, image = (
        own_data.parent / kind / "train" / name for kind, name in (("labels", "0.txt"), ("images", "0.png"))
    )
    before = label.stat()
    if change.startswith("label"):
        text = label.read_text()
        label.write_text(("1" if text[0] == "0" else "0") + text[1:])  # the same number of bytes
    if change == "label with its old time":
        os.utime(label, ns=(before.st_atime_ns, before.st_mtime_ns))
    if change == "image":
        cv2.imwrite(str(image), np.zeros((64, 96, 3), np.uint8))
    if change == "parser":
        monkeypatch.setattr(label_cache, "CACHE_FORMAT", label_cache.CACHE_FORMAT + 1)
    index = load_index(own_data.parent / "images" / "train", 3 if change == "classes" else 2, progress=False)
    assert seen == [1]
    if change.startswith("label"):
        assert index.boxes(index.paths.index(str(image)))[0, 0] == int(label.read_text()[0])


def test_a_read_only_data_set_trains(own_data, tiny_cfg, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home/.cache"))
    before = sorted(own_data.parent.rglob("*"))
    for folder, _, _ in os.walk(own_data.parent):
        os.chmod(folder, 0o555)
    try:
        for _ in range(2):
            train.main(
                arguments(own_data, tiny_cfg, tmp_path / "runs", "--epochs", "1", "--workers", "0", "--cache", "disk")
            )
    finally:
        for folder, _, _ in os.walk(own_data.parent):
            os.chmod(folder, 0o755)
    assert sorted(own_data.parent.rglob("*")) == before
    assert list((tmp_path / "home").rglob("*.cache")) and list((tmp_path / "home").rglob("*.npy"))


# ---- memory


def resident(pid: int) -> float:
    """Return the private memory of a process in MiB, without files and shared memory."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"RssAnon:\s*(\d+)", text).group(1)) / 1024


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads /proc")
@pytest.mark.slow
def test_memory_is_flat_over_epochs(tiny_data, tiny_cfg, tmp_path, monkeypatch):
    """Memory of the main process and the workers does not grow from the fourth epoch to the fortieth."""
    original, sizes = train.RunLog.on_epoch, []

    def on_epoch(self, run, report):
        original(self, run, report)
        iterator = run.train_loader._loader._iterator
        sizes.append([resident(pid) for pid in (os.getpid(), *(worker.pid for worker in iterator._workers))])

    monkeypatch.setattr(train.RunLog, "on_epoch", on_epoch)
    monkeypatch.setattr(loaders, "cores_for_loading", lambda device: None)
    train.main(arguments(tiny_data, tiny_cfg, tmp_path, "--epochs", "40", "--workers", "2", "--cache", "--multi-scale"))
    sizes = np.array(sizes)  # (epochs, processes)
    assert sizes.shape == (40, 3)
    growth = np.median(sizes[-8:], 0) - np.median(sizes[3:8], 0)
    assert growth[0] < 25 and growth[1:].max() < 10, f"MiB grown in 30 epochs: {growth}"


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads /proc")
def test_memory_of_a_worker_does_not_grow_by_batches(own_data):
    """PyTorch keeps records of the tensors that a worker sent. Without our clean-up its heap grows with every batch."""
    loader = make_loader(
        scan(own_data), imgsz=320, batch_size=6, hyp=Hyperparameters(), loading=LoadSettings(workers=1)
    )
    sizes = []
    for epoch in range(24):
        loader.set_epoch(epoch)
        batches = sum(1 for _ in loader)
        sizes.append(resident(loader._loader._iterator._workers[0].pid))
    loader.close()
    assert 24 * batches >= 96
    assert sizes[-1] - sizes[3] < 20, f"MiB: {sizes}"


def test_the_ram_cache_is_shared_and_not_copied_by_workers(tiny_data):
    index = scan(tiny_data)
    images = RamCache(index, 64, smooth=False)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        images.block.array[:4] = 77  # the parent maps the same memory
        os.write(writer, b"done")
        os._exit(0)
    assert os.read(reader, 4) == b"done"
    os.waitpid(pid, 0)
    assert images.block.array[:4].tolist() == [77] * 4


def test_a_cache_beyond_the_free_memory_is_skipped_and_reported(tiny_data, tiny_cfg, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("utils.loading.image_cache.available_memory", lambda: 1000)
    train.main(arguments(tiny_data, tiny_cfg, tmp_path, "--epochs", "1", "--workers", "0", "--cache"))
    assert "--cache ram: 0.0GB required, 0.0GB available, not caching images" in capsys.readouterr().out
