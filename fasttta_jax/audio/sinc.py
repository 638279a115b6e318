"""Resampling by a windowed sinc, as torchaudio does it, for figures that must agree with it.

With both rates divided by their greatest common divisor, b = 0.99 min(source, target), and sample j
of the result at the time s = j / target, in units of the divided rates:

    y[j] = b / source  sum_i x[i] sinc(u) cos^2(pi u / 12),   u = b (i / source - s), |u| < 6

where sinc(u) = sin(pi u) / (pi u), x is zero outside, and y has ceil(target S / source) samples.

Source: torchaudio.functional.resample, "sinc_interp_hann", lowpass_filter_width 6, rolloff 0.99.
Dimensions: R samples, S resampled ones, T taps of a phase, P phases.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from jaxtyping import Float, Float64, Int

LOWPASS_WIDTH = 6
"""Zero crossings of the sinc on either side."""
ROLLOFF = 0.99
"""Cut-off over the lower of the two Nyquist frequencies."""
_BLOCK = 1 << 16


def resample_sinc(
    audio: Float[np.ndarray, " R"], source_rate: int, target_rate: int
) -> Float[np.ndarray, " S"]:
    """A waveform at another sample rate; computed in float64, given as float32.

    Args:
      audio: waveform.
      source_rate: its samples per second.
      target_rate: samples per second of the result.

    Raises:
      ValueError: a rate is not positive.
    """
    if source_rate < 1 or target_rate < 1:
        raise ValueError(f"the rates are {source_rate} and {target_rate} Hz; allowed: 1 or more")
    divisor = math.gcd(source_rate, target_rate)
    source, target = source_rate // divisor, target_rate // divisor
    if source == target:
        return audio.astype(np.float32)
    first, taps = _taps(source, target)
    width = taps.shape[1]
    length = -(-target * len(audio) // source)
    padded = np.pad(audio.astype(np.float64), (width, width + source))
    windows = np.lib.stride_tricks.sliding_window_view(padded, width)
    resampled = np.empty(length, np.float32)
    for start in range(0, length, _BLOCK):
        places = np.arange(start, min(start + _BLOCK, length))
        period, phase = np.divmod(places, target)
        rows = windows[period * source + first[phase] + width]
        resampled[places] = np.einsum("jt,jt->j", rows, taps[phase])
    return resampled


@functools.lru_cache(maxsize=16)
def _taps(source: int, target: int) -> tuple[Int[np.ndarray, " P"], Float64[np.ndarray, "P T"]]:
    """For each phase: the first sample that it reads, from that of its period, and the taps."""
    cutoff = ROLLOFF * min(source, target)
    reach = math.ceil(LOWPASS_WIDTH * source / cutoff)
    time = np.arange(target) / target
    first = np.floor(time * source).astype(int) - reach
    samples = first[:, None] + np.arange(2 * reach + 2)
    u = cutoff * (samples / source - time[:, None])
    u = np.clip(u, -LOWPASS_WIDTH, LOWPASS_WIDTH)
    window = np.cos(np.pi * u / (2 * LOWPASS_WIDTH)) ** 2
    return first, np.asarray(np.sinc(u) * window * cutoff / source, np.float64)
