"""PANNs' Cnn14: waveforms to AudioSet's 527 logits, and the embedding that distances are taken of.

The front end is part of the network: power spectrogram with reflected ends, Slaney mel bands, dB,
and a batch norm over the bands. Six blocks of two 3 x 3 convolutions follow, each but the last
halving time and frequency. The mean over frequency, and then the maximum plus the mean over time,
go through a linear layer with ReLU, whose output the literature calls "2048".

Sources: PANNs (arXiv 1912.10211) and its code, github.com/qiuqiangkong/audioset_tagging_cnn, with
torchlibrosa's spectrograms. Inference only: batch norms use their stored statistics, dropout does
nothing.
Dimensions: B clips, S samples, T frames, F mel bands, Y and X rows (time) and columns (frequency)
of a map, C channels, E embedding, K classes.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from fasttta_jax.audio.mel import MelConfig, mel_matrix, stft
from fasttta_jax.pretrained.batch_norm import BatchNorm
from fasttta_jax.pretrained.checks import check_whole
from fasttta_jax.storage.weights import read_kind
from fasttta_jax.typing import AnyArray, Params

KIND = "panns"
NUM_BLOCKS = 6
POWER_FLOOR = 1e-10
HALVINGS = NUM_BLOCKS - 1
"""Of time and frequency: by all blocks but the last."""


@dataclasses.dataclass(frozen=True)
class PannsConfig:
    """Front end and sizes of Cnn14; the defaults are those of the published one at 16 kHz.

    Attributes:
      sample_rate: of the waveforms, in Hz.
      n_fft: window and transform, in samples.
      hop_length: samples between frames.
      num_mels: F.
      f_min: lowest band edge, in Hz.
      f_max: highest band edge, in Hz.
      widths: C of the six blocks.
      embedding_size: E.
      num_classes: K.

    Raises:
      ValueError: a field has a value that is not allowed; names it.
    """

    sample_rate: int = 16_000
    n_fft: int = 512
    hop_length: int = 160
    num_mels: int = 64
    f_min: float = 50.0
    f_max: float = 8_000.0
    widths: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
    embedding_size: int = 2048
    num_classes: int = 527

    def __post_init__(self) -> None:
        for name in (
            "sample_rate",
            "n_fft",
            "hop_length",
            "num_mels",
            "embedding_size",
            "num_classes",
        ):
            check_whole(name, getattr(self, name))
        if not isinstance(self.widths, tuple) or len(self.widths) != NUM_BLOCKS:
            raise ValueError(
                f"widths is {self.widths!r}; allowed: a whole number for each of {NUM_BLOCKS} "
                "blocks"
            )
        for index, width in enumerate(self.widths):
            check_whole(f"widths[{index}]", width)
        if self.num_mels < 2**HALVINGS:
            raise ValueError(
                f"num_mels is {self.num_mels}; allowed: at least {2**HALVINGS}, which the blocks "
                f"halve {HALVINGS} times"
            )
        _ = self.grid  # its checks

    @property
    def grid(self) -> MelConfig:
        """The analysis grid: frame k at sample hop_length * k, with reflected ends."""
        return MelConfig(
            sample_rate=self.sample_rate,
            n_fft=self.n_fft,
            hop_length=self.hop_length,
            num_mels=self.num_mels,
            f_min=self.f_min,
            f_max=self.f_max,
            floor=POWER_FLOOR,
            framing="center",
        )

    @property
    def min_samples(self) -> int:
        """The shortest clip: long enough for the reflection, and for one row in the last block."""
        return max(self.n_fft // 2 + 1, (2**HALVINGS - 1) * self.hop_length)


CNN14_16K = PannsConfig()
CNN14_32K = PannsConfig(sample_rate=32_000, n_fft=1024, hop_length=320, f_max=14_000.0)


class PannsOutput(NamedTuple):
    """What Cnn14 computes from a batch of clips, float32.

    Attributes:
      embeddings: "2048", behind the ReLU.
      logits: of AudioSet's classes, in the order of its class_labels_indices.csv; before the
        sigmoid.
    """

    embeddings: Float[Array, "B E"]
    logits: Float[Array, "B K"]


@functools.partial(jax.jit, static_argnames="config")
def panns_mel(
    audio: Float[AnyArray, "B S"],
    config: PannsConfig,
    lengths: Int[AnyArray, " B"] | None = None,
) -> Float[Array, "B T F"]:
    """10 log10 of the mel power, float32; silence is -100 dB.

    Args:
      audio: waveforms.
      config: the front end.
      lengths: samples of each clip; all by default. Frames behind its last mean nothing.

    Raises:
      ValueError: the clips are too short to be reflected.
    """
    spectrum = stft(jnp.asarray(audio, jnp.float32), config.grid, lengths)
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    mel = jnp.matmul(power, mel_matrix(config.grid).T, precision=jax.lax.Precision.HIGHEST)
    return 10.0 * jnp.log10(jnp.maximum(mel, POWER_FLOOR))


class Block(nn.Module):
    """Two convolutions, each with a batch norm and ReLU, and the mean of 2 x 2 neighbours.

    Attributes:
      width: C of the output.
      halve: whether neighbours are averaged; an odd last row or column is dropped.
      dtype: type of the matrix products.
    """

    width: int
    halve: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "B Y X C"], rows: Int[Array, " B"] | None
    ) -> Float[Array, "B Y2 X2 C2"]:
        """`rows` are those of each clip, behind which x is zero; None where all are."""
        for index in range(2):
            x = nn.Conv(
                self.width,
                (3, 3),
                use_bias=False,
                dtype=self.dtype,
                precision=jax.lax.Precision.HIGHEST,
                name=f"conv_{index}",
            )(x)
            x = zero_behind(jax.nn.relu(BatchNorm(name=f"norm_{index}")(x)), rows)
        if not self.halve:
            return x
        batch_size, height, columns, width = x.shape
        height, columns = height // 2, columns // 2
        x = x[:, : 2 * height, : 2 * columns].reshape(batch_size, height, 2, columns, 2, width)
        return zero_behind(jnp.mean(x, axis=(2, 4)), None if rows is None else rows // 2)


def zero_behind(x: Float[Array, "B Y X C"], rows: Int[Array, " B"] | None) -> jax.Array:
    """x with zeros behind the rows of each clip, as convolutions see what is behind a map's end."""
    if rows is None:
        return x
    return jnp.where(jnp.arange(x.shape[1])[None, :, None, None] < rows[:, None, None, None], x, 0)


