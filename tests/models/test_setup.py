"""Model that a training starts with: the names of its classes."""

import pytest
from small_models import TINY, save_pickled, tiny_model

from models.setup import build_model, rebuild_model, take_names

NAMES = {0: "a", 1: "b", 2: "c"}


@pytest.mark.parametrize(
    "data_names, warned",
    [
        (NAMES, ""),
        ({0: "A", 1: " b", 2: "c"}, ""),
        ({0: "b", 1: "a", 2: "c"}, "class 0 is 'a' and 'b'"),
        ({0: "a", 1: "b", 2: "ship"}, "class 2 is 'c' and 'ship'"),
    ],
)
def test_other_class_names_than_those_of_the_weights_are_named(tmp_path, capsys, data_names, warned):
    model = tiny_model()
    model.names = NAMES
    started = build_model(weights=save_pickled(model, tmp_path / "m.pt"), cfg="", num_classes=3)
    resumed = rebuild_model({"yaml": TINY, "names": NAMES}, num_classes=3, checkpoint="last.pt", data="d.yaml")
    for found, data in ((started, "d.yaml"), (resumed, "e.yaml")):  # a warning is printed once per text
        take_names(found, data_names, data)
        message = capsys.readouterr().err
        assert found.names == data_names
        assert (warned in message and data in message) if warned else message == ""
