"""A codec that needs no weights: log-mel patches on principal components fitted on the data.

A patch of `patch_frames` x (num_mels / bands) log-mel values becomes one token: centred, projected
on the leading principal components of its band and divided by eigenvalue^(whitening / 2). Decoding
inverts that, maps mel magnitudes to linear ones and finds phases by fast Griffin-Lim.

With `overlap_frames` the patches overlap in time, at no cost in tokens: before the spectrogram is
cut, frames at equal distance on either side of a border are rotated into each other, half of a
lapped transform. What a token says then fades into its neighbours, and two tokens that do not fit
each other make no step at their border.
Source: Tran, Liang & Tu (2003) for lapped transforms by rotations at the borders of blocks.
Dimensions: B clips, S samples, T frames, F mel bands, G patch bands, V values per patch, C
channels.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

from fasttta_jax.audio.mel import MelConfig, hann_window, log_mel, mel_matrix
from fasttta_jax.codecs.base import CONFIG_FILE, Posterior
from fasttta_jax.codecs.griffin_lim import reach, to_audio
from fasttta_jax.config import from_mapping
from fasttta_jax.storage.arrays import read_arrays
from fasttta_jax.storage.files import read_json
from fasttta_jax.typing import AnyArray, Audio, SomeArray, Tokens

STATISTICS_FILE = "statistics.npz"
KIND = "spectrogram"


@dataclasses.dataclass(frozen=True)
class SpectrogramConfig:
    """Layout of the tokens.

    Attributes:
      mel: the analysis grid.
      patch_frames: frames of a patch.
      bands: patches over the mel axis; must divide the number of mel bands.
      token_dim: C, principal components kept.
      whitening: 0 keeps the variances, 1 equalises them, 0.5 is between.
      overlap_frames: frames on either side of a border between two columns that both of them see.
      griffin_lim_iterations: phase reconstruction steps in decoding.
    """

    mel: MelConfig = dataclasses.field(default_factory=lambda: MelConfig(floor=1e-2))
    patch_frames: int = 16
    bands: int = 2
    token_dim: int = 64
    whitening: float = 0.5
    overlap_frames: int = 0
    griffin_lim_iterations: int = 32

    def __post_init__(self) -> None:
        if self.mel.num_mels % self.bands:
            raise ValueError(
                f"codec.bands is {self.bands}; allowed: a divisor of num_mels = {self.mel.num_mels}"
            )
        if not 1 <= self.token_dim <= self.patch_size:
            raise ValueError(
                f"codec.token_dim is {self.token_dim}; allowed: 1 to the {self.patch_size} values "
                "of a patch"
            )
        if not 0 <= self.whitening <= 1:
            raise ValueError(f"codec.whitening is {self.whitening}; allowed: 0 to 1")
        if not 0 <= self.overlap_frames <= self.patch_frames // 2:
            raise ValueError(
                f"codec.overlap_frames is {self.overlap_frames}; allowed: 0 to "
                f"{self.patch_frames // 2}, half of patch_frames"
            )
        if self.griffin_lim_iterations < 1:
            raise ValueError(
                f"codec.griffin_lim_iterations is {self.griffin_lim_iterations}; allowed: 1 or more"
            )
        if self.mel.framing != "hifigan":
            raise ValueError(
                f"codec.mel.framing is {self.mel.framing!r}; allowed: 'hifigan', whose frame count "
                "is a multiple of the patch"
            )

    @property
    def patch_size(self) -> int:
        """V, values in a patch."""
        return self.patch_frames * self.mel.num_mels // self.bands


@dataclasses.dataclass(frozen=True, eq=False)
class Statistics:
    """What is fitted on the data; all float32.

    Attributes:
      mean: mean patch of each band, [G, V].
      basis: orthonormal principal components, [G, V, C].
      scale: what each component is divided by, [G, C].
    """

    mean: Float[np.ndarray, "G V"]
    basis: Float[np.ndarray, "G V C"]
    scale: Float[np.ndarray, "G C"]


def to_patches(
    spectrogram: Float[SomeArray, "B T F"], config: SpectrogramConfig
) -> Float[SomeArray, "B columns G V"]:
    """Cuts a log-mel spectrogram into patches, time-major."""
    return rearrange(
        spectrogram,
        "b (column frame) (band mel) -> b column band (frame mel)",
        frame=config.patch_frames,
        band=config.bands,
    )


def from_patches(
    patches: Float[SomeArray, "B columns G V"], config: SpectrogramConfig
) -> Float[SomeArray, "B T F"]:
    """The inverse of `to_patches`."""
    return rearrange(
        patches,
        "b column band (frame mel) -> b (column frame) (band mel)",
        frame=config.patch_frames,
    )


def _rotation(config: SpectrogramConfig) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine of the rotation at each distance from a border, [1, 1, overlap_frames, 1].

    An eighth of a turn at the border, where both columns see the same; none beyond the overlap.
    """
    distance = (np.arange(config.overlap_frames) + 0.5) / config.overlap_frames
    angle = np.pi / 4 * (1 - distance)[None, None, :, None]
    return np.cos(angle, dtype=np.float32), np.sin(angle, dtype=np.float32)


