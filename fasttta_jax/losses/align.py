"""Contextual representation distillation: the student's backbone states follow the teacher's.

Source: AudioDEAR. Dimensions: D backbone width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fasttta_jax.typing import AnyArray


def feature_mse(
    student: Float[AnyArray, "... D"], teacher: Float[AnyArray, "... D"]
) -> Float[Array, " ..."]:
    """Mean squared error over the width, one number per token; no gradient reaches the teacher."""
    teacher = jax.lax.stop_gradient(teacher).astype(jnp.float32)
    return jnp.mean(jnp.square(student.astype(jnp.float32) - teacher), axis=-1)
