"""A training step with Muon against one with SGD, where every batch makes an optimizer step.

    python benchmarks/muon.py                      yolov5n and yolov5s, 640, batch 16
    python benchmarks/muon.py --sizes n --imgsz 320

A ratio of 0.95 means that Muon adds 5 percent to a step. Each side runs in a process of its own, as in step.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.step import compare_and_close, our_step, print_sizes
from benchmarks.timing import InOwnProcess, Row, row


def measure(size: str, imgsz: int, batch: int, amp: str, pairs: int) -> Row:
    sgd, muon = (InOwnProcess(our_step, size, imgsz, batch, amp, name) for name in ("SGD", "Muon"))
    timing = compare_and_close(sgd, muon, pairs=pairs)
    return row(f"training step, yolov5{size}, {imgsz}, batch {batch}, --amp {amp}", timing, at_least="0.95")


if __name__ == "__main__":
    print_sizes(measure, __doc__.splitlines()[0], batch=16, pairs=9)
