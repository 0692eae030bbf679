"""Built-in data set "shapes": eight classes, drawn from a seed. Nothing is downloaded.

An image depends on (seed, split, index) alone. Pixels and labels are the same on every machine, and the JPEG files are
the same bytes for the same OpenCV build. The folder appears under its name when it is complete, never before.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2

from utils.console import info, progress_bar
from utils.datasets.shapes_drawing import DrawnImage, draw_image
from utils.errors import UserError
from utils.temporary_files import draft_folder

VERSION = 4  # of the drawing; raise it when the same seed gives other images
JPEG_QUALITY = 90
RECORD = "made.json"  # in the data set's folder: the version and the numbers it was made from


def label_text(drawn: DrawnImage) -> str:
    """Return one row per box: class, then centre and size in fractions of the image."""
    H, W = drawn.image.shape[:2]
    rows = [
        (class_id, (left + right) / 2 / W, (top + bottom) / 2 / H, (right - left) / W, (bottom - top) / H)
        for class_id, left, top, right, bottom in drawn.boxes
    ]
    return "".join("{} {:.6f} {:.6f} {:.6f} {:.6f}\n".format(*row) for row in rows)


def write_image(folder: Path, split: str, index: int, *, seed: int) -> None:
    """Draw one image and write it with its labels."""
    drawn = draw_image(seed, split, index)
    _, jpeg = cv2.imencode(".jpg", drawn.image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    (folder / "images" / split / f"{index:05d}.jpg").write_bytes(jpeg.tobytes())
    (folder / "labels" / split / f"{index:05d}.txt").write_text(label_text(drawn))


def is_complete(folder: Path, record: dict) -> bool:
    """Return whether the folder holds this data set. Raises UserError if it holds anything else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        found = json.loads((folder / RECORD).read_text())
    except (OSError, ValueError):
        raise UserError(f"{folder} exists but was not made by make_shapes.py: give another --folder") from None
    if found != record:
        wanted, present = (", ".join(f"{k} {v}" for k, v in d.items()) for d in (record, found))
        raise UserError(f"{folder} holds shapes of {present}; wanted: {wanted}; delete it or give another --folder")
    return True


def write_images(folder: Path, counts: dict[str, int], *, seed: int, progress: bool) -> None:
    """Write all images and labels, in threads: NumPy and OpenCV release the GIL while they work."""
    for kind in ("images", "labels"):
        for split in counts:
            (folder / kind / split).mkdir(parents=True)
    jobs = [(split, index) for split, count in counts.items() for index in range(count)]
    pool = ThreadPoolExecutor()
    try:
        done = pool.map(lambda job: write_image(folder, *job, seed=seed), jobs)
        for _ in progress_bar(done, desc="drawing shapes", total=len(jobs), unit="image", disable=not progress):
            pass
    finally:
        pool.shutdown(cancel_futures=True)


def make_shapes(folder: str | Path, *, seed: int = 0, train: int = 640, val: int = 128, progress: bool = True) -> Path:
    """Make images/{train,val}/*.jpg and labels/{train,val}/*.txt unless they exist. Return the folder.

    They are written to a temporary folder beside `folder` that is renamed at the end, so an interrupted run leaves no
    partial data set. If two run at once, the first to finish wins. Raises UserError if the folder holds anything else.
    """
    folder = Path(folder).absolute()
    if seed < 0 or train < 1 or val < 1:
        raise UserError(f"seed {seed}, train {train}, val {val}: seed must be 0 or more, numbers of images 1 or more")
    record = {"shapes": VERSION, "seed": seed, "train": train, "val": val}
    if is_complete(folder, record):
        if progress:
            info(f"{folder} is complete already: nothing to do")
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with draft_folder(folder) as draft:
        write_images(draft, {"train": train, "val": val}, seed=seed, progress=progress)
        (draft / RECORD).write_text(json.dumps(record) + "\n")
        if not is_complete(folder, record):
            draft.replace(folder)
    return folder
