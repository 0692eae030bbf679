"""The rules of the house: who may import whom, how large things are, and that importing changes nothing."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# The folders of utils/, the highest first. A file imports its own folder, those below it, and utils/*.py.
WINGS = [
    "evolution",
    "training",
    "exporting",
    "checking",
    "inference",
    "output",
    "tracking",
    "loading",
    "datasets",
    "images",
]
# The files of utils/ itself, which import each other only. A new file belongs into a wing, or needs a word here.
GROUND_FLOOR = set(
    """
    loss autoanchor evolve boxes nms metrics coco_eval schedule optim ema autobatch checkpoint color_kernel config cli
    console detector device distributed environment files fused_sgd muon download kernels parallel_map results_csv
    timing errors detections folder_lock rendezvous safe_pickle addresses temporary_files machine pending_files
    user_observers process_state formats pixel_format class_values image_size diagnosis
    """.split()
)
PROGRAMS = {"train", "val", "detect", "export", "check", "compare", "hubconf"}
PACKAGES = ("utils", "models", "data")

MAX_LINES = {"train": 600}  # of a file; all others:
MAX_LINES_OF_OTHERS = 450
MAX_FUNCTION_LINES = 50
MAX_PARAMETERS = 10
STABLE_SIGNATURES = {"non_max_suppression"}  # other programs call them as they are


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def python_files(*folders: str) -> dict[str, Path]:
    """Map module names to files, those of the root included."""
    paths = [*ROOT.glob("*.py"), *(path for folder in folders for path in (ROOT / folder).rglob("*.py"))]
    return {module_name(path): path for path in sorted(paths) if path.name != "__init__.py"}


FILES = python_files(*PACKAGES)
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}
BENCHMARKS = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in python_files("benchmarks").items()}


def floor_of(name: str) -> str:
    """Return the wing of a module of utils, or `utils`, `models`, `data`, `program`."""
    package, *rest = name.split(".")
    if package == "utils" and len(rest) > 1:
        return rest[0]
    return package if package in PACKAGES else "program"


def allowed_floors(floor: str) -> set[str]:
    """Return the floors that a module of a floor may import."""
    if floor == "program" or floor == "data":
        return {"program", "models", "utils", *WINGS} - ({"program"} if floor == "data" else set())
    if floor in ("utils", "models"):
        return {floor, "utils"}
    return {*WINGS[WINGS.index(floor) :], "utils"}


def imported(tree: ast.AST) -> set[str]:
    """Return the full names of all imports, inside functions too. `from a import b` gives a.b and a."""
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


def own_imports(tree: ast.AST) -> set[str]:
    return imported(tree) & FILES.keys()


def foreign_packages(tree: ast.AST) -> set[str]:
    """Return the top-level names of the third-party packages that are imported."""
    known = set(sys.stdlib_module_names) | {name.split(".")[0] for name in FILES} | set(PACKAGES)
    return {name.split(".")[0] for name in imported(tree)} - known


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.arg]:
    """Return the named parameters, without self and cls."""
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return [argument for argument in named if argument.arg not in ("self", "cls")]


def is_any(annotation: ast.expr | None) -> bool:
    """Return whether an annotation is Any, or a union with it."""
    text = ast.unparse(annotation).strip("'\"") if annotation is not None else ""
    return bool({"Any", "typing.Any", "Optional[Any]"} & {part.strip() for part in text.split("|")})


def any_read_by_attribute(tree: ast.AST) -> set[str]:
    """Return `function.parameter` and `Class.field` of what is typed Any although an attribute of it is read."""
    found = set()
    for function in functions(tree):
        untyped = {argument.arg for argument in parameters(function) if is_any(argument.annotation)}
        for node in ast.walk(function):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in untyped:
                found.add(f"{function.name}.{node.value.id}")
    for owner in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        untyped = {
            f"self.{row.target.id}" for row in owner.body if isinstance(row, ast.AnnAssign) and is_any(row.annotation)
        }
        for node in ast.walk(owner):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in untyped:
                found.add(f"{owner.name}.{ast.unparse(node.value).removeprefix('self.')}")
    return found


@pytest.mark.parametrize(
    "source, names",
    [
        ("", set()),
        ("import a.b\nfrom c import d\ndef f():\n    import e\n", {"a.b", "c", "c.d", "e"}),
        ("importlib.import_module('g.h')\n", {"g.h"}),
    ],
)
def test_every_kind_of_import_is_seen(source, names):
    assert imported(ast.parse(source)) == names


@pytest.mark.parametrize(
    "source, names",
    [
        ("def f(a: Any):\n    return len(a)\n", set()),
        ("def f(a: Any):\n    return a.b\n", {"f.a"}),
        ("def f(*, a: 'Any | None'):\n    return a.b\n", {"f.a"}),
        ("def f(a: dict[str, Any]):\n    return a.keys()\n", set()),
        ("class C:\n    a: Any\n    def f(self):\n        return self.a.b\n", {"C.a"}),
    ],
)
def test_every_any_is_seen(source, names):
    assert any_read_by_attribute(ast.parse(source)) == names


@pytest.mark.parametrize("name", FILES)
def test_imports_point_down(name):
    floors = allowed_floors(floor_of(name))
    upward = {other for other in own_imports(TREES[name]) if floor_of(other) not in floors}
    assert not upward, f"{name} may not import {', '.join(sorted(upward))}"


def test_there_is_no_cycle():
    done, path = set(), []

    def visit(name: str) -> None:
        assert name not in path, " -> ".join([*path, name])
        if name not in done:
            path.append(name)
            for other in sorted(own_imports(TREES[name])):
                visit(other)
            done.add(path.pop())

    for name in FILES:
        visit(name)


def test_data_is_imported_by_no_code():
    importers = {name for name, tree in {**TREES, **BENCHMARKS}.items() if floor_of(name) != "data"
                 and any(floor_of(other) == "data" for other in imported(tree))}  # fmt: skip
    assert not importers


def test_each_file_has_a_place():
    places = {name: name.split(".")[1:] for name in FILES if name.startswith("utils.")}
    lost = {name for name, place in places.items() if place[0] not in (GROUND_FLOOR if len(place) == 1 else WINGS)}
    assert not lost, "neither a wing nor GROUND_FLOOR"
    assert {name for name in FILES if "." not in name} <= PROGRAMS


def test_tests_mirror_the_folders():
    folders = {path.parent.name for path in (ROOT / "tests").rglob("test_*.py")}
    assert folders <= {"tests", "models", "utils", *WINGS}


@pytest.mark.parametrize("name", ["utils.loss", "utils.autoanchor", "utils.evolve"])
def test_pure_parts_know_no_data_set_and_no_command_line(name):
    assert not imported(TREES[name]) & {"argparse", "utils.cli", "utils.device", "utils.distributed", "models"}


def test_benchmarks_find_what_they_import():
    names = [f"benchmarks.{path.stem}" for path in sorted((ROOT / "benchmarks").glob("*.py"))]
    done = subprocess.run(
        [sys.executable, "-c", f"import {', '.join(names)}"], cwd=ROOT, capture_output=True, text=True
    )
    assert names
    assert done.returncode == 0, done.stderr


def test_matplotlib_stays_where_charts_are_made():
    importers = {name for name in FILES if "matplotlib" in foreign_packages(TREES[name])}
    assert {name for name in importers if not name.startswith("utils.output.")} <= {"utils.evolution.plots"}
    for name in importers:
        assert not any("pyplot" in source for source in imported(TREES[name])), f"{name}: pyplot keeps global state"


def test_the_environment_is_read_in_one_file():
    def reads(tree: ast.AST) -> bool:
        names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} | imported(tree)
        return bool(names & {"environ", "getenv", "putenv", "os.environ", "os.getenv"})

    assert {name for name in FILES if reads(TREES[name])} <= {"utils.environment"}


def test_the_terminal_is_written_to_in_one_file():
    """ruff's T20 finds print(). This finds the other ways."""
    for name in FILES.keys() - {"utils.console"}:
        called = {ast.unparse(node.func) for node in ast.walk(TREES[name]) if isinstance(node, ast.Call)}
        assert not called & {"warnings.warn", "sys.stdout.write", "sys.stderr.write"}, name
        assert "tqdm" not in foreign_packages(TREES[name]), name


