"""Statistics of batches: the parts that processes exchange add up to the whole."""

import numpy as np
import pytest
import torch
from known_model import LABELS, make_batch, make_loss

from utils.inference.batch_statistics import BatchStatistics, labels_by_image, letterboxes_of, mean_losses


def test_losses_of_processes_add_up():
    """Both shares of a batch give the loss of the batch, for means that are over all of its rows and cells."""
    raw = [torch.randn(2, 3, 4, 6, 7, generator=torch.Generator().manual_seed(0))]
    batch, loss = make_batch([0, 1], LABELS), make_loss()
    expected = loss(raw, batch.targets)[1]
    shares = []
    for k in range(2):
        targets = batch.targets[batch.targets[:, 0] == k].clone()
        targets[:, 0] = 0
        sums = torch.stack(loss.sums([raw[0][k : k + 1]], targets)).numpy()
        shares.append(BatchStatistics(1, *[np.zeros(0)] * 5, sums))
    assert mean_losses(loss, [shares]) == pytest.approx([part.item() for part in expected])


def test_no_batches_have_no_losses():
    assert mean_losses(make_loss(), []) == mean_losses(None, []) == (0, 0, 0)


def test_labels_by_image():
    first, second, third = labels_by_image(make_batch([0, 1, 2], LABELS))
    assert first.tolist() == [pytest.approx([0, 12.5, 12.5, 15, 15])] and len(second) == 2 and third.shape == (0, 5)


def test_augmented_images_cannot_be_evaluated():
    batch = make_batch([0], LABELS)._replace(letterboxes=[None])
    with pytest.raises(AssertionError, match="no letterbox"):
        letterboxes_of(batch)
