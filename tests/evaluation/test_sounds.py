"""A folder's sounds go to the clips whose captions they were made for; what is left out is told."""

import json

import numpy as np
import pytest
import soundfile

from fasttta_jax.evaluation.sounds import SoundsError, read_sounds

RATE = 16_000


def write(folder, name: str, level: float, length: int = 400, rate: int = RATE) -> None:
    audio = level * np.sign(np.sin(np.arange(length)))
    soundfile.write(folder / name, audio, rate, subtype="FLOAT")


def read(folder, *prompts: str):
    return read_sounds(folder, prompts, num_samples=400, sample_rate=RATE)


def manifest(folder, *rows: dict) -> None:
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")


def test_equal_captions_take_their_sounds_in_order(tmp_path):
    for index, level in enumerate((0.1, 0.2, 0.3, 0.4)):
        write(tmp_path, f"{index}.wav", level)
    captions = ("a dog", "rain", "a dog", "a cat")
    manifest(tmp_path, *({"file": f"{i}.wav", "prompt": c} for i, c in enumerate(captions)))
    found = read(tmp_path, "a dog", "wind", "a dog ", "rain", "rain")
    assert found.rows == [0, 2, 3]
    np.testing.assert_allclose(np.abs(found.audio).max(axis=1), [0.1, 0.3, 0.2], rtol=1e-6)
    assert found.counts() == {"missing": 2, "unreadable": {}, "unused": 1, "cut": 0}
    assert len(found.warnings()) == 2


def test_unreadable_files_are_left_out_and_silence_is_a_sound(tmp_path):
    write(tmp_path, "long.wav", 0.1, length=500)
    write(tmp_path, "short.wav", 0.2, length=300)
    write(tmp_path, "silent.wav", 0.0)
    write(tmp_path, "other_rate.wav", 0.3, length=200, rate=RATE // 2)
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    names = ("long", "broken", "short", "silent", "gone", "other_rate")
    manifest(tmp_path, *({"path": f"{name}.wav", "caption": name} for name in names))
    found = read(tmp_path, *names)
    assert found.rows == [0, 2, 3, 5]
    assert found.audio.shape == (4, 400)
    assert found.unreadable == {"broken.wav": "unreadable", "gone.wav": "missing"}
    assert found.cut == 1
    assert not found.audio[2].any()
    assert not found.audio[1, 300:].any()
    assert found.audio[3, 200:390].any(), "as long as before"
    assert "broken.wav (unreadable), gone.wav (missing)" in found.warnings()[0]


def test_tables_of_both_forms_are_read(tmp_path):
    write(tmp_path, "a.wav", 0.1)
    (tmp_path / "metadata.csv").write_text('file,caption,n\na.wav,"rain,\nwind",1\n', "utf-8-sig")
    assert read(tmp_path, "rain,\nwind").rows == [0]
    found = read_sounds(
        tmp_path / "metadata.csv", ["rain,\nwind"], num_samples=400, sample_rate=RATE
    )
    assert found.rows == [0], "a table that is named itself"
    (tmp_path / "metadata.csv").rename(tmp_path / "metadata.jsonl")
    (tmp_path / "metadata.jsonl").write_text('\n{"file_name": "a.wav", "caption": "rain\u2028"}\n')
    assert read(tmp_path, "rain").rows == [0]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ('{"file": "a.wav"}', "jsonl:1: .* prompt or caption or captions are needed; found: file"),
        ('{"file": 3, "prompt": "x"}', "jsonl:1: a text named file or"),
        ("[]", "jsonl:1: .* is not a JSON object"),
        ('\n{"file": ', "jsonl:2: malformed JSON"),
        ('{"file": "a.wav", "prompt": "wind"}', "no readable sound for any of the 1 captions"),
        ('{"file": "a.wav", "prompt": "rain"}', "such as 'rain'; unreadable: 1"),
    ],
)
def test_tables_that_cannot_be_used_are_named(tmp_path, rows, words):
    (tmp_path / "manifest.jsonl").write_text(rows)
    with pytest.raises(SoundsError, match=words):
        read(tmp_path, "rain")


def test_a_folder_has_one_table(tmp_path):
    with pytest.raises(SoundsError, match="found: none"):
        read(tmp_path, "rain")
    for name in ("manifest.jsonl", "metadata.csv"):
        (tmp_path / name).touch()
    with pytest.raises(SoundsError, match=r"several tables .*: manifest\.jsonl, metadata\.csv"):
        read(tmp_path, "rain")
