"""AutoencoderKL, the autoencoder of AudioLDM: log-mel spectrograms to a gaussian grid, and back.

A convolutional encoder and decoder of residual blocks with one single-head self-attention in the
middle of either. Every level but the last of the encoder halves time and frequency. Latents are raw
here: a generative model sees them times `VaeConfig.scaling_factor`, which is its codec's business.

Source: the AutoencoderKL of latent diffusion (github.com/CompVis/latent-diffusion), as AudioLDM and
diffusers have it.
Dimensions: B clips, T frames, F mel bands, t = T / stride, f = F / stride, C latent channels; H, W
the grid inside the network and D its channels. H is frequency and W time there: convolutions of
XLA on CPU are faster where rows are long.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from fasttta_jax.pretrained.vae_blocks import (
    Conv3x3,
    Middle,
    ResidualBlock,
    Upsample,
    group_norm,
)
from fasttta_jax.storage.weights import read_kind
from fasttta_jax.typing import AnyArray, Key, Params

KIND = "vae"
LOG_VARIANCE_RANGE = (-30.0, 20.0)

_FIXED: Mapping[str, Any] = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "mid_block_add_attention": True,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
}
"""Fields of a published config.json with the one value that is supported; it is the default too."""
_BLOCK_TYPES = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
_UNRELATED = ("sample_size", "force_upcast")
"""Say how large tiles are and that float16 overflows, nothing of the network."""


@dataclasses.dataclass(frozen=True)
class VaeConfig:
    """Sizes, under the names of a published `vae/config.json`.

    Attributes:
      scaling_factor: what raw latents are multiplied by to have unit variance.
      latent_channels: C.
      block_out_channels: D of every level, the finest first.
      layers_per_block: residual blocks of a level of the encoder; the decoder has one more.
      norm_num_groups: of every group norm; divides all of `block_out_channels`.
      in_channels: of a spectrogram; 1.
      out_channels: of a spectrogram; 1.
    """

    scaling_factor: float
    latent_channels: int = 8
    block_out_channels: tuple[int, ...] = (128, 256, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    in_channels: int = 1
    out_channels: int = 1

    def __post_init__(self) -> None:
        for field in ("in_channels", "out_channels"):
            if getattr(self, field) != 1:
                raise ValueError(f"vae.{field} is {getattr(self, field)!r}; allowed: 1, log-mel")
        for field in ("latent_channels", "layers_per_block", "norm_num_groups"):
            if not _is_positive(getattr(self, field)):
                raise ValueError(
                    f"vae.{field} is {getattr(self, field)!r}; allowed: a positive integer"
                )
        levels = self.block_out_channels
        valid = isinstance(levels, tuple) and bool(levels) and all(map(_is_positive, levels))
        if not valid or any(channels % self.norm_num_groups for channels in levels):
            raise ValueError(
                f"vae.block_out_channels is {levels!r}; allowed: for every level a multiple of "
                f"vae.norm_num_groups = {self.norm_num_groups}"
            )
        factor = self.scaling_factor
        if type(factor) not in (int, float) or not 0 < factor < math.inf:
            raise ValueError(f"vae.scaling_factor is {factor!r}; allowed: a positive number")

    @property
    def stride(self) -> int:
        """Frames per latent frame, and mel bands per latent row: 4 for three levels."""
        return 2 ** (len(self.block_out_channels) - 1)

    @classmethod
    def from_huggingface(cls, values: Mapping[str, Any]) -> VaeConfig:
        """The sizes in a published `vae/config.json`.

        Raises:
          ValueError: a field is missing, unknown, or says something that this network has not;
            names the field.
        """
        sizes = [field.name for field in dataclasses.fields(cls)]
        missing = [name for name in (*sizes, *_BLOCK_TYPES) if name not in values]
        if missing:
            raise ValueError(f"the VAE's config.json lacks {', '.join(missing)}")
        channels = values["block_out_channels"]
        if not isinstance(channels, list):
            raise ValueError(
                f"the VAE's config.json has block_out_channels {channels!r}; allowed: a list"
            )
        allowed = {name: [block] * len(channels) for name, block in _BLOCK_TYPES.items()}
        for name, value in {**_FIXED, **allowed}.items():
            if (found := values.get(name, value)) != value:
                raise ValueError(f"the VAE's config.json has {name} {found!r}; allowed: {value!r}")
        known = {*sizes, *_BLOCK_TYPES, *_FIXED, *_UNRELATED}
        unknown = [name for name in values if name not in known and not name.startswith("_")]
        if unknown:
            raise ValueError(
                f"the VAE's config.json has fields that are not known: {', '.join(unknown)}; "
                f"allowed: {', '.join(sorted(known))}"
            )
        fields: dict[str, Any] = {name: values[name] for name in sizes}
        return cls(**{**fields, "block_out_channels": tuple(channels)})


def _is_positive(value: Any) -> bool:
    return type(value) is int and value > 0


class Encoder(nn.Module):
    """Spectrograms to 2C channels on the latent grid."""

    config: VaeConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "B F T 1"]
    ) -> Float[Array, "B f t {2*self.config.latent_channels}"]:
        config, dtype = self.config, self.dtype
        levels = config.block_out_channels
        x = Conv3x3(levels[0], dtype, name="conv_in")(x)
        for level, channels in enumerate(levels):
            for index in range(config.layers_per_block):
                name = f"down_{level}_block_{index}"
                x = ResidualBlock(channels, config.norm_num_groups, dtype, name=name)(x)
            if level < len(levels) - 1:
                x = Conv3x3(channels, dtype, halve=True, name=f"down_{level}_downsample")(x)
        x = Middle(config.norm_num_groups, dtype, name="middle")(x)
        x = nn.silu(group_norm(config.norm_num_groups, "norm_out")(x))
        return Conv3x3(2 * config.latent_channels, jnp.float32, name="conv_out")(x)


class Decoder(nn.Module):
    """C channels on the latent grid to spectrograms; level 0 is the coarsest."""

    config: VaeConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B f t C"]) -> Float[Array, "B F T 1"]:
        config, dtype = self.config, self.dtype
        levels = config.block_out_channels[::-1]
        x = Conv3x3(levels[0], dtype, name="conv_in")(x)
        x = Middle(config.norm_num_groups, dtype, name="middle")(x)
        for level, channels in enumerate(levels):
            for index in range(config.layers_per_block + 1):
                name = f"up_{level}_block_{index}"
                x = ResidualBlock(channels, config.norm_num_groups, dtype, name=name)(x)
            if level < len(levels) - 1:
                x = Upsample(dtype, name=f"up_{level}_upsample")(x)
        x = nn.silu(group_norm(config.norm_num_groups, "norm_out")(x))
        return Conv3x3(config.out_channels, jnp.float32, name="conv_out")(x)


class Vae(nn.Module):
    """The autoencoder; `encode` and `decode` are its two methods.

    The attention in the middle holds (t f)^2 numbers per clip: 64 MiB for 10.24 s of AudioLDM.

    Attributes:
      config: sizes.
      dtype: of products inside; sums, norms, softmax and what comes out are in float32.
    """

    config: VaeConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        channels = self.config.latent_channels
        self.encoder = Encoder(self.config, self.dtype)
        self.quant_conv = nn.Dense(2 * channels)
        self.post_quant_conv = nn.Dense(channels)
        self.decoder = Decoder(self.config, self.dtype)

    def encode(
        self, spectrograms: Float[AnyArray, "B T F"]
    ) -> tuple[Float[Array, "B t f C"], Float[Array, "B t f C"]]:
        """Log-mel spectrograms to a diagonal gaussian over raw latents.

        Returns:
          Mean and log-variance, float32; the log-variance lies in `LOG_VARIANCE_RANGE`.

        Raises:
          ValueError: T or F is no multiple of the stride.
        """
        stride, shape = self.config.stride, spectrograms.shape
        if len(shape) != 3 or any(size < 1 or size % stride for size in shape[1:]):
            raise ValueError(
                f"spectrograms have shape {shape}; allowed: (clips, frames, mel bands), where "
                f"frames and mel bands are multiples of {stride}"
            )
        x = jnp.asarray(spectrograms).swapaxes(1, 2)[..., None]
        gaussian = self.quant_conv(self.encoder(x))
        gaussian = gaussian.swapaxes(1, 2)
        mean, log_variance = jnp.split(gaussian, 2, axis=-1)
        return mean, jnp.clip(log_variance, *LOG_VARIANCE_RANGE)

    def decode(self, latents: Float[AnyArray, "B t f C"]) -> Float[Array, "B T F"]:
        """Raw latents to log-mel spectrograms, float32.

        Raises:
          ValueError: the channels are not the config's.
        """
        if latents.ndim != 4 or latents.shape[-1] != self.config.latent_channels:
            raise ValueError(
                f"latents have shape {latents.shape}; allowed: (clips, frames, rows, "
                f"{self.config.latent_channels} channels)"
            )
        x = self.post_quant_conv(jnp.asarray(latents).swapaxes(1, 2))
        return self.decoder(x)[..., 0].swapaxes(1, 2)

    def __call__(self, spectrograms: Float[AnyArray, "B T F"]) -> Float[Array, "B T F"]:
        """The spectrograms as the means of their latents reconstruct them."""
        mean, _ = self.encode(spectrograms)
        return self.decode(mean)


def sample(
    key: Key, mean: Float[Array, "B t f C"], log_variance: Float[Array, "B t f C"]
) -> Float[Array, "B t f C"]:
    """A sample of raw latents from what `Vae.encode` returns."""
    return mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape, mean.dtype)


def load(folder: str | os.PathLike[str]) -> tuple[VaeConfig, Params]:
    """Reads a converted VAE.

    Args:
      folder: what `python -m fasttta_jax.convert vae` wrote.

    Returns:
      The config, and the parameters for `Vae(config).apply({"params": params}, ...)`.

    Raises:
      ConvertedError: the folder holds no converted weights, or those of another kind, or its
        description is damaged.
    """
    return read_kind(folder, KIND, VaeConfig)
