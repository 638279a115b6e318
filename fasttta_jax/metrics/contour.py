"""Contour of a pitch: how much of its course is one steady wail.

Dimensions: S samples, T frames.
"""

from __future__ import annotations

import librosa
import numpy as np
from jaxtyping import Float

HOP_SECONDS = 0.01
FRAME_SECONDS = 0.064


def pitch_track(
    audio: Float[np.ndarray, " S"], sample_rate: int, *, lowest: float, highest: float
) -> Float[np.ndarray, " T"]:
    """log2 of the pitch in Hz every hundredth of a second, by YIN (de Cheveigné & Kawahara, 2002).

    Args:
      audio: waveform.
      sample_rate: in Hz.
      lowest: lowest pitch that is looked for, in Hz.
      highest: highest pitch.
    """
    pitch = librosa.yin(
        np.asarray(audio),
        sr=sample_rate,
        fmin=lowest,
        fmax=highest,
        frame_length=round(FRAME_SECONDS * sample_rate),
        hop_length=round(HOP_SECONDS * sample_rate),
    )
    return np.log2(pitch)


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
