"""Long sounds are decoded in windows as in one piece; circles have no end that could be heard."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from fasttta_jax.codecs.circular import decode_circular
from fasttta_jax.codecs.griffin_lim import FADE_FRAMES, WINDOW_FRAMES, griffin_lim, reach
from tests.codecs.test_codec import tiny_codec
from tests.support import helpers

CODEC = helpers.CODEC
PIECES = 2e-3
"""Relative size of what may differ between pieces. Phase reconstruction divides by magnitudes, so
that rounding grows where they are small; another phase would differ by about 1.4."""


def tokens(num_columns: int, seed: int = 0) -> np.ndarray:
    """Columns of training clips in some order, float32 [1, N, C]."""
    clips = np.stack([clip.audio for clip in helpers.synthetic_clips("train")])
    columns = np.asarray(tiny_codec().encode(clips)).reshape(-1, CODEC.bands, CODEC.token_dim)
    chosen = np.random.default_rng(seed).integers(len(columns), size=num_columns)
    return columns[chosen].reshape(1, -1, CODEC.token_dim)


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_windows_give_what_one_piece_gives():
    """The starting phases are drawn once a window, and the windows agree where they meet."""
    codec, iterations = tiny_codec(), CODEC.griffin_lim_iterations
    num_columns = WINDOW_FRAMES // CODEC.patch_frames + 20
    sound = tokens(num_columns)
    found = np.asarray(codec.decode(sound))
    assert found.shape == (1, num_columns * codec.samples_per_column)
    spectrogram = codec.to_log_mel(jnp.asarray(sound))
    expected = np.asarray(griffin_lim(spectrogram, CODEC.mel, iterations))
    assert difference(found, expected) < PIECES
    # and each sample hears no more than its surroundings
    heard = reach(CODEC.mel, iterations) + FADE_FRAMES
    changed = np.array(spectrogram)
    changed[:, 1000:] = changed[:, 1000:][:, ::-1]
    other = np.asarray(griffin_lim(jnp.asarray(changed), CODEC.mel, iterations))
    quiet = slice(0, (1000 - heard) * CODEC.mel.hop_length)
    assert difference(other[:, quiet], expected[:, quiet]) < PIECES


def test_a_circle_sounds_the_same_in_every_round():
    """Two rounds decoded as one circle of the same phases are one round, twice."""
    codec = tiny_codec()
    frames = 8 * CODEC.patch_frames
    sound = tokens(8)
    found = np.asarray(decode_circular(codec, sound))
    assert found.shape == (1, 8 * codec.samples_per_column)
    rounds = codec.to_log_mel(jnp.tile(jnp.asarray(sound), (1, 5, 1)))
    numbers = jnp.arange(rounds.shape[1])[None] % frames
    iterations = CODEC.griffin_lim_iterations
    whole = np.asarray(griffin_lim(rounds, CODEC.mel, iterations, numbers))
    length = found.shape[1]
    for start in (1, 2, 3):
        assert difference(whole[:, start * length : (start + 1) * length], found) < PIECES


class Ramps:
    """A codec whose columns are ramps from a token's value up to the next one's."""

    sample_rate, token_dim, tokens_per_column, samples_per_column = 1000, 1, 1, 100

    def decode(self, tokens):
        ahead = jnp.concatenate([tokens[:, 1:], tokens[:, -1:]], axis=1)
        part = jnp.arange(100)[None, None] / 100
        return (tokens + (ahead - tokens) * part).reshape(len(tokens), -1)


@pytest.mark.usefixtures("unchecked")
def test_other_codecs_fade_over_the_seam():
    sound = np.asarray([0.0, 3.0, 1.0, 2.0], np.float32)[None, :, None]
    found = np.asarray(decode_circular(Ramps(), sound))[0]  # type: ignore[arg-type]
    assert found.shape == (400,)
    steps = np.abs(np.diff(np.concatenate([found, found[:1]])))
    # the steepest ramp rises by 3 in a column, and the fade adds no more than it takes away
    assert steps.max() <= 0.03 + 1e-5
    assert abs(found[-1] - found[0]) <= 0.03
