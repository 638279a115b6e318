"""The log-mel front end written out in float64, and how far a float32 one may be from it.

Dimensions: T frames, F bands.
"""

from __future__ import annotations

import math

import numpy as np

from fasttta_jax.audio.mel import MelConfig
from tests.support.tolerance import rounding, worst_rounding


def slaney_hertz(mels: np.ndarray) -> np.ndarray:
    """Linear up to 1 kHz with 3 mels per 200 Hz, then 27 mels for a factor of 6.4."""
    return np.where(mels < 15, mels * 200 / 3, 1000 * np.exp((mels - 15) * np.log(6.4) / 27))


def slaney_matrix(config: MelConfig) -> np.ndarray:
    """Triangles of area 1 between edges that are even in Slaney's mels; f_max above 1 kHz."""
    assert config.f_min == 0
    top = 15 + 27 * np.log(config.f_max / 1000) / np.log(6.4)
    edges = slaney_hertz(np.linspace(0, top, config.num_mels + 2))[:, None]
    hertz = np.arange(config.n_fft // 2 + 1) * config.sample_rate / config.n_fft
    rising = (hertz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - hertz) / (edges[2:] - edges[1:-1])
    return 2 / (edges[2:] - edges[:-2]) * np.clip(np.minimum(rising, falling), 0, None)


def spectrum(audio: np.ndarray, config: MelConfig) -> np.ndarray:
    """Magnitudes of one clip's transform, frame by frame, in float64."""
    centre = 0 if config.framing == "center" else config.hop_length // 2
    half = config.n_fft // 2
    padded = np.pad(np.float64(audio), half, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(config.n_fft) / config.n_fft)
    frames = [
        padded[start : start + config.n_fft] * window
        for start in range(centre, len(audio) + 1, config.hop_length)
    ]
    return np.abs(np.fft.rfft(frames, axis=-1))


def mel_magnitudes(audio: np.ndarray, config: MelConfig) -> np.ndarray:
    """[T, F] of one clip, before floor and logarithm."""
    return spectrum(audio, config) @ slaney_matrix(config).T


def transform_terms(n_fft: int) -> int:
    """A stage of a transform adds two products of complex numbers; window and magnitude."""
    return 4 * round(math.log2(n_fft)) + 4


def mel_rounding(audio: np.ndarray, config: MelConfig) -> np.ndarray:
    """Nepers [T, F] by which a float32 front end may be off.

    A transform's error is spread evenly over its bins, in proportion to their root mean square
    (Higham, section 24.1). A band adds up to some hundred bins; its logarithm rounds at its size.
    """
    magnitudes, matrix = spectrum(audio, config), slaney_matrix(config)
    level = np.sqrt(np.mean(magnitudes**2, axis=-1, keepdims=True)) * matrix.sum(axis=1)
    bands = np.maximum(magnitudes @ matrix.T, config.floor)
    of_bins = rounding(transform_terms(config.n_fft)) * level / bands
    num_bins = int((matrix > 0).sum(axis=1).max())
    return of_bins + rounding(num_bins) + worst_rounding(4) * np.abs(np.log(bands))
