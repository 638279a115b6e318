"""generate.py: its flags, its folder of sounds, and commands that prove the wiring."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
import soundfile
from absl import flags

import generate
from fasttta_jax.config import ConfigError
from fasttta_jax.generation.folder import FolderConfig, write_clips
from fasttta_jax.generation.pipeline import GenerateConfig, Pipeline
from fasttta_jax.generation.prompts import PromptError, read_prompts, slug
from tests.support import commands
from tests.support.helpers import CLIP_SAMPLES, SAMPLE_RATE, synthetic_audio
from tests.support.type_checks import unchecked

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
        "--checkpoint=30",
        "--seed=5",
        "--batch_size=4",
        "--guidance_scale=2",
        "--rms_dbfs=-26",
        "--format=flac",
        "--audio=dog.wav",
        "--keep=0-1.28",
        "--pictures",
    )
    assert request == generate.Request(
        workdir="run",
        which=30,
        prompts=["a dog", "a dog", "rain", "rain"],
        kept=generate.Kept("dog.wav", "0-1.28", ((0.0, 1.28),)),
        config=GenerateConfig(seed=5, batch_size=4, guidance_scale=2.0, with_states=True),
        folder=FolderConfig("sounds", "flac", -26.0, pictures=True),
    )
    plain = parse("--prompt=x")
    assert (plain.which, plain.kept, plain.config) == ("last", None, GenerateConfig())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --prompt or --prompts"),
        (["--prompt=x", "--num_iterations=0"], "num_iterations"),
        (["--prompt=x", "--temperature=-1"], "temperature is -1.0; allowed: 0 or more"),
        (["--prompt=x", "--batch_size=0"], "batch_size"),
        (["--prompt=x", "--format=aiff"], "<wav|flac|ogg>"),
        (["--prompts=nowhere.txt"], "nowhere.txt"),
        (["--prompt=x", "--no_such_flag=1"], "no_such_flag"),
        (["--prompt=x", "--seed=4294967296"], "seed is 4294967296; allowed: 0 to 4294967295"),
        (["--prompt=x", "--rms_dbfs=1"], "rms_dbfs is 1.0; allowed: at most 0"),
        (["--prompt=x", "--keep=0-1"], "--audio is missing; --audio and --keep go together"),
        (["--prompt=x", "--audio=a.wav"], "--keep is missing; --audio and --keep go together"),
        (["--prompt=x", "--audio=a.wav", "--keep=1-0"], "allowed: after its start"),
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


@pytest.mark.parametrize("file_format", ["flac", "ogg"])
def test_formats_and_loudness(
    file_format: str, runs: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    pipeline = Pipeline.open(str(runs["student"]))
    out = FolderConfig(str(tmp_path / "new" / "folder"), file_format, rms_dbfs=-26.0)
    write_clips(pipeline.generate(["一只狗在叫"] * 2), out, pipeline.trained.codec, {"by": "test"})
    files = sorted((tmp_path / "new" / "folder").glob(f"*.{file_format}"))
    assert [file.name for file in files] == [f"0000{i}_clip.{file_format}" for i in (0, 1)]
    for file in files:
        audio, rate = soundfile.read(file)
        assert rate == SAMPLE_RATE
        assert np.abs(audio).max() <= 1.0
        assert np.sqrt(np.mean(audio**2)) > 10 ** (-40 / 20)
    rows = [json.loads(line) for line in (files[0].parent / "manifest.jsonl").open()]
    assert [row["by"] for row in rows] == ["test", "test"]
    message = "format is 'aiff'; allowed: one of 'wav', 'flac', 'ogg'"
    with unchecked(), pytest.raises(ConfigError, match=message):
        FolderConfig("x", "aiff")  # type: ignore[arg-type]


def test_read_prompts(tmp_path: pathlib.Path) -> None:
    expected = ["a dog, barking", "rain"]
    contents = {
        "a.txt": "a dog, barking\n\n  rain \n",
        "b.csv": 'id,caption\n1,"a dog, barking"\n2,rain\n',
        "c.jsonl": '{"prompt": "a dog, barking"}\n{"prompt": "rain"}\n',
    }
    for name, text in contents.items():
        (tmp_path / name).write_text(text)
        assert read_prompts(tmp_path / name) == expected
    bad = {
        "a.csv": ("id,text\n1,x\n", r"columns are \['id', 'text'\]; one must be prompt or caption"),
        "b.jsonl": ('{"prompt": "x"}\nnonsense\n', "line 2 is not JSON"),
        "c.jsonl": ('{"text": "x"}\n', "line 1: a text field named prompt or caption is missing"),
        "d.txt": ("\n \n", "holds no prompts"),
        "e.pdf": ("x", "ending is '.pdf'; allowed: .txt, .csv, .jsonl"),
    }
    for name, (text, message) in bad.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(PromptError, match=message):
            read_prompts(tmp_path / name)
    (tmp_path / "f.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(PromptError, match="not UTF-8"):
        read_prompts(tmp_path / "f.txt")


def test_real_captions_are_prompts(datasets: pathlib.Path) -> None:
    prompts = read_prompts(datasets / "audiocaps_captions" / "val.csv")
    assert len(prompts) == 2475
    assert all(0 < len(slug(prompt)) <= 40 for prompt in prompts)
