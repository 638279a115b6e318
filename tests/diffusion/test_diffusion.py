"""Schedule and loss against published constants and an independent float64 reading."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fasttta_jax.diffusion.loss import diffusion_loss, learned_log_variance
from fasttta_jax.diffusion.schedule import (
    corrupt,
    cosine_betas,
    predicted_x_0,
    prediction_target,
    respaced_schedule,
    training_schedule,
)

EPSILON = float(np.finfo(np.float32).eps)
PREDICTIONS = ["epsilon", "v"]
FULL = training_schedule(1000)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# ------------------------------------------------------------------------------------- schedule


def test_betas_are_the_published_ones():
    expected = [4.12842248e-5, 4.61417527e-5, 3.15569144e-3, 0.749999393, 0.999]
    np.testing.assert_allclose(cosine_betas(1000)[[0, 1, 500, 998, 999]], expected, rtol=5e-9)
    assert cosine_betas(1000).dtype == np.float64
    assert (cosine_betas(1000) == 0.999).sum() == 1


def test_alpha_bars_are_the_published_ones():
    expected = [0.999958716, 0.845887986, 0.492285172, 0.143178646, 2.42876691e-6, 2.42876691e-9]
    np.testing.assert_allclose(FULL.alpha_bars[[0, 250, 500, 750, 998, 999]], expected, rtol=5e-9)


def test_respaced_tables_are_the_published_ones():
    schedule = respaced_schedule(1000, 100)
    np.testing.assert_allclose(
        schedule.betas[[0, 1, 50, 98, 99]],
        [4.12842248e-5, 6.79840069e-4, 3.41717013e-2, 0.749939280, 0.99998999],
        rtol=1e-8,
    )
    np.testing.assert_allclose(
        schedule.posterior_log_variance[[0, 1, 50, 99]],
        [-10.1539, -10.1539, -3.41018, -2.52885e-4],
        rtol=5e-6,
    )
    np.testing.assert_allclose(
        np.log(schedule.betas[[0, 1, 50, 99]]),
        [-10.0950, -7.29365, -3.37636, -1.00009e-5],
        rtol=5e-6,
    )


@pytest.mark.parametrize(
    ("sampling_steps", "first", "last"),
    [
        (100, [0, 10, 20, 30, 40, 50, 61, 71], [989, 999]),
        (50, [0, 20, 41, 61, 82, 102], [958, 979, 999]),
        (25, [0, 42, 83, 125, 166, 208], [916, 957, 999]),
        (250, [0, 4, 8], [995, 999]),
        (1000, [0, 1, 2, 3], [998, 999]),
        (2, [0], [999]),
    ],
)
def test_respaced_steps_are_the_published_ones(sampling_steps, first, last):
    times = respaced_schedule(1000, sampling_steps).times
    assert len(times) == sampling_steps
    assert times[: len(first)].tolist() == first
    assert times[-len(last) :].tolist() == last
    assert (np.diff(times) > 0).all()


@pytest.mark.parametrize("sampling_steps", [25, 50, 100, 250])
def test_respaced_tables_equal_a_loop_over_python_floats(sampling_steps):
    bars, product = [], 1.0
    for step in range(1000):
        now, then = (math.cos((u / 1000 + 0.008) / 1.008 * math.pi / 2) for u in (step, step + 1))
        product *= 1 - min(1 - (then / now) ** 2, 0.999)
        bars.append(product)
    stride, position, times = 999 / (sampling_steps - 1), 0.0, []
    for _ in range(sampling_steps):
        times.append(round(position))  # half to even
        position += stride
    schedule = respaced_schedule(1000, sampling_steps)
    assert schedule.times.tolist() == times
    before = 1.0
    for index, time in enumerate(times):
        bar = bars[time]
        beta = 1 - bar / before
        found = [
            schedule.betas[index],
            schedule.alpha_bars[index],
            schedule.alpha_bars_before[index],
            schedule.posterior_mean_x_0[index],
            schedule.posterior_mean_x_t[index],
        ]
        expected = [
            beta,
            bar,
            before,
            beta * math.sqrt(before) / (1 - bar),
            (1 - before) * math.sqrt(1 - beta) / (1 - bar),
        ]
        # 1 - beta is down to 1e-5, where it has eleven digits, and alpha_bar multiplies them.
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=0)
        if index:
            log_variance = math.log(beta * (1 - before) / (1 - bar))
            assert abs(schedule.posterior_log_variance[index] - log_variance) < 1e-9
        before = bar
    assert schedule.posterior_log_variance[0] == schedule.posterior_log_variance[1]


@pytest.mark.parametrize("sampling_steps", [2, 25, 100, 1000])
def test_respacing_keeps_the_signal_share(sampling_steps):
    schedule = respaced_schedule(1000, sampling_steps)
    np.testing.assert_allclose(schedule.alpha_bars, FULL.alpha_bars[schedule.times], rtol=1e-6)


def test_respacing_to_every_step_is_the_full_schedule():
    np.testing.assert_allclose(respaced_schedule(1000, 1000).betas, FULL.betas, rtol=1e-9)


@pytest.mark.parametrize("sampling_steps", [0, 1, 1001])
def test_impossible_respacing_is_refused(sampling_steps):
    with pytest.raises(ValueError, match=f"is {sampling_steps}; allowed: 2 to 1000"):
        respaced_schedule(1000, sampling_steps)


# ------------------------------------------------------------------------- corruption, answers


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("time", [0, 1, 500, 998, 999])
def test_the_right_answer_gives_back_the_clean_token(prediction, time):
    x_0, noise = normal(0, 7, 5), normal(1, 7, 5)
    times = jnp.full((7,), time)
    x_t = corrupt(x_0, times, noise, FULL)
    answer = prediction_target(x_0, times, noise, FULL, prediction)
    found = predicted_x_0(x_t, times, answer, FULL, prediction)
    # a handful of roundings of numbers below 5; epsilon divides them by sqrt(alpha_bar)
    amplification = 1 / math.sqrt(FULL.alpha_bars[time]) if prediction == "epsilon" else 1.0
    np.testing.assert_allclose(found, x_0, rtol=0, atol=8 * 5 * EPSILON * amplification)


def test_v_and_epsilon_are_one_affine_function_apart():
    x_0, noise = np.float64(normal(0, 40, 5)), np.float64(normal(1, 40, 5))
    times = np.linspace(0, 999, 40).astype(int)
    alpha_bar = FULL.alpha_bars[times][:, None]
    x_t = np.asarray(corrupt(jnp.float32(x_0), times, jnp.float32(noise), FULL))
    v = np.asarray(prediction_target(jnp.float32(x_0), times, jnp.float32(noise), FULL, "v"))
    from_v = np.sqrt(alpha_bar) * v + np.sqrt(1 - alpha_bar) * x_t
    np.testing.assert_allclose(from_v, noise, rtol=0, atol=40 * EPSILON)


def test_corruption_keeps_unit_variance():
    times = np.repeat([0, 300, 600, 999], 4000)
    x_t = np.asarray(corrupt(normal(0, 16_000, 2), times, normal(1, 16_000, 2), FULL))
    for time in np.unique(times):
        values = x_t[times == time]
        assert abs(values.var() - 1) < 5 * math.sqrt(2 / values.size)


# ------------------------------------------------------------------------------------------ loss


def reference_cdf(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def reference_loss(
    output: np.ndarray, x_0: np.ndarray, time: np.ndarray, noise: np.ndarray, prediction: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """mse and vb per token in float64, and bounds on the float32 rounding of each."""
    betas = cosine_betas(1000)
    alphas = 1 - betas
    bars = np.cumprod(alphas)
    before = np.concatenate([[1.0], bars[:-1]])
    posterior = betas * (1 - before) / (1 - bars)
    posterior[0] = posterior[1]
    output, x_0, noise = (np.float64(array) for array in (output, x_0, noise))
    answer, interpolation = np.split(output, 2, axis=-1)
    beta, bar, bar_before, alpha, variance = (
        table[time][..., None] for table in (betas, bars, before, alphas, posterior)
    )
    x_t = np.sqrt(bar) * x_0 + np.sqrt(1 - bar) * noise
    if prediction == "epsilon":
        target = noise
        x_0_hat = (x_t - np.sqrt(1 - bar) * answer) / np.sqrt(bar)
        error = (np.abs(x_t) + np.abs(answer)) / np.sqrt(bar)
    else:
        target = np.sqrt(bar) * noise - np.sqrt(1 - bar) * x_0
        x_0_hat = np.sqrt(bar) * x_t - np.sqrt(1 - bar) * answer
        error = np.abs(x_t) + np.abs(answer)
    mse = np.mean((target - answer) ** 2, axis=-1)

    weight_x_0 = beta * np.sqrt(bar_before) / (1 - bar)
    weight_x_t = (1 - bar_before) * np.sqrt(alpha) / (1 - bar)
    true_mean = weight_x_0 * x_0 + weight_x_t * x_t
    mean = weight_x_0 * x_0_hat + weight_x_t * x_t
    share = (interpolation + 1) / 2
    log_variance = share * np.log(beta) + (1 - share) * np.log(variance)
    ratio, precision = variance / np.exp(log_variance), np.exp(-log_variance)
    divergence = 0.5 * (
        -1 + log_variance - np.log(variance) + ratio + (true_mean - mean) ** 2 * precision
    )
    std = np.exp(log_variance / 2)
    upper = reference_cdf((x_0 - mean + 1 / 255) / std)
    lower = reference_cdf((x_0 - mean - 1 / 255) / std)
    inside = upper - lower
    probability = np.where(x_0 < -0.999, upper, np.where(x_0 > 0.999, 1 - lower, inside))
    first = -np.log(np.maximum(probability, 1e-12))
    at_zero = time[..., None] == 0
    vb = np.mean(np.where(at_zero, first, divergence), axis=-1) / math.log(2)

    # Rounding: eight operations a number at most; the bound of a product of differences.
    mean_error = 8 * EPSILON * (weight_x_0 * (np.abs(x_0) + error) + 2 * np.abs(weight_x_t * x_t))
    log_error = 8 * EPSILON * (1 + np.abs(np.log(beta)) + np.abs(np.log(variance)))
    log_error = log_error * (1 + np.abs(interpolation))
    difference = np.abs(true_mean - mean)
    divergence_error = log_error * (1 + ratio + difference**2 * precision)
    divergence_error += (difference * mean_error + mean_error**2) * precision
    slope = 2 * (1 + difference / std) / std  # of -ln p in the mean, generously
    first_error = slope * mean_error + log_error * (1 + (difference / std) ** 2)
    first_error += 4 * EPSILON / np.maximum(probability, 1e-12)
    vb_error = np.mean(np.where(at_zero, first_error, divergence_error), axis=-1) / math.log(2)
    mse_error = 8 * EPSILON * np.mean((np.abs(target) + np.abs(answer)) ** 2, axis=-1)
    return mse, vb, mse_error, vb_error


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_loss_terms_equal_the_float64_reading(prediction):
    num_tokens, channels = 400, 6
    time = np.random.default_rng(0).integers(1, 999, num_tokens)
    time[:100], time[100:120] = 0, 999
    x_0, noise = normal(1, num_tokens, channels), normal(2, num_tokens, channels)
    # the answer is the right one plus an error, so that no bin is so unlikely that 1e-12 decides
    target = np.asarray(prediction_target(x_0, time, noise, FULL, prediction))
    scale = np.where(time == 0, 0.5 if prediction == "epsilon" else 0.003, 1.0)[:, None]
    answer = target + scale.astype(np.float32) * normal(3, num_tokens, channels)
    output = np.concatenate([answer, normal(4, num_tokens, channels)], axis=-1)
    terms = diffusion_loss(
        output,
        x_0,
        corrupt(x_0, time, noise, FULL),
        time,
        noise,
        schedule=FULL,
        prediction=prediction,
    )
    mse, vb, mse_error, vb_error = reference_loss(output, x_0, time, noise, prediction)
    assert terms["mse"].shape == terms["vb"].shape == (num_tokens,)
    assert (np.abs(terms["mse"] - mse) < mse_error).all()
    assert (np.abs(terms["vb"] - vb) < vb_error).all()
    assert np.median(vb_error / vb) < 0.03  # the bound means something


@pytest.mark.parametrize("time", [0, 1, 500, 999])
def test_learned_variance_lies_between_the_posterior_and_beta(time):
    interpolation = jnp.asarray([[-1.0, 0.0, 1.0, 3.0]])
    found = np.asarray(learned_log_variance(interpolation, jnp.asarray([time]), FULL))[0]
    betas, bars = FULL.betas, FULL.alpha_bars
    step = max(time, 1)  # the posterior has no variance at step 0 and takes the next one's
    lower = math.log(betas[step] * (1 - bars[step - 1]) / (1 - bars[step]))
    upper = math.log(betas[time])
    expected = [lower, (lower + upper) / 2, upper, 2 * upper - lower]  # it is not clipped
    np.testing.assert_allclose(found, expected, rtol=0, atol=8 * 11 * EPSILON)


def test_first_step_counts_the_bin_around_the_token_and_open_ends():
    """At t = 0 a perfect mean leaves -log2 of the mass of a bin, or of a half line."""
    x_0 = jnp.asarray([[0.2], [0.9995], [-0.9995]])
    time, noise = np.zeros(3, int), np.zeros((3, 1), np.float32)
    terms = diffusion_loss(
        jnp.zeros((3, 2)),
        x_0,
        corrupt(x_0, time, noise, FULL),
        time,
        noise,
        schedule=FULL,
        prediction="epsilon",
    )
    lower = math.log(FULL.betas[1] * (1 - FULL.alpha_bars[0]) / (1 - FULL.alpha_bars[1]))
    std = math.exp((lower + math.log(FULL.betas[0])) / 4)
    upper = reference_cdf(np.float64(1 / 255 / std))
    expected = -np.log2([2 * upper - 1, upper, upper])
    # the mean is off by the rounding of x_0, in units of std
    atol = 16 * EPSILON / std
    np.testing.assert_allclose(terms["vb"], expected, rtol=0, atol=atol)
    np.testing.assert_array_equal(terms["mse"], 0.0)


def initial_loss() -> dict[str, np.ndarray]:
    """Terms of an all-zero output at every step, [1000, draws]."""
    draws, channels = 64, 16
    x_0, noise = normal(0, 1000, draws, channels), normal(1, 1000, draws, channels)
    time = np.broadcast_to(np.arange(1000)[:, None], (1000, draws))
    terms = diffusion_loss(
        jnp.zeros((1000, draws, 2 * channels)),
        x_0,
        corrupt(x_0, time, noise, FULL),
        time,
        noise,
        schedule=FULL,
        prediction="epsilon",
    )
    return {name: np.float64(term) for name, term in terms.items()}


def test_initial_loss_is_the_published_one():
    terms = initial_loss()
    assert abs(terms["mse"].mean() - 1.0) < 5 * terms["mse"].std() / math.sqrt(64_000)
    published = {999: (719, 1), 998: (2.2, 0.05), 0: (1.47, 0.005), 500: (0.0045, 5e-5)}
    for time, (value, half_a_digit) in published.items():
        error = terms["vb"][time].std() / math.sqrt(64)
        assert abs(terms["vb"][time].mean() - value) < half_a_digit + 5 * error
    errors = terms["vb"].std(axis=1) / math.sqrt(64)
    assert abs(terms["vb"].mean() - 0.720) < 0.0005 + 5 * np.linalg.norm(errors) / 1000


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_bound_trains_the_variance_only(prediction):
    time = np.asarray([0, 1, 500, 999])
    x_0, noise, output = normal(0, 4, 3), normal(1, 4, 3), normal(2, 4, 6)
    x_t = corrupt(x_0, time, noise, FULL)

    def term(output: jax.Array, name: str) -> jax.Array:
        terms = diffusion_loss(output, x_0, x_t, time, noise, schedule=FULL, prediction=prediction)
        return terms[name].sum()

    of_bound = np.asarray(jax.grad(term)(jnp.asarray(output), "vb"))
    of_mse = np.asarray(jax.grad(term)(jnp.asarray(output), "mse"))
    np.testing.assert_array_equal(of_bound[:, :3], 0.0)
    assert np.isfinite(of_bound).all()
    assert (of_bound[1:, 3:] != 0).all()
    np.testing.assert_array_equal(of_mse[:, 3:], 0.0)
    assert (of_mse[:, :3] != 0).all()
