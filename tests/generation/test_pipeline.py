"""Pipeline: the same seed is the same sound whatever the batch; no setting is lost."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import re
import textwrap
from collections.abc import Iterator

import jax
import numpy as np
import pytest
import soundfile

import fasttta_jax
from fasttta_jax.config import DecodeConfig, MeshConfig
from fasttta_jax.decoding.loop import Known
from fasttta_jax.generation.pipeline import Clip, GenerateConfig, Pipeline
from fasttta_jax.generation.time_budget import MeasuredSetting
from fasttta_jax.masking import order_stages
from fasttta_jax.parallel.mesh import make_mesh
from fasttta_jax.workdir.checkpoint import CheckpointError
from fasttta_jax.workdir.folder import WorkdirError
from tests.decoding.test_models import decode_rounding
from tests.support.helpers import CLIP_SAMPLES, NUM_TOKENS, SAMPLE_RATE, TOKEN_DIM
from tests.support.tolerance import assert_close

REPOSITORY = pathlib.Path(__file__).parents[2]
PROMPTS = ["a loud tone", "a quiet noise", "clicks that are loud"]


def open_on_one_device(workdir: pathlib.Path, which: str | int = "last") -> Pipeline:
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    return Pipeline.open(str(workdir), which, mesh=mesh)


def as_int16(clip: Clip) -> np.ndarray:
    """Samples as they would be written."""
    return np.round(clip.audio * 32768).astype(int)


def test_the_same_seed_is_the_same_sound_whatever_the_batch(student: Pipeline) -> None:
    one = list(student.generate(PROMPTS, seed=5, batch_size=1))
    again = student.generate(PROMPTS, seeds=[5, 6, 7], batch_size=1)
    four = student.generate(PROMPTS, seed=5, batch_size=4)
    endless = student.generate(iter([*PROMPTS, "x", "y"]), seed=5, batch_size=2)
    assert [clip.prompt for clip in one] == PROMPTS
    assert [clip.seed for clip in one] == [5, 6, 7]
    for clip, same, other, third in zip(one, again, four, endless, strict=False):
        assert clip.audio.shape == (CLIP_SAMPLES,)
        assert clip.seconds == CLIP_SAMPLES / SAMPLE_RATE
        np.testing.assert_array_equal(clip.audio, same.audio)
        # XLA may sum in another order for another batch shape: one step of 16 bits at the most.
        np.testing.assert_allclose(as_int16(clip), as_int16(other), atol=1)
        np.testing.assert_allclose(as_int16(clip), as_int16(third), atol=1)
        assert clip.states is None
        assert not clip.known.any()


def test_every_setting_counts(runs: dict[str, pathlib.Path]) -> None:
    teacher = open_on_one_device(runs["teacher"])
    plain, *others = [
        next(pipeline.generate(PROMPTS[:1], **settings)).audio
        for pipeline, settings in [
            (teacher, {}),
            (teacher, {"num_iterations": 8}),
            (teacher, {"guidance_scale": 1.0}),
            (teacher, {"temperature": 0.3}),
            (teacher, {"seed": 9}),
            (open_on_one_device(runs["teacher"], 100), {}),
        ]
    ]
    for other in others:
        assert not np.array_equal(other, plain)


def test_guidance_and_negative_prompt_are_each_clips_own(student: Pipeline) -> None:
    """And one program serves them all."""

    def tokens(prompts: list[str], **settings) -> np.ndarray:
        return np.stack([clip.tokens for clip in student.generate(prompts, seed=3, **settings)])

    program = student.sampler(GenerateConfig(batch_size=3)).program
    plain = tokens(PROMPTS)
    size = program.jitted._cache_size()
    np.testing.assert_array_equal(tokens(PROMPTS, negative=""), plain)
    scale = student.trained.config.decode.guidance_scale
    np.testing.assert_array_equal(tokens(PROMPTS, guidance_scale=[scale, None, scale]), plain)
    negative, scales = ["", "clicks", "a tone"], [None, 3.5, None]
    mixed = tokens(PROMPTS, negative=iter(negative), guidance_scale=scales)
    np.testing.assert_array_equal(mixed[0], plain[0])
    for other in (tokens(PROMPTS, negative=negative), tokens(PROMPTS, guidance_scale=3.5)):
        assert not np.array_equal(other[1], mixed[1])
    np.testing.assert_array_equal(tokens(PROMPTS, negative="a tone")[2], mixed[2])
    assert not np.array_equal(mixed[2], plain[2])
    assert program.jitted._cache_size() == size
    unguided = student.sampler(GenerateConfig(guidance_scale=1.0)).program
    assert unguided is not program
    alone = tokens(PROMPTS[:1], guidance_scale=1.0)[0]
    assert unguided.jitted._cache_size() == 1  # took the program that does not guide
    beside = tokens(PROMPTS, guidance_scale=[1.0, 2.0, 2.0])[0]
    assert_close(beside, alone, decode_rounding("energy"))


def test_prompts_are_read_as_they_are_needed(student: Pipeline) -> None:
    read = []

    def prompts() -> Iterator[str]:
        for number in range(100):
            read.append(number)
            yield f"tone {number}"

    clips = student.generate(prompts(), batch_size=2)
    assert not read
    assert next(clips).prompt == "tone 0"
    assert len(read) == 2
    assert list(student.generate([])) == []


def test_seeds_are_read_as_they_are_needed(student: Pipeline) -> None:
    endless = zip(itertools.repeat("rain"), itertools.count(3), strict=True)
    prompts, seeds = itertools.tee(endless)
    clips = student.generate(
        (prompt for prompt, _ in prompts), seeds=(seed for _, seed in seeds), batch_size=2
    )
    assert [clip.seed for clip in itertools.islice(clips, 3)] == [3, 4, 5]
    assert next(endless)[1] == 7  # two batches were read


@pytest.mark.parametrize(
    ("num_prompts", "num_seeds", "message"),
    [
        (3, 2, "seeds ends after 2, prompts goes on; allowed: one for each prompt"),
        (2, 3, "prompts ends after 2, seeds goes on; allowed: one for each prompt"),
        (1, 0, "seeds ends after 0, prompts goes on"),
    ],
)
@pytest.mark.parametrize("lazy_prompts", [True, False])
def test_prompts_and_seeds_end_together(
    student: Pipeline, num_prompts: int, num_seeds: int, message: str, lazy_prompts: bool
) -> None:
    prompts = PROMPTS[:num_prompts]
    clips = student.generate(
        iter(prompts) if lazy_prompts else prompts, seeds=iter(range(num_seeds)), batch_size=1
    )
    made = []
    with pytest.raises(ValueError, match=message):
        made.extend(clips)
    assert len(made) == min(num_prompts, num_seeds)


def test_other_parameters_need_no_other_program(student: Pipeline) -> None:
    """As for the samples of a training run, whose parameters change each time."""
    config = GenerateConfig(batch_size=2)
    program = student.sampler(config).program
    first = list(student.generate(PROMPTS[:2], batch_size=2))
    size = program.jitted._cache_size()
    params = jax.tree.map(lambda leaf: leaf * 0.9, student.trained.params)
    other = Pipeline(dataclasses.replace(student.trained, params=params, step=7), student.mesh)
    second = list(other.generate(PROMPTS[:2], batch_size=2))
    assert other.sampler(config).program is program
    assert program.jitted._cache_size() == size
    assert not np.array_equal(first[0].tokens, second[0].tokens)


def test_a_run_that_is_opened_again_needs_no_other_program(
    student: Pipeline, runs: dict[str, pathlib.Path]
) -> None:
    config = GenerateConfig(batch_size=2)
    again = open_on_one_device(runs["student"]).sampler(config)
    assert again == student.sampler(config)
    assert again.program is student.sampler(config).program


def test_known_tokens_of_one_clip_are_those_of_all(student: Pipeline) -> None:
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(1, NUM_TOKENS, TOKEN_DIM)).astype(np.float32)
    known = Known(tokens, np.arange(NUM_TOKENS)[None] < 5)
    repeated = Known(*(np.repeat(rows, 3, axis=0) for rows in known))
    settings = {"batch_size": 2, "with_states": True}
    clips = list(student.generate(PROMPTS, known=known, **settings))
    for clip, other in zip(
        clips, student.generate(PROMPTS, known=repeated, **settings), strict=True
    ):
        np.testing.assert_array_equal(clip.tokens[:5], tokens[0, :5])
        np.testing.assert_array_equal(clip.tokens, other.tokens)
        np.testing.assert_array_equal(clip.known, known.mask[0])
        assert clip.states is not None
        np.testing.assert_array_equal(clip.states.tokens[-1], clip.tokens)
        assert clip.states.masked.shape == (3, NUM_TOKENS)


def test_choices_of_the_sampler_are_followed(student: Pipeline) -> None:
    """Such as words and numbers of a command line, over the codec's own grid."""
    width = student.trained.codec.tokens_per_column
    stages = order_stages(DecodeConfig(order="bisection"), NUM_TOKENS, width)
    assert stages is not None
    settings = {"counts": "1,2,5", "order": "bisection", "guided": "0,0.7", "with_states": True}
    for clip in student.generate(PROMPTS[:2], seed=5, batch_size=2, **settings):
        assert clip.states is not None
        assert clip.states.masked.sum(axis=1).tolist() == [7, 5, 0]
        for masked in clip.states.masked[:-1]:
            assert stages[~masked].max() <= stages[masked].min()


