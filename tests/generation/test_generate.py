"""generate.py: the same seed is the same file whatever the batch, and bad input is named."""

import json
import pathlib

import numpy as np
import pytest
import soundfile

from fasttta_jax.generation.prompts import (
    PromptError,
    read_prompts,
    slug,
)
from tests.support import commands
from tests.support.helpers import (
    CLIP_SAMPLES,
    SAMPLE_RATE,
    synthetic_audio,
)


def generate(workdir: pathlib.Path, out: pathlib.Path, *arguments: str) -> tuple[int, str]:
    result = commands.run("generate.py", f"--workdir={workdir}", f"--out={out}", *arguments)
    return result.returncode, result.stderr


def sounds(out: pathlib.Path) -> dict[str, np.ndarray]:
    return {path.name: soundfile.read(path, dtype="int16")[0] for path in sorted(out.glob("*.wav"))}


PROMPTS = ["a loud tone", "a quiet noise", "clicks that are loud"]


@pytest.mark.slow
def test_same_seed_same_files_whatever_the_batch(
    runs: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    prompts = [f"--prompt={prompt}" for prompt in PROMPTS]
    for name, batch_size in (("one", 1), ("again", 1), ("four", 4)):
        code, log = generate(
            runs["student"], tmp_path / name, *prompts, "--seed=5", f"--batch_size={batch_size}"
        )
        assert code == 0, log
    one, again, four = (sounds(tmp_path / name) for name in ("one", "again", "four"))
    assert list(one) == list(four) == [f"{i:05d}_{slug(p)}.wav" for i, p in enumerate(PROMPTS)]
    for name, audio in one.items():
        assert audio.shape == (CLIP_SAMPLES,)
        np.testing.assert_array_equal(audio, again[name])
        # XLA may sum in another order for another batch shape: one step of 16 bits at the most.
        np.testing.assert_allclose(audio.astype(int), four[name].astype(int), atol=1)
    rows = [json.loads(line) for line in (tmp_path / "one" / "manifest.jsonl").open()]
    assert [row["prompt"] for row in rows] == PROMPTS
    assert [row["seed"] for row in rows] == [5, 6, 7]
    assert [row["file"] for row in rows] == list(one)
    assert rows[0]["checkpoint"]["step"] == 40
    assert len(rows[0]["checkpoint"]["sha256"]) == 64
    assert rows[0]["settings"]["num_iterations"] == 3


def test_every_setting_counts(runs: dict[str, pathlib.Path], tmp_path: pathlib.Path) -> None:
    table = tmp_path / "prompts.jsonl"
    table.write_text("\n".join(json.dumps({"prompt": prompt}) for prompt in PROMPTS[:1]))
    settings = {
        "plain": [],
        "iterations": ["--num_iterations=8"],
        "guidance": ["--guidance_scale=1"],
        "temperature": ["--temperature=0.3"],
        "seed": ["--seed=9"],
        "earlier": ["--checkpoint=100"],
    }
    found = {}
    for name, arguments in settings.items():
        code, log = generate(
            runs["teacher"], tmp_path / name, f"--prompts={table}", "--batch_size=1", *arguments
        )
        assert code == 0, log
        (found[name],) = sounds(tmp_path / name).values()
    for name in list(settings)[1:]:
        assert not np.array_equal(found[name], found["plain"]), name


@pytest.mark.parametrize("file_format", ["flac", "ogg"])
def test_formats_and_loudness(
    file_format: str, runs: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    code, log = generate(
        runs["student"],
        tmp_path,
        "--prompt=一只狗在叫",
        "--clips_per_prompt=2",
        f"--format={file_format}",
        "--rms_dbfs=-26",
        "--batch_size=2",
    )
    assert code == 0, log
    files = sorted(tmp_path.glob(f"*.{file_format}"))
    assert [file.name for file in files] == [f"0000{i}_clip.{file_format}" for i in (0, 1)]
    for file in files:
        audio, rate = soundfile.read(file)
        assert rate == SAMPLE_RATE
        assert np.abs(audio).max() <= 1.0
        assert np.sqrt(np.mean(audio**2)) > 10 ** (-40 / 20)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --prompt or --prompts"),
        (["--prompt=x", "--num_iterations=0"], "decode.num_iterations is 0; allowed: from 1"),
        (
            ["--prompt=x", "--num_iterations=9"],
            "num_iterations is 9; allowed: 1 to the number of tokens, 8",
        ),
        (["--prompt=x", "--temperature=-1"], "decode.temperature is -1.0; allowed: 0 or more"),
        (["--prompt=x", "--checkpoint=4"], r"has no step 4; allowed: [37, 40]"),
        (["--prompt=x", "--checkpoint=newest"], "checkpoint is 'newest'; allowed: last, best"),
        (["--prompt=x", "--batch_size=0"], "batch_size"),
        (["--prompt=x", "--format=aiff"], "<wav|flac|ogg>"),
        (["--prompts=nowhere.txt"], "nowhere.txt"),
        (["--prompt=x", "--no_such_flag=1"], "no_such_flag"),
        (["--prompt=x", "--seed=4294967296"], "seeds[0] is 4294967296; allowed: 0 to 4294967295"),
        (["--prompt=x", "--keep=0-1"], "--audio is missing; --audio and --keep go together"),
        (["--prompt=x", "--audio=nowhere.wav", "--keep=0-0.2"], "nowhere.wav: missing"),
        (["a dog barks"], "'a dog barks' is not a flag"),
    ],
)
def test_bad_input_is_named(
    arguments: list[str], message: str, runs: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    code, log = generate(runs["student"], tmp_path / "out", *arguments)
    assert code != 0
    assert message in log
    assert "Traceback" not in log


def test_a_sound_is_continued_and_pictured(
    runs: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    sound = tmp_path / "sound.wav"
    audio = synthetic_audio("tone", 0.5, np.random.default_rng(0))
    soundfile.write(sound, audio, SAMPLE_RATE)
    arguments = [f"--prompt={PROMPTS[0]}", f"--prompt={PROMPTS[1]}", f"--audio={sound}"]
    code, log = generate(
        runs["student"],
        tmp_path / "out",
        *arguments,
        "--keep=0-0.32,0.45-0.64",
        "--pictures",
        "--num_iterations=2",
    )
    assert code == 0, log
    row = json.loads((tmp_path / "out" / "manifest.jsonl").read_text().splitlines()[1])
    assert row["settings"]["keep"] == "0-0.32,0.45-0.64"
    assert row["settings"]["audio"] == str(sound)
    first, second = sounds(tmp_path / "out")
    for name in (first, second):
        stem = name.removesuffix(".wav")
        for picture in (f"{stem}.png", f"{stem}_decoding.png"):
            assert (tmp_path / "out" / picture).read_bytes().startswith(b"\x89PNG")
    # Three of the four columns of two tokens are kept: two tokens are left.
    code, log = generate(
        runs["student"], tmp_path / "no", *arguments, "--keep=0-0.48", "--num_iterations=3"
    )
    assert code != 0
    assert "num_iterations is 3; allowed: 1 to 2, the tokens left to generate" in log
    assert not (tmp_path / "no").exists()


def test_workdir_without_a_run(tmp_path: pathlib.Path) -> None:
    code, log = generate(tmp_path, tmp_path / "out", "--prompt=x")
    assert code != 0
    assert "holds no run: config.json is missing" in log


def test_odd_prompts_work(runs: dict[str, pathlib.Path], tmp_path: pathlib.Path) -> None:
    table = tmp_path / "prompts.txt"
    table.write_text("x" * 10_000 + "\n\nمطر يهطل\n🐶🔊\n", encoding="utf-8")
    code, log = generate(runs["student"], tmp_path, f"--prompts={table}", "--prompt=")
    assert code == 0, log
    assert "an empty prompt makes an unconditional clip" in log
    assert len(sounds(tmp_path)) == 4


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
