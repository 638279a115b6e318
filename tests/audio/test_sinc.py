"""Resampling follows torchaudio's formula, and is what a band-limited signal should become."""

import math

import numpy as np
import pytest

from fasttta_jax.audio.sinc import resample_sinc
from tests.support.sinc_reference import by_torchaudios_kernel
from tests.support.tolerance import unit_roundoff


@pytest.mark.parametrize(
    ("source", "target", "length"),
    [(44_100, 16_000, 4410), (48_000, 16_000, 4801), (16_000, 48_000, 801), (37, 36, 500)],
)
def test_the_published_kernel_gives_the_same_samples(source, target, length):
    audio = np.random.default_rng(0).uniform(-1, 1, length).astype(np.float32)
    found = resample_sinc(audio, source, target)
    expected = by_torchaudios_kernel(audio, source, target)
    assert (found.dtype, found.shape) == (np.float32, expected.shape)
    # both are computed in float64; what is left is the rounding of the result
    assert np.max(np.abs(found - expected)) <= 2 * unit_roundoff() * np.max(np.abs(expected))


def test_a_tone_below_the_cut_off_stays_and_one_above_it_goes():
    time = np.arange(44_100) / 44_100
    kept, gone = (np.sin(2 * np.pi * f * time).astype(np.float32) for f in (1000, 11_000))
    found = resample_sinc(kept, 44_100, 16_000)
    expected = np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000)
    assert np.max(np.abs(found - expected)[100:-100]) < 5e-3  # ripple of a window of six zeros
    assert np.max(np.abs(resample_sinc(gone, 44_100, 16_000))[100:-100]) < 1e-2


def test_unusual_rates_and_lengths():
    audio = np.linspace(-1, 1, 1000, dtype=np.float32)
    assert resample_sinc(audio, 44_101, 16_000).shape == (math.ceil(16_000 * 1000 / 44_101),)
    assert resample_sinc(audio[:0], 48_000, 16_000).shape == (0,)
    np.testing.assert_array_equal(resample_sinc(audio, 8000, 8000), audio)
    with pytest.raises(ValueError, match="the rates are 0 and 8000 Hz"):
        resample_sinc(audio, 0, 8000)
