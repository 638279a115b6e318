"""Feature distillation: a mean squared error that moves the student and never the teacher."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from fasttta_jax.losses.align import feature_mse
from tests.support.tolerance import worst_rounding


def features() -> tuple[jax.Array, jax.Array]:
    return (
        jax.random.normal(jax.random.key(0), (2, 3, 8)),
        jax.random.normal(jax.random.key(1), (2, 3, 8)),
    )


def test_value_is_the_mean_square_of_every_token():
    student, teacher = features()
    expected = np.mean((np.float64(student) - np.float64(teacher)) ** 2, axis=-1)
    found = feature_mse(student, teacher)
    assert found.shape == (2, 3)
    # a difference rounds once and is squared, and eight squares are added and divided
    np.testing.assert_allclose(found, expected, rtol=worst_rounding(2 + 1 + 8 + 1))


def test_equal_features_cost_nothing():
    student, _ = features()
    np.testing.assert_array_equal(feature_mse(student, student), 0.0)


def test_gradient_reaches_the_student_alone():
    student, teacher = features()
    gradients = jax.grad(lambda s, t: feature_mse(s, t).sum(), argnums=(0, 1))(student, teacher)
    expected = 2 * (student - teacher) / 8
    np.testing.assert_allclose(gradients[0], expected, rtol=worst_rounding(4))
    np.testing.assert_array_equal(gradients[1], 0.0)


def test_half_precision_features_are_compared_in_float32():
    student, teacher = (array.astype(jnp.bfloat16) for array in features())
    assert feature_mse(student, teacher).dtype == jnp.float32
