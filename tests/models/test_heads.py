"""Both heads: sizes, a silent start, and a student's head that begins as its teacher's answer."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fasttta_jax.config import HeadConfig
from fasttta_jax.models.diffusion_head import DiffusionHead
from fasttta_jax.models.energy_head import EnergyHead, from_diffusion_head, sample_noise
from fasttta_jax.models.layers import sinusoids
from tests.support.helpers import random_params
from tests.support.layers_float64 import dense, in_float64
from tests.support.tolerance import assert_close, kernel_terms, rounding

WIDTH, DEPTH, CHANNELS, CONTEXT = 20, 2, 6, 12
CONFIG = HeadConfig(width=WIDTH, depth=DEPTH)
TEACHER = DiffusionHead(CONFIG, CHANNELS)
STUDENT = EnergyHead(CONFIG, "noise_stream", CHANNELS)
EAR = EnergyHead(CONFIG, "context_stream", CHANNELS)
EAR_NOISE_DIM = 5
EPSILON = float(np.finfo(np.float32).eps)


def teacher_shapes(head: DiffusionHead, context: int) -> dict:
    return jax.eval_shape(
        head.init,
        jax.random.key(0),
        jnp.zeros((1, head.token_dim)),
        jnp.zeros((1,), jnp.int32),
        jnp.zeros((1, context)),
    )["params"]


def student_shapes(head: EnergyHead, context: int, noise_dim: int = CHANNELS) -> dict:
    noise = jnp.zeros((1, noise_dim))
    return jax.eval_shape(head.init, jax.random.key(0), noise, jnp.zeros((1, context)))["params"]


def count(shapes: dict) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def common_parameters(width: int, depth: int, stream: int, context: int, out: int) -> int:
    """Stream and context projections, blocks, final modulation, final layer."""
    blocks = depth * (5 * width**2 + 7 * width)
    inputs = (stream * width + width) + (context * width + width)
    return inputs + blocks + (2 * width**2 + 2 * width) + (out * width + out)


def test_number_of_parameters():
    time = (256 * WIDTH + WIDTH) + (WIDTH**2 + WIDTH)
    expected = time + common_parameters(WIDTH, DEPTH, CHANNELS, CONTEXT, 2 * CHANNELS)
    assert count(teacher_shapes(TEACHER, CONTEXT)) == expected
    expected = common_parameters(WIDTH, DEPTH, CHANNELS, CONTEXT, CHANNELS)
    assert count(student_shapes(STUDENT, CONTEXT)) == expected


@pytest.mark.parametrize(
    ("width", "depth", "context", "of_teacher", "of_student"),
    [
        (1024, 6, 768, 35_749_920, 34_469_904),
        (1280, 8, 1024, 72_230_432, 70_302_736),
        (1536, 12, 1280, 151_206_944, 148_500_496),
    ],
)
def test_published_number_of_parameters(width, depth, context, of_teacher, of_student):
    config = HeadConfig(width=width, depth=depth)
    assert count(teacher_shapes(DiffusionHead(config, 16), context)) == of_teacher
    student = EnergyHead(config, "noise_stream", 16)
    assert count(student_shapes(student, context, 64)) == of_student


def test_time_features_are_the_published_ones():
    times = np.asarray([0, 1, 500, 999])
    frequencies = 10_000.0 ** (-np.arange(128) / 128)
    angles = times[:, None] * frequencies
    expected = np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)
    # an angle of up to 999 rounds eight times at most: in its frequency's logarithm, the
    # exponential, and the product
    tolerance = 4 * EPSILON * (1 + 999)
    np.testing.assert_allclose(sinusoids(jnp.asarray(times)), expected, rtol=0, atol=tolerance)


def test_heads_start_at_zero():
    hidden = jax.random.normal(jax.random.key(0), (5, CONTEXT))
    tokens = jax.random.normal(jax.random.key(1), (5, CHANNELS))
    time = jnp.arange(5)
    output, _ = TEACHER.init_with_output(jax.random.key(2), tokens, time, hidden)
    np.testing.assert_array_equal(output, np.zeros((5, 2 * CHANNELS)))
    output, _ = STUDENT.init_with_output(jax.random.key(2), tokens, hidden)
    np.testing.assert_array_equal(output, np.zeros((5, CHANNELS)))


def test_time_layers_start_small():
    params = TEACHER.init(
        jax.random.key(0), jnp.zeros((1, CHANNELS)), jnp.zeros((1,), jnp.int32), jnp.zeros((1, 12))
    )["params"]
    for name in ("time_in", "time_out"):
        kernel = np.asarray(params[name]["kernel"])
        assert abs(kernel.std() - 0.02) < 5 * 0.02 / math.sqrt(2 * kernel.size)


def test_many_draws_share_one_context():
    params = {"params": random_params(student_shapes(STUDENT, CONTEXT))}
    hidden = jax.random.normal(jax.random.key(0), (2, 3, CONTEXT))
    noise = jax.random.normal(jax.random.key(1), (4, 2, 3, CHANNELS))
    together = jax.jit(STUDENT.apply)(params, noise, hidden[None])
    apply = jax.jit(STUDENT.apply)
    one_by_one = jnp.stack([apply(params, draw, hidden) for draw in noise])
    assert together.shape == (4, 2, 3, CHANNELS)
    assert_close(together, one_by_one, rounding(kernel_terms(params)))


def test_every_token_is_drawn_on_its_own():
    params = {"params": random_params(student_shapes(STUDENT, CONTEXT))}
    hidden = jax.random.normal(jax.random.key(0), (6, CONTEXT))
    noise = jax.random.normal(jax.random.key(1), (6, CHANNELS))
    moved = STUDENT.apply(params, noise.at[2].add(1.0), hidden.at[4].add(1.0))
    still = STUDENT.apply(params, noise, hidden)
    changed = np.flatnonzero((np.asarray(moved) != np.asarray(still)).any(axis=-1))
    assert changed.tolist() == [2, 4]


@pytest.mark.parametrize("time", [0, 500, 996])
def test_student_head_begins_as_minus_the_teachers_velocity(time):
    params = random_params(teacher_shapes(TEACHER, CONTEXT))
    student = from_diffusion_head(TEACHER, params, time)
    hidden = jax.random.normal(jax.random.key(0), (7, CONTEXT))
    noise = jax.random.normal(jax.random.key(1), (7, CHANNELS))
    answer = TEACHER.apply({"params": params}, noise, jnp.full((7,), time), hidden)
    found = STUDENT.apply({"params": student}, noise, hidden)
    expected = -np.asarray(answer)[:, :CHANNELS]
    # only the order of adding bias and time embedding differs, which the blocks pass on
    assert_close(found, expected, rounding(kernel_terms(params)))


def test_student_head_has_the_shape_and_memory_of_its_own():
    params = random_params(teacher_shapes(TEACHER, CONTEXT))
    before = jax.tree.map(np.array, params)
    student = from_diffusion_head(TEACHER, params, 996)
    shapes = student_shapes(STUDENT, CONTEXT)
    assert jax.tree.structure(student) == jax.tree.structure(shapes)
    assert jax.tree.map(jnp.shape, student) == jax.tree.map(jnp.shape, shapes)
    jax.tree.map(np.testing.assert_array_equal, params, before)
    of_teacher = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(params)}
    of_student = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(student)}
    assert not of_teacher & of_student


def reference_mlp(
    params: dict, stream: np.ndarray, modulation: np.ndarray, shift_scale: float
) -> np.ndarray:
    """The modulated residual MLP in float64."""

    def silu(x: np.ndarray) -> np.ndarray:
        return x / (1 + np.exp(-x))

    def normalise(x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(axis=-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6)

    x = dense(stream, params["stream"])
    for index in range(DEPTH):
        block = params[f"block_{index}"]
        shift, scale, gate = np.split(dense(silu(modulation), block["modulation"]), 3, axis=-1)
        hidden = normalise(x) * block["norm"]["scale"] + block["norm"]["bias"]
        hidden = hidden * (1 + scale) + shift_scale * shift
        x = x + gate * dense(silu(dense(hidden, block["mlp_in"])), block["mlp_out"])
    shift, scale = np.split(dense(silu(modulation), params["final_modulation"]), 2, axis=-1)
    return dense(normalise(x) * (1 + scale) + shift, params["final"])


@pytest.mark.parametrize("head", [STUDENT, EAR], ids=["noise_stream", "context_stream"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_both_roles_equal_the_float64_reading(head, temperature):
    noise_dim = EAR_NOISE_DIM if head is EAR else CHANNELS
    params = random_params(student_shapes(head, CONTEXT, noise_dim))
    exact = in_float64(params)
    rng = np.random.default_rng(0)
    noise = jnp.float32(rng.normal(size=(7, noise_dim)))
    hidden = jnp.float32(rng.normal(size=(7, CONTEXT)))
    if head.roles == "noise_stream":
        modulation = dense(np.float64(hidden), exact["context"])
        expected = reference_mlp(exact["mlp"], temperature * np.float64(noise), modulation, 1.0)
    else:
        modulation = dense(np.float64(noise), exact["noise"])
        expected = reference_mlp(exact["mlp"], np.float64(hidden), modulation, temperature)
    found = head.apply({"params": params}, noise, hidden, temperature)
    assert_close(found, expected, rounding(kernel_terms(params)))


def test_number_of_parameters_with_ears_roles():
    expected = common_parameters(WIDTH, DEPTH, EAR_NOISE_DIM, CONTEXT, CHANNELS)
    assert count(student_shapes(EAR, CONTEXT, EAR_NOISE_DIM)) == expected
    # EAR-B: 34,469,904 with 64 noises, context 768 and tokens of 16
    published = EnergyHead(HeadConfig(1024, 6), "context_stream", 16)
    assert count(student_shapes(published, 768, 64)) == 34_469_904


@pytest.mark.parametrize(
    ("noise", "std", "largest"), [("gaussian", 1.0, 6.0), ("uniform", math.sqrt(1 / 12), 0.5)]
)
def test_noise_has_the_distribution_that_its_name_says(noise, std, largest):
    draws = sample_noise(jax.random.key(0), (100_000,), noise)
    assert draws.dtype == jnp.float32
    error = 5 / math.sqrt(len(draws))  # five standard errors of a mean of unit variance
    assert abs(float(draws.mean())) < error * std
    # the standard error of a standard deviation is at most that of the mean, over sqrt(2)
    assert abs(float(draws.std()) / std - 1) < error
    assert float(jnp.abs(draws).max()) <= largest
