"""The encoder of T5 v1.1 and Flan-T5: token ids to one state per token, for conditioning.

Source: Raffel et al. 2020, section 2.1, with the gated GELU of T5 v1.1 (Shazeer 2020), as in
transformers' `T5EncoderModel`. Norms divide by the root mean square and know neither mean nor bias;
attention logits are not scaled by the head width; a learned bias for the distance of two tokens, in
buckets, is the only notion of position, shared by all blocks. Blocks are not scanned: a scan copies
every block's parameters out of the stacked ones.

The published residual streams reach 1e4 and more. They stay in float32, as do norms, softmax and
sums of products; only the factors of matrix products take the compute dtype.
Dimensions: B captions, L positions, D width (d_model), H heads, P head width (d_kv), F width of the
MLP (d_ff), V vocabulary entries, R distance buckets.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Int32

from fasttta_jax.config import ComputeDtype
from fasttta_jax.storage.weights import read_kind
from fasttta_jax.typing import AnyArray

KIND = "t5"
MODEL_TYPE = "t5"
FEED_FORWARD = "gated-gelu"
DTYPES = get_args(ComputeDtype)
PUBLISHED_MAX_DISTANCE = 128
"""Of configs from before the field had a name."""


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Sizes of an encoder, under the names of the published config.json.

    Attributes:
      vocab_size: V, rows of the embedding; may be more than the tokenizer has entries.
      d_model: D.
      d_kv: P; H * P need not be D.
      d_ff: F.
      num_layers: blocks.
      num_heads: H.
      relative_attention_num_buckets: R, half of them for each direction.
      relative_attention_max_distance: distances from here on share a bucket.
      layer_norm_epsilon: added to the mean square.

    Raises:
      ValueError: names the field, the value found and the values allowed.
    """

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_heads: int
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = PUBLISHED_MAX_DISTANCE
    layer_norm_epsilon: float = 1e-6

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "layer_norm_epsilon":
                if not isinstance(value, float) or not 0.0 < value < 1.0:
                    raise ValueError(f"{field.name} is {value!r}; allowed: a float in (0, 1)")
            elif type(value) is not int or value < 1:
                raise ValueError(f"{field.name} is {value!r}; allowed: a positive integer")
        buckets = self.relative_attention_num_buckets
        if buckets % 4:
            raise ValueError(
                f"relative_attention_num_buckets is {buckets}; allowed: a multiple of 4"
            )
        if self.relative_attention_max_distance <= buckets // 4:
            raise ValueError(
                "relative_attention_max_distance is "
                f"{self.relative_attention_max_distance}; allowed: more than the {buckets // 4} "
                "distances that have a bucket of their own"
            )

    @classmethod
    def from_huggingface(cls, values: Mapping[str, Any]) -> T5Config:
        """The sizes in a published config.json.

        Args:
          values: the parsed file, of the encoder alone or of the whole model.

        Raises:
          ValueError: a field is missing, or the model is not the encoder of a T5 v1.1; names it.
        """
        expected = {
            "model_type": (MODEL_TYPE, MODEL_TYPE),
            "feed_forward_proj": (FEED_FORWARD, None),
            "dense_act_fn": ("gelu_new", "gelu_new"),
            "is_gated_act": (True, True),
            "is_decoder": (False, False),
        }
        for name, (allowed, default) in expected.items():
            found = values.get(name, default)
            if found != allowed:
                raise ValueError(
                    f"{name} is {found!r}; allowed: {allowed!r} (T5 v1.1 and Flan-T5; the original "
                    "T5 has no gate and is another network)"
                )
        optional = ("relative_attention_max_distance",)
        names = [field.name for field in dataclasses.fields(cls)]
        missing = [name for name in names if name not in values and name not in optional]
        if missing:
            raise ValueError(f"config.json lacks {', '.join(missing)}")
        return cls(**{name: values[name] for name in names if name in values})


