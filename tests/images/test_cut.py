"""--start and --end: times as people type them, and which frames are between them."""

import math

import pytest

from utils.errors import UserError
from utils.images.cut import Cut, read_cut


@pytest.mark.parametrize(
    "start, end, expected",
    [
        (None, None, Cut(0, math.inf)),
        ("90", None, Cut(90, math.inf)),
        ("1:30", "1:01:01.5", Cut(90, 3661.5)),
        (".5", "100:00:00", Cut(0.5, 360_000)),
        ("0", " 75.25 ", Cut(0, 75.25)),  # more than a minute in seconds
    ],
)
def test_times(start, end, expected):
    assert read_cut(start, end) == expected and expected.is_whole is (start is None)


@pytest.mark.parametrize("text", ["", "-1", "1:60", "1:60:00", "1:2:3:4", "1m", "nan", "inf", "1:", ":5", "٣"])
def test_what_is_no_time(text):
    with pytest.raises(UserError, match="--end .*: expected seconds or h:m:s"):
        read_cut(None, text)


@pytest.mark.parametrize("start, end", [("5", "5"), ("1:00", "30"), (None, "0")])
def test_an_end_before_the_start(start, end):
    with pytest.raises(UserError, match="is not after --start"):
        read_cut(start, end)


def test_a_frame_at_the_start_is_inside_one_at_the_end_is_not():
    cut, times = Cut(0.3, 0.6), [sum([0.1] * n) for n in range(10)]  # 0.30000000000000004 and the like
    assert [n for n, at in enumerate(times) if not cut.is_before(at) and not cut.is_after(at)] == [3, 4, 5]


@pytest.mark.parametrize(
    "cut, total, expected",
    [
        (Cut(), 100, 100),
        (Cut(), 0, 0),  # unknown
        (Cut(2, 4), 100, 20),
        (Cut(8), 100, 20),
        (Cut(0, 90), 100, 100),
        (Cut(20), 100, 0),
        (Cut(2, 4), 0, 0),
    ],
)
def test_expected_number_of_frames(cut, total, expected):
    assert cut.num_frames(total, 10.0) == expected
