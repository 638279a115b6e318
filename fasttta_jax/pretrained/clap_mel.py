"""CLAP's audio front end: waveforms at 48 kHz to log-mel spectrograms of ten seconds, in dB.

Two variants were published, and a network needs the one it was trained with. Without fusion
("rand_trunc"): Slaney's mel scale, area-normalised, one spectrogram. With fusion ("fusion"): HTK's
scale, not normalised, and four spectrograms, which differ only where a clip is longer than ten
seconds: the whole clip, shrunk to ten, and three excerpts from its front, middle and back. Where
the published code draws the excerpts (and the part of a long clip, without fusion) at random, they
are fixed here, so that a score can be measured twice.

Source: ClapFeatureExtractor of transformers, which follows github.com/LAION-AI/CLAP.
Dimensions: B clips, S samples, T frames, C spectrograms of a clip, F mel bands, P
padded samples, R frequency bins.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import librosa
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Int32

from fasttta_jax.audio.mel import MelConfig, frame, hann_window, reflected

Truncation = Literal["rand_trunc", "fusion"]
Padding = Literal["repeatpad", "repeat", "pad"]
Crop = Literal["start", "center"]
SAMPLE_RATE = 48_000
GRID = MelConfig(
    sample_rate=SAMPLE_RATE, hop_length=480, f_min=50.0, f_max=14_000.0, framing="center"
)
"""The analysis grid of every published network; its mel scale is not used."""
NUM_SAMPLES = 10 * SAMPLE_RATE
"""Samples of one spectrogram."""
NUM_FRAMES = GRID.num_frames(NUM_SAMPLES)
"""Frames of one spectrogram, 1001."""
POWER_FLOOR = 1e-10


@dataclasses.dataclass(frozen=True)
class ClapMelConfig:
    """The front end of a CLAP network, under the names of its preprocessor_config.json.

    Attributes:
      truncation: what becomes of a clip that is too long, and with it the mel scale: "rand_trunc"
        for networks without fusion, "fusion" for those with it.
      padding: what fills up a clip that is too short: "repeatpad" repeats it as often as it fits
        and adds silence, as all published networks have it; "repeat" repeats it to the end; "pad"
        adds silence alone.
      crop: which ten seconds of a long clip "rand_trunc" keeps, instead of a random part; not a
        published field.

    Raises:
      ValueError: a field has a value that is not allowed; names it.
    """

    truncation: Truncation = "rand_trunc"
    padding: Padding = "repeatpad"
    crop: Crop = "start"

    def __post_init__(self) -> None:
        for name, allowed in (("truncation", Truncation), ("padding", Padding), ("crop", Crop)):
            if getattr(self, name) not in get_args(allowed):
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed: {get_args(allowed)}")


class ClapWaveforms(NamedTuple):
    """A batch for `clap_mel`.

    Attributes:
      audio: float32 [B, S], zeros behind the end of a clip.
      lengths: samples of each clip, int32 [B]; at least those of one spectrogram.
    """

    audio: Float32[np.ndarray, "B S"]
    lengths: Int32[np.ndarray, " B"]


class ClapFeatures(NamedTuple):
    """What a CLAP network takes.

    Attributes:
      features: dB, float32; C is 4 with fusion, and 1 without.
      is_longer: clips whose four spectrograms differ; none without fusion.
    """

    features: Float[Array, "B C T F"]
    is_longer: Bool[Array, " B"]


@functools.cache
def mel_matrix(truncation: Truncation) -> Float32[np.ndarray, "F R"]:
    """The variant's filter bank, float32 [F, n_fft / 2 + 1]."""
    fusion = truncation == "fusion"
    return librosa.filters.mel(
        sr=SAMPLE_RATE,
        n_fft=GRID.n_fft,
        n_mels=GRID.num_mels,
        fmin=GRID.f_min,
        fmax=GRID.f_max,
        htk=fusion,
        norm=None if fusion else "slaney",
    )


