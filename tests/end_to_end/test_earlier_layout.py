"""What an earlier version wrote is read, and gives what it gave then.

`golden/before_rooms.tar.xz` was written by the version before modules moved into rooms: a tiny
dataset with its tokens, a teacher and a student of two steps, converted networks with random
weights, a VAE codec, a table of frozen text and a tagger. `before_rooms_expected.npz` is what that
version computed from them. Bounds allow for the rounding of another machine: sums of at most a few
thousand float32 terms, whose results are of order one.
"""

from __future__ import annotations

import pathlib
import tarfile

import jax
import numpy as np
import pytest

import fasttta_jax
from data import encode_latents
from fasttta_jax.codecs import load_codec
from fasttta_jax.config import TextConfig
from fasttta_jax.evaluation.tagger_cache import load_or_train_tagger
from fasttta_jax.input_pipeline.records import Records
from fasttta_jax.storage.weights import read_metadata
from fasttta_jax.text import load_text_encoder
from fasttta_jax.training.loop import Trainer
from fasttta_jax.workdir.folder import Workdir
from tests.decoding.test_models import decode_rounding
from tests.support import helpers
from tests.support.tolerance import assert_close, assert_one_step_of_float16

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
PROMPTS = ["a loud tone", "noise that is quiet"]
SEEDS = [3, 4]


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(GOLDEN / "before_rooms.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "before_rooms"


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "before_rooms_expected.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_runs_generate_the_same_tokens(
    earlier: pathlib.Path, expected: dict[str, np.ndarray], name: str
) -> None:
    pipeline = fasttta_jax.load(earlier / name)
    tokens = [clip.tokens for clip in pipeline.generate(PROMPTS, seeds=SEEDS)]
    objective = {"teacher": "diffusion", "student": "energy"}[name]
    bound = decode_rounding(objective, pipeline.trained.config.decode)
    assert_close(np.stack(tokens), expected[name], bound)
    audio = np.asarray(pipeline.trained.codec.decode(expected[name]))
    np.testing.assert_allclose(audio, expected[f"{name}_audio"], atol=2e-4)


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_runs_resume(earlier: pathlib.Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Config, data and teacher are those that the run began with; the whole state is restored."""
    monkeypatch.chdir(earlier)
    trainer = Trainer(Workdir(name).config(), name)
    state = trainer.run()
    assert int(state.step) == trainer.opened.config.num_steps == 2
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.opt_state))


def test_frozen_networks_read_a_caption_as_before(
    earlier: pathlib.Path, expected: dict[str, np.ndarray]
) -> None:
    streams = (("clap", 1, 6), ("t5", 16, 12))
    config = TextConfig(encoder="frozen", streams=streams, token_dropout=0.0)
    text = load_text_encoder(earlier / "encoded_frozen" / "text", config)
    for name, stream in text.embed({}, text.tokenize(PROMPTS)).items():
        assert_one_step_of_float16(stream.embeddings, expected[f"text_{name}"])


def test_codecs_and_conversions_are_read(
    earlier: pathlib.Path, expected: dict[str, np.ndarray]
) -> None:
    for kind in ("vae", "vocoder", "t5", "clap"):
        assert read_metadata(earlier / "converted" / kind)["source"] == "random"
    audio = np.random.default_rng(0).uniform(-0.3, 0.3, (1, 20480)).astype(np.float32)
    tokens = np.asarray(load_codec(earlier / "vae_codec").encode(audio))
    np.testing.assert_allclose(tokens, expected["vae_tokens"], rtol=1e-4, atol=1e-4)


def test_the_tagger_is_used_again(
    earlier: pathlib.Path,
    expected: dict[str, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "fasttta_jax.evaluation.tagger_cache.train_tagger",
        lambda *arguments, **options: pytest.fail("the tagger is trained anew"),
    )
    tagger = load_or_train_tagger(
        earlier / "report",
        earlier / "audio",
        num_samples=10_240,
        sample_rate=16_000,
        seed=0,
        num_steps=4,
    )
    clips = np.random.default_rng(1).integers(-9000, 9000, (2, 10_240)).astype(np.int16)
    found = tagger.predict(clips)
    np.testing.assert_allclose(found.event_probabilities, expected["tagger"], atol=1e-4)
    np.testing.assert_allclose(found.embeddings, expected["tagger_embeddings"], atol=1e-3)


def test_datasets_are_written_as_before(earlier: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Record by record; what is left out of an earlier description does not make it another."""
    splits = {split: list(helpers.synthetic_clips(split)) for split in helpers.NUM_CLIPS}
    now = helpers.write_clips(tmp_path, "tiny", splits)
    for split, clips in splits.items():
        before, after = (Records(folder, split) for folder in (earlier / "audio", now))
        assert len(after) == len(clips)
        for index in range(len(before)):  # of the same clips, the first
            one, other = dict(before[index]), dict(after[index])
            np.testing.assert_array_equal(one.pop("audio"), other.pop("audio"))
            assert one == other


def test_an_earlier_dataset_is_there_already(
    earlier: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    splits = {split: list(helpers.synthetic_clips(split)) for split in helpers.NUM_CLIPS}
    encoded = earlier / "encoded"
    helpers.write_clips(earlier / "audio", "tiny", splits)
    encode_latents.encode(earlier / "audio", encoded, encoded)
    assert capsys.readouterr().out.count("nothing to do") == 2
