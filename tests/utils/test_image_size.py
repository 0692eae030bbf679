"""Image sizes: one side, or height and width, as `--imgsz` gives them."""

import pytest

from utils.cli import SuggestingParser, add_flags, detect_command
from utils.config import TrainOptions
from utils.errors import UserError
from utils.image_size import describe_size, require_size, round_size, scale_size, to_option, to_shape
from utils.loss import scale_gains
from utils.schedule import largest_shape, largest_size


@pytest.mark.parametrize("size, shape, option, words", [
    (640, (640, 640), 640, "640"),
    ([640], (640, 640), 640, "640"),
    ((640, 640), (640, 640), 640, "640"),
    ([384, 640], (384, 640), [384, 640], "384 640"),
    ((640, 384), (640, 384), [640, 384], "640 384"),
])  # fmt: skip
def test_a_size_has_one_form_in_files_and_one_in_words(size, shape, option, words):
    assert (to_shape(size), to_option(size), describe_size(size)) == (shape, option, words)


@pytest.mark.parametrize("words, option", [
    (["--imgsz", "320"], 320), (["--img", "320", "320"], 320), (["--img-size", "384", "640"], [384, 640]),
])  # fmt: skip
def test_one_number_is_stored_as_one(words, option):
    typed = vars(add_flags(SuggestingParser(), TrainOptions).parse_args(words))
    assert typed == {"imgsz": option}
    options = TrainOptions.from_typed(typed)
    assert TrainOptions.from_dict(options.to_dict()) == options and options.to_dict()["imgsz"] == option


@pytest.mark.parametrize("size", [0, -32, [0, 640], [640, -1], [1, 2, 3], []])
def test_what_is_no_size_is_one_line(size):
    with pytest.raises(
        UserError, match=r"^--imgsz .*: expected one side or height and width in pixels, as in --imgsz 64"
    ):
        require_size(size)


@pytest.mark.parametrize("stored", [[384, "640"], [384.0, 640], "640", [True, 640], None])
def test_an_edited_size_of_another_type_names_the_key(stored):
    with pytest.raises(UserError, match=r"opt.yaml: option imgsz: .* is not of the type"):
        TrainOptions.from_dict({"imgsz": stored}, "opt.yaml")


@pytest.mark.parametrize("size, least, used, message", [
    ([384, 640], 1, (384, 640), ""),
    (100, 1, (128, 128), "--imgsz 100 is not a multiple of the model's stride 32; using 128"),
    ([380, 640], 1, (384, 640), "--imgsz 380 640 are not multiples of the model's stride 32; using 384 640"),
    ([1, 640], 1, (32, 640), "--imgsz 1 640 are not multiples of the model's stride 32; using 32 640"),
    ([32, 640], 2, (64, 640), "--imgsz 32 640 is too small for a model of stride 32; using 64 640"),
])  # fmt: skip
def test_sides_are_rounded_up_with_a_line(capsys, size, least, used, message):
    assert round_size(size, 32, least=least) == used
    assert message in capsys.readouterr().err if message else capsys.readouterr().err == ""


def test_the_ratio_stays_and_both_sides_are_whole_strides():
    for longer in range(32, 1600, 32):
        for shape in ((384, 640), (640, 384), (96, 640), (640, 640), (512, 640)):
            height, width = scale_size(shape, longer, 32)
            assert max(height, width) == longer and height % 32 == width % 32 == 0
            for side, whole in zip((height, width), shape):
                assert 0 <= side - whole * longer / max(shape) < 32
    assert scale_size(640, 500, 32) == (512, 512)


def test_the_largest_shape_of_a_square_is_that_of_its_side():
    for side in range(64, 2000, 32):
        assert largest_shape(side, 32) == (largest_size(side, 32),) * 2
    assert largest_shape([384, 640], 32) == (576, 960) and largest_shape([640, 64], 32) == (960, 96)


def test_the_gain_of_objectness_follows_the_area():
    gains = {"box": 0.05, "obj": 1.0, "cls": 0.5}
    for side in range(32, 4097, 32):  # bit for bit what it was
        assert (
            scale_gains(gains, 3, 80, side)["obj"]
            == (side / 640) ** 2
            == scale_gains(gains, 3, 80, (side, side))["obj"]
        )
    assert scale_gains(gains, 3, 80, (384, 640))["obj"] == pytest.approx(384 * 640 / 640**2, rel=1e-15)
    assert scale_gains(gains, 3, 80, (640, 384)) == scale_gains(gains, 3, 80, (384, 640))


def test_the_command_to_type_next_has_both_sides():
    assert detect_command(["a.pt"], [384, 640]).endswith("--imgsz 384 640")
    assert "--imgsz" not in detect_command(["a.pt"], [640, 640]) and detect_command(["a.pt"], 320).endswith(
        "--imgsz 320"
    )
