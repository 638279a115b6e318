"""The reverse chain against a float64 loop on the same noise, and guidance of its answers."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fasttta_jax.diffusion.loss import learned_log_variance, posterior_mean
from fasttta_jax.diffusion.sampler import ancestral_sample, guide
from fasttta_jax.diffusion.schedule import (
    predicted_x_0,
    respaced_schedule,
    training_schedule,
)
from fasttta_jax.randomness import normal_per_clip
from fasttta_jax.systems import build_model
from tests.support import helpers

EPSILON = float(np.finfo(np.float32).eps)
PREDICTIONS = ["epsilon", "v"]
FULL = training_schedule(1000)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


KEYS = jax.random.split(jax.random.key(11), 2)
SHAPE = (3, 4)


def reference_chain(
    sampling_steps: int, prediction: str, temperature: float
) -> tuple[np.ndarray, float]:
    """The reverse chain in float64 on the sampler's own noise, and a bound on float32 rounding."""
    steps = np.arange(1001) / 1000
    signal = np.cos((steps + 0.008) / 1.008 * np.pi / 2) ** 2
    every_bar = np.cumprod(1 - np.minimum(1 - signal[1:] / signal[:-1], 0.999))
    times = np.rint(np.linspace(0, 999, sampling_steps)).astype(int)
    bars = every_bar[times]
    betas = 1 - bars / np.append(1.0, bars[:-1])

    def noise(index: int) -> np.ndarray:
        keys = jax.vmap(lambda key: jax.random.fold_in(key, index))(KEYS)
        return np.float64(normal_per_clip(keys, SHAPE))

    x, bound = noise(sampling_steps), 0.0
    for index in reversed(range(sampling_steps)):
        beta, bar = betas[index], bars[index]
        before = bars[index - 1] if index else 1.0
        output = smooth_denoiser(x, times[index], np)
        answer, interpolation = np.split(output, 2, axis=-1)
        if prediction == "epsilon":
            from_x, from_answer = 1 / np.sqrt(bar), -np.sqrt(1 / bar - 1)
        else:
            from_x, from_answer = np.sqrt(bar), -np.sqrt(1 - bar)
        weight_x_0 = beta * np.sqrt(before) / (1 - bar)
        weight_x_t = (1 - before) * np.sqrt(1 - beta) / (1 - bar)
        on_x, on_answer = weight_x_0 * from_x + weight_x_t, weight_x_0 * from_answer
        smallest = bars[0] if index == 0 else before
        variance = np.log(max(beta * (1 - smallest) / (1 - bar), 1e-300))
        if index == 0:
            variance = np.log(betas[1] * (1 - bars[0]) / (1 - bars[1]))
        share = (interpolation + 1) / 2
        std = np.exp(0.5 * (share * np.log(beta) + (1 - share) * variance))
        injected = temperature * std * noise(index) if index else 0.0
        size = max(np.abs(x).max(), np.abs(answer).max())
        through_variance = 0.25 * (np.log(beta) - variance) * np.abs(injected).max()
        bound *= on_x + 0.2 * abs(on_answer) + 0.02 * through_variance
        bound += 8 * EPSILON * (size * (on_x + abs(on_answer)) + np.abs(injected).max())
        x = on_x * x + on_answer * answer + injected
    return x, bound


def smooth_denoiser(x, time, library):
    """Some head, with both halves in use: Lipschitz 0.2 in the answer, 0.02 in the variance."""
    phase = library.asarray(time) / 1000.0
    phase = phase[..., None] if library is jnp else phase
    return library.concatenate(
        [0.2 * library.sin(x + phase), 0.02 * library.cos(x - phase)], axis=-1
    )


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(
    ("sampling_steps", "temperature"),
    [(8, 0.0), (8, 0.8), (25, 1.0), (50, 1.0), (100, 1.0), (250, 1.0)],
)
def test_chain_equals_the_float64_loop(prediction, sampling_steps, temperature):
    found = ancestral_sample(
        lambda x, time: smooth_denoiser(x, time, jnp),
        KEYS,
        SHAPE,
        schedule=respaced_schedule(1000, sampling_steps),
        prediction=prediction,
        temperature=temperature,
    )
    expected, bound = reference_chain(sampling_steps, prediction, temperature)
    assert found.shape == (2, *SHAPE)
    # Predicting noise divides by sqrt(alpha_bar): 20291 at the start. Even so the bound is tight.
    assert bound < (0.05 if prediction == "epsilon" else 1e-3) * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("sampling_steps", [2, 25])
