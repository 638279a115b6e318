"""Mask rates are distributed as published; decoding reveals every token, as MAR does."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest
import scipy.stats

from fasttta_jax import masking
from fasttta_jax.config import DecodeConfig, MaskingConfig
from fasttta_jax.schedules import GUIDANCE_SCHEDULES, MASK_SCHEDULES

DISTRIBUTION = {"minimum": 0.7, "mean": 1.0, "std": 0.25}
NUM_DRAWS = 100_000


def mask_rates() -> np.ndarray:
    return np.asarray(
        masking.sample_mask_rate(jax.random.key(0), (NUM_DRAWS,), **DISTRIBUTION), np.float64
    )


def test_mask_rate_has_the_published_moments():
    distribution = scipy.stats.truncnorm(-1.2, 0.0, loc=1.0, scale=0.25)
    assert round(distribution.mean(), 3) == 0.867
    assert round(distribution.std(), 4) == 0.0835
    rates = mask_rates()
    assert abs(rates.mean() - distribution.mean()) < 5 * distribution.std() / math.sqrt(NUM_DRAWS)
    fourth = (
        distribution.moment(4)
        - 4 * distribution.moment(3) * distribution.mean()
        + 6 * distribution.moment(2) * distribution.mean() ** 2
    )
    fourth -= 3 * distribution.mean() ** 4
    error_of_variance = math.sqrt((fourth - distribution.var() ** 2) / NUM_DRAWS)
    assert abs(rates.var() - distribution.var()) < 5 * error_of_variance


def test_mask_rate_follows_the_truncated_normal_law():
    rates = mask_rates()
    assert rates.min() >= np.float32(0.7)
    assert rates.max() <= 1
    distribution = scipy.stats.truncnorm(-1.2, 0.0, loc=1.0, scale=0.25)
    assert scipy.stats.kstest(rates, distribution.cdf).pvalue > 1e-6


def test_minimum_one_masks_everything():
    masks = masking.sample_masks(jax.random.key(0), 4, 9, minimum=1.0, mean=1.0, std=0.25)
    assert np.asarray(masks).all()
    assert masking.max_visible(9, 1.0) == 0


@pytest.mark.parametrize("num_tokens", [1, 8, 256])
def test_masks_hold_exactly_ceil_of_the_rate(num_tokens):
    key = jax.random.key(3)
    rates = masking.sample_mask_rate(jax.random.split(key)[0], (64,), **DISTRIBUTION)
    masks = masking.sample_masks(key, 64, num_tokens, **DISTRIBUTION)
    expected = np.ceil(np.float32(num_tokens) * np.asarray(rates))
    np.testing.assert_array_equal(np.asarray(masks).sum(axis=1), expected)


def test_every_position_is_masked_equally_often():
    num_clips, num_tokens = 8192, 16
    masks = np.asarray(
        masking.sample_masks(jax.random.key(5), num_clips, num_tokens, **DISTRIBUTION)
    )
    share = masks.mean(axis=0)
    standard_error = math.sqrt(masks.mean() * (1 - masks.mean()) / num_clips)
    assert np.abs(share - masks.mean()).max() < 5 * standard_error


def test_clips_have_rates_and_orders_of_their_own():
    masks = np.asarray(masking.sample_masks(jax.random.key(5), 32, 64, **DISTRIBUTION))
    partial = [mask.tobytes() for mask in masks if not mask.all()]
    assert len(set(partial)) == len(partial) > 16
    assert len(set(masks.sum(axis=1).tolist())) > 4


def test_orders_are_permutations_that_depend_on_their_key_alone():
    keys = jax.random.split(jax.random.key(0), 5)
    orders = np.asarray(masking.sample_orders(keys, 12))
    np.testing.assert_array_equal(np.sort(orders), np.tile(np.arange(12), (5, 1)))
    alone = np.asarray(masking.sample_orders(keys[3:4], 12))
    np.testing.assert_array_equal(alone[0], orders[3])


def test_max_visible_is_never_exceeded_and_is_reached():
    assert masking.max_visible(256, 0.7) == 76
    masks = np.asarray(masking.sample_masks(jax.random.key(1), 4096, 8, **DISTRIBUTION))
    assert (~masks).sum(axis=1).max() == masking.max_visible(8, 0.7)


def test_max_visible_bounds_the_smallest_rate_for_every_minimum():
    # The traced product is rounded to float32: 50 * 0.14 is 7 there, and above 7 in float64.
    for num_tokens in (1, 7, 25, 50, 100, 256):
        for hundredths in range(1, 101):
            minimum = hundredths / 100
            rate = np.float32(minimum)
            fewest_masked = max(1, int(np.ceil(np.float32(num_tokens) * rate)))
            assert num_tokens - fewest_masked == masking.max_visible(num_tokens, minimum)


@pytest.mark.parametrize("schedule", MASK_SCHEDULES)
@pytest.mark.parametrize("num_tokens", [1, 2, 3, 8, 31, 256])
def test_decode_counts_sum_to_the_tokens_and_never_idle(num_tokens, schedule):
    for num_iterations in range(1, num_tokens + 1):
        counts = masking.decode_counts(num_tokens, num_iterations, MASK_SCHEDULES[schedule])
        assert len(counts) == num_iterations
        assert sum(counts) == num_tokens
        assert min(counts) >= 1


def test_decode_counts_are_those_of_mar():
    assert masking.decode_counts(256, 8) == (5, 15, 24, 31, 39, 45, 48, 49)
    expected = (2, 3, 7, 8, 11, 13, 15, 16, 19, 20, 22, 23, 23, 25, 24, 25)
    assert masking.decode_counts(256, 16) == expected
    assert max(masking.decode_counts(256, 32)) == 13
    counts = masking.decode_counts(256, 64)
    assert counts[:18] == (1,) * 13 + (2, 3, 2, 2, 3)
    assert max(counts) == 7
    assert counts[-1] == 6
    assert masking.decode_counts(256, 256) == (1,) * 256


def test_the_linear_schedule_reveals_as_many_in_every_iteration():
    linear = MASK_SCHEDULES["linear"]
    assert masking.decode_counts(256, 8, linear) == (32,) * 8
    assert set(masking.decode_counts(256, 12, linear)) == {21, 22}


def test_the_exponential_schedule_is_that_of_emigm():
    exponential = MASK_SCHEDULES["exponential"]
    expected = (1, 1, 1, 2, 2, 3, 4, 6, 8, 10, 15, 20, 27, 37, 50, 69)
    assert masking.decode_counts(256, 16, exponential) == expected
    left = [math.exp(5 * t / 4) for t in range(5)]  # 1 - exp(-5 (1 - t / 4)), times -exp(5)
    masked = [1.0 if t == 0 else exponential(t, 4) for t in range(5)]
    np.testing.assert_allclose(masked, (left[4] - np.asarray(left)) / (left[4] - 1), atol=1e-12)


@pytest.mark.parametrize(("num_iterations", "parts"), [(32, (24, 6, 2)), (16, (12, 3, 1))])
def test_the_counts_of_bisection_spend_the_iterations_as_gtr_does(num_iterations, parts):
    counts = masking.decode_counts(256, num_iterations, MASK_SCHEDULES["bisection"])
    ends = np.cumsum(parts)
    found = [sum(part) for part in np.split(counts, ends[:-1])]
    assert found == [64, 64, 128]
    for part in np.split(counts, ends[:-1]):
        assert max(part) - min(part) <= 1


def test_counts_that_are_numbers_are_revealed_and_scale_to_what_is_not_known():
    counts = (1, 1, 3, 7, 37)
    config = DecodeConfig(num_iterations=5, counts=counts)
    assert masking.reveal_counts(config, 49) == counts
    for num_known in range(1, 45):
        found = masking.reveal_counts(config, 49, num_known)
        assert (len(found), sum(found)) == (5, 49 - num_known)
        exact = (49 - num_known) / 49 * np.cumsum(counts)
        # rounding down what stays masked, and a token for each iteration at least
        assert np.abs(np.cumsum(found) - exact).max() < 3
    with pytest.raises(ValueError, match=r"counts is .*, 37\); .* sum of 48, .* found 49"):
        masking.reveal_counts(config, 48)


@pytest.mark.parametrize(("num_columns", "tokens_per_column"), [(64, 4), (6, 2), (5, 3), (7, 1)])
def test_bisection_refines_a_checkerboard_of_times_and_bands(num_columns, tokens_per_column):
    config = DecodeConfig(order="bisection")
    num_tokens = num_columns * tokens_per_column
    stages = masking.order_stages(config, num_tokens, tokens_per_column)
    assert stages is not None
    for position, stage in enumerate(stages):
        diagonal = sum(divmod(position, tokens_per_column))
        assert stage == (2 if diagonal % 2 else 1 if diagonal % 4 else 0)
    grid = stages.reshape(num_columns, tokens_per_column)
    # whatever comes last has all of its neighbours before it
    for axis in (0, 1):
        assert ((np.diff(grid == 2, axis=axis)) != 0).all()


@pytest.mark.parametrize(("num_columns", "tokens_per_column"), [(16, 2), (5, 3), (7, 1)])
def test_forward_goes_column_by_column(num_columns, tokens_per_column):
    config = DecodeConfig(order="forward", num_iterations=num_columns, counts="linear")
    num_tokens = num_columns * tokens_per_column
    stages = masking.order_stages(config, num_tokens, tokens_per_column)
    assert stages is not None
    np.testing.assert_array_equal(stages, np.arange(num_tokens) // tokens_per_column)
    assert masking.reveal_counts(config, num_tokens) == (tokens_per_column,) * num_columns
    masks = masking.DecodingMasks(config, tokens_per_column).sample(
        jax.random.key(0), 64, num_tokens
    )
    # a mask is a beginning of whole columns, and the rest
    assert (np.diff(np.asarray(masks).astype(int), axis=1) >= 0).all()
    assert set(np.asarray(masks).sum(axis=1) % tokens_per_column) == {0}


def test_a_share_of_the_masks_goes_forward():
    num_clips, num_columns, tokens_per_column = 20_000, 8, 2
    num_tokens = num_columns * tokens_per_column
    rates = {"minimum": 0.2, "mean": 0.6, "std": 0.5}
    key = jax.random.key(0)

    def drawn(forward_share: float) -> np.ndarray:
        config = MaskingConfig(**rates, forward_share=forward_share)
        masks = masking.RandomMasks(config, tokens_per_column)
        return np.asarray(masks.sample(key, num_clips, num_tokens))

    random, mixed, forward = drawn(0.0), drawn(0.25), drawn(1.0)
    # as many tokens of every clip are masked, whatever the share
    np.testing.assert_array_equal(random.sum(axis=1), forward.sum(axis=1))
    np.testing.assert_array_equal(random.sum(axis=1), mixed.sum(axis=1))
    # no visible token lies in a later column than a masked one
    columns = np.arange(num_tokens) // tokens_per_column
    last_visible = np.where(forward, -1, columns).max(axis=1)
    first_masked = np.where(forward, columns, num_columns).min(axis=1)
    assert (last_visible <= first_masked).all()
    # and of a column that is half seen, either band is
    half = forward.reshape(num_clips, num_columns, tokens_per_column)[forward.sum(axis=1) % 2 == 1]
    lower = np.take_along_axis(half, half.any(axis=2).argmax(axis=1)[:, None, None], axis=1)
    assert abs(lower[:, 0, 0].mean() - 0.5) < 5 * 0.5 / math.sqrt(len(half))
    # a clip of the mixture is one or the other, in the share that was asked for
    is_random = (mixed == random).all(axis=1)
    is_forward = (mixed == forward).all(axis=1)
    assert (is_random | is_forward).all()
    told_apart = (random != forward).any(axis=1)
    share = is_forward[told_apart].mean()
    assert abs(share - 0.25) < 5 * math.sqrt(0.25 * 0.75 / told_apart.sum())


@pytest.mark.parametrize("tokens_per_column", [None, 3])
def test_masks_that_go_forward_need_a_grid(tokens_per_column):
    masks = masking.RandomMasks(MaskingConfig(forward_share=0.5), tokens_per_column)
    message = rf"forward_share is 0\.5; allowed: 0 where tokens_per_column is {tokens_per_column}"
    with pytest.raises(ValueError, match=message):
        masks.sample(jax.random.key(0), 2, 8)


def test_stages_of_an_order_that_names_its_positions():
    order = DecodeConfig(order=((2, 0), 3, (1, 4)))
    np.testing.assert_array_equal(masking.order_stages(order, 5, None), [0, 2, 0, 1, 2])
    assert masking.order_stages(DecodeConfig(order=((2, 0, 1),)), 3, None) is None
    assert masking.order_stages(DecodeConfig(), 3, None) is None
    with pytest.raises(ValueError, match=r"order is .* permutation of 6 positions, .* found 5"):
        masking.order_stages(order, 6, None)


@pytest.mark.parametrize("tokens_per_column", [None, 3])
def test_an_order_of_a_grid_needs_one_that_fits(tokens_per_column):
    config = DecodeConfig(order="bisection")
    with pytest.raises(ValueError, match=f"where tokens_per_column is {tokens_per_column}"):
        masking.order_stages(config, 8, tokens_per_column)


def test_orders_are_random_within_their_stages_alone():
    stages = np.asarray([1, 0, 2, 0, 1, 0])
    orders = np.asarray(masking.sample_orders(jax.random.split(jax.random.key(0), 64), 6, stages))
    np.testing.assert_array_equal(np.sort(orders), np.tile(np.arange(6), (64, 1)))
    np.testing.assert_array_equal(stages[orders], np.tile([0, 0, 0, 1, 1, 2], (64, 1)))
    assert len({order[:3].tobytes() for order in orders}) == 6  # all permutations of the first


@pytest.mark.parametrize("num_iterations", [0, -1, 257])
def test_decode_counts_refuse_empty_iterations(num_iterations):
    with pytest.raises(ValueError, match=f"is {num_iterations}; allowed: 1 to .* 256"):
        masking.decode_counts(256, num_iterations)


def guidance_scales(
    schedule: str, guidance_scale: float, counts: tuple[int, ...], num_known: int = 0
) -> tuple[float, ...]:
    config = DecodeConfig(guidance_scale=guidance_scale, guidance_schedule=schedule)
    return masking.guidance_scales(config, counts, num_known=num_known)


def test_linear_guidance_rises_with_the_share_revealed():
    counts = masking.decode_counts(256, 8)
    scales = guidance_scales("linear", 5.0, counts)
    masked_after = 256 - np.cumsum(counts)
    masked_after[-1] = 1
    np.testing.assert_allclose(scales, 1 + 4 * (256 - masked_after) / 256, rtol=1e-12)
    assert list(scales) == sorted(scales)


def test_linear_guidance_counts_known_tokens_as_revealed():
    """Where the first iterations are done already, the rest goes on as it would have."""
    counts = masking.decode_counts(256, 16)
    known = sum(counts[:7])
    whole = guidance_scales("linear", 5.0, counts)
    rest = guidance_scales("linear", 5.0, counts[7:], known)
    assert rest == whole[7:]


@pytest.mark.parametrize(
    ("interval", "guided"),
    [
        ((0.0, 1.0), range(16)),
        ((0.1, 0.3), (12, 13, 14)),
        ((0.1, 0.5), range(8, 15)),
        ((0.0, 0.4), range(10, 16)),
        ((0.25, 0.5), (8, 9, 10, 11)),
    ],
)
def test_guidance_outside_of_its_interval_of_time_left_is_none(interval, guided):
    counts = masking.decode_counts(256, 16)
    everywhere = DecodeConfig(num_iterations=16)
    inside = DecodeConfig(num_iterations=16, guided=interval)
    full = masking.guidance_scales(everywhere, counts)
    expected = [scale if t in guided else 1.0 for t, scale in enumerate(full)]
    assert list(masking.guidance_scales(inside, counts)) == expected


def test_constant_guidance_does_not_move():
    assert guidance_scales("constant", 5.0, (1, 2, 3)) == (5.0, 5.0, 5.0)


@pytest.mark.parametrize("num_iterations", [1, 2, 7, 64])
@pytest.mark.parametrize("guidance_scale", [0.0, 2.5, 5.0])
def test_cosine_guidance_is_a_quarter_wave_up_and_its_mirror_image_down(
    num_iterations, guidance_scale
):
    counts = masking.decode_counts(64, num_iterations)
    up = np.asarray(guidance_scales("cosine_up", guidance_scale, counts))
    down = np.asarray(guidance_scales("cosine_down", guidance_scale, counts))
    shape_up = (up - 1) / (guidance_scale - 1)
    shape_down = (down - 1) / (guidance_scale - 1)
    assert len(up) == len(down) == num_iterations
    for shape in (shape_up, shape_down):
        assert shape.min() >= -1e-12
        assert shape.max() <= 1 + 1e-12
    assert (np.diff(shape_up) > 0).all()
    assert (np.diff(shape_down) < 0).all()
    assert up[-1] == guidance_scale
    assert abs(down[-1] - 1.0) < 1e-12
    # On the curve from t = 0 to T, the one at t is the other at T - t.
    np.testing.assert_allclose(shape_up[:-1], shape_down[:-1][::-1], rtol=0, atol=1e-12)
    np.testing.assert_allclose(shape_up**2 + shape_down**2, 1.0, rtol=1e-12)
    ends = np.arange(1, num_iterations + 1)
    published = np.cos(np.pi * ends / (2 * num_iterations))
    np.testing.assert_allclose(shape_down, published, rtol=0, atol=1e-12)


def test_cosine_down_is_the_share_still_masked():
    counts = masking.decode_counts(256, 16)
    down = np.asarray(guidance_scales("cosine_down", 2.0, counts)) - 1
    linear = np.asarray(guidance_scales("linear", 2.0, counts)) - 1
    assert np.abs(down + linear - 1).max() <= 1 / 256  # the mask schedule rounds down


def test_scale_one_is_one_under_every_schedule():
    for schedule in GUIDANCE_SCHEDULES:
        assert set(guidance_scales(schedule, 1.0, (1, 2, 3))) == {1.0}
