"""Loaders of a run, and what the options leave without effect on them."""

import cv2
import numpy as np

from utils.config import TrainOptions
from utils.console import begin_program
from utils.datasets.labels import load_index
from utils.training.loaders import warn_about_image_weights


def test_image_weights_say_that_backgrounds_are_never_drawn(tmp_path, capsys):
    for name, row in (("a", "0 .5 .5 .2 .2"), ("b", ""), ("c", "")):
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.full((24, 32, 3), 90, np.uint8))
        (tmp_path / f"{name}.txt").write_text(row)
    index = load_index(tmp_path, 1, cache=False, progress=False)
    for options, said in ((TrainOptions(image_weights=True), True), (TrainOptions(), False)):
        begin_program()
        warn_about_image_weights(options, index)
        text = "WARNING: --image-weights never draws backgrounds: 2 of 3 images have no labels"
        assert (text in capsys.readouterr().err) is said
