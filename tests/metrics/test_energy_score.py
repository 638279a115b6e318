"""The held-out energy score is proper, counts masked tokens only, and treats clips one by one."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fasttta_jax.config import MaskingConfig, MeshConfig
from fasttta_jax.metrics.energy_score import HeldOutEnergy, held_out_energy
from fasttta_jax.parallel.mesh import make_mesh
from tests.support.tolerance import rounding

NUM_TOKENS, TOKEN_DIM = 8, 1
SUM = rounding(24 * NUM_TOKENS + 8)
"""Of a mean over tokens and clips, each of which has some eight operations."""
ALL_MASKED = MaskingConfig(minimum=0.99)
HALF_MASKED = MaskingConfig(minimum=0.5, mean=0.5)


class Stub:
    """Draws tokens from normal(loc, scale), or `if_visible` where they are not masked."""

    def __init__(self, loc: float, scale: float, if_visible: float | None = None) -> None:
        self.loc, self.scale, self.if_visible = loc, scale, if_visible

    guides_itself = False

    def condition(self, params, batch):
        return {}

    def hidden(self, params, tokens, masked, conditioning, *, num_visible=None):
        assert num_visible is not None
        return masked[..., None].astype(jnp.float32)

    def sample_tokens(self, params, hidden, unconditional, guidance_scale, keys, temperature):
        assert unconditional is None
        shape = (hidden.shape[1], TOKEN_DIM)
        draws = self.loc + self.scale * jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
        return draws if self.if_visible is None else jnp.where(hidden > 0, draws, self.if_visible)


def batches(tokens: np.ndarray, batch_size: int) -> list[dict]:
    result = []
    for start in range(0, len(tokens), batch_size):
        rows = tokens[start : start + batch_size]
        padding = batch_size - len(rows)
        result.append(
            {
                "tokens": np.pad(rows, ((0, padding), (0, 0), (0, 0)), constant_values=1e6),
                "weight": np.repeat(np.float32([1, 0]), [len(rows), padding]),
                "text": {"ids": np.zeros((batch_size, 1), np.int32)},
            }
        )
    return result


def score(model, tokens, masking=ALL_MASKED, *, batch_size=16, seed=0, **kwargs) -> HeldOutEnergy:
    return held_out_energy(
        model,
        {},
        batches(np.asarray(tokens, np.float32), batch_size),
        masking,
        seed=seed,
        mesh=make_mesh(MeshConfig(), jax.devices()[:1]),
        **kwargs,
    )


def normal_tokens(num_clips: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(num_clips, NUM_TOKENS, TOKEN_DIM))


@pytest.mark.parametrize(("num_draws", "biased"), [(2, Stub(1.0, 1.0)), (4, Stub(0.0, 0.0))])
def test_the_true_law_scores_its_expectation_and_a_biased_one_scores_higher(num_draws, biased):
    tokens = normal_tokens(512)
    true = score(Stub(0.0, 1.0), tokens, num_draws=num_draws, batch_size=512)
    # E|X - Y| = 2 / sqrt(pi) for independent standard normals: 2 E|X - Y| - E|X - X'| is the same
    assert abs(true.mean - 2 / math.sqrt(math.pi)) < 4 * true.standard_error
    other = score(biased, tokens, num_draws=num_draws, batch_size=512)
    assert other.mean > true.mean + 4 * math.hypot(true.standard_error, other.standard_error)
    assert true.num_draws == num_draws


def test_matches_numpy_where_the_answer_is_a_constant():
    tokens = normal_tokens(20)
    found = score(Stub(0.5, 0.0), tokens)
    by_clip = (2 * np.abs(tokens - 0.5)).mean(axis=(1, 2))
    assert found.mean == pytest.approx(by_clip.mean(), rel=SUM)
    # a deviation is off by the error of the numbers that deviate
    deviation = by_clip.std(ddof=1)
    bound = 2 * SUM * by_clip.max() / deviation
    assert found.standard_error == pytest.approx(deviation / math.sqrt(20), rel=bound)
    assert (found.num_clips, found.num_tokens) == (20, 20 * NUM_TOKENS)


def test_only_masked_tokens_count():
    tokens = np.ones((16, NUM_TOKENS, TOKEN_DIM))
    found = score(Stub(1.0, 0.0, if_visible=100.0), tokens, HALF_MASKED)
    assert 16 * NUM_TOKENS / 2 <= found.num_tokens < 16 * NUM_TOKENS
    assert found.mean == 0


def test_a_clip_does_not_depend_on_its_batch_and_padding_does_not_count():
    tokens = normal_tokens(24)
    model = Stub(0.2, 1.0)
    whole = score(model, tokens, HALF_MASKED, batch_size=24)
    padded = score(model, tokens, HALF_MASKED, batch_size=16)
    assert padded.mean == pytest.approx(whole.mean, rel=SUM)
    # clips score up to three times their mean, whose deviation is twenty-four errors' root
    bound = 2 * SUM * 3 * whole.mean / (whole.standard_error * math.sqrt(24))
    assert padded.standard_error == pytest.approx(whole.standard_error, rel=bound)
    assert padded[2:] == whole[2:]
    assert score(model, tokens, HALF_MASKED, seed=1).mean != padded.mean


def test_one_clip_has_no_standard_error_and_none_is_refused():
    assert math.isnan(score(Stub(0.0, 1.0), normal_tokens(1), batch_size=8).standard_error)
    with pytest.raises(ValueError, match="no clips"):
        score(Stub(0.0, 1.0), normal_tokens(0))
