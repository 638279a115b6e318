"""Guidance of the energy head: how its strength is shared by states and samples."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from fasttta_jax.config import BackboneConfig, EnergyConfig, HeadConfig, ModelConfig
from fasttta_jax.models.energy_head import sample_noise
from fasttta_jax.objectives import Energy

MODEL = ModelConfig(
    num_tokens=8,
    token_dim=6,
    backbone=BackboneConfig(width=12, num_heads=2),
    head=HeadConfig(width=16, depth=2),
)
NUM_CLIPS, NUM_POSITIONS = 3, 5


def energy(sample_guidance: float) -> Energy:
    return Energy(MODEL, EnergyConfig(noise_dim=7, sample_guidance=sample_guidance))


def head() -> Any:
    """A head far from its start, where modulation and output are zero."""
    params = energy(0.0).init(jax.random.key(0))
    keys = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(params))))
    return jax.tree.map(lambda x: x + 0.2 * jax.random.normal(next(keys), x.shape), params)


def states(seed: int) -> jax.Array:
    shape = (NUM_CLIPS, NUM_POSITIONS, MODEL.backbone.width)
    return jax.random.normal(jax.random.key(seed), shape)


def sample(share: float, strength: Any, *, guided: bool = True) -> np.ndarray:
    keys = jax.random.split(jax.random.key(4), NUM_CLIPS)
    unconditional = states(3) if guided else None
    drawn = energy(share).sample(
        head(), states(2), unconditional, jax.numpy.asarray(strength), keys, jax.numpy.float32(0.9)
    )
    return np.asarray(drawn, np.float64)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("strength", [0.5, 2.0, 4.0])
def test_a_guided_token_is_what_the_formula_says(share, strength):
    keys = jax.random.split(jax.random.key(4), NUM_CLIPS)
    noise = jax.vmap(lambda key: sample_noise(key, (NUM_POSITIONS, 7), "gaussian"))(keys)

    def of(state: Any) -> np.ndarray:
        drawn = energy(share).draw(head(), noise[None], jax.numpy.asarray(state), 0.9)[0]
        return np.asarray(drawn, np.float64)

    without, with_caption = np.asarray(states(3), np.float64), np.asarray(states(2), np.float64)
    shifted = without + strength ** (1 - share) * (with_caption - without)
    expected = of(without) + strength**share * (of(shifted.astype(np.float32)) - of(without))
    np.testing.assert_allclose(sample(share, strength), expected, rtol=0, atol=2e-5)


def test_shares_are_different_guidance():
    """So that the test of the formula can tell them apart."""
    drawn = [sample(share, 4.0) for share in (0.0, 0.5, 1.0)]
    for first, second in ((0, 1), (1, 2), (0, 2)):
        assert np.abs(drawn[first] - drawn[second]).mean() > 1e-2


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_strength_one_is_no_guidance_and_zero_reads_no_caption(share):
    plain = sample(share, 1.0, guided=False)
    np.testing.assert_allclose(sample(share, 1.0), plain, rtol=0, atol=2e-6)
    assert np.abs(sample(share, 2.0) - plain).mean() > 1e-2
    for other in (0.0, 0.6, 1.0):
        np.testing.assert_allclose(sample(share, 0.0), sample(other, 0.0), rtol=0, atol=2e-6)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_every_clip_is_guided_by_its_own_strength(share):
    strengths = np.asarray([1.0, 2.5, 4.0], np.float32)
    together = sample(share, strengths[:, None, None])
    for row, strength in enumerate(strengths):
        np.testing.assert_allclose(
            together[row], sample(share, float(strength))[row], rtol=0, atol=2e-6
        )
