"""Loops: the seam is made with both sides known, and nothing is heard of it."""

from __future__ import annotations

import numpy as np
import pytest

from fasttta_jax.generation import windows
from fasttta_jax.generation.pipeline import Pipeline
from tests.generation.test_length import COLUMN, as_int16, numbered


@pytest.mark.parametrize("circle", [6, 12, 16, 21, 40])
def test_the_columns_around_the_seam_are_made_anew(circle: int) -> None:
    window = windows.seam(circle, 16)
    tokens = np.zeros((1, circle, 1, 1), np.float32)
    calls: list = []
    given = np.zeros((1, circle, 1), bool)
    found = windows.fill((window,), tokens, given, numbered(calls), made=True, number=4)
    ((number, known),) = calls
    assert number == 4
    anew = {0, 1, circle - 2, circle - 1}
    assert set(np.flatnonzero(found[0, :, 0, 0])) == anew
    # The seam is the middle of the window, so that each column's place is the nearest to it.
    np.testing.assert_array_equal(found[0, :2, 0, 0], [508, 509])
    np.testing.assert_array_equal(found[0, circle - 2 :, 0, 0], [506, 507])
    is_anew = np.isin(window.columns, list(anew))
    np.testing.assert_array_equal(known[0, :, 0], ~is_anew)


def test_a_loop_that_would_know_nothing_is_refused() -> None:
    assert windows.least_circle(16) == 6
    with pytest.raises(ValueError, match="a loop has 5 columns; allowed: 6 or more"):
        windows.seam(5, 16)


@pytest.mark.parametrize("seconds", [None, 1.5])
def test_loops_have_whole_columns(student: Pipeline, seconds: float | None) -> None:
    clips = list(student.generate(["a quiet noise", "clicks"], seconds=seconds, loop=True))
    alone = next(student.generate(["clicks"], seeds=[1], seconds=seconds, loop=True))
    columns = 4 if seconds is None else 10
    for clip in clips:
        assert clip.audio.shape == (columns * COLUMN,)
        # A step over the seam is like any other step of the waveform.
        steps = np.abs(np.diff(np.append(clip.audio, clip.audio[0])))
        assert steps[-1] <= steps[:-1].max()
    np.testing.assert_allclose(as_int16(clips[1]), as_int16(alone), atol=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seconds": 0.2}, r"a loop of 0.32 s is too short; allowed: 0.64 s or more"),
        ({"seconds": [1.0]}, "with audio, vary or loop, seconds is one number for all clips"),
    ],
)
def test_loops_that_cannot_be_are_named(student: Pipeline, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        student.generate(["x"], loop=True, **settings)