def lapped(
    spectrogram: Float[AnyArray, "B T F"], config: SpectrogramConfig
) -> Float[Array, "B T F"]:
    """The spectrogram with the frames around every border rotated into each other; T stays.

    Behind a border stands the sum of both sides, mirrored into each other, and before it their
    difference. A clip goes on beyond its ends as its own mirror image, so that its first and last
    column are columns as all others.
    """
    if not config.overlap_frames:
        return jnp.asarray(spectrogram)
    cosine, sine = _rotation(config)
    columns, starts, ends = _borders(spectrogram, config)
    before = jnp.concatenate([starts[:, :1], ends[:, :-1]], axis=1)
    after = jnp.concatenate([starts[:, 1:], ends[:, -1:]], axis=1)
    starts, ends = cosine * starts + sine * before, cosine * ends - sine * after
    return _with_borders(columns, starts, ends)


def unlapped(
    spectrogram: Float[AnyArray, "B T F"], config: SpectrogramConfig
) -> Float[Array, "B T F"]:
    """The inverse of `lapped`, but for the last frames of a clip.

    What the last column holds of the clip's last frames is their difference from their own mirror
    image. Where that is less than half of a frame, the last frame before that is held.
    """
    if not config.overlap_frames:
        return jnp.asarray(spectrogram)
    cosine, sine = _rotation(config)
    columns, starts, ends = _borders(spectrogram, config)
    inner_starts = cosine * starts[:, 1:] - sine * ends[:, :-1]
    inner_ends = sine * starts[:, 1:] + cosine * ends[:, :-1]
    first = starts[:, :1] / (cosine + sine)
    kept = np.maximum(np.arange(config.overlap_frames), np.argmax((cosine - sine).ravel() >= 0.5))
    last = (ends[:, -1:] / (cosine - sine))[:, :, kept]
    return _with_borders(
        columns,
        jnp.concatenate([first, inner_starts], axis=1),
        jnp.concatenate([inner_ends, last], axis=1),
    )


def _borders(
    spectrogram: Float[AnyArray, "B T F"], config: SpectrogramConfig
) -> tuple[Float[Array, "B P t F"], Float[Array, "B P overlap F"], Float[Array, "B P overlap F"]]:
    """The columns of a spectrogram, their first frames, and their last, outermost first."""
    columns = rearrange(jnp.asarray(spectrogram), "b (p t) f -> b p t f", t=config.patch_frames)
    width = config.overlap_frames
    return columns, columns[:, :, :width], columns[:, :, ::-1][:, :, :width]


def _with_borders(
    columns: Float[Array, "B P t F"],
    starts: Float[AnyArray, "B P overlap F"],
    ends: Float[AnyArray, "B P overlap F"],
) -> Float[Array, "B T F"]:
    """The spectrogram of columns with other frames at their starts and, outermost first, ends."""
    width = starts.shape[2]
    middle = columns[:, :, width : columns.shape[2] - width]
    joined = jnp.concatenate([starts, middle, ends[:, :, ::-1]], axis=2)
    return rearrange(joined, "b p t f -> b (p t) f")


