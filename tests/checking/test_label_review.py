"""Review of label errors: what its examples show, and how the images of the worst draw it."""

import json

import cv2
import numpy as np
from scanned_sets import scan_rows

from utils.checking.document import describe_check
from utils.checking.label_review import LabelReview

ROW = "0 .5 .5 .25 .25\n"  # 36 to 60 px of 96, 24 to 40 px of 64
RIGHT = [36, 24, 60, 40, 0.9, 0]


def review_of(folder, *images) -> LabelReview:
    """Return the review of images, each with its rows and what a model finds."""
    right = [(ROW, [RIGHT])] * 20
    data = scan_rows(folder, *(rows for rows, _ in [*images, *right]))
    return LabelReview.of(data, [np.array(found, np.float32).reshape(-1, 6) for _, found in [*images, *right]])


def test_what_a_model_finds_is_a_suggestion_beside_the_label(tmp_path):
    shifted = [46, 24, 70, 40, 0.9, 0]
    review = review_of(tmp_path, ("", [RIGHT]), (ROW, [shifted]), (ROW, [[*RIGHT[:5], 1]]), (ROW, []))
    document = describe_check(review.data, review.findings(), typed="", save_dir=tmp_path)
    examples = {finding["check"]: finding["examples"][0] for finding in document["findings"]}
    roles = {check: example["roles"] for check, example in examples.items()}
    assert roles["label-missing"] == ["suggestion"] and roles["label-shifted"] == ["label", "suggestion"]
    assert roles["label-class"] == ["label"]
    label, suggestion = examples["label-shifted"]["boxes"]
    assert label == [0, 0.5, 0.5, 0.25, 0.25] and suggestion[1] == round(58 / 96, 6)
    assert json.loads(json.dumps(document)) == document


def test_the_suggestion_is_drawn_with_a_dashed_line(tmp_path):
    review = review_of(tmp_path, (ROW, [[46, 24, 70, 40, 0.9, 0]]))
    review.draw_worst(tmp_path / "drawn")
    drawn = cv2.imread(str(tmp_path / "drawn" / "001 shifted.jpg")).astype(int)
    label, suggestion = drawn[24:40, 35:37], drawn[24:40, 69:71]  # left line of the label, right one of the suggestion
    blue = (np.abs(label - (255, 42, 4)).max(-1) < 60).any(1)
    yellow = (np.abs(suggestion - (0, 237, 204)).max(-1) < 60).any(1)
    assert blue[2:].mean() > 0.95 and 0.3 < yellow.mean() < 0.9
