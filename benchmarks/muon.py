"""A training step with Muon against one with SGD, where every batch makes an optimizer step.

    python benchmarks/muon.py                      yolov5n and yolov5s, 640, batch 16
    python benchmarks/muon.py --sizes n --imgsz 320

A ratio of 0.95 means that Muon adds 5 percent to a step. Each side runs in a process of its own, as in step.py.
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.step import our_step
from benchmarks.timing import InOwnProcess, Row, compare, print_rows, row


def measure(size: str, imgsz: int, batch: int, amp: str, pairs: int) -> Row:
    sides = [InOwnProcess(our_step, size, imgsz, batch, amp, name) for name in ("SGD", "Muon")]
    timing = compare(*sides, pairs=pairs)
    for side in sides:
        side.close()
    return row(f"training step, yolov5{size}, {imgsz}, batch {batch}, --amp {amp}", timing, at_least="0.95")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["n", "s"])
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=9)
    options = parser.parse_args()
    rows = [
        measure(size, options.imgsz, options.batch, amp, options.pairs)
        for size in options.sizes
        for amp in ("auto", "off")
    ]
    print_rows(rows, f"{torch.get_num_threads()} threads.")


if __name__ == "__main__":
    main()
