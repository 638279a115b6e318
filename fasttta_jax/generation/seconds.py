"""Lengths in seconds: what they may be, and how a sound is cut to one.

Dimensions: S audio samples.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from fasttta_jax.config.checks import check

NUMBER = r"(\d+(?:\.\d*)?|\.\d+)"
"""A number of seconds in a regular expression."""
MAX_SECONDS = 86_400.0
FADE_SECONDS = 0.01


def check_seconds(name: str, value: float) -> None:
    """Raises ConfigError unless this is a length that a clip may have."""
    allowed = f"above 0, up to {MAX_SECONDS:g}, a day"
    check(0 < value <= MAX_SECONDS, name, value, allowed)


def cut(
    audio: Float[np.ndarray, " S"], num_samples: int, sample_rate: int
) -> Float[np.ndarray, " samples"]:
    """The first samples; what is cut off ends in a fade of 10 ms instead of a click."""
    if num_samples >= len(audio):
        return audio
    found = audio[:num_samples].copy()
    fade = min(num_samples, round(FADE_SECONDS * sample_rate))
    found[num_samples - fade :] *= np.cos(np.pi / 2 * (np.arange(fade) + 0.5) / fade) ** 2
    return found
