"""Long sequences in overlapping windows: equal to one piece, seamless, and of constant memory."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fasttta_jax.audio.mel import MelConfig, log_mel
from fasttta_jax.codecs.chunks import Chunks, in_chunks
from fasttta_jax.pretrained.hifigan import Hifigan
from tests.support.hifigan_models import (
    SMALL,
    build,
    spectrograms,
)
from tests.support.mel_reference import mel_rounding
from tests.support.tolerance import (
    ELEMENTARY,
    assert_close,
    assert_within,
    kernel_terms,
    rounding,
    worst_rounding,
)


def vocoder() -> Callable[[jax.Array], jax.Array]:
    model, params = build(SMALL)
    return lambda spectrogram: Hifigan.apply(model, params, spectrogram)


def smooth(x: jax.Array, reach: int = 3) -> jax.Array:
    """Mean over 2 * reach + 1 positions, zero outside."""
    kernel = jnp.full((2 * reach + 1, 1, 1), 1 / (2 * reach + 1))
    return jax.lax.conv_general_dilated(
        x, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    )


@pytest.mark.parametrize("num_frames", [65, 127])
def test_the_vocoder_in_windows_equals_the_vocoder_in_one_piece(num_frames: int) -> None:
    margin = max(SMALL.context)
    function = vocoder()
    spectrogram = spectrograms(SMALL, num_frames, 2)
    whole = np.asarray(jax.jit(function)(spectrogram))
    for overlap in (2 * margin, 50):
        chunks = Chunks(64, overlap, margin)
        found = jax.jit(lambda x, chunks=chunks: in_chunks(function, x, chunks))(spectrogram)
        assert_close(found, whole, rounding(kernel_terms(build(SMALL)[1])))


def test_a_margin_that_is_too_small_is_heard() -> None:
    spectrogram = spectrograms(SMALL, 128)
    function = vocoder()
    found = jax.jit(lambda x: in_chunks(function, x, Chunks(64, 2, 1)))(spectrogram)
    assert np.abs(found - jax.jit(function)(spectrogram)).max() > 1e-4


@pytest.mark.parametrize("length", [1, 31, 32])
def test_what_fits_in_one_window_runs_in_one_piece(length: int) -> None:
    seen = []

    def function(x: jax.Array) -> jax.Array:
        seen.append(x.shape)
        return x.sum(axis=1)  # has no positions at all

    in_chunks(function, jnp.ones((1, length, 2)), Chunks(32, 8))
    assert seen == [(1, length, 2)]


@pytest.mark.parametrize("rate", [Fraction(1), Fraction(160), Fraction(1, 4), Fraction(5, 2)])
@pytest.mark.parametrize(("overlap", "margin"), [(0, 0), (8, 4), (28, 4)])
def test_weights_sum_to_one_at_every_rate(rate: Fraction, overlap: int, margin: int) -> None:
    """Windows of constants give constants, and lines, which every window agrees on, give lines."""

    def function(x: jax.Array) -> jax.Array:
        length = int(x.shape[1] * rate)
        slope = x[:, 1] - x[:, 0]
        at = (jnp.arange(length) + 0.5) / float(rate) - 0.5
        return x[:, :1] + slope[:, None] * at[None, :, None]

    for length in (44, 100):
        line = jnp.arange(length, dtype=jnp.float32)[None, :, None] * jnp.array([[[0.0, 1.0]]]) + 5
        found = in_chunks(function, line, Chunks(32, overlap, margin))
        # two windows' lines, of six operations each, and the fade between them
        np.testing.assert_allclose(found, function(line), rtol=worst_rounding(2 * 6 + 4))


@pytest.mark.parametrize("num_positions", [33, 57, 65, 127, 400])
def test_a_function_of_the_whole_window_leaves_no_seam(num_positions: int) -> None:
    """Every window at another level: what remains is a ramp of their difference over its width."""
    levels = jax.random.randint(jax.random.key(2), (1, num_positions, 1), -64, 65) / 64
    rounded = worst_rounding(ELEMENTARY + 4)  # of a sine and a fade: sums of such levels are exact

    def function(x: jax.Array) -> jax.Array:
        return jnp.broadcast_to(jnp.sin(10 * x.sum(axis=1, keepdims=True)), x.shape)

    chunks = Chunks(32, 16, 3)
    found = np.asarray(in_chunks(function, levels, chunks))[0, :, 0]
    windows = [
        float(function(levels[:, start : start + 32])[0, 0, 0])
        for start in chunks.starts(num_positions)
    ]
    spread = max(windows) - min(windows)
    assert spread > 0.1
    width = chunks.overlap - 2 * chunks.margin
    # two ramps at once where the last window was moved back over its neighbour's
    assert np.abs(np.diff(found)).max() <= 2 * spread / width + rounded
    assert min(windows) - rounded <= found.min() <= found.max() <= max(windows) + rounded
    np.testing.assert_allclose(found[:3], windows[0], rtol=0, atol=rounded)
    np.testing.assert_allclose(found[-3:], windows[-1], rtol=0, atol=rounded)


def test_nothing_within_the_margin_of_a_cut_counts() -> None:
    """A function that marks the edges of its window: only those of the sequence remain."""

    def function(x: jax.Array) -> jax.Array:
        return x.at[:, :4].set(1e6).at[:, -4:].set(1e6)

    for num_positions in (33, 39, 57, 131):
        found = in_chunks(function, jnp.zeros((1, num_positions, 1)), Chunks(32, 12, 4))
        expected = function(jnp.zeros((1, num_positions, 1)))
        np.testing.assert_array_equal(found, expected)


def test_every_position_is_covered_and_the_last_window_ends_at_the_end() -> None:
    chunks = Chunks(32, 8, 2)
    for num_positions in range(1, 200):
        starts = chunks.starts(num_positions)
        assert starts[0] == 0
        assert starts[-1] == max(0, num_positions - 32)
        assert all(0 < step <= 24 for step in np.diff(starts))
        assert len(starts) == 1 + max(0, -(-(num_positions - 32) // 24))


def test_trees_of_outputs_with_rates_of_their_own() -> None:
    def function(x: jax.Array) -> dict[str, Any]:
        mean = smooth(x).reshape(x.shape[0], -1, 4).mean(axis=-1)
        return {"fast": jnp.repeat(smooth(x), 2, axis=1), "slow": (mean, 2 * mean)}

    x = jax.random.normal(jax.random.key(3), (2, 140, 1))
    expected = function(x)
    found = jax.jit(lambda x: in_chunks(function, x, Chunks(32, 12, 4)))(x)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    # means of 7 and of 4, and the fade
    jax.tree.map(lambda *values: assert_close(*values, rounding(7 + 4 + 4)), found, expected)


def test_the_front_end_in_windows_equals_the_front_end() -> None:
    """Samples to frames; a frame of the middle sees three frames' worth of samples on each side."""
    config = MelConfig()
    audio = 0.1 * jax.random.normal(jax.random.key(4), (2, 160 * 100))
    found = in_chunks(lambda x: log_mel(x, config), audio, Chunks(160 * 40, 160 * 10, 160 * 4))
    bound = np.stack([mel_rounding(np.asarray(clip), config) for clip in audio])
    assert_within(found, log_mel(audio, config), bound)


