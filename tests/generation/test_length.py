"""Clips of any length: windows that overlap, each given what is known; what is given comes back."""

from __future__ import annotations

import itertools
import pathlib

import numpy as np
import pytest
import soundfile

from fasttta_jax.config import MeshConfig
from fasttta_jax.decoding.loop import Known
from fasttta_jax.generation import windows
from fasttta_jax.generation.pipeline import Clip, Pipeline
from fasttta_jax.generation.seconds import FADE_SECONDS, cut
from fasttta_jax.parallel.mesh import make_mesh
from tests.support.helpers import CLIP_SAMPLES, NUM_TOKENS, SAMPLE_RATE, TOKEN_DIM

PROMPTS = ["a loud tone", "a quiet noise", "clicks"]
COLUMN = 2560
COLUMNS, BANDS = 4, 2


def as_int16(clip: Clip) -> np.ndarray:
    """Samples as they would be written."""
    return np.round(clip.audio * 32768).astype(int)


@pytest.mark.parametrize(
    ("length", "columns"), list(itertools.product([2, 4, 16, 64], [1, 16, 17, 400]))
)
def test_windows_cover_the_line_and_overlap(length: int, columns: int) -> None:
    line = windows.line(columns, length)
    assert columns <= windows.num_columns(line)
    assert len(line) == 1 or windows.num_columns(line[:-1]) < columns
    there = np.zeros(windows.num_columns(line), bool)
    for window in line:
        known = np.flatnonzero(there[window.columns] & ~np.isin(range(length), window.anew))
        # A whole stretch at the window's beginning, and nothing else.
        np.testing.assert_array_equal(known, np.arange(len(known)))
        assert window is line[0] or 1 <= len(known) < length
        there[window.columns] = True
    assert there.all()


def numbered(calls: list) -> windows.Sample:
    """Answers, for a token: 100 times the number of the window, and its place in it."""

    def sample(number, window, tokens, known):
        calls.append((number, known.copy()))
        places = 100.0 * (number + 1) + np.arange(window.length)
        made = np.broadcast_to(places[None, :, None, None], tokens.shape)
        return np.where(known[..., None], tokens, made).astype(np.float32)

    return sample


def test_what_is_given_comes_back_and_windows_without_gaps_are_skipped() -> None:
    line = windows.line(40, 16)
    shape = (2, windows.num_columns(line), 1, 1)
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=shape).astype(np.float32)
    given = np.zeros(shape[:3], bool)
    given[:, :14], given[:, 17:31] = True, True
    calls: list = []
    found = windows.fill(line, tokens, given, numbered(calls))
    np.testing.assert_array_equal(found[given], tokens[given])
    assert (found[~given] >= 100).all()
    assert [number for number, _ in calls] == [0, 1, 2]
    given[:, :16] = True
    calls.clear()
    windows.fill(line, tokens, given, numbered(calls))
    assert [number for number, _ in calls] == [1, 2]


def test_the_last_column_of_a_window_is_made_by_the_next_one() -> None:
    """And the tokens before it are those that the window before has made."""
    line = windows.line(17, 16)
    tokens = np.zeros((1, windows.num_columns(line), 1, 1), np.float32)
    found = windows.fill(line, tokens, np.zeros(tokens.shape[:3], bool), numbered([]))
    first, second = line[1].first, line[1].anew.start
    edge = first + second
    np.testing.assert_array_equal(found[0, :edge, 0, 0], 100 + np.arange(edge))
    np.testing.assert_array_equal(found[0, edge:, 0, 0], 200 + np.arange(second, 16))
    assert edge == 15


@pytest.mark.parametrize("columns", [17, 40])
def test_the_columns_about_a_joint_are_made_anew(columns: int) -> None:
    """With both sides known, as soon as both are there."""
    line = windows.line(columns, 16)
    joined = windows.joined(line)
    assert joined[0] == line[0]
    assert joined[1::2] == line[1:]
    shape = (1, windows.num_columns(joined), 1, 1)
    assert shape[1] == windows.num_columns(line)
    calls: list = []
    found = windows.fill(
        joined, np.zeros(shape, np.float32), np.zeros(shape[:3], bool), numbered(calls)
    )
    assert [number for number, _ in calls] == list(range(len(joined)))
    for joint, (number, known) in zip(windows.joints(line), calls[2::2], strict=True):
        np.testing.assert_array_equal(np.flatnonzero(~known[0, :, 0]), [6, 7, 8, 9])
        expected = 100 * (number + 1) + np.arange(6, 10)
        np.testing.assert_array_equal(found[0, joint - 2 : joint + 2, 0, 0], expected)
    # A longer clip begins with the windows of a shorter one.
    longer = windows.joined(windows.line(columns + 20, 16))
    assert longer[: len(joined)] == joined


def test_joints_of_windows_that_cannot_know_both_sides_stay() -> None:
    line = windows.line(10, 3)
    assert windows.joined(line) == line


def test_a_cut_ends_in_a_fade() -> None:
    audio = np.ones(1000, np.float32)
    assert cut(audio, 1000, SAMPLE_RATE) is audio
    found = cut(audio, 900, SAMPLE_RATE)
    fade = round(FADE_SECONDS * SAMPLE_RATE)
    assert found.shape == (900,)
    np.testing.assert_array_equal(found[:-fade], 1)
    assert (np.diff(found[-fade:]) < 0).all()
    assert found[-1] < 1e-3
    assert audio.min() == 1


