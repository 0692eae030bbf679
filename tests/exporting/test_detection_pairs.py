"""Pairs of detections: hand-made rows whose partners are known, and assignments against every possible one."""

import itertools

import pytest
import torch

from utils.exporting.detection_pairs import Pairing, PairRule, find_partners, pair_detections, sum_pairings

RULE = PairRule(iou=0.9, confidence=0.01)


def rows(*found):
    """Make detections (n, 6) of 100 x 100 pixels from (left edge, confidence, class)."""
    return torch.tensor([[x, 0.0, x + 100, 100, conf, cls] for x, conf, cls in found]).reshape(-1, 6)


@pytest.mark.parametrize("reference, export, counts, lost, added", [
    ([], [], (0, 0, 0), [], []),
    ([(0, 0.9, 1)], [], (1, 0, 0), [0], []),
    ([], [(0, 0.9, 1)], (0, 1, 0), [], [0]),
    ([(0, 0.9, 1)], [(0, 0.9, 1)], (1, 1, 1), [], []),
    ([(0, 0.9, 1)], [(4, 0.9, 1)], (1, 1, 1), [], []),  # an IoU of 0.923
    ([(0, 0.9, 1)], [(6, 0.9, 1)], (1, 1, 0), [0], [0]),  # of 0.887
    ([(0, 0.9, 1)], [(0, 0.9, 2)], (1, 1, 0), [0], [0]),  # another class
    ([(0, 0.9, 1)], [(0, 0.895, 1)], (1, 1, 1), [], []),
    ([(0, 0.9, 1)], [(0, 0.88, 1)], (1, 1, 0), [0], [0]),  # another confidence
    ([(0, 0.9, 1)], [(0, 0.9, 1), (0, 0.9, 1)], (1, 2, 1), [], [1]),  # one to one
    ([(0, 0.255, 1)], [(0, 0.258, 1)], (0, 0, 0), [], []),  # a pair near the threshold
    ([(0, 0.255, 1)], [], (0, 0, 0), [], []),  # its partner is below the threshold
    ([], [(0, 0.255, 1)], (0, 0, 0), [], []),
    ([(0, 0.262, 1)], [(0, 0.258, 1)], (0, 0, 0), [], []),  # one of the pair is near it
    ([(0, 0.262, 1)], [], (1, 0, 0), [0], []),
    ([(0, 0.9, 1), (300, 0.8, 1)], [(300, 0.8, 1), (0, 0.9, 1)], (2, 2, 2), [], []),  # in any order
    # The first row overlaps both, and the best with the second row's only partner: it gives way.
    ([(2, 0.9, 1), (-2, 0.9, 1)], [(1, 0.9, 1), (4.5, 0.9, 1)], (2, 2, 2), [], []),
])  # fmt: skip
def test_pairs(reference, export, counts, lost, added):
    paired = pair_detections(rows(*reference), rows(*export), RULE, 0.25)
    assert (paired.counts, paired.lost.tolist(), paired.added.tolist()) == (Pairing(*counts), lost, added)


def test_share_and_sum():
    assert sum_pairings([]) == Pairing() and Pairing().share is None
    assert sum_pairings([Pairing(3, 2, 2), Pairing(1, 0, 0)]) == Pairing(4, 2, 2)
    assert Pairing(4, 4, 3).share == 0.75 and Pairing(1, 0, 0).share == 0


@pytest.mark.parametrize("seed", range(20))
def test_no_assignment_has_more_pairs(seed):
    generator = torch.Generator().manual_seed(seed)
    n, m = torch.randint(0, 6, (2,), generator=generator).tolist()
    alike = torch.rand(n, m, generator=generator) - 0.6
    partner = find_partners(alike).tolist()
    taken = [column for column in partner if column >= 0]
    assert len(set(taken)) == len(taken) and all(alike[i, j] >= 0 for i, j in enumerate(partner) if j >= 0)
    padded = torch.nn.functional.pad(alike, (0, n), value=-1)  # columns for rows without a partner
    most = max(
        sum(bool(padded[i, j] >= 0) for i, j in enumerate(chosen)) for chosen in itertools.permutations(range(m + n), n)
    )
    assert len(taken) == most
