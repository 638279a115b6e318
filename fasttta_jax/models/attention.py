"""The one door to attention: bidirectional, with an optional key mask, softmax in float32.

Dimensions: B clips, Q queries, S keys, H heads, P head width.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def attention(
    query: Float[Array, "B Q H P"],
    key: Float[Array, "B S H P"],
    value: Float[Array, "B S H P"],
    *,
    key_mask: Bool[Array, "B S"] | None = None,
    dropout: nn.Module | None = None,
) -> Float[Array, "B Q H P"]:
    """Scaled dot-product attention.

    Args:
      query: queries.
      key: keys.
      value: values.
      key_mask: False keys get no weight. A row without any True key is not allowed.
      dropout: applied to the attention probabilities.

    Returns:
      Weighted values in the dtype of `value`.
    """
    scale = query.shape[-1] ** -0.5
    logits = jnp.einsum("bqhp,bshp->bhqs", query, key, preferred_element_type=jnp.float32) * scale
    if key_mask is not None:
        logits = jnp.where(key_mask[:, None, None, :], logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1)
    if dropout is not None:
        weights = dropout(weights)
    return jnp.einsum("bhqs,bshp->bqhp", weights.astype(value.dtype), value)
