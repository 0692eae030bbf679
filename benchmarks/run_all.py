"""Runner of all benchmarks, which collects their results in benchmarks/RESULTS.md (`make bench`).

    python benchmarks/run_all.py
    python benchmarks/run_all.py --data coco128.yaml --weights yolov5n.pt   real images
    python benchmarks/run_all.py --only step loss                           replace these sections, keep the others

Each script runs in a process of its own, and nothing else runs meanwhile. Some run only if --only names them.
They are accuracy.py and label_errors.py, which train, gpu.py and tiles.py. speedrun.py reports the trainings in
speedrun.csv, and label_errors.py needs a folder as --data.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.timing import machine

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "RESULTS.md"
NAMES = (
    "step",
    "update",
    "muon",
    "sample",
    "epoch",
    "nms",
    "untrained",
    "ap",
    "autoanchor",
    "labels",
    "check",
    "loss",
    "startup",
    "runtimes",
    "scale",
    "memory",
)
ON_DEMAND = ("accuracy", "speedrun", "gpu", "tiles", "label_errors")
WITH_DATA = ("epoch", "untrained", "startup", "accuracy", "label_errors")
INTRODUCTION = """# What was measured

Written by `make bench` (`python benchmarks/run_all.py`). Each row has its baseline in the same run. Both sides are
measured several times in alternation; the table shows the median and the range of the middle half. A ratio is taken
within each pair of measurements. Each section names the machine.
"""


def command(name: str, options: argparse.Namespace) -> list[str]:
    words = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py")]
    if name in WITH_DATA and options.data:
        words += ["--data", options.data]
    if name in ("untrained", "runtimes", "label_errors") and options.weights:
        words += ["--weights", options.weights]
    if name == "speedrun":
        words.append("--report")
    if name == "accuracy" and options.project:
        words += ["--project", options.project, *["--finished"] * options.finished]
    return words


def section(name: str, options: argparse.Namespace) -> str:
    """Run a script and return its section: its purpose, its table or its error, and the machine."""
    purpose = (ROOT / "benchmarks" / f"{name}.py").read_text().split('"""')[1].splitlines()[0]
    done = subprocess.run(command(name, options), capture_output=True, text=True, cwd=ROOT)
    lines = done.stdout.splitlines()
    start = next(
        (k for k, line in enumerate(lines) if line.startswith("|")), 0
    )  # skip what is printed before the table
    body = "\n".join(lines[start:]).rstrip()
    if done.returncode:
        body = f"{body}\n\nNot measured: {(done.stderr.strip() or 'no error message').splitlines()[-1]}".strip()
    return f"## {name}\n\n{purpose}\n\n{body}\n\n{date.today()}; {machine()}\n"


def read_sections() -> dict[str, str]:
    """Read the present sections of RESULTS.md, by name."""
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
    parser.add_argument("--data", default="", help="data set YAML for the scripts that need images")
    parser.add_argument("--weights", default="", help="trained weights that fit --data")
    parser.add_argument("--project", default="", help="folder of the runs of accuracy.py")
    parser.add_argument("--finished", action="store_true", help="use only the finished ones of those runs")
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
