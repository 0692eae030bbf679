"""Fixtures that several test files share."""

import os
from collections.abc import Iterator
from pathlib import Path

# before torch: some tests fork, and only the forking thread exists in the child
os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import numpy as np
import pytest
import yaml

from utils import console

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def fresh_console() -> None:
    """Print warnings again that an earlier test has printed, as a new program would."""
    console.begin_program()


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory) -> Iterator[None]:
    """Let the tests and the programs that they start keep caches in a temporary folder, not in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def reference() -> Path:
    """Return the folder with reference numbers, data and weights. Tests that need it are skipped without it."""
    folder = Path(os.environ.get("ANCHORAGE_REFERENCE", ROOT / ".." / "shared")).resolve()
    if not (folder / "golden").is_dir():
        pytest.skip(f"reference folder {folder} is absent (set ANCHORAGE_REFERENCE)")
    return folder


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    """Return the folder with the small reference numbers, which are part of the repository."""
    return ROOT / "tests" / "golden"


@pytest.fixture(autouse=True)
def console_of_a_new_program() -> None:
    """Print each warning again, as at the start of a program."""
    console.begin_program()


@pytest.fixture
def fast_kernels(monkeypatch) -> None:
    """Use the speed tricks, even if ANCHORAGE_PLAIN turns them off for the other tests."""
    monkeypatch.setattr("utils.kernels.FAST", True)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """Write a data set of two classes: 24 + 8 small images with bright and dark boxes on noise, two of them empty.

    Return its YAML.
    """
    folder = tmp_path_factory.mktemp("tiny data")
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 8)):
        (folder / "images" / split).mkdir(parents=True)
        (folder / "labels" / split).mkdir(parents=True)
        for number in range(count):
            image, rows = draw_boxes(rng, 0 if number == 5 else int(rng.integers(1, 4)))
            cv2.imwrite(str(folder / "images" / split / f"{number}.png"), image)
            (folder / "labels" / split / f"{number}.txt").write_text("".join(rows))
    file = folder / "tiny.yaml"
    file.write_text("train: images/train\nval: images/val\nnames: [dark, bright]\n")
    return file


def draw_boxes(rng: np.random.Generator, count: int) -> tuple[np.ndarray, list[str]]:
    """Draw an image of 96 x 64 pixels with `count` filled boxes. Return it and its label rows."""
    image = rng.integers(90, 160, (64, 96, 3), dtype=np.uint8)
    rows = []
    for _ in range(count):
        w, h = rng.integers(14, 40, 2)
        x, y = rng.integers(0, 96 - w), rng.integers(0, 64 - h)
        kind = int(rng.integers(2))
        image[y : y + h, x : x + w] = (20, 20, 60) if kind == 0 else (240, 250, 200)
        rows.append(f"{kind} {(x + w / 2) / 96:.6f} {(y + h / 2) / 64:.6f} {w / 96:.6f} {h / 64:.6f}\n")
    return image, rows


@pytest.fixture(scope="session")
def tiny_cfg(tmp_path_factory) -> Path:
    """Write a model YAML: yolov5n at half its width and least depth. An epoch of the tiny data takes about a second."""
    content = yaml.safe_load((ROOT / "models" / "yolov5n.yaml").read_text())
    content.update(width_multiple=0.125, depth_multiple=0.1)
    file = tmp_path_factory.mktemp("tiny model") / "tiny.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.fixture(scope="session")
def make_run():
    """Return a function that makes a Run around a model, without data and loaders, for tests of its state."""
    import torch

    from models.yolo import DetectionModel
    from utils.config import Hyperparameters, TrainOptions
    from utils.distributed import Distributed
    from utils.ema import ModelEMA
    from utils.optim import build_optimizer
    from utils.schedule import EarlyStopping
    from utils.training.nan_guard import NanGuard
    from utils.training.progress import Progress
    from utils.training.run import Run

    def make(cfg, **settings) -> Run:
        model = DetectionModel(cfg, **settings)
        parts = {"data": None, "train_loader": None, "val_loader": None, "loss": None, "schedule": None}
        return Run(
            **parts,
            options=TrainOptions(),
            hyp=Hyperparameters(),
            distributed=Distributed(0, 1, torch.device("cpu")),
            model=model,
            wrapped=model,
            frozen=[],
            optimizer=build_optimizer(model),
            ema=ModelEMA(model),
            scaler=torch.amp.GradScaler("cpu", enabled=False),
            early_stop=EarlyStopping(5),
            nan_guard=NanGuard(model),
            progress=Progress(),
            autocast=None,
            environment={"steps_per_epoch": 4},
        )

    return make


@pytest.fixture(scope="session")
def leave_behind():
    """Return a function that makes the temporary file, or folder, for a path as a killed process leaves it."""
    from utils.temporary_files import temporary_path

    def leave(path: Path, *, folder: bool = False) -> Path:
        name = temporary_path(path)
        left = name.with_name(name.name.replace(f"-{os.getpid()}-", f"-{2**22 + 1}-"))  # no process has this number
        left.parent.mkdir(parents=True, exist_ok=True)
        (left / "images").mkdir(parents=True) if folder else left.write_bytes(b"half")
        return left

    return leave
