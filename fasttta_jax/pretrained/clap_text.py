"""CLAP's text tower: RoBERTa, its pooler, and the projection into the space shared with audio.

Sources: RoBERTa (arXiv 1907.11692), a post-norm transformer encoder; CLAP (arXiv 2211.06687) for
the two-layer projection and the L2 norm of the result. Sizes carry the names of a published
config.json. Inference only.
Dimensions: B captions, L text positions, D hidden size, H heads, P head width, E projection.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from fasttta_jax.models.attention import attention
from fasttta_jax.models.layers import embedding_init, layer_norm, linear
from fasttta_jax.pretrained.checks import check_whole
from fasttta_jax.storage.weights import read_kind
from fasttta_jax.typing import AnyArray, Params, TokenIds

KIND = "clap"
FIXED = {
    "hidden_act": ("gelu",),
    "projection_hidden_act": ("relu",),
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
}
"""Fields of a published text_config that may have one value only, or be left out."""
NORM_FLOOR = 1e-12
"""The least length that an embedding is divided by."""


@dataclasses.dataclass(frozen=True)
class ClapTextConfig:
    """Sizes of the text tower; the defaults are those of transformers, and of laion's models.

    Raises:
      ValueError: a field has a value that is not allowed; names it.
    """

    vocab_size: int = 50265
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 514
    type_vocab_size: int = 1
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 1
    projection_dim: int = 512

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.name not in ("layer_norm_eps", "pad_token_id"):
                check_whole(field.name, getattr(self, field.name))
        if type(self.layer_norm_eps) not in (float, int) or not 0 < self.layer_norm_eps < 1:
            raise ValueError(
                f"layer_norm_eps is {self.layer_norm_eps!r}; allowed: a number between 0 and 1"
            )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads is {self.num_attention_heads}; allowed: a divisor of "
                f"hidden_size {self.hidden_size}"
            )
        last = min(self.vocab_size - 1, self.max_position_embeddings - 2)
        if type(self.pad_token_id) is not int or not 0 <= self.pad_token_id <= last:
            raise ValueError(
                f"pad_token_id is {self.pad_token_id!r}; allowed: 0 to {last}, a row of vocab_size "
                f"{self.vocab_size} that leaves a position of max_position_embeddings "
                f"{self.max_position_embeddings}"
            )

    @property
    def max_length(self) -> int:
        """Tokens of the longest caption: positions are numbered from pad_token_id + 1."""
        return self.max_position_embeddings - self.pad_token_id - 1


def tower_config(
    values: Mapping[str, Any], tower: str, fixed: Mapping[str, tuple[Any, ...]]
) -> Mapping[str, Any]:
    """One tower's part of a published config.json.

    Args:
      values: a ClapConfig, whose own projection replaces that of the tower's part, as transformers
        does it; or a config of that tower alone.
      tower: "text" or "audio".
      fixed: fields with the values that are supported, the first where it is left out.

    Raises:
      ValueError: another architecture, no part of that tower, or a value that is not supported.
    """
    model_type, allowed = values.get("model_type"), ("clap", f"clap_{tower}_model")
    if model_type not in allowed:
        raise ValueError(f"model_type is {model_type!r}; allowed: {', '.join(allowed)}")
    part = values
    if model_type == "clap":
        name = f"{tower}_config"
        nested = values.get(name)
        if not isinstance(nested, Mapping):
            raise ValueError(f"{name} is {nested!r}; allowed: an object with the {tower} sizes")
        shared = {"projection_dim": 512, "projection_hidden_act": "relu"}
        part = {**nested, **{name: values.get(name, shared[name]) for name in shared}}
    for name, choices in fixed.items():
        if part.get(name, choices[0]) not in choices:
            shown = ", ".join(map(repr, choices))
            raise ValueError(f"{name} is {part[name]!r}; allowed: {shown}")
    return part


def from_huggingface(values: Mapping[str, Any]) -> ClapTextConfig:
    """The sizes in a published config.json.

    Args:
      values: a ClapConfig, or a bare ClapTextConfig, as in AudioLDM's text_encoder. Published files
        leave out fields that have the default of transformers' ClapTextConfig; such a field gets
        the same default here.

    Raises:
      ValueError: another architecture, no "text_config", or a value that is not supported.
    """
    text = tower_config(values, "text", FIXED)
    names = [field.name for field in dataclasses.fields(ClapTextConfig)]
    return ClapTextConfig(**{name: text[name] for name in names if name in text})


class ClapTextLayer(nn.Module):
    """Post-norm transformer layer: self-attention, then an exact-GELU MLP; float32 residuals."""

    config: ClapTextConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"], mask: Bool[Array, "B L"]) -> Float[Array, "B L D"]:
        width, num_heads = self.config.hidden_size, self.config.num_attention_heads
        heads = (*x.shape[:-1], num_heads, width // num_heads)
        query, key, value = (
            linear(width, dtype=self.dtype, name=name)(x).reshape(heads)
            for name in ("query", "key", "value")
        )
        mixed = attention(query, key, value, key_mask=mask).reshape(x.shape)
        mixed = linear(width, dtype=self.dtype, name="attention_out")(mixed)
        x = layer_norm(name="attention_norm", epsilon=self.config.layer_norm_eps)(x + mixed)
        hidden = linear(self.config.intermediate_size, dtype=self.dtype, name="mlp_in")(x)
        hidden = jax.nn.gelu(hidden, approximate=False)
        hidden = linear(width, dtype=self.dtype, name="mlp_out")(hidden)
        return layer_norm(name="mlp_norm", epsilon=self.config.layer_norm_eps)(x + hidden)


class ClapText(nn.Module):
    """Captions to points of the space that CLAP shares between text and audio.

    Attributes:
      config: sizes.
      dtype: type of the matrix products; parameters, norms and softmax are float32.
    """

    config: ClapTextConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, ids: TokenIds, mask: Bool[AnyArray, "B L"]) -> Float[Array, "B E"]:
        """Embeds captions.

        Args:
          ids: RoBERTa tokens, beginning with <s>, padded with pad_token_id; below vocab_size.
          mask: True where there is text. At least one position of a caption is True.

        Returns:
          float32, of length 1 in the L2 norm. Neither padding nor neighbours change a caption's.

        Raises:
          ValueError: L is greater than `config.max_length`.
        """
        config = self.config
        if ids.shape[1] > config.max_length:
            raise ValueError(
                f"captions are padded to {ids.shape[1]} tokens; allowed: up to {config.max_length}"
            )
        x, mask = self._embed(ids), jnp.asarray(mask)
        for index in range(config.num_hidden_layers):
            x = ClapTextLayer(config, self.dtype, name=f"layer_{index}")(x, mask)
        pooled = jnp.tanh(linear(config.hidden_size, dtype=self.dtype, name="pooler")(x[:, 0]))
        hidden = linear(config.projection_dim, dtype=self.dtype, name="projection_in")(pooled)
        hidden = jax.nn.relu(hidden)
        out = linear(config.projection_dim, dtype=self.dtype, name="projection_out")(hidden)
        return normalized(out.astype(jnp.float32))

    def _embed(self, ids: TokenIds) -> Float[Array, "B L D"]:
        """Word, position and token type 0, summed and normalised.

        Positions count the tokens that are no padding, from pad_token_id + 1; padding has
        pad_token_id itself.
        """
        config = self.config

        def table(name: str, rows: int) -> jax.Array:
            return self.param(name, embedding_init, (rows, config.hidden_size), jnp.float32)

        words = table("word_embeddings", config.vocab_size)
        positions = table("position_embeddings", config.max_position_embeddings)
        types = table("token_type_embeddings", config.type_vocab_size)
        is_text = (ids != config.pad_token_id).astype(jnp.int32)
        numbers = jnp.cumsum(is_text, axis=1) * is_text + config.pad_token_id
        x = words[ids] + positions[numbers] + types[0][None, None]
        return layer_norm(name="embeddings_norm", epsilon=config.layer_norm_eps)(x)


def normalized(x: Float[Array, "B E"]) -> Float[Array, "B E"]:
    """x with length 1; zero stays zero."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), NORM_FLOOR)


def load(folder: str | os.PathLike[str]) -> tuple[ClapTextConfig, Params]:
    """The text tower in a folder of converted CLAP weights.

    Args:
      folder: what `python -m fasttta_jax.convert clap` wrote.

    Returns:
      Sizes, and what `ClapText(config).apply({"params": params}, ids, mask)` takes.

    Raises:
      ConvertedError: the folder holds no conversion, a damaged one, or one of another kind.
    """
    return read_kind(folder, KIND, ClapTextConfig, part="text")
