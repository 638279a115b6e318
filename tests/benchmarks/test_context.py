"""What benchmarks.context measures: what a model that reads its neighbours explains."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import context

COLUMNS, BANDS, CHANNELS, CLIPS = 8, 2, 3, 40
TEXT = {"ids": np.zeros((CLIPS, 1), np.int32)}


@dataclasses.dataclass(frozen=True)
class Reader:
    """Answers with the token one column back where it sees that, and noise about it.

    Attributes:
      noise: standard deviation of a draw.
    """

    noise: float
    guides_itself: bool = False

    def condition(self, params: Any, batch: Any) -> Any:
        return {}

    def hidden(self, params: Any, tokens: Any, masked: Any, conditioning: Any, **_: Any) -> Any:
        seen = jnp.where(masked[..., None], 0.0, tokens)
        return jnp.roll(seen, BANDS, axis=1)

    def sample_tokens(
        self,
        params: Any,
        hidden: Any,
        hidden_unconditional: Any,
        guidance_scale: Any,
        keys: Any,
        temperature: Any,
    ) -> Any:
        draw = jax.vmap(lambda key: jax.random.normal(key, hidden.shape[1:]))(keys)
        return hidden + self.noise * draw


def steady_clips() -> np.ndarray:
    """Every clip holds one token of each band for all of its columns."""
    rng = np.random.default_rng(0)
    one = rng.standard_normal((CLIPS, 1, BANDS, CHANNELS)).astype(np.float32)
    return np.tile(one, (1, COLUMNS, 1, 1)).reshape(CLIPS, COLUMNS * BANDS, CHANNELS)


def test_questions_hide_what_they_ask_for() -> None:
    asked = context.questions(CLIPS, COLUMNS * BANDS, BANDS, seed=0)
    for hidden, wanted in asked.values():
        assert hidden.shape == wanted.shape == (CLIPS, COLUMNS * BANDS)
        assert (hidden | ~wanted).all(), "what is asked for is not seen"
    assert asked["all"].hidden.all()
    assert (asked["half"].hidden.sum(axis=1) == COLUMNS).all()
    column, future = asked["column"], asked["future"]
    assert (column.hidden.sum(axis=1) == BANDS).all()
    np.testing.assert_array_equal(column.asked, future.asked)
    for row in range(CLIPS):
        first = np.flatnonzero(column.hidden[row])[0]
        assert first % BANDS == 0
        assert COLUMNS // 4 <= first // BANDS < 3 * COLUMNS // 4
        np.testing.assert_array_equal(future.hidden[row], np.arange(COLUMNS * BANDS) >= first)


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_a_reader_explains_what_it_sees_and_noise_of_few_draws_is_taken_off(noise: float) -> None:
    """Where noise is the only error, the share is off by a mean over 40 clips, 2 tokens and 3
    channels of chi-square(1) / 16 without its mean, and a little for the variance taken off.
    """
    tokens = steady_clips()
    asked = context.questions(CLIPS, COLUMNS * BANDS, BANDS, seed=1)
    program, shares = context.moments_program(Reader(noise), num_draws=16), {}
    for kind in ("all", "column"):
        hidden, wanted = asked[kind]
        mean, variance = context.moments_of(program, {}, tokens, hidden, TEXT, seed=2)
        spread = noise**2 * np.sqrt(2 / 15 / variance.size)
        assert abs(variance.mean() - noise**2) <= 3 * spread + 1e-9
        shares[kind] = context.explained(tokens, mean, variance, wanted, 16)
    deviation = noise**2 / 16 * np.sqrt((2 + 2 / 15) / 240)
    assert shares["column"] == pytest.approx(1.0, abs=1e-6 + 4 * deviation)
    assert shares["all"] < 0.1, "nothing is seen"


def test_draws_do_not_depend_on_clips_beside_them() -> None:
    tokens = steady_clips()
    hidden = context.questions(CLIPS, COLUMNS * BANDS, BANDS, seed=1)["half"].hidden
    program = context.moments_program(Reader(1.0), num_draws=2)
    whole, _ = context.moments_of(program, {}, tokens, hidden, TEXT, seed=0)
    few = {"ids": TEXT["ids"][:8]}
    first, _ = context.moments_of(program, {}, tokens[:8], hidden[:8], few, seed=0)
    np.testing.assert_array_equal(whole[:8], first)