def test_half_precision_stays_what_it_is() -> None:
    x = jnp.ones((1, 50, 1), jnp.bfloat16)
    found = in_chunks(lambda x: 3 * x, x, Chunks(32, 8))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, 3 * x)


def test_memory_does_not_grow_with_the_length() -> None:
    """Beyond inputs and outputs; one piece, for comparison, grows fourfold."""
    function = vocoder()
    chunks = Chunks(64, 2 * max(SMALL.context), max(SMALL.context))

    def temporary(num_frames: int, run: Callable[[jax.Array], jax.Array]) -> int:
        shape = jax.ShapeDtypeStruct((2, num_frames, SMALL.model_in_dim), jnp.float32)
        return jax.jit(run).lower(shape).compile().memory_analysis().temp_size_in_bytes

    short, long = (
        temporary(factor * 64, lambda x: in_chunks(function, x, chunks)) for factor in (2, 8)
    )
    assert 0 < long <= short + 1024
    assert temporary(8 * 64, function) > 2 * long


def test_windows_are_compiled_once() -> None:
    traced = []

    def function(x: jax.Array) -> jax.Array:
        traced.append(x.shape)
        return x

    run = jax.jit(lambda x: in_chunks(function, x, Chunks(32, 8)))
    text = run.lower(jnp.zeros((1, 320, 1))).as_text()
    assert set(traced) == {(1, 32, 1)}
    assert len(traced) <= 2  # for its shapes, and as the body of the scan
    assert "while" in text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((32, 32), r"chunks\.overlap is 32; allowed: from 2 \* margin = 0 to below length = 32"),
        ((32, 7, 4), r"chunks\.overlap is 7; allowed: from 2 \* margin = 8"),
        ((32, -1), r"chunks\.overlap is -1"),
        ((32, 8, -1), r"chunks\.margin is -1; allowed: 0 or more"),
    ],
)
def test_impossible_windows_are_refused(values: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Chunks(*values)


@pytest.mark.parametrize(
    ("num_positions", "overlap", "message"),
    [
        (66, 8, "the length of the sequence is 66; allowed: multiples of 4, since 32 positions"),
        (64, 6, r"chunks\.overlap is 6; allowed: multiples of 4"),
    ],
)
def test_windows_between_two_positions_are_refused(
    num_positions: int, overlap: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        in_chunks(lambda x: x[:, ::4], jnp.zeros((1, num_positions, 1)), Chunks(32, overlap))
