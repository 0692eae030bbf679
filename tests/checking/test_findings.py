"""Findings: their places, their order, and how many examples they keep."""

from itertools import count

from utils.checking.findings import MAX_EXAMPLES, Example, Finding, by_level, first_examples


def test_a_place_is_a_file_or_a_line_of_it():
    assert Example("a.txt").place == "a.txt"
    assert Example("a.txt", 3).place == "a.txt:3"


def test_boxes_without_a_stated_role_are_labels():
    box = (0.0, 0.5, 0.5, 0.2, 0.2)
    assert Example("a.txt").box_roles == ()
    assert Example("a.txt", boxes=(box, box), roles=("suggestion",)).box_roles == ("suggestion", "label")


def test_the_worst_level_is_first_and_the_order_stays():
    levels = ["note", "warning", "error", "note", "error"]
    findings = [Finding(level, "files", f"check-{k}", 1, "", "") for k, level in enumerate(levels)]
    assert [finding.check for finding in by_level(findings)] == ["check-2", "check-4", "check-1", "check-0", "check-3"]


def test_no_more_examples_are_computed_than_kept():
    examples = first_examples(Example(f"{k}.jpg") for k in count())
    assert len(examples) == MAX_EXAMPLES and examples[0].file == "0.jpg"
