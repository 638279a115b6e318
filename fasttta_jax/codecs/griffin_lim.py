"""Fast Griffin-Lim: waveforms for log-mel spectrograms, whose phases are found by iteration.

Sources: Griffin & Lim (1984); Perraudin et al. (2013) for the momentum.
Dimensions: B clips, S samples, T frames, F mel bands, R frequency bins.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fasttta_jax.audio.mel import MelConfig, inverse_stft, mel_matrix, stft
from fasttta_jax.codecs.chunks import Chunks, in_chunks

MOMENTUM = 0.99
WINDOW_FRAMES = 1536
"""Frames that are decoded in one piece, and whose starting phases differ."""
FADE_FRAMES = 32
"""Over which one piece fades into the next, where they agree."""


@functools.cache
def _mel_inverse(config: MelConfig) -> Float[np.ndarray, "R F"]:
    return np.linalg.pinv(mel_matrix(config).astype(np.float64)).astype(np.float32)


def reach(config: MelConfig, num_iterations: int) -> int:
    """Frames on either side of a sample that `griffin_lim` hears: a window more an iteration."""
    return (num_iterations + 1) * math.ceil(config.n_fft / config.hop_length)


@functools.partial(jax.jit, static_argnames=("config", "num_iterations"))
def griffin_lim(
    spectrogram: Float[Array, "B T F"],
    config: MelConfig,
    num_iterations: int,
    numbers: Int[Array, "1 T"] | None = None,
) -> Float[Array, "B S"]:
    """Waveforms whose log-mel spectrogram is close to the given one.

    The floor is subtracted, so that silence stays silent instead of hissing. The starting phase is
    the same fixed noise for every clip: the result depends on nothing but the clip.

    Args:
      spectrogram: log-mel.
      config: its grid.
      num_iterations: of phase reconstruction.
      numbers: of the frames, by which they start from the noise, where they are not the first.
    """
    mel = jnp.maximum(jnp.exp(spectrogram) - config.floor, 0.0)
    magnitude = jnp.maximum(jnp.matmul(mel, _mel_inverse(config).T), 0.0)
    num_samples = spectrogram.shape[1] * config.hop_length
    numbers = jnp.arange(magnitude.shape[1])[None] if numbers is None else numbers
    noise = jax.random.uniform(
        jax.random.key(0), (WINDOW_FRAMES, magnitude.shape[2]), maxval=2 * np.pi
    )
    phase = noise[numbers % WINDOW_FRAMES]
    start = magnitude * jnp.exp(1j * phase)

    def iterate(_: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        accelerated, previous = carry
        unit = accelerated / jnp.maximum(jnp.abs(accelerated), 1e-12)
        rebuilt = stft(inverse_stft(magnitude * unit, config, num_samples), config)
        return rebuilt + MOMENTUM * (rebuilt - previous), rebuilt

    accelerated, _ = jax.lax.fori_loop(0, num_iterations, iterate, (start, jnp.zeros_like(start)))
    unit = accelerated / jnp.maximum(jnp.abs(accelerated), 1e-12)
    return inverse_stft(magnitude * unit, config, num_samples)


@functools.partial(jax.jit, static_argnames=("config", "num_iterations"))
def to_audio(
    spectrogram: Float[Array, "B T F"],
    numbers: Int[Array, "1 T"],
    config: MelConfig,
    num_iterations: int,
) -> Float[Array, "B S"]:
    """`griffin_lim` in the memory of one window, whose margins hold all that its middle hears.

    Args:
      spectrogram: log-mel, of any length.
      numbers: of the frames, by which they start from the noise.
      config: its grid.
      num_iterations: of phase reconstruction.
    """
    margin = reach(config, num_iterations)
    overlap = 2 * margin + FADE_FRAMES

    def part(inputs: tuple[Float[Array, "B T F"], Int[Array, "1 T"]]) -> Float[Array, "B S"]:
        return griffin_lim(inputs[0], config, num_iterations, inputs[1])

    chunks = Chunks(max(WINDOW_FRAMES, 2 * overlap), overlap, margin)
    return in_chunks(part, (spectrogram, numbers), chunks)
