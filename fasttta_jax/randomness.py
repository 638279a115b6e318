"""Keys by name, and randomness of a batch whose clips do not know of each other.

Dimensions: B clips.
"""

from __future__ import annotations

import zlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fasttta_jax.typing import Key


def stream(key: Key, name: str) -> Key:
    """The key of one named use of `key`: no other stream's draws change where one is added."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def fold_in_each(keys: Key, number: int | jax.Array) -> Key:
    """A new key from every clip's key and a number, [B]."""
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def normal_per_clip(keys: Key, shape: tuple[int, ...]) -> Float[Array, "B ..."]:
    """Gaussian noise, float32 [B, *shape], whose every row depends on that row's key alone."""
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)
