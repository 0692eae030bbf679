"""The rules of the house: who may import whom, and that importing changes nothing."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A module may import what stands in an earlier row, never its own row or a later one. A new module needs a place here.
LAYERS = [
    ["utils.errors"],
    ["utils.download", "utils.files"],
    ["utils.boxes", "utils.detector", "utils.runtime", "utils.schedule", "utils.ema", "utils.optim", "utils.autoanchor",
     "utils.image_header", "utils.label_file", "utils.guard", "utils.interruption", "utils.spread",
     "utils.string_array", "utils.warp", "utils.fonts"],
    ["utils.autobatch", "utils.config", "utils.drawing", "utils.image_file", "utils.launch"],
    ["data.scripts.shapes_textures"],
    ["data.scripts.shapes_drawing"],
    ["data.scripts.make_shapes"],
    ["utils.nms", "utils.metrics", "utils.loss", "utils.augment", "utils.labels", "utils.checkpoint", "utils.evolve",
     "utils.plots", "utils.runlog", "utils.coco_eval"],
    ["utils.batches", "utils.resume", "utils.device_augment", "utils.image_cache", "utils.subset", "utils.evolve_guard",
     "utils.evolve_store", "utils.evolve_verdict", "utils.evolve_plots"],
    ["utils.helping"],
    ["utils.acquire", "utils.dataset", "utils.sources", "utils.predictions", "utils.evolve_study",
     "utils.evolve_workers", "utils.evolve_report"],
    ["utils.report", "utils.outputs", "utils.runfolder", "utils.evolve_run", "utils.request", "utils.training_data",
     "utils.parallel", "utils.prefetch"],
    ["utils.trainstate", "utils.training_log", "utils.compiling"],
    ["data.scripts.yolo_folder"],
    ["data.scripts.coco_to_yolo", "data.scripts.voc_to_yolo"],
    ["models.common"],
    ["models.architecture", "models.foreign"],
    ["models.yolo"],
    ["models.loading", "models.adaptation"],
    ["models.building"],
    ["val", "detect"],
    ["train"],
]  # fmt: skip
DEPTH = {name: depth for depth, row in enumerate(LAYERS) for name in row}
PACKAGES = ("utils", "models", "data")


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


FILES = {
    module_name(path): path
    for path in sorted([*ROOT.glob("*.py"), *(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))])
    if path.name != "__init__.py"
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def imported(tree: ast.AST) -> set[str]:
    """Full names of all that is imported, inside functions too; `from a import b` gives a.b and a."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import hides where it leads"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("__import__", "importlib.import_module"):
            names |= {argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant)}
    return names


def own(tree: ast.AST) -> set[str]:
    return imported(tree) & FILES.keys()


def thirds(tree: ast.AST) -> set[str]:
    """The packages of others, top-level names."""
    known = set(sys.stdlib_module_names) | {name.split(".")[0] for name in FILES} | set(PACKAGES)
    return {name.split(".")[0] for name in imported(tree)} - known


def test_the_reader_sees_every_sort_of_import():
    source = "import a.b\nfrom c import d\ndef f():\n    import e\n    importlib.import_module('g.h')\n"
    assert imported(ast.parse(source)) == {"a.b", "c", "c.d", "e", "g.h"}


@pytest.mark.parametrize("name", FILES)
def test_imports_point_strictly_down(name):
    assert name in DEPTH, f"{name} has no place in LAYERS"
    upward = {other for other in own(TREES[name]) if DEPTH.get(other, len(LAYERS)) >= DEPTH[name]}
    assert not upward, f"{name} may not import {', '.join(sorted(upward))}"


def test_utils_know_no_model_and_no_program():
    entry_points = {name for name in FILES if "." not in name}
    for name in FILES:
        if name.startswith("utils."):
            bad = {other for other in own(TREES[name]) if other.startswith("models.") or other in entry_points}
            assert not bad, f"{name} imports {bad}"


@pytest.mark.parametrize("name", ["utils.loss", "utils.autoanchor", "utils.evolve"])
def test_pure_parts_know_no_data_set_and_no_command_line(name):
    if name not in TREES:
        pytest.skip(f"{name} is not there")
    assert not imported(TREES[name]) & {"argparse", "utils.dataset", "utils.labels", "utils.runtime", "models"}


def test_benchmarks_find_what_they_import():
    names = [f"benchmarks.{path.stem}" for path in sorted((ROOT / "benchmarks").glob("*.py"))]
    done = subprocess.run(
        [sys.executable, "-c", f"import {', '.join(names)}"], cwd=ROOT, capture_output=True, text=True
    )
    assert names and done.returncode == 0, done.stderr


def test_matplotlib_stays_in_one_file():
    assert {name for name in FILES if "matplotlib" in thirds(TREES[name])} <= {"utils.plots", "utils.evolve_plots"}
    assert not any("pyplot" in source for source in imported(TREES["utils.plots"])), "pyplot keeps global state"


def test_the_environment_is_read_in_one_file():
    def reads(tree: ast.AST) -> bool:
        return any(isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv") for node in ast.walk(tree))

    assert {name for name in FILES if reads(TREES[name])} <= {"utils.runtime"}


def test_nothing_is_executed_from_text():
    for name, tree in TREES.items():
        called = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        names = {function.id for function in called if isinstance(function, ast.Name)}
        assert not names & {"eval", "exec", "compile", "__import__"}, name


def test_init_files_are_empty():
    found = [path for package in PACKAGES for path in (ROOT / package).rglob("__init__.py")]
    assert found and all(path.read_text().strip() == "" for path in found)


SNAPSHOT = """
import importlib, json, os, random, signal, sys, threading, warnings
modules, others = json.loads(sys.stdin.read())
for other in others:
    try:
        importlib.import_module(other)
    except ImportError:
        pass
import cv2, numpy, torch

def state():
    return {
        "environment": dict(os.environ), "folder": os.getcwd(), "path": list(sys.path),
        "threads": [thread.name for thread in threading.enumerate()], "warnings": [str(f) for f in warnings.filters],
        "torch threads": (torch.get_num_threads(), torch.get_num_interop_threads()), "cv2 threads": cv2.getNumThreads(),
        "random": hash(random.getstate()), "numpy": numpy.random.get_state()[1].tolist(),
        "torch random": torch.initial_seed(), "dtype": str(torch.get_default_dtype()),
        "deterministic": torch.are_deterministic_algorithms_enabled(), "cudnn": torch.backends.cudnn.benchmark,
        "printing": str(numpy.get_printoptions()), "interrupt": str(signal.getsignal(signal.SIGINT)),
    }

for module in modules:
    before = state()
    importlib.import_module(module)
    after = state()
    for key in before:
        if before[key] != after[key]:
            print(f"{module} changes {key}")
"""


def test_importing_changes_nothing():
    others = sorted({full for tree in TREES.values() for full in imported(tree) if full.split(".")[0] in thirds(tree)})
    modules = sorted(FILES, key=lambda name: DEPTH.get(name, len(LAYERS)))
    result = subprocess.run(
        [sys.executable, "-c", SNAPSHOT], cwd=ROOT, input=json.dumps([modules, others]),
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (result.returncode, result.stdout) == (0, ""), result.stdout + result.stderr
