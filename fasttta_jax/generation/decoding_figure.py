"""How decoding fills a clip in: a film strip of what its tokens sound like after some iterations.

Dimensions: N tokens, C channels, T iterations, G tokens per column, P token columns.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from fasttta_jax.codecs import Codec
from fasttta_jax.generation.sampler import States
from fasttta_jax.report.spectrograms import (
    KNOWN,
    MASKED,
    REVEALED,
    Frame,
    frames_png,
)

MAX_FRAMES = 6


def decoding_png(
    states: States, known: Bool[np.ndarray, " N"], codec: Codec, title: str | None = None
) -> bytes:
    """A strip of at most `MAX_FRAMES` evenly spaced iterations, the last among them, as a PNG.

    Masked tokens sound like silence.

    Args:
      states: of one clip, [T, N, C] and [T, N].
      known: True where a token was given.
      codec: tokens to audio.
      title: a line above the strip.
    """
    num_iterations, num_tokens, _ = states.tokens.shape
    number = min(num_iterations, MAX_FRAMES)
    chosen = np.round(np.linspace(num_iterations - 1, 0, number)).astype(int)[::-1]
    masked = states.masked[chosen]
    silence = np.tile(codec.silence(), (num_tokens // codec.tokens_per_column, 1))
    tokens = np.where(masked[..., None], silence[None], states.tokens[chosen])
    sounds = np.asarray(codec.decode(jnp.asarray(tokens)))
    cells = np.where(masked, MASKED, np.where(known, KNOWN, REVEALED))
    frames = [
        Frame(
            f"after {iteration + 1} of {num_iterations}",
            sound,
            grid.reshape(-1, codec.tokens_per_column).T,
        )
        for iteration, sound, grid in zip(chosen, sounds, cells, strict=True)
    ]
    return frames_png(frames, codec.sample_rate, title)