def relative_buckets(
    length: int, num_buckets: int, max_distance: int
) -> Int32[np.ndarray, "{length} {length}"]:
    """The bucket of the way from each query to each key, bidirectional.

    A quarter of the buckets is for single distances, as many for logarithmically growing ranges up
    to `max_distance`, and both once more for keys behind the query.

    Args:
      length: L.
      num_buckets: R, a multiple of 4.
      max_distance: distances from here on share the last bucket.

    Returns:
      int32 [L, L], rows are queries.
    """
    way = np.arange(length)[None, :] - np.arange(length)[:, None]
    distance = np.abs(way)
    one_way = num_buckets // 2
    exact = one_way // 2
    ratio = np.log(np.maximum(distance, exact) / exact) / math.log(max_distance / exact)
    coarse = np.minimum(exact + (ratio * (one_way - exact)).astype(np.int32), one_way - 1)
    bucket = np.where(distance < exact, distance, coarse)
    return np.where(way > 0, bucket + one_way, bucket).astype(np.int32)


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis, in float32."""

    epsilon: float

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],), jnp.float32)
        mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        return x * jax.lax.rsqrt(mean_square + self.epsilon) * scale[None, None]


class Projection(nn.Module):
    """A linear layer without bias; factors in `dtype`, sums and result in float32."""

    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B L in"]) -> Float[Array, "B L out"]:
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        return jnp.matmul(
            x.astype(self.dtype), kernel.astype(self.dtype), preferred_element_type=jnp.float32
        )


class Block(nn.Module):
    """Pre-norm self-attention and gated GELU."""

    config: T5Config
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L D"], bias: Float[Array, "H L L"], mask: Bool[Array, "B L"]
    ) -> Float[Array, "B L D"]:
        config, dtype = self.config, self.dtype
        hidden = RMSNorm(config.layer_norm_epsilon, name="norm_1")(x)
        inner = config.num_heads * config.d_kv
        query, key, value = (
            Projection(inner, dtype, name=name)(hidden)
            .astype(dtype)
            .reshape(*x.shape[:2], config.num_heads, config.d_kv)
            for name in ("query", "key", "value")
        )
        logits = jnp.einsum("bqhp,bkhp->bhqk", query, key, preferred_element_type=jnp.float32)
        logits = jnp.where(mask[:, None, None, :], logits + bias[None], jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(logits, axis=-1).astype(dtype)
        mixed = jnp.einsum("bhqk,bkhp->bqhp", weights, value, preferred_element_type=jnp.float32)
        mixed = mixed.reshape(*x.shape[:2], inner)
        x = x + Projection(config.d_model, dtype, name="projection")(mixed)

        hidden = RMSNorm(config.layer_norm_epsilon, name="norm_2")(x)
        gate = jax.nn.gelu(Projection(config.d_ff, dtype, name="gate")(hidden), approximate=True)
        hidden = gate * Projection(config.d_ff, dtype, name="mlp_in")(hidden)
        return x + Projection(config.d_model, dtype, name="mlp_out")(hidden)


class T5Encoder(nn.Module):
    """Token ids to states, inference only.

    Attributes:
      config: sizes.
      dtype: of the factors of matrix products, float32 or bfloat16; float16 would overflow.
    """

    config: T5Config
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, ids: Int[AnyArray, "B L"], mask: Bool[AnyArray, "B L"]
    ) -> Float[Array, "B L D"]:
        """States of the tokens.

        Args:
          ids: vocabulary entries; any entry at positions without a token.
          mask: which positions hold a token.

        Returns:
          float32; finite but without meaning where the mask is False.

        Raises:
          ValueError: the compute dtype cannot hold the activations, or the shapes differ.
        """
        config, dtype = self.config, jnp.dtype(self.dtype)
        if dtype.name not in DTYPES:
            raise ValueError(f"dtype is {dtype.name}; allowed: {', '.join(DTYPES)}")
        if ids.ndim != 2 or ids.shape != mask.shape or not ids.shape[1]:
            raise ValueError(
                f"ids have shape {ids.shape} and mask {mask.shape}; allowed: both [B, L], L >= 1"
            )
        embedding = self.param(
            "embedding",
            nn.initializers.normal(stddev=1.0),
            (config.vocab_size, config.d_model),
            jnp.float32,
        )
        num_buckets = config.relative_attention_num_buckets
        distance_bias = self.param(
            "relative_attention_bias",
            nn.initializers.normal(stddev=0.1),
            (num_buckets, config.num_heads),
            jnp.float32,
        )
        buckets = relative_buckets(
            ids.shape[1], num_buckets, config.relative_attention_max_distance
        )
        bias = distance_bias[buckets].transpose(2, 0, 1)
        x, mask = embedding[ids], jnp.asarray(mask)
        for index in range(config.num_layers):
            x = Block(config, dtype, name=f"block_{index}")(x, bias, mask)
        return RMSNorm(config.layer_norm_epsilon, name="final_norm")(x)


def load(folder: str | os.PathLike[str]) -> tuple[T5Config, dict[str, Any]]:
    """The config and parameters in a folder that `python -m fasttta_jax.convert t5` wrote.

    Returns:
      The config, and what `T5Encoder(config).apply({"params": params}, ids, mask)` takes.

    Raises:
      ConvertedError: a file is missing or damaged, or the folder holds another kind.
    """
    return read_kind(folder, KIND, T5Config)
