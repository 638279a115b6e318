"""Contour of a pitch: how much of its course is one steady wail.

Dimensions: S samples, T frames.
"""

from __future__ import annotations

import librosa
import numpy as np
from jaxtyping import Float

HOP_SECONDS = 0.01
FRAME_SECONDS = 0.064
SILENT = 1e-6


def pitch_track(
    audio: Float[np.ndarray, " S"], sample_rate: int, *, lowest: float, highest: float
) -> Float[np.ndarray, " T"]:
    """log2 of the frequency in Hz of the strongest partial, every hundredth of a second.

    The top of a parabola through the logarithms of the highest bin and its neighbours.

    Args:
      audio: waveform.
      sample_rate: in Hz.
      lowest: lowest frequency that is looked at, in Hz.
      highest: highest frequency.
    """
    n_fft = round(FRAME_SECONDS * sample_rate)
    spectrum = librosa.stft(
        np.asarray(audio), n_fft=n_fft, hop_length=round(HOP_SECONDS * sample_rate)
    )
    levels = np.log(np.abs(spectrum) + SILENT)
    first, last = round(lowest * n_fft / sample_rate), round(highest * n_fft / sample_rate)
    best = first + levels[first : last + 1].argmax(axis=0)
    frames = np.arange(levels.shape[1])
    left, middle, right = (levels[best + shift, frames] for shift in (-1, 0, 1))
    bend = np.minimum(left - 2 * middle + right, -SILENT)
    shift = np.clip((left - right) / (2 * bend), -0.5, 0.5)
    return np.log2((best + shift) * sample_rate / n_fft)


def wail_share(
    contour: Float[np.ndarray, " T"], *, slowest: float = 0.4, fastest: float = 1.5
) -> float:
    """Share of a contour's variance that the best sine explains: 1 for a perfect wail.

    Args:
      contour: one value every `HOP_SECONDS`.
      slowest: lowest rate of the sine, per second.
      fastest: highest rate.
    """
    centred = contour - contour.mean()
    variance = centred @ centred
    if not variance:
        return 0.0
    time = HOP_SECONDS * np.arange(len(contour))
    residuals = []
    for rate in np.linspace(slowest, fastest, 56):
        angle = 2 * np.pi * rate * time
        sines = np.stack([np.sin(angle), np.cos(angle), np.ones_like(angle)], axis=1)
        fitted = sines @ np.linalg.lstsq(sines, contour, rcond=None)[0]
        residuals.append(np.sum((contour - fitted) ** 2))
    return float(1 - min(residuals) / variance)
