"""The built-in data set "shapes": eight classes, drawn from a seed; nothing is downloaded.

What an image shows depends on (seed, split, index) alone: pixels and labels are the same on every machine, and the
JPEG files are the same bytes for the same OpenCV build. The set appears under its name once it is whole, never before.
"""

import json
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
from tqdm import tqdm

from utils.datasets.shapes_drawing import Picture, draw_picture
from utils.errors import UserError

VERSION = 4  # of the drawing: raise it when the same seed comes to give other pictures
JPEG_QUALITY = 90
RECORD = "made.json"  # in the data set's folder: what it was made from


def label_text(picture: Picture) -> str:
    """One row a box: class, then centre and size as fractions of the picture; nothing for a picture without objects."""
    H, W = picture.image.shape[:2]
    rows = [
        (kind, (left + right) / 2 / W, (top + bottom) / 2 / H, (right - left) / W, (bottom - top) / H)
        for kind, left, top, right, bottom in picture.boxes
    ]
    return "".join("{} {:.6f} {:.6f} {:.6f} {:.6f}\n".format(*row) for row in rows)


def write_picture(folder: Path, split: str, index: int, *, seed: int) -> None:
    picture = draw_picture(seed, split, index)
    _, jpeg = cv2.imencode(".jpg", picture.image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    (folder / "images" / split / f"{index:05d}.jpg").write_bytes(jpeg.tobytes())
    (folder / "labels" / split / f"{index:05d}.txt").write_text(label_text(picture))


def is_made(folder: Path, record: dict) -> bool:
    """Whether the folder holds just this data set; UserError where it holds something else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        found = json.loads((folder / RECORD).read_text())
    except (OSError, ValueError):
        raise UserError(f"{folder} is there but was not made by make_shapes.py: give another --folder") from None
    if found != record:
        wanted, there = (", ".join(f"{k} {v}" for k, v in d.items()) for d in (record, found))
        raise UserError(f"{folder} holds shapes of {there}; asked for {wanted}: delete it or give another --folder")
    return True


def fill(folder: Path, counts: dict[str, int], *, seed: int, progress: bool) -> None:
    """Write all pictures and labels. Threads suffice: NumPy and OpenCV let go of the interpreter while they work."""
    for kind in ("images", "labels"):
        for split in counts:
            (folder / kind / split).mkdir(parents=True)
    jobs = [(split, index) for split, count in counts.items() for index in range(count)]
    pool = ThreadPoolExecutor()
    try:
        done = pool.map(lambda job: write_picture(folder, *job, seed=seed), jobs)
        for _ in tqdm(done, "drawing shapes", len(jobs), unit="picture", disable=not progress):
            pass
    finally:
        pool.shutdown(cancel_futures=True)


def make_shapes(folder: str | Path, *, seed: int = 0, train: int = 640, val: int = 128, progress: bool = True) -> Path:
    """Make the data set unless it is there: images/{train,val}/*.jpg and labels/{train,val}/*.txt. Returns its folder.

    It is drawn in a folder beside `folder` that gets its name at the end, so that a run cut short leaves no half set
    under that name; of two runs at once the first to end wins. UserError where the folder holds anything but this set.
    """
    folder = Path(folder).absolute()
    if seed < 0 or train < 1 or val < 1:
        raise UserError(f"seed {seed}, train {train}, val {val}: seed must be 0 or more, numbers of pictures 1 or more")
    record = {"shapes": VERSION, "seed": seed, "train": train, "val": val}
    if is_made(folder, record):
        if progress:
            print(f"{folder} is complete already: nothing to do")
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-unfinished-", dir=folder.parent))
    try:
        fill(draft, {"train": train, "val": val}, seed=seed, progress=progress)
        (draft / RECORD).write_text(json.dumps(record) + "\n")
        draft.chmod(0o755)  # mkdtemp's folders are for their owner alone
        if not is_made(folder, record):
            draft.replace(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder
