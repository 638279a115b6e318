"""The bounds that numeric tests state hold for float32 sums of the kinds they are stated for."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.tolerance import (
    assert_close,
    assert_within,
    rounding,
    unit_roundoff,
    worst_rounding,
)

NUM_SUMS = 2000


def products(num_terms: int, signs: str) -> tuple[np.ndarray, np.ndarray]:
    """Float32 terms [num_terms, NUM_SUMS], and their sums added one after the other."""
    terms = np.random.default_rng(num_terms).normal(size=(num_terms, NUM_SUMS)).astype(np.float32)
    terms = terms if signs == "random" else np.abs(terms)
    total = np.zeros(NUM_SUMS, np.float32)
    for row in terms:
        total = total + row
    return terms, total


@pytest.mark.parametrize("signs", ["random", "equal"])
@pytest.mark.parametrize("num_terms", [4, 64, 1024])
def test_sums_are_within_their_bounds(num_terms: int, signs: str) -> None:
    """And not far within: a bound of a tenth, margin and all, would not hold."""
    terms, found = products(num_terms, signs)
    expected = terms.sum(axis=0, dtype=np.float64)
    error = np.abs(found - expected)
    assert (error <= worst_rounding(num_terms) * np.abs(terms).sum(axis=0, dtype=np.float64)).all()
    assert_close(found, expected, rounding(num_terms))
    assert error.max() > 0.1 * rounding(num_terms) * np.abs(expected).max()


@pytest.mark.parametrize(("width", "depth"), [(16, 4), (64, 16), (256, 8)])
def test_errors_of_a_chain_add_like_those_of_one_sum(width: int, depth: int) -> None:
    """Matrix after matrix, each followed by a norm: the number of terms is width times depth."""

    def run(dtype: type) -> np.ndarray:
        rng = np.random.default_rng(depth)
        x = rng.normal(size=(50, width)).astype(np.float32).astype(dtype)
        for _ in range(depth):
            kernel = rng.normal(size=(width, width)).astype(np.float32).astype(dtype)
            total = np.zeros_like(x)
            for row in range(width):
                total = total + x[:, row, None] * kernel[row]
            x = total / np.sqrt(np.mean(total**2, axis=-1, keepdims=True))
        return x

    found, expected = run(np.float32), run(np.float64)
    assert_close(found, expected, rounding(width * depth))
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert error > 0.03 * rounding(width * depth)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, jnp.bfloat16, np.float16])
def test_a_number_rounds_by_at_most_the_unit(dtype: type) -> None:
    numbers = np.random.default_rng(0).uniform(1, 2, 100_000)
    if dtype is np.float64:
        assert unit_roundoff(dtype) == 2**-53
        return
    error = np.abs(numbers.astype(dtype).astype(np.float64) / numbers - 1).max()
    assert 0.9 * unit_roundoff(dtype) < error <= unit_roundoff(dtype)


def test_more_is_not_close() -> None:
    expected = np.asarray([1.0, -4.0])
    assert_close(expected + 0.3, expected, 0.1)
    with pytest.raises(
        AssertionError, match=r"2 of 2 entries .* 4\.00e-01, largest bound 3\.60e-01"
    ):
        assert_close(expected + 0.4, expected, 0.09)
    with pytest.raises(AssertionError, match=r"1 of 2 entries"):
        assert_within(expected + 0.4, expected, np.asarray([0.3, 0.5]))
    with pytest.raises(AssertionError, match=r"1 of 2 entries"):
        assert_within([1.0, np.nan], expected, 9.0)
    with pytest.raises(AssertionError, match="leave no digit of bfloat16"):
        worst_rounding(300, jnp.bfloat16)