def test_a_perfect_denoiser_returns_the_clean_token(prediction, sampling_steps):
    schedule = respaced_schedule(1000, sampling_steps)
    x_0 = jnp.asarray(normal(0, 2, *SHAPE))
    bars = jnp.asarray(FULL.alpha_bars, jnp.float32)

    def denoise(x_t: jax.Array, time: jax.Array) -> jax.Array:
        bar = bars[time][..., None]
        noise = (x_t - jnp.sqrt(bar) * x_0) / jnp.sqrt(1 - bar)
        v = jnp.sqrt(bar) * noise - jnp.sqrt(1 - bar) * x_0
        answer = noise if prediction == "epsilon" else v
        return jnp.concatenate([answer, jnp.zeros_like(answer)], axis=-1)

    found = ancestral_sample(denoise, KEYS, SHAPE, schedule=schedule, prediction=prediction)
    # The last step answers x_0 exactly, whatever came before; 1 - alpha_bar_0 = 4.1e-5 in float32
    # is off by EPSILON / 4.1e-5 in relative terms, and so is the noise, times sqrt(4.1e-5).
    size = float(jnp.abs(x_0).max()) + 5
    tolerance = 8 * EPSILON * size * (1 + 1 / math.sqrt(1 - FULL.alpha_bars[0]))
    np.testing.assert_allclose(found, x_0, rtol=0, atol=tolerance)


def test_the_network_is_told_training_steps():
    told = []

    def denoise(x_t: jax.Array, time: jax.Array) -> jax.Array:
        jax.debug.callback(lambda value: told.append(int(value)), time.ravel()[0], ordered=True)
        return jnp.zeros((*x_t.shape[:-1], 2 * x_t.shape[-1]))

    schedule = respaced_schedule(1000, 5)
    sample = ancestral_sample(denoise, KEYS[:1], SHAPE, schedule=schedule, prediction="v")
    sample.block_until_ready()
    jax.effects_barrier()
    assert told == [999, 749, 500, 250, 0]


def test_temperature_may_be_traced():
    schedule = respaced_schedule(1000, 4)

    @jax.jit
    def sample(temperature: jax.Array) -> jax.Array:
        return ancestral_sample(
            lambda x, time: smooth_denoiser(x, time, jnp),
            KEYS,
            SHAPE,
            schedule=schedule,
            prediction="v",
            temperature=temperature,
        )

    assert not np.array_equal(sample(jnp.float32(0)), sample(jnp.float32(1)))


def test_temperature_scales_the_injected_noise_and_nothing_else():
    schedule = respaced_schedule(1000, 6)
    cold, half, full = (
        np.float64(
            ancestral_sample(
                lambda x, time: jnp.zeros((*x.shape[:-1], 2 * x.shape[-1])),
                KEYS,
                SHAPE,
                schedule=schedule,
                prediction="v",
                temperature=temperature,
            )
        )
        for temperature in (0.0, 0.5, 1.0)
    )
    # A head that answers zero makes the chain linear: what is left at 0 is the start's own noise.
    keys = jax.vmap(lambda key: jax.random.fold_in(key, schedule.num_steps))(KEYS)
    on_x = schedule.posterior_mean_x_0 * np.sqrt(schedule.alpha_bars) + schedule.posterior_mean_x_t
    start = np.prod(on_x) * np.float64(normal_per_clip(keys, SHAPE))
    np.testing.assert_allclose(cold, start, rtol=8 * 6 * EPSILON)
    tolerance = 8 * 6 * EPSILON * np.abs(full).max()
    np.testing.assert_allclose(half, (cold + full) / 2, rtol=0, atol=tolerance)
    assert np.abs(full - cold).min() > tolerance


