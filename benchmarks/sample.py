"""A mosaic training sample on one core, without a cache and with --cache ram, against the textbook way.

    python benchmarks/sample.py
    python benchmarks/sample.py --imgsz 320

    python benchmarks/sample.py --folder coco128/images/train2017     with these images; else with synthetic ones

The textbook way decodes four images and pastes them on a new grey canvas of twice the size. It warps the whole canvas,
changes the colours by look-up tables, flips and transposes. It draws the same random numbers, so the images of both
ways can be compared. They differ by rounding, where pixels are interpolated from another part of the canvas or coloured
in another order. Both ways make batches of 16. Each runs in a process of its own, ours with train.py's malloc settings.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.timing import InOwnProcess, compare, print_rows, row
from utils.config import Hyperparameters
from utils.datasets.labels import load_index
from utils.device import tune_malloc
from utils.images.augment import place_labels, sample_warp
from utils.loading.dataset import DetectionDataset
from utils.loading.loader import LoadSettings, make_loader
from utils.loading.sampler import BatchKey, random_stream
from utils.pixel_format import GREY

SHAPES = ((480, 640), (640, 480), (427, 640), (640, 427), (500, 375))  # COCO's most common ones
SEED, SAMPLES, BATCH = 0, 32, 16
WARM_UP = 4  # passes over all samples; until then our memory grows


def synthetic_images(folder: Path, count: int) -> Path:
    """Write JPEGs of COCO's sizes with seven labels each. Their texture compresses about as photographs do."""
    rng = np.random.default_rng(SEED)
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    for i in range(count):
        height, width = SHAPES[i % len(SHAPES)]
        coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        coarse = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        grain = cv2.GaussianBlur(rng.normal(0, 60, (height, width, 3)), (0, 0), 1.2)
        image = (coarse + grain).clip(0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"images/{i:04d}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 92])
        wh = rng.uniform(0.05, 0.5, (7, 2))
        rows = np.concatenate([rng.integers(0, 80, (7, 1)), rng.uniform(wh / 2, 1 - wh / 2), wh], 1)
        np.savetxt(folder / f"labels/{i:04d}.txt", rows, fmt=["%d"] + ["%.6f"] * 4)
    return folder / "images"


def textbook_sample(dataset: DetectionDataset, i: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the mosaic around image i in epoch 0: a (3, S, S) RGB image and (n, 5) boxes in pixels."""
    settings, index = dataset.augment, dataset.index
    rng = random_stream(SEED, 0, i, 0)
    rng.random()  # the draw for mosaic
    others = rng.integers(len(index), size=7).tolist()
    four = rng.permutation([i, *others[:3]]).tolist()
    centre_y, centre_x = rng.uniform(size / 2, 3 * size / 2, 2).astype(int).tolist()
    canvas = np.full((2 * size, 2 * size, 3), GREY, np.uint8)
    boxes = []
    for k, number in enumerate(four):
        tile = cv2.imread(index.paths[number])
        height, width = tile.shape[:2]
        shape = dataset.images.shape(number)
        if shape != (height, width):
            tile = cv2.resize(tile, shape[::-1], interpolation=cv2.INTER_LINEAR)
        left = centre_x if k % 2 else centre_x - shape[1]
        top = centre_y if k >= 2 else centre_y - shape[0]
        x1, y1, x2, y2 = max(left, 0), max(top, 0), min(left + shape[1], 2 * size), min(top + shape[0], 2 * size)
        canvas[y1:y2, x1:x2] = tile[y1 - top : y2 - top, x1 - left : x2 - left]
        boxes.append(place_labels(index.boxes(number), [], gain=shape, pad=(top, left))[0])
    boxes = np.concatenate(boxes)
    boxes[:, 1:] = boxes[:, 1:].clip(0, 2 * size)
    warp = sample_warp(canvas.shape[:2], (size, size), settings=settings, rng=rng).on_whole_pixels()
    image = warp.image(canvas)
    boxes = warp.labels(boxes, [np.zeros((0, 2), np.float32)] * len(boxes))
    rng.random()  # whether another mosaic is mixed in
    image = shift_by_tables(image, 1 + rng.uniform(-1, 1, 3) * settings.hsv)
    rng.random()  # the draw for flipud
    if rng.random() < settings.fliplr:
        image = np.fliplr(image)
        boxes[:, [1, 3]] = size - boxes[:, [3, 1]]
    return np.ascontiguousarray(image[:, :, ::-1].transpose(2, 0, 1)), boxes


def shift_by_tables(image: np.ndarray, factors: np.ndarray) -> np.ndarray:
    hue, saturation, value = cv2.split(cv2.cvtColor(image, cv2.COLOR_BGR2HSV))
    levels = np.arange(256)
    tables = [
        table.astype(np.uint8)
        for table in (
            (levels * factors[0]) % 180,
            (levels * factors[1]).clip(0, 255),
            (levels * factors[2]).clip(0, 255),
        )
    ]
    shifted = cv2.merge([cv2.LUT(*pair) for pair in zip((hue, saturation, value), tables)])
    return cv2.cvtColor(shifted, cv2.COLOR_HSV2BGR)


def open_set(folder: Path, size: int, cache: str | None) -> DetectionDataset:
    cv2.setNumThreads(0)  # one core
    loader = make_loader(
        load_index(folder, 80, progress=False),
        imgsz=size,
        batch_size=1,
        hyp=Hyperparameters(),
        loading=LoadSettings(cache=cache, workers=0),
        seed=SEED,
    )
    return loader.dataset


def batch_indices(dataset: DetectionDataset) -> list[list[int]]:
    """Return the indices of the samples, one list for each batch."""
    numbers = list(range(min(SAMPLES, len(dataset.index))))
    return [numbers[k : k + BATCH] for k in range(0, len(numbers), BATCH)]


def our_batch(dataset: DetectionDataset, numbers: list[int], size: int) -> torch.Tensor:
    return dataset[BatchKey(0, numbers, [0] * len(numbers), (size, size), None)].images


def textbook_batch(dataset: DetectionDataset, numbers: list[int], size: int) -> torch.Tensor:
    return torch.stack([torch.from_numpy(textbook_sample(dataset, i, size)[0]) for i in numbers])


def textbook_samples(folder: Path, size: int, cache: str | None) -> Callable[[], None]:
    dataset = open_set(folder, size, None)
    return lambda: [textbook_batch(dataset, numbers, size) for numbers in batch_indices(dataset)]


def our_samples(folder: Path, size: int, cache: str | None) -> Callable[[], None]:
    tune_malloc()
    dataset = open_set(folder, size, cache)
    return lambda: [our_batch(dataset, numbers, size) for numbers in batch_indices(dataset)]


def difference(dataset: DetectionDataset, size: int, count: int = 8) -> float:
    """Return the mean difference of the pixels of both ways, in levels of 256."""
    numbers = list(range(count))
    ours, theirs = (make(dataset, numbers, size).int() for make in (our_batch, textbook_batch))
    return (ours - theirs).abs().float().mean().item()


def images_decoded(dataset: DetectionDataset, size: int) -> float:
    """Return the number of images whose rows our way decodes per sample. Without partial decoding, all rows count."""
    original, shares = dataset.images.read, []

    def read(i: int, rows: int) -> np.ndarray:
        image = original(i, rows)
        shares.append(len(image) / dataset.images.shape(i)[0])
        return image

    dataset.images.read = read
    batches = batch_indices(dataset)
    for numbers in batches:
        our_batch(dataset, numbers, size)
    del dataset.images.read
    return sum(shares) / sum(map(len, batches))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--folder", type=Path, help="folder of JPEGs; default: synthetic ones")
    parser.add_argument("--pairs", type=int, default=15)
    options = parser.parse_args()
    size, rows, notes = options.imgsz, [], []
    with tempfile.TemporaryDirectory() as place:
        folder = options.folder or synthetic_images(Path(place), 2 * SAMPLES)
        for cache, at_least in ((None, "1.6"), ("ram", "3")):
            name, dataset = f"--cache {cache}" if cache else "no cache", open_set(folder, size, cache)
            count = sum(map(len, batch_indices(dataset)))
            sides = [InOwnProcess(make, folder, size, cache) for make in (textbook_samples, our_samples)]
            timing = compare(*sides, pairs=options.pairs, warm_up=WARM_UP)
            for side in sides:
                side.close()
            timing = type(timing)(*([value / count for value in side] for side in timing))
            rows.append(row(f"mosaic sample, {size}, {name}", timing, at_least=at_least))
            notes.append(f"Pixels differ by {difference(dataset, size):.2f} of 255 in the mean ({name}).")
            if cache is None:
                notes.append(
                    f"Per sample, the rows of {images_decoded(dataset, size):.2f} images are decoded; the "
                    "textbook decodes those of 4."
                )
    print_rows(rows, *notes)


if __name__ == "__main__":
    main()
