"""VGGish: waveforms to an embedding for each 0.96 s, with which FAD was defined.

The front end is part of the network: magnitudes of windows of 25 ms, 64 bands that are triangles on
HTK's mel scale, and the logarithm with an offset. Patches of 96 frames follow one another, and what
is left at the end of a clip is dropped. Each goes through six convolutions with ReLU, four
poolings and three linear layers.

Evaluators differ in what comes after: audioldm_eval leaves out the ReLU behind the last layer
(`final_relu=False`); torchvggish keeps it, projects onto principal components and quantises to 8
bits (`pca=True, quantize=True`).

Sources: Hershey et al., CNN architectures for large-scale audio classification (arXiv 1609.09430),
and its code, github.com/tensorflow/models/tree/master/research/audioset, in the form of
github.com/harritaylor/torchvggish. Inference only.
Dimensions: B clips, S samples, P patches, T = 96 frames, F = 64 mel bands, Y and X rows (time) and
columns (frequency) of a map, C channels, E embedding.
"""

from __future__ import annotations

import dataclasses
import functools
import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32

from fasttta_jax.audio.mel import MelConfig, frame, hann_window
from fasttta_jax.pretrained.checks import check_whole
from fasttta_jax.storage.weights import read_kind
from fasttta_jax.typing import AnyArray, Params

KIND = "vggish"
SAMPLE_RATE = 16_000
GRID = MelConfig(sample_rate=SAMPLE_RATE, n_fft=400, hop_length=160, f_min=125.0, f_max=7_500.0)
"""Windows and bands; the transform is longer than the window, and the mel scale is another."""
N_FFT = 512
LOG_OFFSET = 0.01
PATCH_FRAMES = 96
MIN_SAMPLES = GRID.n_fft + (PATCH_FRAMES - 1) * GRID.hop_length
"""Of one patch: 15,600, or 0.975 s."""
POOLED = (0, 1, 3, 5)
"""Convolutions that the largest of 2 x 2 neighbours is taken after."""
PCA_RANGE = (-2.0, 2.0)
"""Principal components are clipped to it; 8 bits stretch over it."""


@dataclasses.dataclass(frozen=True)
class VggishConfig:
    """Sizes; the defaults are the published ones.

    Attributes:
      widths: C of the six convolutions.
      hidden_size: of the two linear layers before the last.
      embedding_size: E.
      pca: whether the weights have the principal components.

    Raises:
      ValueError: a field has a value that is not allowed; names it.
    """

    widths: tuple[int, ...] = (64, 128, 256, 256, 512, 512)
    hidden_size: int = 4096
    embedding_size: int = 128
    pca: bool = True

    def __post_init__(self) -> None:
        for name in ("hidden_size", "embedding_size"):
            check_whole(name, getattr(self, name))
        if not isinstance(self.widths, tuple) or len(self.widths) != 6:
            raise ValueError(
                f"widths is {self.widths!r}; allowed: a whole number for each of 6 convolutions"
            )
        for index, width in enumerate(self.widths):
            check_whole(f"widths[{index}]", width)
        if type(self.pca) is not bool:
            raise ValueError(f"pca is {self.pca!r}; allowed: true, false")

    @property
    def flattened_size(self) -> int:
        """Of the map behind the last pooling: rows, columns, channels, in this order."""
        factor = 2 ** len(POOLED)
        return PATCH_FRAMES // factor * (GRID.num_mels // factor) * self.widths[-1]


def num_patches(num_samples: int) -> int:
    """P of a clip of so many samples."""
    frames = 1 + (num_samples - GRID.n_fft) // GRID.hop_length
    return max(0, frames) // PATCH_FRAMES


