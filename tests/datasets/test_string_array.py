"""Strings in one array of bytes are the strings of a list."""

import pickle

import numpy as np
import pytest

from utils.datasets.string_array import StringArray

ROWS = [
    [],
    ["a"],
    ["", "b"],
    ["images/Straße.jpg", "", "日本/x.png", "odd\udcff.jpg"],  # of bytes that are no UTF-8
    [f"{k}.png" for k in range(300)],
]


@pytest.mark.parametrize("texts", ROWS)
def test_it_reads_as_the_list_does(texts):
    array = StringArray(texts)
    assert len(array) == len(texts) and list(array) == texts and array == texts and texts == array
    assert [array[i] for i in range(len(texts))] == [array[i - len(texts)] for i in range(len(texts))] == texts
    assert array[1:7:2] == texts[1:7:2] and array[::-1] == texts[::-1]
    assert all(array.index(text) == texts.index(text) and text in array for text in texts)
    with pytest.raises(IndexError):
        array[len(texts)]


@pytest.mark.parametrize("texts", ROWS)
def test_it_survives_as_bytes_and_as_a_message_to_another_process(texts):
    array = StringArray(texts)
    for copy in (StringArray.from_bytes(array.data), pickle.loads(pickle.dumps(array))):
        assert copy == array and list(copy) == texts


def test_concatenation():
    whole = StringArray.concatenate(map(StringArray, ROWS))
    assert whole == [text for row in ROWS for text in row]
    assert StringArray.concatenate([]) == [] == StringArray.concatenate([StringArray(), StringArray()])


def test_numbers_of_numpy_are_numbers():
    assert StringArray("abc")[np.int64(1)] == "b"


def test_it_differs_from_others():
    assert StringArray("ab") != StringArray("abc") and StringArray("ab") != ["a", "c"] and StringArray("ab") != "ab"
