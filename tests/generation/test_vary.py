"""New takes of a sound: a share of its columns is made anew, the others come back exactly."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
import soundfile

from fasttta_jax.audio.files import AudioError
from fasttta_jax.generation.edits import EditError, Edits, varied_columns
from fasttta_jax.generation.pipeline import Pipeline
from tests.support.helpers import SAMPLE_RATE

COLUMN, BANDS = 2560, 2


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """1.9 s of noise: twelve columns, the last not full."""
    path = tmp_path_factory.mktemp("vary") / "noise.wav"
    rng = np.random.default_rng(0)
    soundfile.write(path, rng.uniform(-0.3, 0.3, 30_400), SAMPLE_RATE, subtype="FLOAT")
    return path


def test_a_share_of_every_stretch_is_chosen_by_the_seed() -> None:
    strata = [range(16), range(16, 27), range(27, 30)]
    found = {seed: varied_columns(0.3, strata, seed) for seed in range(20)}
    for chosen in found.values():
        assert [int(chosen[part.start : part.stop].sum()) for part in strata] == [5, 3, 1]
    assert len({chosen.tobytes() for chosen in found.values()}) == 20
    assert np.mean(list(found.values()), axis=0).max() < 0.8  # no column is always chosen
    np.testing.assert_array_equal(varied_columns(0.3, strata, 3), found[3])
    assert varied_columns(1.0, strata, 0).all()


def test_takes_keep_the_other_columns(student: Pipeline, sound: pathlib.Path) -> None:
    audio = soundfile.read(sound, dtype="float32")[0]
    clips = list(student.generate(["a quiet noise"] * 2, vary=sound, share=0.4, seed=7))
    num_columns = clips[0].tokens.shape[0] // BANDS
    padded = np.pad(audio, (0, num_columns * COLUMN - audio.size))[None]
    tokens = np.asarray(student.trained.codec.encode(padded))[0]
    for clip in clips:
        assert clip.audio.shape == audio.shape
        np.testing.assert_array_equal(clip.tokens[clip.known], tokens[clip.known])
        changed = ~clip.known.reshape(-1, BANDS)[:12]
        assert (changed == changed[:, :1]).all()  # whole columns
        assert 4 <= changed[:, 0].sum() <= 6
        assert (clip.tokens[~clip.known] != tokens[~clip.known]).all()
    assert not np.array_equal(clips[0].known, clips[1].known)
    alone = next(student.generate(["a quiet noise"], vary=sound, share=0.4, seed=8))
    np.testing.assert_array_equal(alone.known, clips[1].known)
    np.testing.assert_allclose(alone.audio, clips[1].audio, atol=1 / 32768)


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ({"vary": "a.wav", "loop": True}, "vary and loop do not go together; seconds goes with"),
        ({"vary": "a.wav", "timeline": "0-1 rain"}, "vary and timeline do not go together"),
        ({"vary": "a.wav", "audio": "b.wav", "keep": "0-1"}, "vary and audio do not go together"),
        ({"loop": True, "audio": "b.wav", "keep": "0-1"}, "loop and audio do not go together"),
        ({"keep": "0-1"}, "audio is missing; audio and keep go together"),
        ({"audio": "a.wav"}, "keep is missing; audio and keep go together"),
        ({"share": 0.5}, "vary is missing; share says how much of its sound is made anew"),
    ],
)
def test_edits_that_do_not_go_together_are_named(edits: dict, message: str) -> None:
    with pytest.raises(EditError, match=message):
        Edits(**edits)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_shares_that_cannot_be_are_named(share: float) -> None:
    with pytest.raises(ValueError, match=f"share is {share}; allowed: above 0, up to 1"):
        Edits(vary="a.wav", share=share)


def test_a_take_has_the_length_of_its_sound(student: Pipeline, sound: pathlib.Path) -> None:
    with pytest.raises(EditError, match="vary and seconds do not go together"):
        student.generate(["x"], vary=sound, seconds=3.0)
    with pytest.raises(AudioError, match=r"nowhere\.wav: missing"):
        student.generate(["x"], vary="nowhere.wav")
