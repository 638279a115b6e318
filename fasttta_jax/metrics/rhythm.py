"""Rhythm: how fast something repeats, and how regularly.

The onset strength of a sound, the rise of its log-mel spectrogram, is held against itself later: a
regular sound has a high autocorrelation at its period.
Dimensions: S samples.
"""

from __future__ import annotations

from typing import NamedTuple

import librosa
import numpy as np
import scipy.ndimage
import scipy.signal
from jaxtyping import Float

HOP_SECONDS = 0.005
NUM_MELS = 32
BLUR_FRAMES = 2.0
"""Of the onset strength, so that a period need not be a whole number of frames."""
NEARLY = 0.8
"""Of the highest peak: the first peak as high as this is the period, and not a multiple of it."""


class Beat(NamedTuple):
    """What repeats in a sound.

    Attributes:
      rate: repetitions per second; NaN where nothing repeats.
      regularity: autocorrelation at their period, 0 to about 1; 0 where nothing repeats.
    """

    rate: float
    regularity: float


def beat(
    audio: Float[np.ndarray, " S"],
    sample_rate: int,
    *,
    slowest: float = 1.0,
    fastest: float = 12.0,
) -> Beat:
    """The beat of a sound.

    The autocorrelation at a lag is over the part of the clip that has a counterpart, so that long
    periods are not at a disadvantage. A period must fit the clip twice.

    Args:
      audio: waveform.
      sample_rate: in Hz.
      slowest: lowest rate that is looked for, per second.
      fastest: highest rate.
    """
    hop = round(HOP_SECONDS * sample_rate)
    strength = librosa.onset.onset_strength(
        y=np.asarray(audio), sr=sample_rate, hop_length=hop, n_fft=4 * hop, n_mels=NUM_MELS
    )
    strength = scipy.ndimage.gaussian_filter1d(strength, BLUR_FRAMES)
    strength = strength - strength.mean()
    if not strength.any():
        return Beat(float("nan"), 0.0)
    frame_rate = sample_rate / hop
    last = min(round(frame_rate / slowest), len(strength) // 2)
    similarity = np.array([_correlation(strength, lag) for lag in range(last + 2)])
    peaks, _ = scipy.signal.find_peaks(similarity)
    peaks = peaks[(peaks >= frame_rate / fastest) & (peaks <= last) & (similarity[peaks] > 0)]
    if not len(peaks):
        return Beat(float("nan"), 0.0)
    period = peaks[np.argmax(similarity[peaks] >= NEARLY * similarity[peaks].max())]
    left, middle, right = similarity[period - 1 : period + 2]
    shift = (left - right) / (2 * (left - 2 * middle + right))  # of the parabola's top
    return Beat(float(frame_rate / (period + shift)), float(middle))


def _correlation(strength: Float[np.ndarray, " frames"], lag: int) -> float:
    early, late = strength[: len(strength) - lag], strength[lag:]
    norm = np.linalg.norm(early) * np.linalg.norm(late)
    return float(early @ late / norm) if norm else 0.0
