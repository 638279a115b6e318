"""generate.py: its flags, its folder of sounds, and commands that prove the wiring."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
import soundfile
from absl import flags

import fasttta_jax
import generate
from fasttta_jax.audio.loudness import Level
from fasttta_jax.generation.edits import Edits
from fasttta_jax.generation.names import NameTemplate
from fasttta_jax.generation.outputs import OutputConfig
from fasttta_jax.generation.pipeline import GenerateConfig
from fasttta_jax.generation.prompts import Prompts
from fasttta_jax.tools.edit_flags import EditFlags
from fasttta_jax.tools.job_flags import Wishes
from tests.support import commands
from tests.support.helpers import CLIP_SAMPLES, SAMPLE_RATE, synthetic_audio

PROMPTS = ["a loud tone", "a quiet noise", "clicks that are loud"]


def parse(*arguments: str) -> generate.Request:
    return generate.parse(["generate.py", "--workdir=run", "--out=sounds", *arguments])


def test_flags_become_a_request(tmp_path: pathlib.Path) -> None:
    table = tmp_path / "prompts.txt"
    table.write_text("rain\n")
    request = parse(
        "--prompt=a dog",
        f"--prompts={table}",
        "--clips_per_prompt=2",
        "--candidates=3",
        "--rank=tagger",
        "--tagger=report",
        "--checkpoint=30",
        "--seed=5",
        "--batch_size=4",
        "--guidance_scale=2",
        "--counts=1,2,5",
        "--order=bisection",
        "--guided=0,0.5",
        "--rms_dbfs=-26",
        "--format=flac",
        "--name={slug}_{index}",
        "--audio=dog.wav",
        "--keep=0-1.28",
        "--seconds=20",
        "--negative=wind",
        "--timeline=0-4 rain",
        "--pictures",
        "--overwrite",
    )
    output = OutputConfig(
        "sounds", "files", "flac", Level(rms_dbfs=-26.0), NameTemplate("{slug}_{index}"), True
    )
    assert request == generate.Request(
        workdir="run",
        which=30,
        wishes=Wishes(Prompts(("a dog",), str(table), 2, 3, 5), output, overwrite=True),
        edits=EditFlags("wind", 20.0, Edits("dog.wav", "0-1.28", timeline="0-4 rain")),
        config=GenerateConfig(
            seed=5,
            batch_size=4,
            counts="1,2,5",
            order="bisection",
            guided="0,0.5",
            guidance_scale=2.0,
            with_states=True,
        ),
        rank=generate.Rank("tagger", None, "report"),
        page=False,
    )
    assert parse("--prompt=x", "--candidates=3", "--rank=tagger", "--tagger=t").batch_size == 3
    plain = parse("--prompt=x")
    assert (plain.max_seconds, plain.batch_size) == (None, 1)
    assert parse("--prompt=x", "--max_seconds=0.5").max_seconds == 0.5
    assert (plain.which, plain.config) == ("last", GenerateConfig())
    assert plain.edits == EditFlags("", None, Edits())
    assert plain.edits.given() == {}
    assert plain.wishes == Wishes(Prompts(("x",)), OutputConfig("sounds"), overwrite=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --prompt or --prompts"),
        (["--prompt=x", "--num_iterations=0"], "num_iterations"),
        (["--prompt=x", "--temperature=-1"], "temperature is -1.0; allowed: 0 or more"),
        (["--prompt=x", "--batch_size=0"], "batch_size"),
        (["--prompt=x", "--format=aiff"], "<wav|flac|ogg|mp3>"),
        (["--prompts=nowhere.txt"], "nowhere.txt"),
        (["--prompt=x", "--max_seconds=1", "--num_iterations=4"], "max_seconds and num_iterations"),
        (["--prompt=x", "--max_seconds=0"], "max_seconds is 0.0; allowed: above 0"),
        (["--prompt=x", "--max_seconds=1", "--loop"], "max_seconds and loop do not go together"),
        (["--prompt=x", "--no_such_flag=1"], "no_such_flag"),
        (["--prompt=x", "--seed=4294967296"], "seed is 4294967296; allowed: 0 to 4294967295"),
        (["--prompt=x", "--rms_dbfs=1"], "rms_dbfs is 1.0; allowed: at most 0"),
        (
            ["--prompt=x", "--lufs=-23", "--rms_dbfs=-20"],
            "lufs and rms_dbfs are given; allowed: one",
        ),
        (["--prompt=x", "--candidates=2"], "nothing ranks them; allowed: --rank=clap or"),
        (["--prompt=x", "--rank=clap"], "--rank=clap needs --clap, a folder of converted weights"),
        (["--prompt=x", "--tagger=x"], "allowed: --tagger with --rank=tagger"),
        (
            ["--prompt=x", "--candidates=2", "--rank=tagger", "--tagger=x", "--name={index}{seed}"],
            "allowed: a name without {seed}",
        ),
        (["--prompt=x", "--name=a/{slug}"], "with '/'; allowed: a name without folders"),
        (["--prompt=x", "--name={artist}"], "{artist}; allowed: {index}, {id}"),
        (["--prompt=x", "--name={index:q}"], "Unknown format code 'q'"),
        (["--prompt=x", "--name={index"], "--name is '{index'"),
        (["--prompt=x", "--store=tar", "--pictures"], "pictures go with --store=files"),
        (["--prompt=x", "--out=gs://bucket/x"], "allowed: a folder of this machine"),
        (["--prompt=x", f"--out={__file__}/x"], "is a file; allowed: a folder"),
        (["--prompt=x", "--keep=0-1"], "audio is missing; audio and keep go together"),
        (["--prompt=x", "--audio=a.wav"], "keep is missing; audio and keep go together"),
        (["--prompt=x", "--audio=a.wav", "--keep=1-0"], "allowed: after its start"),
        (["--prompt=x", "--seconds=0"], "seconds is 0.0; allowed: above 0, up to 86400, a day"),
        (["--prompt=x", "--seconds=-1"], "seconds is -1.0; allowed"),
        (["--prompt=x", "--seconds=nan"], "seconds is nan; allowed"),
        (["--prompt=x", "--seconds=86401"], "seconds is 86401.0; allowed"),
        (["--prompt=x", "--vary=a.wav", "--seconds=3"], "vary and seconds do not go together"),
        (["--prompt=x", "--vary=a.wav", "--loop"], "vary and loop do not go together"),
        (["--prompt=x", "--share=0.2"], "vary is missing; share says"),
        (["--prompt=x", "--timeline=rain"], "write START-END TEXT in seconds"),
    ],
)
def test_bad_input_is_named(arguments: list[str], message: str) -> None:
    with pytest.raises((flags.Error, ValueError, OSError)) as caught:
        parse(*arguments)
    assert message in str(caught.value)


def test_without_a_workdir_it_is_the_model_of_the_package() -> None:
    request = generate.parse(["generate.py", "--prompt=x", "--out=sounds"])
    assert request.workdir is None


def test_a_command_continues_and_pictures_a_sound(
    runs: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    sound = tmp_path / "sound.wav"
    audio = synthetic_audio("tone", 0.5, np.random.default_rng(0))
    soundfile.write(sound, audio, SAMPLE_RATE)
    out = tmp_path / "out"
    done = commands.run(
        *("generate.py", f"--workdir={runs['student']}", f"--out={out}", f"--audio={sound}"),
        *(f"--prompt={PROMPTS[0]}", "--prompt=", "--keep=0-0.32,0.45-0.64", "--pictures"),
        *("--seed=5", "--num_iterations=2"),
    )
    assert done.returncode == 0, done.stderr
    assert "an empty prompt makes an unconditional clip" in done.stderr
    rows = [json.loads(line) for line in (out / "manifest.jsonl").open()]
    assert [row["prompt"] for row in rows] == [PROMPTS[0], ""]
    assert [row["seed"] for row in rows] == [5, 6]
    assert [row["file"] for row in rows] == ["00000_a_loud_tone.wav", "00001_clip.wav"]
    for row in rows:
        assert row["seconds"] == CLIP_SAMPLES / SAMPLE_RATE
        settings = row["settings"]
        assert (settings["audio"], settings["keep"]) == (str(sound), "0-0.32,0.45-0.64")
        assert (settings["num_iterations"], settings["rms_dbfs"]) == (2, None)
        assert row["checkpoint"]["step"] == 40
        assert len(row["checkpoint"]["sha256"]) == 64
        assert soundfile.read(out / row["file"])[0].shape == (CLIP_SAMPLES,)
        stem = row["file"].removesuffix(".wav")
        for picture in (f"{stem}.png", f"{stem}_decoding.png"):
            assert (out / picture).read_bytes().startswith(b"\x89PNG")


def test_a_runs_own_iterations_are_no_more_than_what_is_left(
    runs: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    """Three of the four columns of two tokens are kept: two are left for the run's three."""
    sound = tmp_path / "sound.wav"
    soundfile.write(sound, synthetic_audio("tone", 0.5, np.random.default_rng(0)), SAMPLE_RATE)
    pipeline = fasttta_jax.load(runs["student"])
    assert pipeline.trained.config.decode.num_iterations == 3
    (clip,) = pipeline.generate(["x"], audio=sound, keep="0-0.48")
    assert clip.known.tolist() == [True] * 6 + [False] * 2
    with pytest.raises(ValueError, match="num_iterations is 3; allowed: 1 to 2"):
        pipeline.generate(["x"], audio=sound, keep="0-0.48", num_iterations=3)


def test_a_command_that_cannot_start_says_why(
    runs: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    """Settings that do not fit the run are found before the folder is made."""
    sound = tmp_path / "sound.wav"
    soundfile.write(sound, synthetic_audio("tone", 0.5, np.random.default_rng(0)), SAMPLE_RATE)
    # Three of the four columns of two tokens are kept: two tokens are left.
    done = commands.run(
        *("generate.py", f"--workdir={runs['student']}", f"--out={tmp_path / 'out'}"),
        *("--prompt=x", f"--audio={sound}", "--keep=0-0.48", "--num_iterations=3"),
    )
    assert done.returncode != 0
    assert "num_iterations is 3; allowed: 1 to 2, the tokens left to generate" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_what_is_no_flag_is_named(tmp_path: pathlib.Path) -> None:
    done = commands.run("generate.py", f"--workdir={tmp_path}", f"--out={tmp_path}", "a dog barks")
    assert done.returncode != 0
    assert "'a dog barks' is not a flag; flags look like --name=value" in done.stderr