def batch_waveforms(
    waveforms: Sequence[np.ndarray], config: ClapMelConfig, *, num_samples: int | None = None
) -> ClapWaveforms:
    """Clips of any length as one array, on the host: short ones filled up, long ones cut.

    Without fusion S is always that of one spectrogram. With fusion it is the multiple of that which
    the longest clip needs, so that few shapes are compiled; `num_samples` leaves only one.

    Args:
      waveforms: mono clips at SAMPLE_RATE, in [-1, 1].
      config: the front end.
      num_samples: S with fusion; a clip that is longer is refused.

    Raises:
      ValueError: a clip is empty or not mono, or does not fit `num_samples`; says which.
    """
    if not len(waveforms):
        raise ValueError("there are no waveforms; at least one is needed")
    for index, waveform in enumerate(waveforms):
        if waveform.ndim != 1 or not waveform.size:
            raise ValueError(
                f"waveform {index} has shape {waveform.shape}; allowed: one axis of samples, "
                "at least one of them"
            )
    clips = [_fit(np.asarray(waveform, np.float32), config) for waveform in waveforms]
    longest = max(clip.size for clip in clips)
    multiple = -(-longest // NUM_SAMPLES) * NUM_SAMPLES
    total = multiple if num_samples is None else num_samples
    if total < longest or total % GRID.hop_length:
        raise ValueError(
            f"num_samples is {total}; allowed: from {longest}, the longest clip, a multiple of "
            f"hop_length {GRID.hop_length}"
        )
    audio = np.zeros((len(clips), total), np.float32)
    for row, clip in zip(audio, clips, strict=True):
        row[: clip.size] = clip
    return ClapWaveforms(audio, np.asarray([clip.size for clip in clips], np.int32))


def _fit(waveform: Float32[np.ndarray, " S"], config: ClapMelConfig) -> Float32[np.ndarray, " P"]:
    """One clip, filled up to the length of a spectrogram or, without fusion, cut to it."""
    length, total = waveform.size, NUM_SAMPLES
    if length >= total:
        if config.truncation == "fusion":
            return waveform
        start = 0 if config.crop == "start" else (length - total) // 2
        return waveform[start : start + total]
    if config.padding == "repeat":
        return np.resize(waveform, total)
    if config.padding == "repeatpad":
        waveform = np.tile(waveform, total // length)
    return np.pad(waveform, (0, total - waveform.size))


@functools.partial(jax.jit, static_argnames="config")
def clap_mel(
    audio: Float[Array, "B S"], lengths: Int[Array, " B"], config: ClapMelConfig
) -> ClapFeatures:
    """Log-mel spectrograms as CLAP's audio tower takes them, float32.

    The transform rounds to float32: a band 100 dB below the loudest of its frame is off by some
    hundredths of a dB. That is of no concern except for pure digital tones.

    Args:
      audio: clips of at least one spectrogram's length, as `batch_waveforms` gives them.
      lengths: samples of each clip; what is behind them is not read.
      config: the front end.

    Raises:
      ValueError: S is not what the config needs.
    """
    total = audio.shape[-1]
    fusion = config.truncation == "fusion"
    if total < NUM_SAMPLES or (not fusion and total != NUM_SAMPLES):
        more = "or more" if fusion else "exactly, with truncation 'rand_trunc'"
        raise ValueError(
            f"the clips have {total} samples; allowed: {NUM_SAMPLES} {more}; "
            "batch_waveforms makes them so"
        )
    # where all have the length of a spectrogram, no clip can be shorter
    ends = None if total == NUM_SAMPLES else lengths
    padded = reflected(audio.astype(jnp.float32), GRID.padding, ends)
    mel = _decibels(padded, config.truncation)
    if not fusion:
        return ClapFeatures(mel[:, None], jnp.zeros(audio.shape[0], bool))
    num_frames = 1 + lengths // GRID.hop_length
    whole = _shrunk(mel, num_frames)
    excerpts = [
        jax.vmap(functools.partial(jax.lax.dynamic_slice_in_dim, slice_size=NUM_FRAMES))(mel, start)
        for start in excerpt_starts(num_frames)
    ]
    return ClapFeatures(jnp.stack([whole, *excerpts], axis=1), num_frames > NUM_FRAMES)


def excerpt_starts(num_frames: Int[Array, " B"]) -> list[Int[Array, " B"]]:
    """First frames of the excerpts: the middles of three ranges that share all possible ones.

    The ranges are as equal as can be, the longer ones first; an empty one starts at frame 0.
    """
    count = num_frames - NUM_FRAMES + 1
    starts, first = [], jnp.zeros_like(count)
    for index in range(3):
        length = (count + 2 - index) // 3
        starts.append(jnp.where(length > 0, first + (length - 1) // 2, 0))
        first = first + length
    return starts


def _decibels(padded: Float[Array, "B P"], truncation: Truncation) -> Float[Array, "B T F"]:
    """10 log10 of the mel power of every frame."""
    windowed = frame(padded, GRID) * hann_window(GRID.n_fft)[None, None]
    spectrum = jnp.fft.rfft(windowed, axis=-1)
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    mel = jnp.matmul(power, mel_matrix(truncation).T, precision=jax.lax.Precision.HIGHEST)
    return 10.0 * jnp.log10(jnp.maximum(mel, POWER_FLOOR))


def _shrunk(mel: Float[Array, "B T F"], num_frames: Int[Array, " B"]) -> Float[Array, "B T2 F"]:
    """Linear interpolation at the middles of NUM_FRAMES equal parts of each clip."""
    scale = num_frames.astype(jnp.float32) / NUM_FRAMES
    position = scale[:, None] * (jnp.arange(NUM_FRAMES, dtype=jnp.float32) + 0.5)[None] - 0.5
    position = jnp.maximum(position, 0.0)
    left = jnp.floor(position).astype(jnp.int32)
    right = jnp.minimum(left + 1, num_frames[:, None] - 1)
    weight = (position - left)[..., None]
    before, after = (jnp.take_along_axis(mel, index[..., None], axis=1) for index in (left, right))
    return before * (1.0 - weight) + after * weight
