"""Log-mel spectrograms: magnitude STFT, Slaney mel bands, natural logarithm with a floor.

Source: the front end of AudioLDM (16 kHz, 1024-point periodic Hann window, hop 160, 64 bands from 0
to 8 kHz).
Dimensions: B clips, S samples, P padded samples, T frames, F bands, R = n_fft / 2 + 1 frequency
bins.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import librosa
import numpy as np
from jaxtyping import Array, Complex, Float, Float32, Int

from fasttta_jax.typing import AnyArray

Framing = Literal["center", "hifigan"]


@dataclasses.dataclass(frozen=True)
class MelConfig:
    """The analysis grid.

    Attributes:
      sample_rate: samples per second of the waveform.
      n_fft: window length and transform size, in samples.
      hop_length: samples between frames.
      num_mels: number of mel bands F.
      f_min: lowest band edge, in Hz.
      f_max: highest band edge, in Hz.
      floor: smallest magnitude kept; silence becomes ln(floor).
      framing: "center" puts frame k at sample hop * k and gives 1 + S // hop frames; "hifigan" puts
        it half a hop later and gives S // hop frames, which suits a vocoder whose stride is the
        hop.
    """

    sample_rate: int = 16_000
    n_fft: int = 1024
    hop_length: int = 160
    num_mels: int = 64
    f_min: float = 0.0
    f_max: float = 8_000.0
    floor: float = 1e-5
    framing: Framing = "hifigan"

    def __post_init__(self) -> None:
        if self.framing not in get_args(Framing):
            raise ValueError(f"mel.framing is {self.framing!r}; allowed: {get_args(Framing)}")
        for field in ("sample_rate", "n_fft", "hop_length", "num_mels", "floor"):
            if getattr(self, field) <= 0:
                raise ValueError(f"mel.{field} is {getattr(self, field)}; it must be positive")
        if self.hop_length > self.n_fft or (self.n_fft - self.hop_length) % 2:
            raise ValueError(
                f"mel.hop_length is {self.hop_length}; it must be at most mel.n_fft = {self.n_fft} "
                "and differ from it by an even number"
            )
        if not 0 <= self.f_min < self.f_max <= self.sample_rate / 2:
            raise ValueError(
                f"mel.f_min = {self.f_min} and mel.f_max = {self.f_max} must satisfy "
                f"0 <= f_min < f_max <= sample_rate / 2 = {self.sample_rate / 2}"
            )

    @property
    def padding(self) -> int:
        """Samples of reflection on either side of the waveform."""
        if self.framing == "center":
            return self.n_fft // 2
        return (self.n_fft - self.hop_length) // 2

    def num_frames(self, num_samples: int) -> int:
        """Frames of a waveform of `num_samples` samples."""
        return 1 + (num_samples + 2 * self.padding - self.n_fft) // self.hop_length


@functools.cache
def hann_window(n_fft: int) -> Float32[np.ndarray, " {n_fft}"]:
    """Periodic Hann window, float32 [n_fft]."""
    return np.asarray(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft), np.float32)


@functools.cache
def mel_matrix(config: MelConfig) -> Float32[np.ndarray, "F R"]:
    """Slaney-scale, area-normalised filter bank, float32 [F, R]."""
    return librosa.filters.mel(
        sr=config.sample_rate,
        n_fft=config.n_fft,
        n_mels=config.num_mels,
        fmin=config.f_min,
        fmax=config.f_max,
    ).astype(np.float32)


def frame(padded: Float[AnyArray, "B P"], config: MelConfig) -> Float[Array, "B T n_fft"]:
    """Overlapping windows of an already padded waveform, without a gather.

    The waveform is cut into blocks of one hop; a window is a run of consecutive blocks.
    """
    hop = config.hop_length
    num_blocks = -(-config.n_fft // hop)
    num_frames = 1 + (padded.shape[-1] - config.n_fft) // hop
    length = (num_frames + num_blocks - 1) * hop
    padded = jnp.pad(padded, ((0, 0), (0, max(0, length - padded.shape[-1]))))[:, :length]
    blocks = padded.reshape(padded.shape[0], -1, hop)
    runs = [blocks[:, start : start + num_frames] for start in range(num_blocks)]
    return jnp.concatenate(runs, axis=-1)[..., : config.n_fft]


def overlap_add(frames: Float[AnyArray, "B T n_fft"], config: MelConfig) -> Float[Array, "B P"]:
    """The transpose of `frame`: windows added up at their places."""
    hop = config.hop_length
    num_blocks = -(-config.n_fft // hop)
    batch_size, num_frames, n_fft = frames.shape
    frames = jnp.pad(frames, ((0, 0), (0, 0), (0, num_blocks * hop - n_fft)))
    frames = frames.reshape(batch_size, num_frames, num_blocks, hop)
    total = sum(
        jnp.pad(frames[:, :, block], ((0, 0), (block, num_blocks - 1 - block), (0, 0)))
        for block in range(num_blocks)
    )
    length = (num_frames - 1) * hop + n_fft
    return jnp.asarray(total).reshape(batch_size, -1)[:, :length]


def reflected(
    audio: Float[AnyArray, "B S"], padding: int, lengths: Int[AnyArray, " B"] | None = None
) -> Float[Array, "B P"]:
    """Waveforms with `padding` more samples on either side, mirrored at their ends.

    Args:
      audio: waveforms, each longer than the padding.
      padding: samples on either side.
      lengths: samples of each clip, at whose last one it is mirrored; all of them by default.

    Returns:
      [B, S + 2 padding]; what is behind a clip's reflection means nothing.
    """
    if lengths is None:
        return jnp.pad(audio, ((0, 0), (padding, padding)), mode="reflect")
    total, last = audio.shape[-1], jnp.asarray(lengths)[:, None] - 1
    index = jnp.abs(jnp.arange(-padding, total + padding))[None]
    index = jnp.clip(jnp.where(index > last, 2 * last - index, index), 0, total - 1)
    return jnp.take_along_axis(jnp.asarray(audio), index, axis=1)


def stft(
    audio: Float[AnyArray, "B S"], config: MelConfig, lengths: Int[AnyArray, " B"] | None = None
) -> Complex[Array, "B T R"]:
    """Short-time Fourier transform on the grid of `config`, with reflected ends.

    Args:
      audio: waveforms.
      config: the analysis grid.
      lengths: samples of each clip, where they are padded to one length; frames behind the
        `config.num_frames` of a clip mean nothing.

    Raises:
      ValueError: the waveform is shorter than the reflection needs.
    """
    if audio.shape[-1] <= config.padding:
        raise ValueError(
            f"a waveform of {audio.shape[-1]} samples is too short: the STFT reflects "
            f"{config.padding} samples at either end and needs more than that"
        )
    padded = reflected(audio, config.padding, lengths)
    return jnp.fft.rfft(frame(padded, config) * hann_window(config.n_fft)[None, None], axis=-1)


def inverse_stft(
    spectrum: Complex[Array, "B T R"], config: MelConfig, num_samples: int
) -> Float[Array, "B S"]:
    """Least-squares inverse of `stft`: overlap-add of windowed frames over summed window power."""
    window = hann_window(config.n_fft)
    frames = jnp.fft.irfft(spectrum, n=config.n_fft, axis=-1) * window[None, None]
    power = jnp.broadcast_to(jnp.square(window)[None, None], (1, *frames.shape[1:]))
    weight = jnp.maximum(overlap_add(power, config), 1e-8)
    signal = overlap_add(frames, config) / weight
    return signal[:, config.padding : config.padding + num_samples]


@functools.partial(jax.jit, static_argnames="config")
def log_mel(audio: Float[AnyArray, "B S"], config: MelConfig) -> Float[Array, "B T F"]:
    """Natural-log mel magnitudes, float32, time before frequency.

    Args:
      audio: waveforms in [-1, 1], float32.
      config: the analysis grid.

    Returns:
      ln(max(mel magnitude, floor)), so silence is ln(floor) everywhere.
    """
    magnitude = jnp.abs(stft(audio.astype(jnp.float32), config))
    mel = jnp.matmul(magnitude, mel_matrix(config).T)
    return jnp.log(jnp.maximum(mel, config.floor))
