"""The level of sounds that people listen to: by loudness, by peak or by root mean square.

Source: ITU-R BS.1770-4 (loudness, by pyloudnorm). Dimensions: S audio samples.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from jaxtyping import Float

from fasttta_jax.audio.files import (
    PLAYBACK_PEAK_DBFS,
    amplitude,
    gated_rms,
    is_silent,
)

LOWEST = -120.0
"""dB below full scale: below it, files of 16 bits hold nothing."""
BLOCK_SECONDS = 0.4
"""The gate of BS.1770 weighs blocks of this length; a shorter sound has no loudness."""


def loudness(audio: Float[np.ndarray, " S"], sample_rate: int) -> float:
    """Integrated loudness in LUFS; minus infinity where all of it is below the gate.

    Raises:
      ValueError: the sound is shorter than `BLOCK_SECONDS`.
    """
    check_length(audio.size, sample_rate)
    import pyloudnorm  # here, because scipy.signal takes long to import, and few ask for loudness

    meter = pyloudnorm.Meter(sample_rate, block_size=BLOCK_SECONDS)
    with np.errstate(divide="ignore"):
        return float(meter.integrated_loudness(np.asarray(audio, np.float64)))


def check_length(num_samples: int, sample_rate: int) -> None:
    """Raises ValueError where a sound is too short to have a loudness."""
    if num_samples < BLOCK_SECONDS * sample_rate:
        raise ValueError(
            f"the sound has {num_samples / sample_rate:.3g} s; loudness in LUFS needs "
            f"{BLOCK_SECONDS} s or more. Give a peak or an rms level for shorter ones"
        )


@dataclasses.dataclass(frozen=True)
class Level:
    """What sounds are brought to; with no field given they keep the level that they have.

    A peak never passes `PLAYBACK_PEAK_DBFS`, or `peak_dbfs` where that is given.

    Attributes:
      lufs: integrated loudness.
      peak_dbfs: highest sample.
      rms_dbfs: root mean square without silent stretches.

    Raises:
      ValueError: several are given, or one is above full scale or below `LOWEST`.
    """

    lufs: float | None = None
    peak_dbfs: float | None = None
    rms_dbfs: float | None = None

    def __post_init__(self) -> None:
        values = dataclasses.asdict(self)
        given = {name: value for name, value in values.items() if value is not None}
        if len(given) > 1:
            raise ValueError(
                f"{' and '.join(given)} are given; allowed: one of {', '.join(values)}, since "
                "each sets the level"
            )
        for name, value in given.items():
            if not LOWEST <= value <= 0:
                raise ValueError(
                    f"{name} is {value}; allowed: at most 0 (full scale), at least {LOWEST:g}"
                )

    def apply(
        self, audio: Float[np.ndarray, " S"], sample_rate: int
    ) -> tuple[Float[np.ndarray, " S"], float]:
        """The sound at this level, float32, and the gain in dB. Silence is not raised.

        Raises:
          ValueError: samples are not finite, or a sound is too short for its loudness.
        """
        silent = is_silent(audio)
        peak = float(np.max(np.abs(audio), initial=0.0))
        ceiling = amplitude(PLAYBACK_PEAK_DBFS if self.peak_dbfs is None else self.peak_dbfs)
        factor = 1.0 if silent else self._factor(audio, sample_rate, peak)
        if peak * factor > ceiling:
            factor = ceiling / peak
        return (audio.astype(np.float64) * factor).astype(np.float32), 20 * math.log10(factor)

    def _factor(self, audio: np.ndarray, sample_rate: int, peak: float) -> float:
        if self.peak_dbfs is not None:
            return amplitude(self.peak_dbfs) / peak
        if self.rms_dbfs is not None:
            return amplitude(self.rms_dbfs) / gated_rms(audio)
        if self.lufs is not None:
            found = loudness(audio, sample_rate)
            return amplitude(self.lufs - found) if math.isfinite(found) else 1.0
        return 1.0