@functools.cache
def mel_matrix() -> Float32[np.ndarray, "F R"]:
    """Triangles of height 1 whose sides are straight in HTK's mels; no band hears 0 Hz.

    Those of librosa, for the same scale, have sides that are straight in Hz.

    Returns:
      float32 [F, N_FFT / 2 + 1].
    """

    def mels(hertz: np.ndarray) -> np.ndarray:
        return 1127.0 * np.log1p(hertz / 700.0)

    bins = mels(np.linspace(0.0, SAMPLE_RATE / 2, N_FFT // 2 + 1))
    first, last = mels(np.array([GRID.f_min, GRID.f_max]))
    edges = np.linspace(first, last, GRID.num_mels + 2)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    matrix = np.clip(np.minimum(rising, falling), 0.0, None)
    matrix[:, 0] = 0.0
    return matrix.astype(np.float32)


@jax.jit
def vggish_patches(audio: Float[AnyArray, "B S"]) -> Float[Array, "B P T F"]:
    """ln(mel magnitude + 0.01) in patches that follow one another, float32.

    Args:
      audio: mono waveforms in [-1, 1] at SAMPLE_RATE.

    Raises:
      ValueError: the clips are shorter than a patch.
    """
    num_samples = audio.shape[-1]
    if num_samples < MIN_SAMPLES:
        raise ValueError(
            f"the clips have {num_samples} samples; allowed: at least {MIN_SAMPLES}, one patch of "
            f"{PATCH_FRAMES} frames. Fill shorter clips up with zeros"
        )
    patches = num_patches(num_samples)
    used = GRID.n_fft + (patches * PATCH_FRAMES - 1) * GRID.hop_length
    frames = frame(jnp.asarray(audio[:, :used], jnp.float32), GRID)
    windowed = frames * hann_window(GRID.n_fft)[None, None]
    magnitude = jnp.abs(jnp.fft.rfft(windowed, n=N_FFT, axis=-1))
    mel = jnp.matmul(magnitude, mel_matrix().T, precision=jax.lax.Precision.HIGHEST)
    return jnp.log(mel + LOG_OFFSET).reshape(-1, patches, PATCH_FRAMES, GRID.num_mels)


class Vggish(nn.Module):
    """Waveforms to embeddings of their patches.

    Attributes:
      config: sizes.
      final_relu: whether the last linear layer is followed by a ReLU.
      pca: whether the embedding is projected onto its principal components and clipped to [-2, 2].
      quantize: whether those are rounded to whole numbers from 0 to 255; needs `pca`.
      dtype: type of the matrix products; the front end, parameters, principal components and
        results are float32. Products of float32 are computed as such on every device.
    """

    config: VggishConfig
    final_relu: bool = True
    pca: bool = False
    quantize: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, audio: Float[AnyArray, "B S"]) -> Float[Array, "B P E"]:
        """Embeddings of each clip's patches, float32; P is `num_patches(S)`.

        Args:
          audio: mono waveforms in [-1, 1] at SAMPLE_RATE, all of one length.

        Raises:
          ValueError: the clips are shorter than MIN_SAMPLES, `pca` is asked of weights without it,
            or `quantize` without `pca`.
        """
        config = self.config
        if self.pca and not config.pca:
            raise ValueError(
                "pca is True, but the weights have no principal components; convert them with the "
                "file that holds them (--pca)"
            )
        if self.quantize and not self.pca:
            raise ValueError("quantize is True and pca False; allowed: both, or no quantize")
        patches = vggish_patches(audio)
        x = patches.reshape(-1, *patches.shape[2:])[..., None]
        for index, width in enumerate(config.widths):
            convolution = nn.Conv(
                width,
                (3, 3),
                dtype=self.dtype,
                precision=jax.lax.Precision.HIGHEST,
                name=f"conv_{index}",
            )
            x = jax.nn.relu(convolution(x).astype(jnp.float32))
            x = _pooled(x) if index in POOLED else x
        x = x.reshape(x.shape[0], -1)
        for index in range(2):
            x = jax.nn.relu(self._linear(config.hidden_size, f"hidden_{index}", x))
        x = self._linear(config.embedding_size, "embedding", x)
        x = jax.nn.relu(x) if self.final_relu else x
        if self.pca:
            x = PrincipalComponents(self.quantize, name="pca")(x)
        return x.reshape(*patches.shape[:2], -1)

    def _linear(self, features: int, name: str, x: Float[Array, "N C"]) -> Float[Array, "N C2"]:
        layer = nn.Dense(features, dtype=self.dtype, precision=jax.lax.Precision.HIGHEST, name=name)
        return layer(x).astype(jnp.float32)


def _pooled(x: Float[Array, "N Y X C"]) -> Float[Array, "N Y2 X2 C"]:
    """The largest of 2 x 2 neighbours; sizes are even."""
    batch_size, rows, columns, width = x.shape
    return x.reshape(batch_size, rows // 2, 2, columns // 2, 2, width).max(axis=(2, 4))


class PrincipalComponents(nn.Module):
    """The projection that AudioSet's published embeddings have, whitening included; float32.

    Attributes:
      quantize: whether the range becomes whole numbers from 0 to 255.
    """

    quantize: bool

    @nn.compact
    def __call__(self, x: Float[Array, "N E"]) -> Float[Array, "N E"]:
        size = x.shape[-1]
        mean = self.param("mean", nn.initializers.zeros_init(), (size,), jnp.float32)
        kernel = self.param("kernel", nn.initializers.orthogonal(), (size, size), jnp.float32)
        projected = jnp.matmul(x - mean[None], kernel, precision=jax.lax.Precision.HIGHEST)
        low, high = PCA_RANGE
        clipped = jnp.clip(projected, low, high)
        return jnp.round((clipped - low) * (255.0 / (high - low))) if self.quantize else clipped


def load_vggish(folder: str | os.PathLike[str]) -> tuple[VggishConfig, Params]:
    """Reads converted weights of VGGish.

    Args:
      folder: what `python -m fasttta_jax.convert vggish` wrote.

    Returns:
      The sizes, and parameters for `Vggish(config, ...).apply({"params": params}, audio)`, with
      those of the principal components where the config has `pca`.

    Raises:
      ConvertedError: the folder holds no converted weights, or those of another kind.
    """
    return read_kind(folder, KIND, VggishConfig)
