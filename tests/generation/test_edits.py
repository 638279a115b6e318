"""Kept columns are those wholly inside the ranges; the sampler gives their tokens back exactly."""

from __future__ import annotations

import dataclasses
import io
import pathlib

import jax
import numpy as np
import PIL.Image
import pytest
import soundfile

from fasttta_jax.audio.files import AudioError
from fasttta_jax.codecs import Codec, load_codec
from fasttta_jax.config import DecodeConfig
from fasttta_jax.decoding.loop import Known
from fasttta_jax.generation.decoding_figure import MAX_FRAMES, decoding_png
from fasttta_jax.generation.edits import (
    Edits,
    RangeError,
    kept_columns,
    known_tokens,
    parse_ranges,
    read_known,
)
from fasttta_jax.generation.sampler import Sampler, States
from fasttta_jax.masking import decode_counts
from fasttta_jax.parallel.local import local_mesh
from fasttta_jax.report.spectrograms import frames_png
from fasttta_jax.systems import build_model
from tests.decoding.test_models import decode_rounding
from tests.support import helpers
from tests.support.tolerance import assert_close

# Clips of 4 columns of 0.16 s, each of two tokens.
COLUMN = 2560
SETTINGS = DecodeConfig(num_iterations=2, guidance_scale=2.0, max_segments=1)


@pytest.fixture(scope="module")
def codec(encoded_dataset: pathlib.Path) -> Codec:
    return load_codec(encoded_dataset / "codec")


def columns(text: str, num_samples: int = 4 * COLUMN) -> list[bool]:
    found = kept_columns(
        parse_ranges(text),
        num_samples=num_samples,
        num_columns=4,
        samples_per_column=COLUMN,
        sample_rate=16_000,
    )
    return found.tolist()


@pytest.mark.parametrize(
    ("text", "ranges"),
    [
        ("0-1.28", ((0.0, 1.28),)),
        ("0-1,2-2.56", ((0.0, 1.0), (2.0, 2.56))),
        (" .5 - 1. , 0-0.75", ((0.5, 1.0), (0.0, 0.75))),
    ],
)
def test_ranges_are_read(text, ranges):
    assert parse_ranges(text) == ranges


@pytest.mark.parametrize(
    "text", ["", "1", "1-", "-1", "-1-2", "1-2-3", "0-1,", "a-b", "0-1s", "nan-1"]
)
def test_malformed_ranges_are_named(text):
    with pytest.raises(RangeError, match="is not a range to keep; write START-END in seconds"):
        parse_ranges(text)


@pytest.mark.parametrize("edits", [{"vary": ""}, {"audio": "", "keep": "0-1"}])
def test_a_sound_without_a_name_is_refused(edits):
    name = next(iter(edits))
    with pytest.raises(ValueError, match=f"{name} is ''; allowed: a sound file"):
        Edits(**edits)


def test_a_long_text_is_shown_by_its_ends():
    with pytest.raises(RangeError, match="is not a range to keep") as caught:
        parse_ranges("9" * 5000)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("text", ["1-1", "0-1,2-1.5"])
def test_ranges_that_end_before_they_start_are_refused(text):
    with pytest.raises(RangeError, match="allowed: after its start"):
        parse_ranges(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0-0.16", [True, False, False, False]),
        ("0-0.1599,0.3-0.64", [False, False, True, True]),
        ("0.01-0.48", [False, True, True, False]),
        ("0-0.24,0.24-0.32", [True, True, False, False]),  # the union holds the second column
        ("0.48-0.64,0-0.1,0.05-0.16", [True, False, False, True]),
    ],
)
def test_columns_wholly_inside_are_kept(text, expected):
    assert columns(text) == expected


@pytest.mark.parametrize(
    ("text", "num_samples", "message"),
    [
        ("0-0.65", 8 * COLUMN, r"0-0.65 ends beyond 0.64 s; the sound has 1.28 s .* clip 0.64 s"),
        ("0-0.4", 2 * COLUMN, r"0-0.4 ends beyond 0.32 s; the sound has 0.32 s"),
        ("0.01-0.3", 4 * COLUMN, r"nothing is kept: .* columns of 0.16 s"),
        ("0-0.64", 4 * COLUMN, r"nothing is left to generate: all 4 token columns"),
    ],
)
def test_ranges_that_cannot_be_kept_are_named(text, num_samples, message):
    with pytest.raises(RangeError, match=message):
        columns(text, num_samples)


@pytest.mark.parametrize("num_samples", [3 * COLUMN + 100, 4 * COLUMN, 9 * COLUMN])
def test_known_tokens_are_the_codecs(codec, num_samples):
    audio = np.resize(helpers.synthetic_audio("tone", 0.5, np.random.default_rng(0)), num_samples)
    known = known_tokens(audio, parse_ranges("0.16-0.48"), codec, helpers.NUM_TOKENS)
    assert known.mask.tolist() == [[False, False, True, True, True, True, False, False]]
    whole = np.zeros((1, 4 * COLUMN), np.float32)
    whole[0, :num_samples] = audio[: 4 * COLUMN]
    expected = np.asarray(codec.encode(whole))
    np.testing.assert_array_equal(known.tokens[known.mask], expected[known.mask])
    np.testing.assert_array_equal(known.tokens[~known.mask], 0.0)


