"""Stand-in for train.py in tests of processes: it reads the same flags and writes the same results.csv.

It starts in a fraction of the time, because it does not import torch. The file `behaviour` in the run's grandparent
folder says how it fails: lines `NUMBER WORD`, where WORD is crash, hang, silent or killed.
"""

import math
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.cli import SuggestingParser, add_flags
from utils.config import TrainOptions
from utils.files import atomic_write, read_yaml

COLUMNS = ("epoch,train/box_loss,train/obj_loss,train/cls_loss,metrics/precision,metrics/recall,metrics/mAP_0.5,"
           "metrics/mAP_0.5:0.95,val/box_loss,val/obj_loss,val/cls_loss,x/lr0,x/lr1,x/lr2")  # fmt: skip


def main() -> None:
    options = TrainOptions(**vars(add_flags(SuggestingParser(prog="stub"), TrainOptions).parse_args()))
    folder = Path(options.project) / options.name
    hyp = read_yaml(options.hyp)
    behaviour = Path(options.project).parent / "behaviour"
    words = dict(line.split() for line in behaviour.read_text().splitlines()) if behaviour.is_file() else {}
    word = words.get(str(int(options.name.split("-")[0])), "")
    with open(folder.parent.parent / "started", "a") as file:
        file.write(f"{options.name} {options.device} {options.seed} {options.evolve_fraction}\n")
    print("Training", word, flush=True)
    if word == "crash":
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")
    if word == "silent":
        return
    if word == "killed":
        import os
        import signal

        os.kill(os.getpid(), signal.SIGKILL)  # like the kernel when memory runs out
    top = 0.5 - 0.1 * abs(math.log10(hyp["lr0"] / 0.03)) - 0.2 * abs(hyp["mixup"] - 0.4) + options.seed % 100 / 1e4
    text = COLUMNS + "\n"
    for epoch in range(options.epochs):
        time.sleep(600 if word == "hang" and epoch == 1 else 0.05)
        skipped = options.noval and epoch + 1 < options.epochs
        fitness = 0 if skipped else top * (1 - math.exp(-3 * (epoch + 1) / options.epochs))
        text += f"{epoch},{'0.1,' * 3}{f'{fitness:.5g},' * 4}{'0.2,' * 3}0.01,0.01,0.01\n"
        with atomic_write(folder / "results.csv") as file:
            file.write(text.encode())


if __name__ == "__main__":
    main()
