"""Rows of a head that weights of other classes leave to a new model."""

import pytest
import torch
from small_models import save_pickled, tiny_model

from models.head_rows import carry_head
from models.setup import carry_head_over
from models.yolo import DetectionModel

BEFORE = {0: "Person", 1: "dog", 2: "cat", 3: "kite"}


def weights_of_four() -> DetectionModel:
    model = tiny_model(nc=4)
    model.names = BEFORE
    return model


def rows_of(model: DetectionModel, level: int, name: str = "weight") -> torch.Tensor:
    """Return the rows (A, 5+C, …) of one level of the head."""
    return getattr(model.head.m[level], name).detach().unflatten(0, (model.head.num_anchors, -1))


@pytest.mark.parametrize(
    "names", [("dog", "ship", "PERSON"), ("kite",), ("a", "b"), ("cat", "dog", "kite", "Person", "x")]
)
def test_boxes_objectness_and_classes_of_the_same_name_stay(names):
    before, model = weights_of_four(), DetectionModel(tiny_model(nc=len(names)).yaml)
    model.names = dict(enumerate(names))
    rows = [next((row for row, known in BEFORE.items() if known.lower() == name.lower()), None) for name in names]
    assert carry_head(model, before.state_dict(), BEFORE) == sum(row is not None for row in rows)
    for level in range(model.head.num_levels):
        for name in ("weight", "bias"):
            old, new = rows_of(before, level, name), rows_of(model, level, name)
            assert torch.equal(new[:, :5], old[:, :5])
            for number, row in enumerate(rows):
                wanted = old[:, 5:].mean(1) if row is None else old[:, 5 + row]
                torch.testing.assert_close(new[:, 5 + number], wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "changes", [{"nc": 4}, {"nc": 2, "anchors": [[10, 13], [30, 61]]}, {"nc": 2, "width_multiple": 0.5}]
)
def test_a_head_of_other_anchors_or_inputs_or_as_many_classes_stays(changes):
    model = tiny_model(**changes)
    model.names = {number: f"class {number}" for number in range(model.num_classes)}
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert carry_head(model, weights_of_four().state_dict(), BEFORE) is None
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_line_says_what_was_carried_over(tmp_path, capsys):
    file = save_pickled(weights_of_four(), tmp_path / "four.pt")
    model = tiny_model(nc=2)
    model.names = {0: "dog", 1: "ship"}
    carry_head_over(model, str(file), 1.0)
    assert capsys.readouterr().out.splitlines()[-1].endswith("four.pt, 1 of 2 classes by their names")
    carry_head_over(model, str(file), 0.0)
    assert capsys.readouterr().out == ""
