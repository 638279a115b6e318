"""States that come guided from one pass decode as those of two passes do."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fasttta_jax.config import DecodeConfig
from fasttta_jax.decoding.loop import Guidance, parallel_decode
from fasttta_jax.decoding.plan import plan_segments
from fasttta_jax.systems import TextToAudio
from fasttta_jax.typing import unconditional
from tests.decoding.test_models import (
    CAPTIONS,
    CHOICES,
    GUIDED,
    TOKENS_PER_COLUMN,
    clip_keys,
    decode,
    decode_rounding,
    given,
    system,
)
from tests.support import helpers
from tests.support.tolerance import assert_close


class Oracle(TextToAudio):
    """Its states are at once what guidance by two passes makes of them."""

    guides_itself = True

    @property
    def backbone(self):
        return super().backbone.clone(takes_strength=False)

    def hidden(self, params, tokens, masked, conditioning, *, strength=None, **more):
        assert strength is not None
        run = functools.partial(super().hidden, params, tokens, masked, **more)
        without = run(unconditional(conditioning))
        return without + strength[:, None, None] * (run(conditioning) - without)


@pytest.mark.parametrize(("settings", "num_known"), [(GUIDED, 4), (CHOICES, 0)])
def test_guided_states_of_one_pass_give_the_tokens_of_two(
    settings: DecodeConfig, num_known: int
) -> None:
    """With known tokens, in an order of its own, and guided in an interval alone."""
    student, params = system("energy")
    oracle = Oracle(student.config, student.text, student.objective)
    known = given(num_known) if num_known else None
    segments = plan_segments(settings, helpers.NUM_TOKENS, num_known)
    scales = [scale for segment in segments for scale in segment.guidance_scales]

    @jax.jit
    def run(params, text, scales):
        return parallel_decode(
            oracle,
            params,
            oracle.condition(params, text),
            clip_keys(),
            settings,
            num_tokens=helpers.NUM_TOKENS,
            token_dim=helpers.TOKEN_DIM,
            tokens_per_column=TOKENS_PER_COLUMN,
            known=known,
            num_known=num_known,
            guidance=None if scales is None else Guidance(scales, None),
        ).tokens

    every = jnp.broadcast_to(jnp.asarray(scales, jnp.float32), (len(CAPTIONS), len(scales)))
    expected = decode("energy", settings, [0, 1, 2, 3], known)
    for given_scales in (every, None):
        found = run(params, student.text.tokenize(CAPTIONS), given_scales)
        assert_close(np.asarray(found), expected, decode_rounding("energy", settings))
    assert decode_rounding("energy", settings) < 1e-4
