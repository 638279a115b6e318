"""Figures have the digits that their errors leave, in one form everywhere."""

import math

import numpy as np
import pytest

from fasttta_jax.metrics.intervals import Measured, proportion
from fasttta_jax.report.values import decimals, figure_and_error, fixed, format_value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "–"),
        (True, "yes"),
        (12345, "12,345"),
        (0.5, "0.500"),
        (0.96875, "0.969"),
        (71.994, "72.0"),
        (860.3, "860"),
        (123456.7, "123,457"),
        (-0.25, "-0.250"),
        (0.0, "0"),
        (1.0, "1.000"),
        (0.9996, "1.000"),
        (0.00123, "0.00123"),
        (1.5e-7, "1.5e-07"),
        (float("nan"), "NaN"),
        (float("inf"), "inf"),
        (np.float32(0.25), "0.250"),
        (np.int64(1000), "1,000"),
        ("text", "text"),
    ],
)
def test_bare_values_have_three_digits(value: object, expected: str) -> None:
    assert format_value(value) == expected


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        (proportion(186, 192), "0.969 ± 0.013"),
        (Measured(8.237, 0.571), "8.2 ± 0.6"),
        (Measured(8.237, 0.354), "8.24 ± 0.35"),
        (Measured(8.237, 0.355), "8.2 ± 0.4"),
        (Measured(8.237, 0.0961), "8.24 ± 0.10"),
        (Measured(5123.4, 120.0), "5,123 ± 120"),
        (proportion(192, 192), "1.000"),
        (Measured(3.0, math.nan), "3.00"),
        (Measured(-0.0001, 0.02), "0.000 ± 0.020"),
        (Measured(70.3, interval=(14.2, 126.6)), "70 [14, 127]"),
        (Measured(0.885, 0.5, interval=(0.84, 0.93)), "0.885 [0.840, 0.930]"),
    ],
)
def test_measured_values_have_the_digits_of_their_errors(measured, expected) -> None:
    assert format_value(measured) == expected


def test_an_error_has_one_or_two_digits_whatever_its_size() -> None:
    for error in np.geomspace(1e-5, 0.9, 101):
        figure, shown = figure_and_error(Measured(math.pi, float(error)))
        digits = shown.removeprefix("± ").replace(".", "").lstrip("0")
        assert len(digits) in (1, 2)
        half_a_unit = 0.5 * 10.0 ** -decimals(math.pi, error)
        # A binary rounding of the text, far below the last digit, is all that may be added.
        assert abs(float(figure) - math.pi) <= half_a_unit * (1 + 1e-9)
        assert half_a_unit <= 0.5 * error, "rounding hides no more than half an error"


def test_signs_are_shown_where_they_are_asked_for() -> None:
    assert fixed(0.125, 2, signed=True) == "+0.12"
    assert fixed(-1234.5, 0, signed=True) == "-1,234"
