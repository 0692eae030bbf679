"""Groups of images by what their names say."""

import numpy as np
import pytest

from utils.datasets.sequences import group_by_sequence, source_name


def groups_of(*names):
    return group_by_sequence(names).groups.tolist()


@pytest.mark.parametrize(
    "path, name",
    [
        ("cat.jpg", "cat"),
        ("set/train/images/cat_jpg.rf.1f3a9b.jpg", "cat"),
        ("set/train/images/cat_jpg.jpg", "cat_jpg"),  # not marked as a copy
        ("set\\valid\\images\\day1\\cat.png", "day1/cat"),
        ("set/images/train2017/cat.png", "cat"),
        ("somewhere/clip7/0001.png", "0001"),
    ],
)
def test_the_name_of_the_source_has_no_mark_of_a_copy(path, name):
    assert source_name(path) == name


def test_no_image_has_no_group():
    found = group_by_sequence([])
    assert len(found.groups) == len(found.names) == len(found.sizes()) == 0


@pytest.mark.parametrize(
    "names, groups",
    [
        (["a.jpg", "b.jpg"], [0, 1]),
        (["a_jpg.rf.11.jpg", "a_jpg.rf.22.jpg", "b_jpg.rf.33.jpg"], [0, 0, 1]),  # copies
        (["f_1.jpg", "f_2.jpg"], [0, 1]),  # two are no sequence
        (["f_1.jpg", "f_2.jpg", "f_3.jpg", "g.jpg"], [0, 0, 0, 1]),
        (["f_010.jpg", "f_020.jpg", "f_030.jpg"], [0, 0, 0]),  # each tenth frame
        (["9.jpg", "25.jpg", "30.jpg", "34.jpg", "77.jpg"], [0, 1, 2, 3, 4]),  # like COCO's
        (["frame_1_left.jpg", "frame_2_left.jpg", "frame_3_left.jpg"], [0, 0, 0]),
        (["v1_frame1_c2.jpg", "v1_frame2_c2.jpg", "v1_frame3_c2.jpg", "v2_frame1_c2.jpg"], [0, 0, 0, 1]),
        (["s/train/a_1.jpg", "s/valid/a_2.jpg", "s/train/a_3.jpg"], [0, 0, 0]),  # one video in two splits
        (["s/images/x/1.jpg", "s/images/x/2.jpg", "s/images/x/3.jpg", "s/images/y/1.jpg"], [0, 0, 0, 1]),
        (["m_mp4-1_jpg.rf.a1.jpg", "m_mp4-2_jpg.rf.a2.jpg", "m_mp4-3_jpg.rf.a3.jpg"], [0, 0, 0]),
    ],
)
def test_groups(names, groups):
    assert groups_of(*names) == groups


def test_a_sequence_is_named_and_ordered():
    found = group_by_sequence(["v/images/night/f_3.jpg", "v/images/night/f_1.jpg", "v/images/night/f_2.jpg"])
    assert found.names == ["night/f_*"] and found.numbers.tolist() == [3, 1, 2] and found.sizes().tolist() == [3]


def test_many_images_are_grouped_quickly():
    found = group_by_sequence([f"/data/clip{i % 100}/images/clip{i % 100}_{i // 100:06}.jpg" for i in range(20_000)])
    assert len(found.names) == 100 and np.ptp(found.sizes()) == 0