def test_files_are_read_at_the_codecs_rate(codec, tmp_path):
    audio = helpers.synthetic_audio("tone", 0.5, np.random.default_rng(0))
    soundfile.write(tmp_path / "stereo.wav", np.stack([audio, audio], axis=1), 16_000, "FLOAT")
    ranges = parse_ranges("0-0.32")
    found = read_known(tmp_path / "stereo.wav", ranges, codec, helpers.NUM_TOKENS)
    expected = known_tokens(audio, ranges, codec, helpers.NUM_TOKENS)
    np.testing.assert_allclose(found.tokens, expected.tokens, rtol=0, atol=1e-6)
    with pytest.raises(AudioError, match=r"nowhere.wav: missing"):
        read_known(tmp_path / "nowhere.wav", ranges, codec, helpers.NUM_TOKENS)


# ------------------------------------------------------------------------------------- sampling


@pytest.fixture(scope="module")
def sampler() -> tuple[Sampler, dict]:
    """A student's sampler for one clip on each device with 4 of 8 tokens given; parameters."""
    run = helpers.tiny_teacher_config("unused", objective="energy")
    model = build_model(run, helpers.tiny_text_encoder())
    params = helpers.random_params(jax.eval_shape(model.init, jax.random.key(0)), scale=0.2)
    mesh = local_mesh()
    return Sampler(model, SETTINGS, mesh, mesh.size, num_known=4), params


def given(num_clips: int, num_known: int = 4, seed: int = 0) -> Known:
    rng = np.random.default_rng(seed)
    mask = np.stack([rng.permutation(helpers.NUM_TOKENS) < num_known for _ in range(num_clips)])
    tokens = rng.normal(size=(*mask.shape, helpers.TOKEN_DIM)).astype(np.float32)
    return Known(tokens, mask)


PROMPTS = ["a loud tone", "", "clicks"]


def test_one_program_gives_known_tokens_back(sampler):
    sampler, params = sampler
    sizes = set()
    for seed in range(3):
        prompts = PROMPTS[: seed + 1]
        known = given(len(prompts), seed=seed)
        found, _ = sampler(params, prompts, [seed] * len(prompts), known)
        assert found.shape == known.tokens.shape
        np.testing.assert_array_equal(found[known.mask], known.tokens[known.mask])
        sizes.add(sampler.program.jitted._cache_size())
    assert len(sizes) == 1


def test_states_are_those_of_the_same_decoding(sampler):
    sampler, params = sampler
    known = given(3)
    tracing = dataclasses.replace(sampler, with_states=True)
    found, states = tracing(params, PROMPTS, [1, 2, 3], known)
    assert states is not None
    np.testing.assert_array_equal(states.tokens[:, -1], found)
    left = np.cumsum(decode_counts(4, 2)[::-1])[::-1] - decode_counts(4, 2)
    np.testing.assert_array_equal(states.masked.sum(axis=2), np.tile(left, (3, 1)))
    without, nothing = sampler(params, PROMPTS, [1, 2, 3], known)
    assert nothing is None
    assert_close(found, without, decode_rounding("energy", SETTINGS))


def test_a_clip_depends_on_its_own_prompt_seed_and_known_tokens(sampler):
    sampler, params = sampler
    known = given(3)
    found, _ = sampler(params, PROMPTS, [1, 2, 3], known)
    backwards = Known(known.tokens[::-1], known.mask[::-1])
    other, _ = sampler(params, PROMPTS[::-1], [3, 2, 1], backwards)
    assert_close(other[::-1], found, decode_rounding("energy", SETTINGS))


def test_inputs_that_do_not_fit_are_named(sampler):
    sampler, params = sampler
    cases = [
        ((["x"], [-1], given(1)), r"seeds\[0\] is -1; allowed: 0 to 4294967295"),
        ((["x"], [2**32], given(1)), r"seeds\[0\] is 4294967296; allowed"),
        ((["x"], [0, 1], given(1)), "1 prompts and 2 seeds; allowed"),
        ((["x"] * 9, [0] * 9, given(9)), "9 prompts and 9 seeds; allowed: 1 to 8"),
        ((["x"], [0]), "known is missing; this sampler takes 4 a clip"),
        ((["x"], [0], given(2)), r"tokens \(2, 8, 8\) .* expected \(1, 8, 8\)"),
        ((["x"], [0], given(1, num_known=3)), r"gives \[3\] tokens a clip; .* takes 4 in each"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            sampler(params, *arguments)


def test_more_iterations_than_tokens_left_are_refused(sampler):
    with pytest.raises(ValueError, match="num_iterations is 2; allowed: 1 to 1, the tokens left"):
        dataclasses.replace(sampler[0], num_known=7)


def test_batches_that_do_not_split_are_refused(sampler):
    with pytest.raises(ValueError, match="batch_size is 9; allowed: multiples of 8, the parts"):
        dataclasses.replace(sampler[0], batch_size=9)


def test_equal_samplers_share_a_program_of_any_batch_size(sampler):
    twice = dataclasses.replace(sampler[0], batch_size=16)
    assert twice.program is sampler[0].program
    assert dataclasses.replace(twice, with_states=True).program is not twice.program


def test_decoding_png_shows_some_iterations(codec):
    num_iterations = 8
    masked = np.arange(8)[None] > np.arange(num_iterations)[:, None]
    tokens = np.random.default_rng(0).normal(size=(*masked.shape, helpers.TOKEN_DIM))
    tokens = np.where(masked[..., None], 0.0, tokens).astype(np.float32)
    states = States(tokens, masked)
    picture = decoding_png(states, np.arange(8) == 0, codec, "costs $5, $6 _and_ more")
    assert picture == decoding_png(states, np.arange(8) == 0, codec, "costs $5, $6 _and_ more")
    width, height = PIL.Image.open(io.BytesIO(picture)).size
    assert width > MAX_FRAMES * height / 2
    with pytest.raises(ValueError, match="frames is empty"):
        frames_png([], 16_000)
