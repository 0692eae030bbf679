"""Check of the anchors against the labels, and the fit of better ones.

All sizes are width, height in pixels at the training size. The closeness of a label and an anchor on one side is
min(label / anchor, anchor / label), from 0 to 1. Theirs is that of the worse side. An anchor reaches a label if their
closeness is above 1 / threshold (hyperparameter anchor_t). Only such labels can be learned.
Letters in shapes: N labels, n anchors, L levels, A anchors per level, R restarts.
"""

from typing import NamedTuple

import numpy as np

from utils import console
from utils.errors import UserError

GOOD_RECALL = 0.98  # anchors that reach more of the labels are kept
SMALL_PX = 3
MIN_ANCHOR_PX = 2.0
RESTARTS = 30
SAMPLE = 16384  # labels for the restarts of k-means, and for the first test of a mutation
CHUNK = 16384  # labels at a time: the arrays stay in the CPU's cache


class AnchorRecall(NamedTuple):
    """Share of labels that an anchor reaches, and the mean number of anchors that reach a label."""

    recall: float
    above_threshold: float


class AnchorReport(NamedTuple):
    """Anchors to use, (L, A, 2) in pixels, with their recall."""

    anchors_px: np.ndarray
    recall: float
    above_threshold: float
    replaced: bool  # whether they are new ones
    message: str  # for the user
    warning: str  # for the user; empty if there is none


class _Closeness(NamedTuple):
    best: np.ndarray  # (N,) closeness of the closest anchor
    count: np.ndarray  # (N,) anchors closer than 1 / threshold


def _measure_closeness(anchors: np.ndarray, wh: np.ndarray, threshold: float) -> _Closeness:
    best, count = np.empty(len(wh), np.float32), np.empty(len(wh), np.int32)
    anchor_w, anchor_h = np.asarray(anchors, np.float32).reshape(-1, 2).T[:, :, None]  # (n, 1) each
    for start in range(0, len(wh), CHUNK):
        part = slice(start, start + CHUNK)
        w, h = np.ascontiguousarray(wh[part].T, np.float32)
        with np.errstate(divide="ignore", invalid="ignore"):  # a side of 0 is close to nothing
            closeness = np.minimum(w / anchor_w, anchor_w / w)  # (n, chunk)
            np.minimum(closeness, h / anchor_h, out=closeness)
            np.minimum(closeness, anchor_h / h, out=closeness)
        np.fmax.reduce(closeness, axis=0, out=best[part])
        np.sum(closeness > 1 / threshold, axis=0, out=count[part])
    return _Closeness(best, count)


def _label_fitness(anchors: np.ndarray, wh: np.ndarray, threshold: float) -> np.ndarray:
    """Return the closeness (N,) of the closest anchor, 0 for a label that no anchor reaches."""
    best = _measure_closeness(anchors, wh, threshold).best
    return np.where(best > 1 / threshold, best, np.float32(0))


def anchor_recall(anchors: np.ndarray, wh: np.ndarray, threshold: float) -> AnchorRecall:
    """Return how well `anchors` (..., 2) reach labels `wh` (N, 2). Without labels both numbers are 0."""
    wh = np.asarray(wh, np.float32).reshape(-1, 2)
    if not len(wh):
        return AnchorRecall(0.0, 0.0)
    count = _measure_closeness(anchors, wh, threshold).count
    return AnchorRecall(float(np.mean(count > 0)), float(np.mean(count)))


def anchor_fitness(anchors: np.ndarray, wh: np.ndarray, threshold: float) -> float:
    """Return the mean over labels `wh` (N, 2) of the closest anchor's closeness, 0 for a label out of reach."""
    return float(_label_fitness(anchors, np.asarray(wh, np.float32), threshold).mean(dtype=np.float64))


