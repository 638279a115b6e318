"""CLAP's audio tower: HTS-AT on a log-mel spectrogram, and the projection shared with text.

The spectrogram of ten seconds is stretched to 1024 frames, cut into four pieces that are stacked
along frequency, and the resulting 256 x 256 image goes through a Swin transformer whose tokens are
averaged. In a model with fusion the patches of a clip longer than that are mixed with those of
three excerpts of it.

Sources: HTS-AT (arXiv 2202.00874); CLAP (arXiv 2211.06687), section 3.3 for the fusion, which is
attentional feature fusion (arXiv 2009.14082). Sizes carry the names of a published config.json.
Inference only: batch norms use their running statistics, dropout and drop path do nothing.
Dimensions: B clips, C spectrograms of a clip (1, or 4 with fusion: the whole and three excerpts),
T frames, F mel bands, Y and X rows and columns of the token grid, D width, E projection.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from fasttta_jax.config.values import as_tuples
from fasttta_jax.models.layers import layer_norm, linear
from fasttta_jax.pretrained.batch_norm import BatchNorm
from fasttta_jax.pretrained.checks import check_whole
from fasttta_jax.pretrained.clap_patches import (
    EXCERPTS,
    PatchEmbedding,
    bicubic_matrix,
)
from fasttta_jax.pretrained.clap_swin import (
    NORM_EPSILON,
    SwinStage,
)
from fasttta_jax.pretrained.clap_text import (
    KIND,
    normalized,
    tower_config,
)
from fasttta_jax.storage.weights import read_kind
from fasttta_jax.typing import AnyArray, Params

FIXED = {
    "hidden_act": ("gelu",),
    "projection_hidden_act": ("relu",),
    "patch_embed_input_channels": (1,),
    "flatten_patch_embeds": (True,),
    "enable_patch_layer_norm": (True,),
    "qkv_bias": (True,),
    "fusion_type": (None, "aff_2d"),
}
"""Fields of a published audio_config with the values that are supported; each may be left out."""
PUBLISHED_WIDTH = 768
"""hidden_size where a config leaves it out."""
_WHOLE = (
    "patch_embeds_hidden_size",
    "window_size",
    "num_mel_bins",
    "spec_size",
    "patch_size",
    "aff_block_r",
    "projection_dim",
)


@dataclasses.dataclass(frozen=True)
class ClapAudioConfig:
    """Sizes of the audio tower; the defaults are those of transformers, and of HTSAT-tiny.

    Attributes:
      patch_embeds_hidden_size: D of the first stage; each further stage has twice the width.
      depths: blocks of each stage.
      num_attention_heads: heads of each stage.
      window_size: side of an attention window, in tokens.
      mlp_ratio: hidden width of an MLP over D.
      layer_norm_eps: of the layer norms inside the blocks; all other norms have 1e-5.
      num_mel_bins: F.
      spec_size: side of the image; spec_size / num_mel_bins pieces are stacked in it.
      patch_size: side of a patch, in pixels.
      enable_fusion: whether excerpts of long clips are mixed in.
      aff_block_r: width over hidden width of the fusion.
      projection_dim: E.

    Raises:
      ValueError: a field has a value that is not allowed; names it.
    """

    patch_embeds_hidden_size: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_attention_heads: tuple[int, ...] = (4, 8, 16, 32)
    window_size: int = 8
    mlp_ratio: float = 4.0
    layer_norm_eps: float = NORM_EPSILON
    num_mel_bins: int = 64
    spec_size: int = 256
    patch_size: int = 4
    enable_fusion: bool = False
    aff_block_r: int = 4
    projection_dim: int = 512

    def __post_init__(self) -> None:
        for name in _WHOLE:
            check_whole(name, getattr(self, name))
        for name in ("depths", "num_attention_heads"):
            values = getattr(self, name)
            if not isinstance(values, tuple) or not values:
                raise ValueError(f"{name} is {values!r}; allowed: a whole number for each stage")
            for index, value in enumerate(values):
                check_whole(f"{name}[{index}]", value)
        if type(self.enable_fusion) is not bool:
            raise ValueError(f"enable_fusion is {self.enable_fusion!r}; allowed: true, false")
        for name, most in (("mlp_ratio", np.inf), ("layer_norm_eps", 1.0)):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 < value < most:
                raise ValueError(f"{name} is {value!r}; allowed: a number above 0 and below {most}")
        if len(self.num_attention_heads) != len(self.depths):
            raise ValueError(
                f"num_attention_heads is {self.num_attention_heads}; allowed: as many numbers as "
                f"depths has, {len(self.depths)}"
            )
        for stage, heads in enumerate(self.num_attention_heads):
            if (width := self.patch_embeds_hidden_size * 2**stage) % heads:
                raise ValueError(
                    f"num_attention_heads[{stage}] is {heads}; allowed: a divisor of the width "
                    f"{width} of that stage"
                )
        if self.spec_size % self.num_mel_bins:
            raise ValueError(
                f"spec_size is {self.spec_size}; allowed: a multiple of num_mel_bins "
                f"{self.num_mel_bins}"
            )
        step = self.patch_size * 2 ** (len(self.depths) - 1) * self.window_size
        if self.spec_size % step:
            raise ValueError(
                f"spec_size is {self.spec_size}; allowed: a multiple of {step}, which leaves whole "
                f"windows of window_size {self.window_size} in the last of {len(self.depths)} "
                "stages"
            )
        if self.enable_fusion and self.aff_block_r > self.patch_embeds_hidden_size:
            raise ValueError(
                f"aff_block_r is {self.aff_block_r}; allowed: at most patch_embeds_hidden_size "
                f"{self.patch_embeds_hidden_size}"
            )

    @property
    def hidden_size(self) -> int:
        """Width of the last stage."""
        return self.patch_embeds_hidden_size * 2 ** (len(self.depths) - 1)

    @property
    def num_spectrograms(self) -> int:
        """C."""
        return 1 + EXCERPTS if self.enable_fusion else 1

    @property
    def num_frames(self) -> int:
        """T that the image has room for; shorter spectrograms are stretched to it."""
        return self.spec_size * (self.spec_size // self.num_mel_bins)


def from_huggingface(values: Mapping[str, Any]) -> ClapAudioConfig:
    """The sizes in a published config.json.

    Args:
      values: a ClapConfig, or a bare ClapAudioConfig. Published files leave out fields that have
        the default of transformers' ClapAudioConfig; such a field gets the same default here.

    Raises:
      ValueError: another architecture, no "audio_config", or a value that is not supported.
    """
    audio = tower_config(values, "audio", FIXED)
    names = [field.name for field in dataclasses.fields(ClapAudioConfig)]
    given = {name: as_tuples(audio[name]) for name in names if name in audio}
    patch_size = _side("patch_size", audio.get("patch_size", 4))
    stride = _side("patch_stride", audio.get("patch_stride", 4))
    if stride != patch_size:
        raise ValueError(f"patch_stride is {stride!r}; allowed: the patch_size, {patch_size!r}")
    config = ClapAudioConfig(**{**given, "patch_size": patch_size})
    if (hidden_size := audio.get("hidden_size", PUBLISHED_WIDTH)) != config.hidden_size:
        raise ValueError(
            f"hidden_size is {hidden_size!r}; allowed: {config.hidden_size}, the width of the last "
            f"stage with patch_embeds_hidden_size {config.patch_embeds_hidden_size} and "
            f"{len(config.depths)} stages"
        )
    return config


def _side(name: str, value: Any) -> Any:
    """A number, or a pair of equal ones."""
    if isinstance(value, list | tuple):
        if len(value) != 2 or value[0] != value[1]:
            raise ValueError(f"{name} is {value!r}; allowed: a number, or two equal ones")
        return value[0]
    return value


class ClapAudio(nn.Module):
    """Log-mel spectrograms to points of the space that CLAP shares between text and audio.

    Attributes:
      config: sizes.
      dtype: type of the matrix products; parameters, norms and softmax are float32.
    """

    config: ClapAudioConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, features: Float[AnyArray, "B C T F"], is_longer: Bool[AnyArray, " B"] | None = None
    ) -> Float[Array, "B E"]:
        """Embeddings of unit length, float32.

        Args:
          features: log-mel spectrograms in dB, as `clap_mel.clap_mel` gives them.
          is_longer: clips whose excerpts count; read by a model with fusion only, which needs it.

        Raises:
          ValueError: the features do not have the model's axes, or is_longer is missing.
        """
        config = self.config
        _check_features(config, features.shape)
        if config.enable_fusion and is_longer is None:
            raise ValueError("is_longer is None; a model with fusion needs a bool for each clip")
        normalised = BatchNorm(name="batch_norm")(jnp.asarray(features))
        tokens = PatchEmbedding(
            config.patch_embeds_hidden_size,
            config.patch_size,
            config.patch_embeds_hidden_size // config.aff_block_r,
            self.dtype,
            name="patch_embedding",
        )(self._images(normalised), jnp.asarray(is_longer) if config.enable_fusion else None)
        for index, (depth, heads) in enumerate(
            zip(config.depths, config.num_attention_heads, strict=True)
        ):
            tokens = SwinStage(
                depth,
                heads,
                config.window_size,
                config.mlp_ratio,
                config.layer_norm_eps,
                index + 1 < len(config.depths),
                self.dtype,
                name=f"stage_{index}",
            )(tokens)
        pooled = jnp.mean(layer_norm(name="norm", epsilon=NORM_EPSILON)(tokens), axis=(1, 2))
        hidden = linear(config.projection_dim, dtype=self.dtype, name="projection_in")(pooled)
        hidden = jax.nn.relu(hidden)
        out = linear(config.projection_dim, dtype=self.dtype, name="projection_out")(hidden)
        out = out.astype(jnp.float32)
        return normalized(out)

    def _images(self, features: Float[Array, "B C T F"]) -> Float[Array, "B C S S"]:
        """Stretches time, cuts it into pieces and stacks them along frequency."""
        config = self.config
        batch_size, channels, num_frames, num_mels = features.shape
        if num_frames < config.num_frames:
            matrix = bicubic_matrix(config.num_frames, num_frames)
            features = jnp.einsum(
                "st,bctf->bcsf", matrix, features, precision=jax.lax.Precision.HIGHEST
            )
        size = config.spec_size
        pieces = features.reshape(batch_size, channels, size // num_mels, size, num_mels)
        return pieces.swapaxes(3, 4).reshape(batch_size, channels, size, size)


def _check_features(config: ClapAudioConfig, shape: tuple[int, ...]) -> None:
    expected = (config.num_spectrograms, config.num_mel_bins)
    if len(shape) != 4 or (shape[1], shape[3]) != expected or shape[2] > config.num_frames:
        raise ValueError(
            f"features have shape {shape}; allowed: (clips, {expected[0]}, up to "
            f"{config.num_frames} frames, {expected[1]} mel bands)"
        )


def load_audio(folder: str | os.PathLike[str]) -> tuple[ClapAudioConfig, Params]:
    """Reads the audio tower of converted CLAP weights.

    Args:
      folder: what `python -m fasttta_jax.convert clap` wrote.

    Returns:
      The sizes, and parameters for `ClapAudio(config).apply({"params": params}, ...)`.

    Raises:
      ConvertedError: the folder holds no converted weights, those of another kind, or a text tower
        alone.
    """
    return read_kind(folder, KIND, ClapAudioConfig, part="audio")