@pytest.mark.parametrize("seconds", [0.01, 0.3, 0.64])
def test_a_shorter_clip_is_the_beginning(student: Pipeline, seconds: float) -> None:
    plain = next(student.generate(PROMPTS, seed=3))
    found = next(student.generate(PROMPTS, seed=3, seconds=seconds))
    number = round(seconds * SAMPLE_RATE)
    np.testing.assert_array_equal(found.tokens, plain.tokens)
    np.testing.assert_array_equal(found.audio, cut(plain.audio, number, SAMPLE_RATE))


def test_every_clip_has_its_own_length_whatever_its_neighbours(student: Pipeline) -> None:
    """And begins as it does alone."""
    lengths = [2.0, None, 1.0]
    clips = list(student.generate(PROMPTS, seed=3, seconds=lengths, batch_size=3))
    for clip, seconds in zip(clips, lengths, strict=True):
        expected = CLIP_SAMPLES if seconds is None else seconds * SAMPLE_RATE
        assert clip.audio.shape == (expected,)
        assert clip.tokens.shape[0] >= clip.audio.size / COLUMN * BANDS
        alone = next(student.generate([clip.prompt], seed=clip.seed, seconds=seconds, batch_size=1))
        np.testing.assert_allclose(as_int16(clip), as_int16(alone), atol=1)
        plain = next(student.generate([clip.prompt], seed=clip.seed, batch_size=1))
        # The next window makes the last column anew, and with it those about the joint.
        begin = NUM_TOKENS if len(alone.tokens) == NUM_TOKENS else (COLUMNS - 2) * BANDS
        np.testing.assert_array_equal(alone.tokens[:begin], plain.tokens[:begin])


def test_a_mesh_of_any_layout_makes_the_same_clip(
    student: Pipeline, runs: dict[str, pathlib.Path]
) -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    many = Pipeline.open(str(runs["student"]), mesh=mesh)
    found, expected = (
        next(pipeline.generate(["clicks"], seed=3, seconds=0.9, negative="a tone"))
        for pipeline in (many, student)
    )
    np.testing.assert_allclose(as_int16(found), as_int16(expected), atol=1)


def test_windows_have_randomness_of_their_own(student: Pipeline) -> None:
    (clip,) = student.generate(["a quiet noise"], seconds=3.0)
    columns = clip.tokens.reshape(-1, BANDS, TOKEN_DIM)
    assert len({column.tobytes() for column in columns}) == len(columns)


def test_a_sound_is_continued_beyond_a_clip(student: Pipeline, tmp_path: pathlib.Path) -> None:
    """The kept tokens come back bit by bit, those at the far end included."""
    sound = tmp_path / "sound.wav"
    time = np.arange(10 * COLUMN) / SAMPLE_RATE
    soundfile.write(sound, 0.3 * np.sin(2 * np.pi * 440 * time), SAMPLE_RATE, subtype="FLOAT")
    settings = {"audio": sound, "keep": "0-0.8,1.28-1.6", "seconds": 2.4, "num_iterations": 2}
    clips = list(student.generate(PROMPTS[:2], **settings))
    audio = soundfile.read(sound, dtype="float32")[0]
    padded = np.pad(audio, (0, 15 * COLUMN - audio.size))[None]
    tokens = np.asarray(student.trained.codec.encode(padded))[0]
    kept = np.repeat([True] * 5 + [False] * 3 + [True] * 2, BANDS)
    for clip in clips:
        assert clip.audio.shape == (2.4 * SAMPLE_RATE,)
        np.testing.assert_array_equal(clip.known[: len(kept)], kept)
        assert not clip.known[len(kept) :].any()
        np.testing.assert_array_equal(clip.tokens[clip.known], tokens[: len(kept)][kept])
    assert not np.array_equal(clips[0].tokens[~clips[0].known], clips[1].tokens[~clips[1].known])


def test_known_tokens_may_be_more_than_a_clips(student: Pipeline) -> None:
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(2, 2 * NUM_TOKENS, TOKEN_DIM)).astype(np.float32)
    mask = np.arange(2 * NUM_TOKENS)[None] < np.asarray([[9], [12]])  # not alike in number
    clips = list(
        student.generate(PROMPTS[:2], known=Known(tokens, mask), seconds=1.0, num_iterations=2)
    )
    for clip, row, places in zip(clips, tokens, mask, strict=True):
        np.testing.assert_array_equal(clip.tokens[: len(row)][places], row[places])
    with pytest.raises(
        ValueError, match=r"known has 16 tokens; allowed: multiples of 2, .* up to 8"
    ):
        student.generate(PROMPTS[:1], known=Known(tokens[:1], mask[:1]))


@pytest.mark.parametrize(
    ("seconds", "message"),
    [
        (0, "seconds is 0; allowed: above 0, up to 86400, a day"),
        (-1.0, "seconds is -1.0; allowed"),
        (float("nan"), "seconds is nan; allowed"),
        (float("inf"), "seconds is inf; allowed"),
        (86_401.0, "seconds is 86401.0; allowed"),
        ([1.0, 0.0, None], r"seconds\[1\] is 0.0; allowed"),
        ([1.0], "seconds ends after 1, prompts goes on"),
    ],
)
def test_lengths_that_no_clip_has_are_named_at_once(student, seconds, message) -> None:
    with pytest.raises(ValueError, match=message):
        student.generate(PROMPTS, seconds=seconds)