class StatisticsFitter:
    """Accumulates first and second moments of patches in float64, in one pass over the data."""

    def __init__(self, config: SpectrogramConfig) -> None:
        self.config = config
        size = config.patch_size
        self.count = 0
        self.total = np.zeros((config.bands, size))
        self.products = np.zeros((config.bands, size, size))

    def add(self, audio: Float[AnyArray, "B S"]) -> None:
        """Takes in waveforms [B, S] whose length is a multiple of the patch's stride."""
        spectrogram = log_mel(jnp.asarray(audio, jnp.float32), self.config.mel)
        patches = np.asarray(to_patches(lapped(spectrogram, self.config), self.config), np.float64)
        for band in range(self.config.bands):
            values = patches[:, :, band].reshape(-1, self.config.patch_size)
            self.total[band] += values.sum(axis=0)
            self.products[band] += values.T @ values
        self.count += patches.shape[0] * patches.shape[1]

    def finish(self) -> tuple[Statistics, float]:
        """The statistics, and the share of variance that the kept components hold.

        Raises:
          ValueError: fewer patches than components, or data without any variance.
        """
        config = self.config
        if self.count <= config.token_dim:
            raise ValueError(
                f"{self.count} patches were seen; fitting {config.token_dim} components needs more"
            )
        mean = self.total / self.count
        covariance = self.products / self.count - np.einsum("gv,gw->gvw", mean, mean)
        values, vectors = np.linalg.eigh(covariance)
        values, vectors = values[:, ::-1], vectors[:, :, ::-1]
        kept = np.maximum(values[:, : config.token_dim], 0)
        if kept.sum() <= 0:
            raise ValueError("the data has no variance: every patch is the same")
        floored = np.maximum(kept, 1e-6 * kept.max())
        scale = floored ** (config.whitening / 2)
        scale *= np.sqrt(np.mean(kept / scale**2))
        basis = vectors[:, :, : config.token_dim]
        sign = np.sign(np.take_along_axis(basis, np.abs(basis).argmax(1)[:, None], axis=1))
        statistics = Statistics(
            mean.astype(np.float32), (basis * sign).astype(np.float32), scale.astype(np.float32)
        )
        return statistics, float(kept.sum() / np.maximum(values, 0).sum())


@functools.partial(jax.jit, static_argnames="config")
def _encode(
    audio: Audio,
    mean: Float[Array, "G V"],
    basis: Float[Array, "G V C"],
    scale: Float[Array, "G C"],
    config: SpectrogramConfig,
) -> Tokens:
    spectrogram = lapped(log_mel(audio, config.mel), config)
    patches = to_patches(spectrogram, config) - mean[None, None]
    tokens = jnp.einsum("bngv,gvc->bngc", patches, basis) / scale[None, None]
    return rearrange(tokens, "b column band c -> b (column band) c")


@functools.partial(jax.jit, static_argnames="config")
def _to_log_mel(
    tokens: Tokens,
    mean: Float[Array, "G V"],
    basis: Float[Array, "G V C"],
    scale: Float[Array, "G C"],
    config: SpectrogramConfig,
) -> Float[Array, "B T F"]:
    tokens = rearrange(tokens, "b (column band) c -> b column band c", band=config.bands)
    patches = jnp.einsum("bngc,gvc->bngv", tokens * scale[None, None], basis) + mean[None, None]
    spectrogram = unlapped(from_patches(patches, config), config)
    return jnp.clip(spectrogram, np.log(config.mel.floor), loudest(config.mel))


@functools.cache
def loudest(mel: MelConfig) -> float:
    """What no waveform in [-1, 1] passes in its log-mel spectrogram: a bin is a sum of n_fft/2.

    A network that has learned little asks for more, of which the exponential is not finite.
    """
    return float(np.log(mel_matrix(mel).sum(axis=1).max() * hann_window(mel.n_fft).sum()))


