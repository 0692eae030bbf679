"""All benchmarks one after the other, gathered in benchmarks/RESULTS.md: `make bench`.

    python benchmarks/run_all.py
    python benchmarks/run_all.py --data coco128.yaml --weights yolov5n.pt      real pictures where pictures are needed
    python benchmarks/run_all.py --only step loss                              these sections anew, the others stay

Each script runs in a process of its own, with nothing else beside it. The accuracy guard trains for hours and gpu.py
wants a GPU: they run only where they are named with --only.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.timing import machine  # noqa: E402

RESULTS = ROOT / "benchmarks" / "RESULTS.md"
NAMES = (
    "step",
    "update",
    "sample",
    "epoch",
    "nms",
    "untrained",
    "ap",
    "autoanchor",
    "labels",
    "loss",
    "startup",
    "scale",
    "memory",
)
ON_DEMAND = ("accuracy", "gpu")
WITH_DATA = ("epoch", "untrained", "startup", "accuracy")
INTRODUCTION = """# What was measured

Written by `make bench` (`python benchmarks/run_all.py`). Each row has its baseline in the same run: both are measured
in turn, several times; given are the median and the range of the middle half. Ratios are of the pairs measured one
right after the other. Each section names the machine.
"""


def command(name: str, options: argparse.Namespace) -> list[str]:
    words = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py")]
    if name in WITH_DATA and options.data:
        words += ["--data", options.data]
    if name == "untrained" and options.weights:
        words += ["--weights", options.weights]
    if name == "accuracy" and options.project:
        words += ["--project", options.project, *["--finished"] * options.finished]
    return words


def section(name: str, options: argparse.Namespace) -> str:
    """What the script prints under a heading with its purpose and the machine; its error, if it fails."""
    purpose = (ROOT / "benchmarks" / f"{name}.py").read_text().split('"""')[1].splitlines()[0]
    done = subprocess.run(command(name, options), capture_output=True, text=True, cwd=ROOT)
    lines = done.stdout.splitlines()
    start = next((k for k, line in enumerate(lines) if line.startswith("|")), 0)  # whatever is said before the table
    body = "\n".join(lines[start:]).rstrip()
    if done.returncode:
        body = f"{body}\n\nNot measured: {(done.stderr.strip() or 'no reason given').splitlines()[-1]}".strip()
    return f"## {name}\n\n{purpose}\n\n{body}\n\n{date.today()}; {machine()}\n"


def read_sections() -> dict[str, str]:
    """The sections of RESULTS.md as they are, by name."""
    if not RESULTS.is_file():
        return {}
    parts = RESULTS.read_text().split("\n## ")[1:]
    return {part.split("\n", 1)[0]: f"## {part.rstrip()}\n" for part in parts}


def write(sections: dict[str, str]) -> None:
    order = [name for name in (*NAMES, *ON_DEMAND) if name in sections]
    RESULTS.write_text("\n".join([INTRODUCTION, *(sections[name] for name in order)]))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=list(NAMES), choices=NAMES + ON_DEMAND)
    parser.add_argument("--data", default="", help="data set YAML for the scripts that need pictures")
    parser.add_argument("--weights", default="", help="trained weights that fit --data")
    parser.add_argument("--project", default="", help="folder of the runs of accuracy.py")
    parser.add_argument("--finished", action="store_true", help="of those runs, only what is finished")
    options = parser.parse_args(argv)
    sections = read_sections()
    for number, name in enumerate(options.only, 1):
        print(f"[{number}/{len(options.only)}] {name}", flush=True)
        sections[name] = section(name, options)
        print(sections[name], flush=True)
        write(sections)
    print(f"Results are in {RESULTS}")


if __name__ == "__main__":
    main()
