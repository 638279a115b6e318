"""Seams: how far a log-mel spectrogram moves where pieces were joined, against everywhere else.

A step is the mean absolute difference, over the mel bands, of two neighbouring frames. Where
tokens, windows or the ends of a loop do not fit each other, the steps at their borders are larger
than the others; a real sound has a ratio of 1.
Dimensions: n clips, S samples, T frames, F mel bands.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from fasttta_jax.audio.mel import MelConfig, log_mel


def frame_steps(
    audio: Float[np.ndarray, "n S"], mel: MelConfig, *, circular: bool = False
) -> Float[np.ndarray, "n steps"]:
    """Steps between neighbouring frames of waveforms; step t lies between frames t and t + 1.

    Args:
      audio: waveforms.
      mel: the grid; with its framing "hifigan" a frame stands for one hop of samples.
      circular: whether a clip goes on with its own beginning, as a loop does: then there is one
        more step, from the last frame to the first, and every frame hears what a loop plays.
    """
    if not circular:
        return np.abs(np.diff(np.asarray(log_mel(audio, mel)), axis=1)).mean(axis=-1)
    context = -(-mel.n_fft // mel.hop_length)
    samples, frames = context * mel.hop_length, mel.num_frames(audio.shape[1])
    around = np.concatenate([audio[:, -samples:], audio, audio[:, :samples]], axis=1)
    spectrogram = np.asarray(log_mel(around, mel))[:, context : context + frames + 1]
    return np.abs(np.diff(spectrogram, axis=1)).mean(axis=-1)


def border_ratio(
    steps: Float[np.ndarray, "n steps"], frames_per_column: int
) -> Float[np.ndarray, " n"]:
    """Mean step at the borders of token columns over the mean step inside them, for each clip.

    NaN for a clip that does not move inside its columns.

    Raises:
      ValueError: no border, or nothing beside borders.
    """
    places = np.arange(1, steps.shape[1] + 1) % frames_per_column == 0
    if not places.any() or places.all():
        raise ValueError(
            f"frames_per_column is {frames_per_column}; allowed: 2 to {steps.shape[1]}, the steps "
            "of a clip"
        )
    inside = steps[:, ~places].mean(axis=1)
    return steps[:, places].mean(axis=1) / np.where(inside > 0, inside, np.nan)


def joint_ratio(
    steps: Float[np.ndarray, "n steps"], joints: Sequence[int]
) -> Float[np.ndarray, " n"]:
    """Mean step at some places over the median of all other steps, for each clip.

    Args:
      steps: see `frame_steps`.
      joints: numbers of the steps at which pieces were joined; negative ones count from the end.

    Raises:
      ValueError: no joint, or nothing beside joints.
    """
    places = np.zeros(steps.shape[1], bool)
    places[list(joints)] = True
    if not places.any() or places.all():
        raise ValueError(
            f"joints is {list(joints)}; allowed: some, not all, of {places.size} steps"
        )
    inside = np.median(steps[:, ~places], axis=1)
    return steps[:, places].mean(axis=1) / np.where(inside > 0, inside, np.nan)