def test_noise_of_a_clip_depends_on_its_key_and_its_place_alone():
    noise = np.asarray(normal_per_clip(KEYS, (5, 4)))
    np.testing.assert_array_equal(normal_per_clip(KEYS[1:], (5, 4))[0], noise[1])
    # decoding relies on it: padding the positions does not move the draws before it
    np.testing.assert_array_equal(normal_per_clip(KEYS, (3, 4)), noise[:, :3])
    assert not np.array_equal(noise[0], noise[1])


# -------------------------------------------------------------------------------------- guidance


@pytest.mark.parametrize("time", [0, 500, 999])
def test_guiding_v_is_guiding_epsilon(time):
    bar = FULL.alpha_bars[time]
    x_t = normal(0, 6, 4)
    conditional, unconditional = normal(1, 6, 8), normal(2, 6, 8)
    guided = np.float64(guide(conditional, unconditional, jnp.float32(3.0)))

    def epsilon(output: np.ndarray) -> np.ndarray:
        return math.sqrt(bar) * output[:, :4] + math.sqrt(1 - bar) * x_t

    expected = epsilon(unconditional) + 3 * (epsilon(conditional) - epsilon(unconditional))
    np.testing.assert_allclose(epsilon(guided), expected, rtol=0, atol=16 * 4 * EPSILON)
    np.testing.assert_array_equal(guided[:, 4:], conditional[:, 4:])


@functools.cache
def outputs() -> tuple[np.ndarray, np.ndarray]:
    return normal(1, 6, 8), normal(2, 6, 8)


def test_guidance_scale_zero_and_one_are_the_two_branches():
    conditional, unconditional = outputs()
    zero = guide(conditional, unconditional, jnp.float32(0.0))
    np.testing.assert_array_equal(zero[:, :4], unconditional[:, :4])
    one = guide(conditional, unconditional, jnp.float32(1.0))
    np.testing.assert_allclose(one, conditional, rtol=0, atol=4 * 4 * EPSILON)


def test_one_trajectory_equals_the_doubled_batch():
    """MAR carries both branches through the chain; the second half's own state is never read."""
    run = helpers.tiny_teacher_config("unused")
    teacher = build_model(run, helpers.tiny_text_encoder())
    params = helpers.random_params(jax.eval_shape(teacher.init, jax.random.key(0)), scale=0.2)
    conditional, unconditional = normal(0, 2, 3, 32), normal(1, 2, 3, 32)
    channels, scale = helpers.TOKEN_DIM, 3.0
    found = teacher.sample_tokens(
        params,
        jnp.asarray(conditional),
        jnp.asarray(unconditional),
        jnp.float32(scale),
        KEYS,
        jnp.float32(1.0),
    )

    schedule = respaced_schedule(run.diffusion.num_steps, run.diffusion.sampling_steps)
    hidden = np.concatenate([conditional, unconditional])
    head = teacher.objective.head

    @jax.jit
    def denoise(params, x_t, time, hidden):
        return head.apply({"params": params["head"]}, x_t, time, hidden)

    def noise(index: int) -> np.ndarray:
        keys = jax.vmap(lambda key: jax.random.fold_in(key, index))(KEYS)
        return np.asarray(normal_per_clip(keys, (3, channels)))

    x = np.concatenate([noise(schedule.num_steps)] * 2)
    for index in reversed(range(schedule.num_steps)):
        time = np.full(x.shape[:2], index)
        shared = np.concatenate([x[:2], x[:2]])
        output = np.asarray(denoise(params, shared, schedule.times[time], hidden))
        with_text, without_text = np.split(output[..., :channels], 2)
        guided = without_text + scale * (with_text - without_text)
        answer = np.concatenate([guided, guided])
        x_0 = predicted_x_0(jnp.asarray(x), time, answer, schedule, "v")
        mean = posterior_mean(x_0, jnp.asarray(x), time, schedule)
        log_variance = learned_log_variance(output[..., channels:], time, schedule)
        drawn = np.concatenate([noise(index), normal(index, 2, 3, channels)]) if index else 0.0
        x = np.asarray(mean + jnp.exp(0.5 * log_variance) * drawn)
    size = np.abs(found).max()
    np.testing.assert_allclose(found, x[:2], rtol=0, atol=64 * 4 * EPSILON * size)
    assert np.abs(x[2:] - x[:2]).max() > 0.01 * size
