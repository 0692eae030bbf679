"""Numbers by class: words, names with any letters, mappings of programs, and what is refused."""

import pytest

import detect
import export
import val
from utils.class_values import Thresholds, as_threshold, number_classes, read_threshold
from utils.detector import DetectionAdvice
from utils.errors import UserError

NAMES = {0: "person", 1: "traffic light", 2: "a=b", 3: 'the "7"', 4: "0", 5: "Car"}


@pytest.mark.parametrize(
    "words, expected",
    [
        (["0.4"], 0.4),
        (["person=0.4", "Car=0.3"], [0.4, 0.25, 0.25, 0.25, 0.25, 0.3]),
        (["0.1", "a=b=0.5"], [0.1, 0.1, 0.5, 0.1, 0.1, 0.1]),
        (["traffic light=0.5", "0.1"], [0.1, 0.5, 0.1, 0.1, 0.1, 0.1]),
        (['the "7"=1', "2=0"], [0.25, 0.25, 0, 1, 0.25, 0.25]),  # names, or numbers of classes
        (["0=0.9"], [0.25, 0.25, 0.25, 0.25, 0.9, 0.25]),  # a name first
        (["car=0.3", "PERSON=0.2"], [0.2, 0.25, 0.25, 0.25, 0.25, 0.3]),
        (["auto"], [0.25, 0.33, 0.25, 0.25, 0.25, 0.66]),
        (["auto", "Car=0.1"], [0.25, 0.33, 0.25, 0.25, 0.25, 0.1]),
    ],
)
def test_words_are_a_number_for_each_class(words, expected):
    found = read_threshold(words, 0.25)
    if isinstance(found, Thresholds):
        assert read_threshold([*found], found.others) == found  # its words say the same
        found = [*found.resolve(NAMES, {1: 0.33, 5: 0.66})]
    assert found == expected


@pytest.mark.parametrize(
    "words, message",
    [
        (["x"], "--conf-thres x: expected a number, auto or CLASS=NUMBER, such as --conf-thres 0.25 person=0.4"),
        (["0.1", "0.2"], "--conf-thres 0.1 0.2: expected a number"),
        (["auto", "0.2"], "--conf-thres auto 0.2: expected a number"),
        (["person=x"], "--conf-thres person=x: 'person=x' does not end with a number"),
        (["person=1.5"], "--conf-thres person=1.5: 1.5 is outside 0...1"),
        (["person=nan"], "--conf-thres person=nan: nan is outside 0...1"),
        (["person=.1", "person=.2"], "--conf-thres person=.1 person=.2: person is given twice"),
        (["person=.1", "Person=.3"], "--conf-thres: class 0 'person' is given twice"),
        (["persom=.1"], "--conf-thres: there is no class 'persom'; did you mean person?"),
        (["boat=.1"], "--conf-thres: there is no class 'boat'; they are person, traffic light, a=b, the \"7\", 0, Car"),
        (["Car=.1", "5=.2"], "--conf-thres: class 5 'Car' is given twice"),
        (["6=.1"], "--conf-thres: there is no class '6'"),
    ],
)
def test_words_that_are_refused(words, message):
    def resolve():
        found = read_threshold(words, 0.25)
        assert isinstance(found, Thresholds)
        found.resolve(NAMES, {})

    with pytest.raises(UserError) as caught:
        resolve()
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_auto_without_thresholds_in_the_file_is_one_line():
    with pytest.raises(UserError, match="^--conf-thres auto: the model holds no thresholds, as best.pt of"):
        read_threshold(["auto"], 0.25).resolve(NAMES, {})


def test_names_that_differ_in_case_only():
    names = {0: "car", 1: "Car", 2: "CAR", 3: "bus"}
    assert number_classes({"Car": 0.5, "car": 0.1, "BUS": 0.2}, names, "here") == {1: 0.5, 0: 0.1, 3: 0.2}
    with pytest.raises(UserError, match="^here: there is no class 'cAr'; did you mean"):
        number_classes({"cAr": 0.5}, names, "here")


