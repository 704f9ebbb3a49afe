import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.reporting import numbers


@pytest.mark.parametrize(
    ("value", "percent", "decimal"),
    [
        (0, "0.0 %", "0.000"), (1, "100.0 %", "1.000"), (0.1234, "12.3 %", "0.123"), (0.9997, ">99.9 %", ">0.999"),
        (0.0002, "<0.1 %", "<0.001"), (None, "not defined", "not defined"), (math.nan, "not defined", "not defined"),
        (math.inf, "not defined", "not defined"), ("", "not defined", "not defined"), (1.5, "150.0 %", "1.500"),
    ],
)  # fmt: skip
def test_a_value_that_is_not_all_or_nothing_is_not_rounded_to_it(value, percent, decimal):
    assert (numbers.percent(value), numbers.decimal(value)) == (percent, decimal)


@pytest.mark.parametrize(
    ("rate", "words"),
    [
        (0.05, "1 in 20"), (1 / 3, "1 in 3"), (0.4, "2 in 5"), (0.28, "about 2 in 7"), (0.0123, "about 1 in 81"),
        (0.0005, "1 in 2,000"), (0.97, "97 in 100"), (0.9999, "about 99 in 100"),
    ],
)  # fmt: skip
def test_odds(rate, words):
    assert numbers.odds(rate) == words


@given(st.floats(1e-6, 1 - 1e-6))
def test_odds_are_near_the_rate(rate):
    part, whole = re.fullmatch(r"(?:about )?(\d+) in ([\d,]+)", numbers.odds(rate)).groups()
    assert int(part) / int(whole.replace(",", "")) == pytest.approx(rate, abs=0.051, rel=0.06)


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_score_is_never_written_on_the_other_side_of_the_threshold(p, threshold):
    shown = float(numbers.score(p, threshold))
    assert (shown >= threshold) == (p >= threshold) or abs(p - threshold) < 1e-5


@pytest.mark.parametrize(
    ("write", "value", "words"),
    [
        (numbers.points, 0.405, "40.5 percentage points"), (numbers.points, 1e-4, "less than 0.1 percentage points"),
        (numbers.signed, -0.0126, "-0.013"), (numbers.signed, None, "not defined"), (numbers.integer, 1234.0, "1,234"),
        (numbers.integer, None, "–"), (numbers.scientific, 3e-5, "3e-5"), (numbers.scientific, 0, "0"),
        (numbers.thousands, 20_861_480, "20.9 M"), (numbers.thousands, 999, "999"), (numbers.ordinal, 113, "113th"),
        (numbers.ordinal, 22, "22nd"), (numbers.listed, ["a"], "“a”"), (numbers.listed, ["a", "b"], "“a” and “b”"),
    ],
)  # fmt: skip
def test_how_it_is_written(write, value, words):
    assert write(value) == words


def test_an_interval_is_written_as_its_metric_is():
    metrics = {"intervals": {"accuracy": {"low": 0.02, "high": 0.0911}, "auc": {"low": 0.5, "high": 1}, "ece": None}}
    assert numbers.interval(metrics, "accuracy") == "2.0 to 9.1 %"
    assert numbers.interval(metrics, "auc") == "0.500 to 1.000"
    assert numbers.interval(metrics, "ece") == numbers.interval(metrics, "loss") == ""
