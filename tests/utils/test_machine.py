"""Resources of the machine that this process may use, from stand-ins of /proc and of the control groups."""

import mmap
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from models.yolo import DetectionModel
from utils import machine
from utils.errors import UserError
from utils.machine import available_memory, busy_cores, free_threads, usable_cores

ROOT = Path(__file__).resolve().parents[2]
MB = 1 << 20
V1 = "31 23 0:28 {root} {place} rw,relatime shared:7 - cgroup cgroup rw,{controller}\n"
V2 = "31 23 0:28 {root} {place} rw,relatime - cgroup2 cgroup rw\n"


@pytest.fixture
def proc(tmp_path, monkeypatch) -> Path:
    """Return a stand-in of /proc with 8000 MB of free memory."""
    folder = tmp_path / "proc"
    (folder / "self").mkdir(parents=True)
    (folder / "meminfo").write_text("MemTotal: 9999999 kB\nMemAvailable: 8192000 kB\n")
    monkeypatch.setattr(machine, "PROC", folder)
    return folder


def write_groups(proc: Path, version: int, own: str, root: str, files: dict[str, dict[str, object]]) -> None:
    """Write control groups: own, the group of this process. root, that of the mount. files: group -> name -> text."""
    place = proc.parent / "sys fs"
    escaped = str(place).replace(" ", "\\040")
    line, entry = (V1, f"4:memory:{own}\n7:cpu,cpuacct:{own}\n") if version == 1 else (V2, f"0::{own}\n")
    controllers = ("memory", "cpu,cpuacct") if version == 1 else ("",)
    (proc / "self/cgroup").write_text(entry)
    (proc / "self/mountinfo").write_text(
        "22 1 8:1 / / rw - ext4 /dev/sda rw\n"
        + "".join(line.format(root=root, place=escaped, controller=each) for each in controllers)
    )
    for group, values in files.items():
        (place / group).mkdir(parents=True, exist_ok=True)
        for name, text in values.items():
            (place / group / name).write_text(f"{text}\n")


def memory(version: int, limit: object, used: int = 100 * MB, cached: int = 40 * MB) -> dict[str, object]:
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if version == 1 else ("memory.max", "memory.current")
    stat = f"cache 1\ninactive_file 7\ntotal_inactive_file {cached}" if version == 1 else f"inactive_file {cached}"
    return {names[0]: limit, names[1]: used, "memory.stat": stat}


NO_LIMIT = 9223372036854771712
MEMORY = {
    "no group": (None, 8000),
    "docker, version 1": ((1, "/docker/7", "/docker/7", {".": memory(1, 600 * MB)}), 540),
    "version 1, seen from the machine": ((1, "/docker/7", "/", {"docker/7": memory(1, 600 * MB)}), 540),
    "version 1 without a limit": ((1, "/", "/", {".": memory(1, NO_LIMIT)}), 8000),
    "slurm, version 1: the job's limit": (
        (1, "/slurm/job_5/step_0", "/", {
            "slurm/job_5/step_0": memory(1, NO_LIMIT), "slurm/job_5": memory(1, 900 * MB), "slurm": memory(1, NO_LIMIT)
        }),
        840,
    ),
    "version 2": ((2, "/", "/", {".": memory(2, 600 * MB)}), 540),
    "version 2 without a limit": ((2, "/", "/", {".": memory(2, "max")}), 8000),
    "version 2, nested: the lowest": (
        (2, "/a/b/c", "/", {"a/b/c": memory(2, "max"), "a/b": memory(2, 700 * MB), "a": memory(2, 900 * MB, 500 * MB)}),
        440,
    ),
    "version 2, a folder above the mount": ((2, "/../a", "/", {".": memory(2, 600 * MB)}), 540),
    "over the limit": ((2, "/", "/", {".": memory(2, 90 * MB)}), 30),
}  # fmt: skip


@pytest.mark.parametrize("groups, expected", MEMORY.values(), ids=MEMORY)
def test_memory_is_that_of_the_tightest_container(proc, groups, expected):
    if groups:
        write_groups(proc, *groups)
    assert available_memory() == expected * MB


def test_memory_keeps_to_the_limit_of_the_address_space(proc):
    (proc / "self/statm").write_text("1000 10 10\n")
    limits = resource.getrlimit(resource.RLIMIT_AS)
    code = "import resource; from utils import machine; from pathlib import Path; machine.PROC = Path({!r});"
    code += "resource.setrlimit(resource.RLIMIT_AS, (3 << 30,) * 2); print(machine.available_memory())"
    done = subprocess.run([sys.executable, "-c", code.format(str(proc))], cwd=ROOT, capture_output=True, check=True)
    assert int(done.stdout) == (3 << 30) - 1000 * resource.getpagesize() and limits == resource.getrlimit(
        resource.RLIMIT_AS
    )


