"""Images of a proof: which they are, their shape, and whether their labels count."""

from dataclasses import replace

import numpy as np
import pytest

from utils.datasets.locate import BUILT_IN
from utils.errors import UserError
from utils.exporting import proof_images
from utils.exporting.proof_images import find_present, open_proof_images

NAMES = {0: "dark", 1: "bright"}


def open_tiny(data, **settings):
    return open_proof_images(str(data), **{"typed": True, "names": NAMES, "shape": (64, 96), "count": 5, **settings})


def test_the_same_part_of_the_split_each_time(tiny_data):
    images = open_tiny(tiny_data)
    assert list(images.index.paths) == list(open_tiny(tiny_data).index.paths) and len(images.index) == 5
    assert len(open_tiny(tiny_data, count=0).index) == len(open_tiny(tiny_data, count=99).index) == 8
    batches = list(images.batches())
    assert [tuple(batch.images.shape) for batch in batches] == [(4, 3, 64, 96), (1, 3, 64, 96)]
    assert [path for batch in batches for path in batch.paths] == list(images.index.paths)
    assert images.has_labels and sum(len(batch.targets) for batch in batches) == len(images.index.labels) > 0


@pytest.mark.parametrize("names, has_labels", [
    (NAMES, True),
    ({0: "0", 1: "1"}, True),  # classes without names
    ({0: "bright", 1: "dark"}, False),
    ({0: "dark", 1: "bright", 2: "grey"}, False),
])  # fmt: skip
def test_labels_count_if_they_are_of_the_models_classes(tiny_data, capsys, names, has_labels):
    assert open_tiny(tiny_data, names=names).has_labels is has_labels
    assert ("has other classes than the model" in capsys.readouterr().err) is not has_labels


def test_originals_are_repeated(tiny_data):
    found = open_tiny(tiny_data).originals(7)
    assert len(found) == 7 and all(image.shape == (64, 96, 3) for image in found)
    assert np.array_equal(found[0], found[5]) and not np.array_equal(found[0], found[1])


def test_damaged_originals_are_skipped(tiny_data, tmp_path):
    images = open_tiny(tiny_data)
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"no image")
    some = replace(images, index=replace(images.index, paths=[str(damaged)]))
    with pytest.raises(UserError, match="no image of the split can be read"):
        some.originals(2)


def test_images_that_are_absent_are_not_downloaded(tmp_path, monkeypatch, capsys):
    absent = tmp_path / "absent.yaml"
    absent.write_text("path: nowhere\ntrain: a\nval: a\nnames: [a]\ndownload: https://example.invalid/a.zip\n")
    located = []
    monkeypatch.setattr(proof_images, "locate_dataset", located.append)
    find_present(str(absent))
    assert located == [str(BUILT_IN)] and "the built-in ones are used" in capsys.readouterr().out