def fit_anchors(
    wh: np.ndarray, n: int, threshold: float, generations: int, rng: np.random.Generator, *, progress: bool = False
) -> np.ndarray:
    """Fit `n` anchors to labels `wh` (N, 2): k-means, then `generations` mutations that must improve anchor_fitness.

    Labels with both sides under 2 px are ignored. Returns (n, 2) float32, smallest area first. Raises UserError if no
    label is left.
    """
    wh = np.asarray(wh, np.float32).reshape(-1, 2)
    wh = wh[(wh >= 2).any(axis=1)]
    if not len(wh):
        raise UserError("anchors cannot be fitted: no label is 2 px or more at this size; raise --imgsz, check labels")
    start = np.maximum(_kmeans(wh, n, rng) if len(wh) >= n else _scatter(wh, n, rng), MIN_ANCHOR_PX)
    return _by_area(_evolve(_by_area(start), wh, threshold, generations, rng, progress)).astype(np.float32)


def _by_area(anchors: np.ndarray) -> np.ndarray:
    return anchors[np.argsort(anchors.prod(axis=1), kind="stable")]


def _scatter(wh: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Return n anchors for fewer labels: each label once, then random labels of 0.5 to 2 times their size."""
    extra = wh[rng.integers(len(wh), size=n - len(wh))] * 2 ** rng.uniform(-1, 1, (n - len(wh), 2))
    return np.concatenate([wh, extra])


def _kmeans(wh: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Return centres (n, 2) of `wh` by Lloyd's algorithm on logarithms, whose differences are ratios as in closeness.

    In pixels, most centres would move to the few large labels. Restarts run on a sample. The one with the least mean
    distance is continued on all labels.
    """
    points = np.log(np.maximum(wh, MIN_ANCHOR_PX)).astype(np.float32)
    sample = rng.permutation(points)[:SAMPLE]
    centres = np.stack([rng.permutation(sample)[:n] for _ in range(RESTARTS)])
    centres, distortion = _lloyd(sample, centres)
    best = centres[None, np.argmin(distortion)]
    return np.exp(_lloyd(points, best)[0][0] if len(points) > len(sample) else best[0])


def _lloyd(
    points: np.ndarray, centres: np.ndarray, *, tolerance: float = 1e-4, limit: int = 100
) -> tuple[np.ndarray, np.ndarray]:
    """Move centres (R, n, 2) until the mean distance of `points` (N, 2) falls by less than `tolerance` in every run.

    Returns the centres and the mean distances (R,). A centre without points does not move.
    """
    distortion = np.full(len(centres), np.inf)
    for _ in range(limit):
        previous = distortion
        moved = [_move_to_means(points, run) for run in centres]
        distortion = np.array([distance for _, distance in moved])
        centres = np.stack([centre for centre, _ in moved])
        if np.all(previous - distortion < tolerance):
            break
    return centres, distortion


def _move_to_means(points: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the means (n, 2) of the points nearest to each of `centres`, and the mean distance to the nearest."""
    total, weight, distance = np.zeros((len(centres), 2)), np.zeros(len(centres)), 0.0
    for start in range(0, len(points), CHUNK):
        x, y = points[start : start + CHUNK].T
        squared = (x - centres[:, :1]) ** 2 + (y - centres[:, 1:]) ** 2  # (n, chunk)
        nearest = squared.argmin(axis=0)
        distance += float(np.sqrt(squared.min(axis=0)).sum(dtype=np.float64))
        weight += np.bincount(nearest, minlength=len(centres))
        for axis, values in enumerate((x, y)):
            total[:, axis] += np.bincount(nearest, weights=values, minlength=len(centres))
    means = np.where(weight[:, None] > 0, total / np.maximum(weight, 1)[:, None], centres)
    return means.astype(points.dtype), distance / len(points)


def _evolve(
    anchors: np.ndarray, wh: np.ndarray, threshold: float, generations: int, rng: np.random.Generator, progress: bool
) -> np.ndarray:
    """Mutate the anchors `generations` times and keep what is strictly fitter on all labels.

    Most mutations are clearly worse. A sample of the labels shows this in a fraction of the time.
    """
    sample = rng.permutation(wh)[:SAMPLE]
    on_sample, fitness = _label_fitness(anchors, sample, threshold), anchor_fitness(anchors, wh, threshold)
    bar = console.progress_bar(range(generations), desc="Evolving anchors", disable=not progress, leave=False)
    for _ in bar:
        candidate = np.maximum(anchors * _draw_factors(anchors.shape, rng), MIN_ANCHOR_PX)
        candidate_on_sample = _label_fitness(candidate, sample, threshold)
        if not _may_be_better(candidate_on_sample - on_sample):
            continue
        candidate_fitness = anchor_fitness(candidate, wh, threshold)
        if candidate_fitness > fitness:
            anchors, on_sample, fitness = candidate, candidate_on_sample, candidate_fitness
            bar.set_postfix_str(f"fitness {fitness:.4f}", refresh=False)
    return anchors


def _may_be_better(gain: np.ndarray) -> bool:
    """Return whether the mean of all gains may be above 0, given a sample (N,), within four standard errors."""
    return bool(gain.mean() + 4 * gain.std() / np.sqrt(len(gain)) > 0)


def _draw_factors(
    shape: tuple[int, ...], rng: np.random.Generator, *, share: float = 0.9, sigma: float = 0.1
) -> np.ndarray:
    """Draw factors from 0.3 to 3, not all of them 1.

    A `share` of the entries is normal around 1, with a standard deviation that is uniform from 0 to `sigma`.
    """
    while True:
        chosen, deviation = rng.random(shape) < share, rng.random() * sigma
        factors = np.clip(1 + chosen * deviation * rng.standard_normal(shape), 0.3, 3.0)
        if np.any(factors != 1):
            return factors


def check_anchors(
    anchors_px: np.ndarray,
    wh: np.ndarray,
    threshold: float,
    rng: np.random.Generator,
    *,
    strides: np.ndarray | None = None,
    generations: int = 1000,
    progress: bool = False,
) -> AnchorReport:
    """Keep anchors (L, A, 2) that reach more than 98 % of labels `wh` (N, 2), else fit new ones and use the better.

    New anchors replace the old ones only if their recall is strictly higher. Placeholders (a number of anchors instead
    of sizes) are always replaced. New anchors go to the levels by size, the smallest to the finest of `strides` (L,).
    Without strides, the levels keep the order of their old sizes. Without labels the anchors are kept. Raises UserError
    for placeholders without labels.
    """
    old, wh = np.asarray(anchors_px, np.float32), np.asarray(wh, np.float32).reshape(-1, 2)
    placeholder = _is_placeholder(old)
    if not len(wh) and not placeholder:
        return AnchorReport(old, 0.0, 0.0, False, "anchors kept: there are no labels to compare with", "")
    before, warning = anchor_recall(old, wh, threshold), _describe_small_labels(wh)
    if before.recall > GOOD_RECALL and not placeholder:
        return AnchorReport(old, *before, False, f"anchors kept: {_describe(before)}", warning)
    new = fit_anchors(wh, old.shape[0] * old.shape[1], threshold, generations, rng, progress=progress)
    new = _to_levels(new, old, strides)
    after = anchor_recall(new, wh, threshold)
    if after.recall > before.recall or placeholder:
        replaced = "" if placeholder else f" (before: {_describe(before)})"
        return AnchorReport(new, *after, True, f"anchors replaced: {_describe(after)}{replaced}", warning)
    message = f"anchors kept: {_describe(before)}, fitted ones reach no more"
    return AnchorReport(old, *before, False, message, warning)


def _describe(found: AnchorRecall) -> str:
    return f"best possible recall {found.recall:.4f}, {found.above_threshold:.2f} anchors per target"


def _describe_small_labels(wh: np.ndarray) -> str:
    small = int((wh < SMALL_PX).any(axis=1).sum())
    problem = f"{small} of {len(wh)} labels are under {SMALL_PX} px wide or high at this --imgsz."
    return f"{problem} Raise --imgsz if these objects matter." if small else ""


def _is_placeholder(anchors: np.ndarray) -> bool:
    """Return whether the sizes are placeholders: the same in all levels, or without width or height."""
    same = len(anchors) > 1 and bool(np.all(anchors == anchors[:1]))
    return same or bool(np.any(anchors <= 0))


def _to_levels(flat: np.ndarray, old: np.ndarray, strides: np.ndarray | None) -> np.ndarray:
    """Distribute anchors sorted by area over levels in the shape of `old` (L, A, 2). Coarse levels may be first."""
    sizes = old.prod(axis=2).mean(axis=1) if strides is None else np.asarray(strides)
    levels = flat.reshape(old.shape)
    return np.ascontiguousarray(levels[::-1]) if sizes[-1] < sizes[0] else levels