@pytest.mark.parametrize(
    "value, expected",
    [
        (0.4, 0.4),
        (1, 1.0),
        ({"person": 0.4, 5: 0}, [0.4, 0.25, 0.25, 0.25, 0.25, 0]),
        ({0: 0.4, "0": 0.3}, [0.4, 0.25, 0.25, 0.25, 0.3, 0.25]),  # a number is none of a name
        ("auto", [0.25, 0.33, 0.25, 0.25, 0.25, 0.25]),
        ({}, [0.25] * 6),
    ],
)
def test_values_of_programs(value, expected):
    found = as_threshold(value, "model.conf")
    assert ([*found.resolve(NAMES, {1: 0.33})] if isinstance(found, Thresholds) else found) == expected


@pytest.mark.parametrize("value", [None, "high", -0.1, float("nan"), [0.1], {"person": 2}, {"person": None}])
def test_values_of_programs_that_are_refused(value):
    with pytest.raises(UserError, match=r"^model.conf = .*: expected a number in 0…1, such as 0.25, numbers by class"):
        as_threshold(value, "model.conf")


@pytest.mark.parametrize("program", [detect, val])
def test_the_flag_of_programs_and_its_keyword(program, capsys):
    def read(argv):
        return program.parse_args(argv)[0].conf_thres

    default = read([])
    by_class = Thresholds({"person": 0.4, "traffic light": 0.3}, default)
    assert type(default) is float and read(["--conf-thres", "0.5"]) == read({"conf_thres": 0.5}) == 0.5
    assert read(["--conf-thres", "person=0.4", "traffic light=0.3"]) == by_class
    assert read({"conf_thres": {"person": 0.4, "traffic light": 0.3}}) == by_class
    assert read({"conf_thres": "auto"}) == Thresholds({}, default, auto=True)
    assert read({"conf_thres": by_class}) == by_class  # of a namespace
    with pytest.raises(SystemExit) as ended:
        read(["--conf-thres", "0.2", "0.3"])
    assert ended.value.code == 2 and "error: --conf-thres 0.2 0.3: expected a number" in capsys.readouterr().err


def test_advice_is_read_as_it_was_written():
    advice = DetectionAdvice({0: 0.4, 2: 0.25}, 412)
    assert DetectionAdvice.from_dict(advice.to_dict(), 3, "x") == advice
    assert DetectionAdvice.from_dict({"thresholds": {"2": 0.5}, "most_labels": 0}, 3, "x").thresholds == {2: 0.5}
    assert DetectionAdvice.from_dict(None, 3, "x") == DetectionAdvice()
    tiles = DetectionAdvice({}, 3, 640, 0.25)
    assert DetectionAdvice.from_dict(tiles.to_dict(), 3, "x") == tiles
    assert (tiles.tile_flags(), advice.tile_flags()) == ("--tile 640 --tile-overlap 0.25", "")


@pytest.mark.parametrize(
    "damaged",
    [
        7,
        [],
        {},
        {"thresholds": {3: 0.1}, "most_labels": 1},
        {"thresholds": {0: 1.1}, "most_labels": 1},
        {"thresholds": {0: float("nan")}, "most_labels": 1},
        {"thresholds": {"a": 0.1}, "most_labels": 1},
        {"thresholds": {0: None}, "most_labels": 1},
        {"thresholds": {}, "most_labels": True},
        {"thresholds": {}, "most_labels": -1},
        {"thresholds": {}, "most_labels": 10**9},
        {"thresholds": {}, "most_labels": 0, "tile": -1},
        {"thresholds": {}, "most_labels": 0, "tile": "640"},
        {"thresholds": {}, "most_labels": 0, "tile": 640, "tile_overlap": 2},
        {"thresholds": {}, "most_labels": 0, "tile": 640, "tile_overlap": "a"},
    ],
)
def test_damaged_advice_is_one_line(damaged):
    with pytest.raises(UserError, match="^best.pt: its advice for detection is damaged"):
        DetectionAdvice.from_dict(damaged, 3, "best.pt")


def test_export_takes_one_number(capsys):
    assert export.parse_args(["--conf-thres", "0.4"])[0].conf_thres == 0.4
    with pytest.raises(SystemExit):
        export.parse_args(["--nms", "--conf-thres", "person=0.4"])
    assert "person=0.4: one number is baked into the file. Type --conf-thres 0.25" in capsys.readouterr().err
