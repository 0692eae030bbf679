"""Time from the shell to the first iteration of train.py, minus the import of torch, torchvision and cv2.

    python benchmarks/startup.py                          yolov5n from scratch on data/shapes.yaml, labels cached
    python benchmarks/startup.py --pairs 3 -- --imgsz 320   flags after -- go to train.py

Both sides are fresh Python processes, started in alternation; the clock starts before the process does. The baseline
ends when the imports are done, before the process exits. Ours ends when the loop has its first batch, or, in the second
row, when that batch has gone through forward, loss and backward. The first pair may draw or scan the data, so it does
not count.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.timing import Row, format_spread, machine, print_rows

ROOT = Path(__file__).resolve().parents[1]
IMPORT = "import torch, torchvision, cv2, time; print('now', time.monotonic())"
TRAIN = """
import sys, time
import train

def note(name):
    original = getattr(*name)
    def noted(*arguments):
        print('now', time.monotonic(), flush=True)
        if name[1] == 'on_batch':
            sys.exit()
        return original(*arguments)
    setattr(*name, noted)

note((train, 'prepare_images'))
note((train.RunLog, 'on_batch'))
train.main(sys.argv[1:])
"""


def moments(command: list[str]) -> list[float]:
    """Start a process and return the seconds after which it printed each `now`."""
    start = time.monotonic()  # the same clock in all processes
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    found = [float(line.split()[1]) - start for line in done.stdout.splitlines() if line.startswith("now ")]
    if not found:
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-4000:])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/shapes.yaml")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--small", action="store_true", help="2 pairs")
    parser.add_argument("words", nargs="*", help="for train.py")
    args = parser.parse_args()
    imports, batch, iteration = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        words = ["--data", args.data, "--cfg", "yolov5n.yaml", "--weights=", "--project", folder, *args.words]
        for pair in range(-1, 2 if args.small else args.pairs):
            [imported] = moments([sys.executable, "-c", IMPORT])
            first, done = moments([sys.executable, "-c", TRAIN, *words])
            if pair >= 0:
                imports.append(imported)
                batch.append(first)
                iteration.append(done)
    rows = [
        Row(
            name,
            f"{format_spread(imports)} s",
            f"{format_spread(side)} s",
            f"{format_spread([ours - theirs for ours, theirs in zip(side, imports)])} s more",
            target,
        )
        for name, side, target in (
            ("shell to the first batch in the loop", batch, "at most 2 s more"),
            ("shell to the first losses and gradients", iteration, "-"),
        )
    ]
    print_rows(rows, machine())


if __name__ == "__main__":
    main()