@pytest.mark.parametrize("lacking", [("meminfo",), ("meminfo", "sysconf")], ids=["macOS", "unknown"])
def test_memory_where_there_is_no_proc(proc, monkeypatch, lacking):
    (proc / "meminfo").unlink()
    if "sysconf" in lacking:
        monkeypatch.delattr(os, "sysconf")
        assert available_memory() == machine.UNKNOWN_MEMORY
    else:
        assert available_memory() == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def test_memory_of_windows(proc, monkeypatch):
    def answer(reference):
        reference._obj[2] = 5000 * MB
        return reference._obj[0] == 64

    (proc / "meminfo").unlink()
    library = type("Library", (), {"kernel32": type("Kernel", (), {"GlobalMemoryStatusEx": staticmethod(answer)})})
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr("ctypes.windll", library, raising=False)
    assert available_memory() == 5000 * MB


def test_a_model_keeps_to_the_memory(monkeypatch):
    monkeypatch.setattr("models.yolo.available_memory", lambda: 20 * MB)
    with pytest.raises(UserError, match="more than the 5,242,880 that fit"):
        DetectionModel("models/yolov5s.yaml")


CORES = {
    "no group": (None, 8),
    "version 2": ((2, "/", "/", {".": {"cpu.max": "250000 100000"}}), 3),
    "version 2 without a quota": ((2, "/", "/", {".": {"cpu.max": "max 100000"}}), 8),
    "version 2, nested": ((2, "/a/b", "/", {"a/b": {"cpu.max": "max 100000"}, "a": {"cpu.max": "50000 100000"}}), 1),
    "version 1": ((1, "/", "/", {".": {"cpu.cfs_quota_us": 200000, "cpu.cfs_period_us": 100000}}), 2),
    "version 1 without a quota": ((1, "/", "/", {".": {"cpu.cfs_quota_us": -1, "cpu.cfs_period_us": 100000}}), 8),
}


@pytest.mark.parametrize("groups, expected", CORES.values(), ids=CORES)
def test_processors_are_those_of_affinity_and_quota(proc, monkeypatch, groups, expected):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(8)), raising=False)
    if groups:
        write_groups(proc, *groups)
    assert usable_cores() == expected


def test_processors_where_there_is_no_affinity(proc, monkeypatch):
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert usable_cores() == 6


def test_busy_processors_are_counted_without_this_process(proc, monkeypatch):
    """Processors 0 and 1 are ours: in a second they work 0.9 + 0.5 s, 0.2 s of it for this process."""
    rows = "cpu 9 9 9 9 9 9 9 9 9 9\ncpu0 {} 0 {} 500 {} 0 0 0 0 0\ncpu1 {} 0 0 0 0 0 0 0 0 0\ncpu2 {} 0 0 0 0 0 0 0\n"
    clock = {"wall": 10.0, "own": 1.0}

    def sleep(seconds):
        clock["wall"] += 1.0
        clock["own"] += 0.2
        (proc / "stat").write_text(rows.format(160, 130, 70, 250, 999))

    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1}, raising=False)
    monkeypatch.setattr(os, "sysconf", lambda name: 100)
    monkeypatch.setattr(os, "times", lambda: (clock["own"], 0, 0, 0, clock["wall"]))
    monkeypatch.setattr("utils.machine.time.sleep", sleep)
    monkeypatch.setattr("utils.machine.time.perf_counter", lambda: clock["wall"])
    (proc / "stat").write_text(rows.format(100, 100, 0, 200, 0))
    assert busy_cores() == pytest.approx(0.9 + 0.5 - 0.2)


def test_nothing_is_busy_where_the_system_does_not_report_it(proc):
    assert busy_cores() == 0


@pytest.mark.parametrize(
    "cores, busy, threads",
    [
        (1, 0, 1),
        (1, 5, 1),
        (2, 0.4, 2),
        (2, 1.0, 1),  # two threads would take 1.6 times as long as one
        (2, 2.0, 1),
        (8, 0.6, 7),
        (8, 3.2, 5),
        (8, 8.0, 4),  # half, since others get as large a share of each processor
        (3, 9.0, 2),
    ],
)
def test_threads_leave_busy_processors_alone(cores, busy, threads):
    assert free_threads(cores, busy) == threads


def test_memory_of_this_process():
    before = machine.process_memory()
    with mmap.mmap(-1, 64 << 20) as held:  # new pages: a list may get some that were freed before
        held.write(b"x" * len(held))
        after, size = machine.process_memory(), len(held)
    assert after.peak >= before.peak > 0 and after.peak >= after.now
    assert not before.now or after.now - before.now > size // 2