class Panns(nn.Module):
    """Waveforms to embeddings and logits.

    Attributes:
      config: front end and sizes.
      dtype: type of the matrix products; the front end, parameters, norms and results are float32.
        Products of float32 are computed as such on every device.
    """

    config: PannsConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, audio: Float[AnyArray, "B S"], lengths: Int[AnyArray, " B"] | None = None
    ) -> PannsOutput:
        """Embeddings and logits of each clip by itself.

        Args:
          audio: mono waveforms in [-1, 1] at the config's sample rate, all of one length.
          lengths: samples of each clip, from `config.min_samples`, where shorter ones are padded;
            what is behind them changes nothing. All by default.

        Raises:
          ValueError: the clips are shorter than `config.min_samples`.
        """
        config = self.config
        if audio.shape[-1] < config.min_samples:
            raise ValueError(
                f"the clips have {audio.shape[-1]} samples; allowed: at least "
                f"{config.min_samples}, which leave one row in the last block. Fill shorter clips "
                "up with zeros"
            )
        x = BatchNorm(name="norm")(panns_mel(audio, config, lengths))[..., None]
        rows = None if lengths is None else 1 + jnp.asarray(lengths) // config.hop_length
        x = zero_behind(x, rows)
        for index, width in enumerate(config.widths):
            halve = index < HALVINGS
            x = Block(width, halve, self.dtype, name=f"block_{index}")(x, rows)
            rows = rows // 2 if halve and rows is not None else rows
        over_time = jnp.mean(x, axis=2)
        count = over_time.shape[1] if rows is None else rows[:, None]
        # behind the ReLU no row is below the zeros behind a clip's last
        pooled = jnp.max(over_time, axis=1) + jnp.sum(over_time, axis=1) / count
        embeddings = jax.nn.relu(self._linear(config.embedding_size, "embedding", pooled))
        return PannsOutput(embeddings, self._linear(config.num_classes, "classes", embeddings))

    def _linear(self, features: int, name: str, x: Float[Array, "B C"]) -> Float[Array, "B C2"]:
        layer = nn.Dense(features, dtype=self.dtype, precision=jax.lax.Precision.HIGHEST, name=name)
        return layer(x).astype(jnp.float32)


def load_panns(folder: str | os.PathLike[str]) -> tuple[PannsConfig, Params]:
    """Reads converted weights of Cnn14.

    Args:
      folder: what `python -m fasttta_jax.convert panns` wrote.

    Returns:
      Front end and sizes, and parameters for `Panns(config).apply({"params": params}, audio)`.

    Raises:
      ConvertedError: the folder holds no converted weights, or those of another kind.
    """
    return read_kind(folder, KIND, PannsConfig)
