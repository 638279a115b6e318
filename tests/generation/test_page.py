"""The page of a folder of sounds holds every clip of its manifest, once, whatever its prompt."""

from __future__ import annotations

import base64
import io
import json
import pathlib
import re
from collections.abc import Sequence
from html import unescape

import numpy as np
import pytest
import soundfile

from fasttta_jax.audio.files import AudioError
from fasttta_jax.generation import page
from fasttta_jax.generation.page import write_page
from fasttta_jax.storage.files import StorageError
from tests.support.helpers import SAMPLE_RATE, synthetic_audio


def write_folder(folder: pathlib.Path, prompts: Sequence[str]) -> list[np.ndarray]:
    """A folder of sounds and its manifest; returns the sounds."""
    rng, sounds, rows = np.random.default_rng(0), [], []
    for index, prompt in enumerate(prompts):
        sounds.append(synthetic_audio("noise", 0.5, rng)[: 2000 + index])
        soundfile.write(folder / f"{index}.wav", sounds[-1], SAMPLE_RATE, subtype="PCM_16")
        rows.append({"file": f"{index}.wav", "prompt": prompt, "seed": index, "settings": {}})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return sounds


def test_every_sound_is_on_the_page(tmp_path: pathlib.Path) -> None:
    prompts = ["rain", "<b>rain & 'thunder'</b>", "rain", ""]
    sounds = write_folder(tmp_path, prompts)
    assert write_page(tmp_path, "Four") == tmp_path / "index.html"
    html = (tmp_path / "index.html").read_text()
    assert "<b>" not in html
    headings = [unescape(found) for found in re.findall(r'<h3 class="prompt">(.*?)</h3>', html)]
    assert headings == ["rain", prompts[1], "(no prompt)"]
    found = re.findall(r'src="data:audio/flac;base64,([^"]+)" aria-label="(seed \d)', html)
    assert [label for _, label in found] == ["seed 0", "seed 2", "seed 1", "seed 3"]
    for code, label in found:
        audio, sample_rate = soundfile.read(io.BytesIO(base64.b64decode(code)))
        assert sample_rate == SAMPLE_RATE
        expected = sounds[int(label.split()[1])]
        np.testing.assert_allclose(audio, expected, atol=2.0**-14)  # rounded twice to 16 bits
    assert html.count("data:image/png") == len(sounds)
    assert "http" not in html.replace("http://www.w3.org", "")
    first = html
    write_page(tmp_path, "Four")
    assert (tmp_path / "index.html").read_text() == first


def test_a_million_clips_make_no_endless_page(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "MOST_CLIPS", 2)
    write_folder(tmp_path, ["a", "b", "c"])
    html = write_page(tmp_path).read_text()
    assert html.count("<audio") == 2
    assert "The first 2 clips." in html


def test_a_folder_without_sounds_is_named(tmp_path: pathlib.Path) -> None:
    for contents in (None, "", "{}\n", "[1]\n", "no JSON\n", '{"file": "a.tar"}\n'):
        if contents is not None:
            (tmp_path / "manifest.jsonl").write_text(contents)
        with pytest.raises(StorageError, match=r"manifest\.jsonl cannot be shown as a page"):
            write_page(tmp_path)
    (tmp_path / "manifest.jsonl").write_text('{"file": "a", "prompt": "b", "seed": 1}\n{"fi\n')
    with pytest.raises(StorageError, match=r"manifest\.jsonl:2: malformed JSON"):
        write_page(tmp_path)
    write_folder(tmp_path, ["rain", "wind"])
    (tmp_path / "1.wav").write_bytes(b"RIFF")
    with pytest.raises(AudioError, match=r"1\.wav: unreadable"):
        write_page(tmp_path)
    (tmp_path / "1.wav").unlink()
    with pytest.raises(AudioError, match=r"1\.wav: missing"):
        write_page(tmp_path)
    assert not (tmp_path / "index.html").exists()
