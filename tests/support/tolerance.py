"""Bounds on rounding errors, derived from what was computed: how many terms, and in which type.

With unit roundoff u (half of eps: 6.0e-8 in float32, 3.9e-3 in bfloat16) a sum of n products is off
by at most n u / (1 - n u) of the sum of their magnitudes, in whatever order it is added (Higham,
Accuracy and Stability of Numerical Algorithms, 2nd ed., sections 3.1 and 4.2). That is
`worst_rounding`; it holds for every machine, and is far from what happens where n is large.

Roundings differ in sign, so that they add up like a random walk: the rule of thumb of section 2.8
replaces n by sqrt(n) (proved for independent roundings by Higham and Mary, A new approach to
probabilistic rounding error analysis, 2019). For terms of random signs, relative to the size of the
results, the root mean square of the error of adding one after the other is sqrt(n / 6) u; for terms
of one sign it is sqrt(n) u / 3. Processors add in blocks, which is less. That is `rounding`, whose
margin is for what the rule leaves out: two programs differ by sqrt(2) times the error of one; the
largest of a million errors is five standard deviations; norms, softmax and activations pass an
error on with a gain of their own.

A network with normalised activations is one long chain: the errors of its sums in a row add like
the roundings of one, so that its number of terms is the sum of theirs. An elementwise operation is
one term; exp, log, tanh and their like may be off by two units in the last place, as a sum of 16.
The mean square of a norm has terms of one sign, and its root half their error: a quarter of them.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fasttta_jax.config import ModelConfig
from fasttta_jax.models.layers import NUM_SINUSOIDS

MARGIN = 4.0
ELEMENTARY = 16
"""Terms of an elementary function."""


def unit_roundoff(dtype: Any = jnp.float32) -> float:
    """Largest relative error of rounding one number."""
    return float(jnp.finfo(dtype).eps) / 2


def worst_rounding(num_terms: int, dtype: Any = jnp.float32) -> float:
    """Largest error of a sum of so many products, relative to the sum of their magnitudes."""
    product = num_terms * unit_roundoff(dtype)
    assert product < 1, f"{num_terms} terms leave no digit of {jnp.dtype(dtype).name}"
    return product / (1 - product)


def rounding(num_terms: int, dtype: Any = jnp.float32, margin: float = MARGIN) -> float:
    """Error of a sum of so many products, or of a chain of them, relative to its largest results.

    `margin` counts sqrt(num_terms) unit roundoffs.
    """
    return margin * num_terms**0.5 * unit_roundoff(dtype)


def block_terms(width: int, hidden: int, keys: int, head_width: int) -> int:
    """Terms in a row of a transformer's block: attention and MLP, each after a norm."""
    attention = 2 * width + head_width + ELEMENTARY + 2 * keys
    mlp = width + ELEMENTARY + hidden
    return 2 * (width // 4) + attention + mlp + 2


def model_terms(config: ModelConfig, num_heads: int = 1) -> int:
    """Terms in a row of a backbone and of so many passes of its head, that of a teacher."""
    backbone, head = config.backbone, config.head
    width, keys = backbone.width, config.text.num_positions + config.num_tokens
    block = block_terms(width, backbone.mlp_ratio * width, keys, width // backbone.num_heads)
    depth = backbone.encoder_depth + backbone.decoder_depth
    of_head = NUM_SINUSOIDS + width + 3 * (head.depth + 1) * (head.width + ELEMENTARY)
    return depth * block + 4 * width + num_heads * of_head


def kernel_terms(params: Any) -> int:
    """Terms of the sums over all kernels [..., in, out] of a tree: no chain of a network has more.

    Norms between them do not count: the error of a variance is one factor for all that is
    normalised, which the next norm takes out again.
    """
    return sum(math.prod(leaf.shape[:-1]) for leaf in jax.tree.leaves(params) if leaf.ndim > 1)


def assert_within(found: Any, expected: Any, bound: Any) -> None:
    """Every entry is off by its bound at most, in the entries' unit."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    error = np.abs(np.subtract(found, expected, dtype=np.float64))
    bound = np.broadcast_to(bound, error.shape)
    assert (error <= bound).all(), (
        f"{np.sum(~(error <= bound))} of {error.size} entries are off by more than their bounds; "
        f"largest error {error.max():.2e}, largest bound {bound.max():.2e}"
    )


def assert_close(found: Any, expected: Any, bound: float) -> None:
    """Every entry is off by `bound` at most, relative to the largest expected entry."""
    assert_within(found, expected, bound * np.abs(np.asarray(expected)).max())


def assert_one_step_of_float16(found: Any, expected: Any) -> None:
    """Equal but for float32 rounding before both became float16: at most one of its steps apart.

    A step is 2^-10 of a number at most; one near 0 is off by the rounding of the largest, below 4.
    """
    np.testing.assert_allclose(found, expected, rtol=2**-10, atol=2**-12)
