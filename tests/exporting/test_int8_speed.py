"""The line about the speed of 8 bits."""

import pytest

from utils.exporting.int8_speed import ROUNDS, describe_int8_speed, report_int8_speed


@pytest.mark.parametrize(
    "times, verdict",
    [
        ({"float32": 50.0, "int8": 20.0}, "INT8 is the fastest"),
        ({"float32": 50.0, "bfloat16": 18.0, "int8": 20.0}, "INT8 is not faster than bfloat16 on this machine"),
        ({"float32": 20.0, "bfloat16": 18.0, "int8": 20.0}, "not faster than float32 and bfloat16"),
    ],
)
def test_the_verdict_names_what_is_as_fast(times, verdict):
    line = describe_int8_speed("OpenVINO", times)
    assert verdict in line and "int8 20.0 ms" in line and line.startswith("OpenVINO, network alone: float32 ")


def test_models_run_in_alternation_after_a_first_pass(capsys):
    calls = []
    report_int8_speed("A", {"float32": lambda: calls.append(0), "int8": lambda: calls.append(1)})
    assert calls == [0, 1] * (ROUNDS + 1)
    assert "A, network alone: float32 " in capsys.readouterr().out
