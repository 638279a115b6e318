"""The energy score of sampled tokens: proper, so least in expectation at the true distribution.

Source: Gneiting & Raftery (2007); AudioDEAR and EAR for M = 2, CALM for the all-pairs form.
Dimensions: M samples of a token, C token channels.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fasttta_jax.typing import AnyArray


def safe_distance(difference: Float[AnyArray, "... C"], alpha: float) -> Float[Array, " ..."]:
    """|difference|_2^alpha with gradient zero, not NaN, at zero."""
    squares = jnp.sum(jnp.square(difference.astype(jnp.float32)), axis=-1)
    is_positive = squares > 0
    return jnp.where(is_positive, jnp.where(is_positive, squares, 1.0) ** (alpha / 2), 0.0)


def energy_score(
    samples: Float[AnyArray, "M ... C"],
    target: Float[AnyArray, "... C"],
    *,
    alpha: float = 1.0,
    temperature: float = 1.0,
) -> Float[Array, " ..."]:
    """2/M sum_i |x_i - y|^alpha - 2/(M(M-1)) sum_{i<j} |x_i - x_j|^alpha, one number per token.

    For M = 2 this is |x_1 - y| + |x_2 - y| - |x_1 - x_2|. Unbiased for every M, so runs with
    different M are comparable.

    Args:
      samples: M independent ones of every token.
      target: the true tokens.
      alpha: exponent, strictly between 0 and 2.
      temperature: factor on the second sum. Below 1 (EAR's train temperature) the score is no
        longer proper: its minimum is narrower than the true distribution.

    Raises:
      ValueError: fewer than two samples, or alpha out of range.
    """
    num_draws = samples.shape[0]
    if num_draws < 2:
        raise ValueError(f"the energy score needs 2 or more samples, got {num_draws}")
    if not 0 < alpha < 2:
        raise ValueError(f"alpha is {alpha}; allowed: above 0 and below 2")
    attraction = jnp.mean(safe_distance(samples - target[None], alpha), axis=0)
    first, second = np.triu_indices(num_draws, k=1)
    repulsion = jnp.mean(safe_distance(samples[first] - samples[second], alpha), axis=0)
    return 2.0 * attraction - temperature * repulsion