@dataclasses.dataclass(frozen=True, eq=False)
class SpectrogramCodec:
    """The `Codec` protocol on log-mel patches."""

    config: SpectrogramConfig
    statistics: Statistics

    @classmethod
    def load(cls, folder: str | pathlib.Path) -> SpectrogramCodec:
        """Reads what `save` wrote.

        Raises:
          ValueError: a file is damaged, or not what belongs to the other; names file or field.
        """
        folder = pathlib.Path(folder)
        values: dict[str, Any] = read_json(folder / CONFIG_FILE)
        values.pop("kind")
        config = from_mapping(SpectrogramConfig, values, "codec.")
        bands, size, width = config.bands, config.patch_size, config.token_dim
        shapes = {"mean": (bands, size), "basis": (bands, size, width), "scale": (bands, width)}
        return cls(config, Statistics(**read_arrays(folder / STATISTICS_FILE, shapes)))

    def save(self, folder: str | pathlib.Path) -> None:
        """Writes codec.json and statistics.npz."""
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        values = {"kind": KIND, **dataclasses.asdict(self.config)}
        if not self.config.overlap_frames:  # such codecs are older than the field: the same file
            del values["overlap_frames"]
        (folder / CONFIG_FILE).write_text(json.dumps(values, indent=2) + "\n")
        np.savez(folder / STATISTICS_FILE, **dataclasses.asdict(self.statistics))

    @property
    def sample_rate(self) -> int:
        return self.config.mel.sample_rate

    @property
    def token_dim(self) -> int:
        return self.config.token_dim

    @property
    def tokens_per_column(self) -> int:
        return self.config.bands

    @property
    def samples_per_column(self) -> int:
        return self.config.patch_frames * self.config.mel.hop_length

    @property
    def _arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.statistics.mean, self.statistics.basis, self.statistics.scale

    def encode(self, audio: Float[AnyArray, "B S"]) -> Tokens:
        """Tokens [B, N, C] of waveforms [B, S].

        Raises:
          ValueError: S is not a multiple of `samples_per_column`.
        """
        if audio.shape[-1] % self.samples_per_column or not audio.shape[-1]:
            raise ValueError(
                f"a waveform of {audio.shape[-1]} samples cannot be encoded; allowed: positive "
                f"multiples of {self.samples_per_column}"
            )
        return _encode(audio, *self._arrays, config=self.config)

    def encode_posterior(self, audio: Float[AnyArray, "B S"]) -> Posterior:
        """A point: `encode` without a variance."""
        return Posterior(self.encode(audio), None)

    def to_log_mel(self, tokens: Float[AnyArray, "B N C"]) -> Float[Array, "B T F"]:
        """The log-mel spectrogram that tokens stand for."""
        return _to_log_mel(tokens, *self._arrays, config=self.config)

    def decode(self, tokens: Float[AnyArray, "B N C"]) -> Audio:
        """Waveforms [B, S] of tokens [B, N, C]; long ones in the memory of a window."""
        spectrogram = self.to_log_mel(jnp.asarray(tokens, jnp.float32))
        numbers = jnp.arange(spectrogram.shape[1])[None]
        config = self.config
        return to_audio(spectrogram, numbers, config.mel, config.griffin_lim_iterations)

    def decode_circular(self, tokens: Float[AnyArray, "B N C"]) -> Audio:
        """Waveforms [B, S] to be repeated: the first column follows the last.

        The circle is decoded with as much of it again on either side as a sample can hear.
        """
        config, stride = self.config, self.config.patch_frames
        # One column more, at which the spectrogram ends as a clip does.
        margin = math.ceil(reach(config.mel, config.griffin_lim_iterations) / stride) + 1
        columns = jnp.asarray(tokens, jnp.float32).reshape(
            len(tokens), -1, config.bands, config.token_dim
        )
        num_columns = columns.shape[1]
        around = np.arange(-margin, num_columns + margin) % num_columns
        wrapped = columns[:, around].reshape(len(tokens), -1, config.token_dim)
        numbers = np.arange(-margin * stride, (num_columns + margin) * stride)
        numbers = jnp.asarray(numbers % (num_columns * stride))[None]
        audio = to_audio(
            self.to_log_mel(wrapped), numbers, config.mel, config.griffin_lim_iterations
        )
        first = margin * self.samples_per_column
        return audio[:, first : first + num_columns * self.samples_per_column]

    def silence(self) -> Float[np.ndarray, "G C"]:
        """One column of silence, float32 [G, C]."""
        zeros = jnp.zeros((1, self.samples_per_column), jnp.float32)
        return np.asarray(self.encode(zeros))[0]
