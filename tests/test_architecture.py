"""The rules of the house: who may import whom, and that importing changes nothing."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A file imports its own wing and the wings listed below it.
WINGS = ["evolution", "training", "exporting", "checking", "inference", "output", "loading", "datasets", "images"]
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


def wing(name: str) -> str:
    parts = name.split(".")
    return parts[1] if parts[0] == "utils" and len(parts) > 2 else ""


def may_import(name: str, other: str) -> bool:
    if name.startswith("models."):
        return other.startswith("models.") or (other.startswith("utils.") and not wing(other))
    if not name.startswith("utils."):
        return True
    if not other.startswith("utils."):
        return False
    if not wing(name):
        return not wing(other)
    return not wing(other) or WINGS.index(wing(other)) >= WINGS.index(wing(name))


NOT_YET = {"models.building"}


@pytest.mark.parametrize("name", FILES)
def test_imports_point_down(name):
    if name in NOT_YET:
        pytest.skip("not yet")
    upward = {other for other in own(TREES[name]) if not may_import(name, other)}
    assert not upward, f"{name} may not import {', '.join(sorted(upward))}"


def test_there_is_no_cycle():
    done, path = set(), []

    def visit(name: str) -> None:
        assert name not in path, " -> ".join([*path, name])
        if name in done:
            return
        path.append(name)
        for other in sorted(own(TREES[name])):
            visit(other)
        path.pop()
        done.add(name)

    for name in FILES:
        visit(name)


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
    assert not imported(TREES[name]) & {"argparse", "utils.cli", "utils.device", "models"}


def test_benchmarks_find_what_they_import():
    names = [f"benchmarks.{path.stem}" for path in sorted((ROOT / "benchmarks").glob("*.py"))]
    done = subprocess.run(
        [sys.executable, "-c", f"import {', '.join(names)}"], cwd=ROOT, capture_output=True, text=True
    )
    assert names and done.returncode == 0, done.stderr


def test_matplotlib_stays_in_one_file():
    assert {name for name in FILES if "matplotlib" in thirds(TREES[name])} <= {
        "utils.output.plots",
        "utils.evolution.plots",
    }
    assert not any("pyplot" in source for source in imported(TREES["utils.output.plots"])), "pyplot keeps global state"


def test_the_environment_is_read_in_one_file():
    def reads(tree: ast.AST) -> bool:
        return any(isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv") for node in ast.walk(tree))

    assert {name for name in FILES if reads(TREES[name])} <= {"utils.environment"}


def test_nothing_is_executed_from_text():
    for name, tree in TREES.items():
        called = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        names = {function.id for function in called if isinstance(function, ast.Name)}
        assert not names & {"eval", "exec", "compile", "__import__"}, name


def test_each_wing_says_in_one_line_what_it_is_for():
    for folder in (path for path in (ROOT / "utils").iterdir() if path.is_dir() and path.name != "__pycache__"):
        assert folder.name in WINGS
        tree = ast.parse((folder / "__init__.py").read_text())
        assert len(tree.body) == 1 and len((ast.get_docstring(tree) or "").splitlines()) == 1, folder


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
    modules = sorted(FILES)
    result = subprocess.run(
        [sys.executable, "-c", SNAPSHOT], cwd=ROOT, input=json.dumps([modules, others]),
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (result.returncode, result.stdout) == (0, ""), result.stdout + result.stderr