def test_nothing_is_executed_from_text():
    for name, tree in TREES.items():
        called = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        names = {function.id for function in called if isinstance(function, ast.Name)}
        assert not names & {"eval", "exec", "compile", "__import__"}, name


def test_init_files_are_one_docstring_line():
    found = [path for package in PACKAGES for path in (ROOT / package).rglob("__init__.py")]
    assert found
    for path in found:
        assert re.fullmatch(r'"""[^"\n]+\."""\n', path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize("name", FILES)
def test_no_parameter_that_is_read_by_attribute_is_any(name):
    found = {f"{name}.{where}" for where in any_read_by_attribute(TREES[name])}
    assert not found, "name the class or a Protocol; `object` where isinstance decides"


@pytest.mark.parametrize("name", {**TREES, **BENCHMARKS})
def test_sizes(name):
    tree = {**TREES, **BENCHMARKS}[name]
    lines = len(ROOT.joinpath(*name.split(".")).with_suffix(".py").read_text(encoding="utf-8").splitlines())
    limit = MAX_LINES.get(name, MAX_LINES_OF_OTHERS)
    assert lines <= limit, f"{lines} lines, at most {limit}"
    for function in functions(tree):
        if function.name in STABLE_SIGNATURES:
            continue
        lines, count = function.end_lineno - function.lineno + 1, len(parameters(function))
        assert lines <= MAX_FUNCTION_LINES, f"{function.name} has {lines} lines, at most {MAX_FUNCTION_LINES}"
        assert count <= MAX_PARAMETERS, f"{function.name} has {count} parameters, at most {MAX_PARAMETERS}"


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
    others = {
        full for tree in TREES.values() for full in imported(tree) if full.split(".")[0] in foreign_packages(tree)
    }
    order = ["utils", *reversed(WINGS), "models", "data", "program"]
    modules = sorted(FILES, key=lambda name: (order.index(floor_of(name)), name))
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", SNAPSHOT], cwd=ROOT, input=json.dumps([modules, sorted(others)]),
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (result.returncode, result.stdout) == (0, ""), result.stdout + result.stderr