def test_odd_prompts_work(student: Pipeline) -> None:
    prompts = ["x" * 10_000, "مطر يهطل", "🐶🔊", ""]
    clips = list(student.generate(prompts, batch_size=4))
    assert [clip.prompt for clip in clips] == prompts
    assert all(np.isfinite(clip.audio).all() for clip in clips)


@pytest.mark.parametrize(
    ("prompts", "settings", "message"),
    [
        ("a dog", {}, "prompts is the string 'a dog'; allowed: a list of strings"),
        (["x"], {"num_iterations": 0}, "num_iterations is 0; allowed: 1 to the number of tokens"),
        (["x"], {"num_iterations": 9}, "num_iterations is 9; allowed: 1 to .* tokens, 8"),
        (["x"], {"guidance_scale": -0.5}, "guidance_scale is -0.5; allowed: 0 or more"),
        (["x"], {"temperature": -1.0}, "temperature is -1.0; allowed: 0 or more"),
        (["x"], {"counts": "1,2"}, r"counts is \(1, 2\); allowed: a sum of 8, .*; found 3"),
        (
            ["x"],
            {"counts": (1, 7), "num_iterations": 3},
            r"counts is \(1, 7\); allowed: 3 whole num",
        ),
        (["x"], {"counts": "quick"}, "counts is 'quick'; allowed: one of 'cosine', 'exponential'"),
        (["x"], {"order": "2,1,0"}, r"order is \(2, 1, 0\); .* of 8 positions, .*; found 3"),
        (["x"], {"order": (0, 0)}, r"order is \(0, 0\); allowed: a permutation: each position"),
        (["x"], {"guided": "0.5,0.2"}, r"guided is \(0\.5, 0\.2\); allowed: \(lo, hi\) with 0"),
        (["x"], {"guided": (0.0, 0.1)}, r"guided is \(0\.0, 0\.1\); .* one of the 3 iterations"),
        (["x"], {"batch_size": 0}, "batch_size is 0; allowed: 1 or more"),
        (["x"], {"seed": 2**32}, "seed is 4294967296; allowed: 0 to 4294967295"),
        (["x", "y"], {"seed": 2**32 - 1}, r"seed \+ 1 is 4294967296; allowed: 0 to 4294967295"),
        (["x"], {"seeds": [-1]}, r"seeds\[0\] is -1; allowed: 0 to 4294967295"),
        (["x", "y"], {"seeds": [1]}, "seeds ends after 1, prompts goes on; allowed: one for"),
        (["x", "y"], {"negative": ["rain"]}, "negative ends after 1, prompts goes on"),
        (["x"], {"guidance_scale": [-1.0]}, r"guidance_scale\[0\] is -1.0; allowed: 0 or more"),
        (["x"], {"guidance_scale": np.nan}, "guidance_scale is nan; allowed: 0 or more"),
        (
            ["x"],
            {"guidance_scale": [1.0], "negative": "rain"},
            r"'rain' is for guidance to lead away from, and guidance_scale\[0\] is 1, which is no",
        ),
        (
            ["x", "y"],
            {"known": Known(np.zeros((3, 8, 8), np.float32), np.zeros((3, 8), bool))},
            "known has 3 clips; allowed: 1 or 2, the prompts",
        ),
    ],
)
def test_bad_input_is_named_at_once(
    student: Pipeline, prompts: list[str], settings: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        student.generate(prompts, **settings)


def test_clips_that_are_not_finite_are_named(student: Pipeline) -> None:
    params = jax.tree.map(lambda leaf: leaf * np.nan, student.trained.params)
    broken = Pipeline(dataclasses.replace(student.trained, params=params), student.mesh)
    with pytest.raises(FloatingPointError, match="the sound for 'rain', seed 4, is not finite"):
        list(broken.generate(["rain"], seed=4))
    (clip,) = broken.generate(["rain"], seed=4, with_not_finite=True)
    assert (clip.prompt, clip.seed, clip.is_finite) == ("rain", 4, False)


def test_a_clip_is_saved_by_its_ending(student: Pipeline, tmp_path: pathlib.Path) -> None:
    clip = next(student.generate(["a loud tone"]))
    clip = dataclasses.replace(clip, audio=4.0 * clip.audio / np.abs(clip.audio).max())
    for ending in ("wav", "flac", "ogg"):
        clip.save(tmp_path / f"clip.{ending}")
        audio, rate = soundfile.read(tmp_path / f"clip.{ending}")
        assert (audio.shape, rate) == ((CLIP_SAMPLES,), SAMPLE_RATE)
        assert np.abs(audio).max() <= 1.0
    with pytest.raises(ValueError, match=r"clip.aiff is 'aiff'; allowed: one of 'wav', 'flac'"):
        clip.save(tmp_path / "clip.aiff")


# --------------------------------------------------------------------------------- the front door


def test_load_says_what_is_missing(runs: dict[str, pathlib.Path], tmp_path: pathlib.Path) -> None:
    with pytest.raises(WorkdirError, match=r"holds no run: config.json is missing"):
        fasttta_jax.load(tmp_path)
    with pytest.raises(WorkdirError, match="checkpoint is 'newest'; allowed: last, best or one of"):
        fasttta_jax.load(runs["student"], which="newest")
    with pytest.raises(CheckpointError, match=r"has no step 4; allowed: \[37, 40\]"):
        fasttta_jax.load(str(runs["student"]), which=4)


def examples() -> dict[str, str]:
    """Python that uses the front door, in the package's docstring and in the docs."""
    docstring = (fasttta_jax.__doc__ or "").split("\n\n", 1)[1].rsplit("\n\n", 1)[0]
    found = {}
    for page in ("README.md", "docs/generating.md"):
        blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / page).read_text(), re.DOTALL)
        calls = [code for code in blocks if "fasttta_jax.load(" in code]
        assert calls, page
        found |= {f"{page} {index}": code for index, code in enumerate(calls)}
    return {name: textwrap.dedent(code) for name, code in {"docstring": docstring, **found}.items()}


@pytest.mark.parametrize("name", examples())
def test_the_examples_work(
    name: str,
    runs: dict[str, pathlib.Path],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    student = f'.load("{runs["student"]}"'
    code, changed = re.subn(r"\.load\((?:\"[^\"]*\")?", student, examples()[name])
    assert changed
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if "max_seconds" in code:
        measured = MeasuredSetting(DecodeConfig(num_iterations=2), None, {8: 0.1}, None)
        fasttta_jax.load(runs["student"]).measured_times.write([measured])
    exec(compile(code, name, "exec"), {})
    assert bool(list(tmp_path.glob("*.wav"))) == (".save(" in code)
