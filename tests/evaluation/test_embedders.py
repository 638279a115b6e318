"""Features come from the cache for equal sounds and equal networks, and for nothing else."""

import dataclasses
import logging

import numpy as np
import pytest

from fasttta_jax.evaluation import embedders
from fasttta_jax.evaluation.embedders import FeatureCache, Features, stacked
from fasttta_jax.metrics.features import pooled


@dataclasses.dataclass
class CountingEmbedder:
    """Counts what it is asked; the embedding is the mean, the probability a share of the clip."""

    hash: str = "a"
    sample_rate: int = 8000
    name: str = "counting"
    last_call: int = 99
    calls: int = 0
    clips: int = 0
    shape: tuple[int, ...] = ()

    def embed(self, audio):
        if self.calls == self.last_call:
            raise KeyboardInterrupt
        self.calls += 1
        self.clips += len(audio)
        self.shape = audio.shape
        share = (audio > 0).mean(axis=1, keepdims=True).astype(np.float32)
        probabilities = np.concatenate([share, 1 - share], axis=1)
        return Features(
            audio.reshape(len(audio), 2, -1).mean(axis=-1, keepdims=True),
            {"sign": probabilities},
            {"sign": ("positive", "not")},
            {"sign": probabilities - 0.5},
        )


@pytest.fixture
def audio() -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, (3, 800)).astype(np.float32)


def test_equal_sounds_are_embedded_once(tmp_path, audio):
    first, again = CountingEmbedder(), CountingEmbedder()
    computed = FeatureCache(tmp_path / "features").features(first, audio, 8000)
    read = FeatureCache(tmp_path / "features").features(again, audio.copy(), 8000)
    assert (first.calls, again.calls) == (1, 0)
    assert read.embeddings.shape == (3, 2, 1)
    np.testing.assert_array_equal(read.embeddings, computed.embeddings)
    np.testing.assert_array_equal(read.probabilities["sign"], computed.probabilities["sign"])
    assert read.classes == computed.classes == {"sign": ("positive", "not")}
    np.testing.assert_array_equal(read.logits["sign"], computed.logits["sign"])
    np.testing.assert_array_equal(read.take([1]).logits["sign"], computed.logits["sign"][[1]])
    assert read.embeddings.dtype == computed.embeddings.dtype
    np.testing.assert_array_equal(read.take([2, 0]).embeddings, computed.embeddings[[2, 0]])
    np.testing.assert_array_equal(
        read.take([2]).probabilities["sign"], computed.probabilities["sign"][[2]]
    )


def test_other_sounds_rates_and_networks_are_embedded_anew(tmp_path, audio):
    """Clip by clip: of a set that changed, what is new alone."""
    cache, embedder = FeatureCache(tmp_path), CountingEmbedder()
    changed = audio.copy()
    changed[1, 5] += 1e-3
    for sounds, rate, computed in [
        (audio, 8000, 3),
        (changed, 8000, 1),
        (audio[:2], 8000, 0),
        (audio[::-1], 8000, 0),
        (audio, 16_000, 3),
        (np.concatenate([audio, audio + 0.1, audio + 0.1]), 8000, 3),
    ]:
        before = embedder.clips
        found = cache.features(embedder, sounds, rate)
        assert embedder.clips - before == computed
        assert len(found.embeddings) == len(sounds)
    np.testing.assert_array_equal(found.embeddings[3:6], found.embeddings[6:])
    other = CountingEmbedder(hash="b")
    cache.features(other, audio, 8000)
    assert other.clips == 3


def test_clips_of_different_lengths_are_embedded_by_themselves(tmp_path, audio):
    """One length after the other, where a network does not take several; ragged where it may be."""
    waveforms = [audio[0], audio[1, :400], audio[2], audio[0, :400]]
    cache, embedder = FeatureCache(tmp_path), CountingEmbedder()
    found = cache.each(embedder, waveforms, 8000)
    assert (embedder.calls, embedder.clips) == (2, 4)
    for features, waveform in zip(found, waveforms, strict=True):
        alone = embedder.embed(waveform[None])
        np.testing.assert_array_equal(features.embeddings, alone.embeddings)
        np.testing.assert_array_equal(features.logits["sign"], alone.logits["sign"])
    assert stacked(found).embeddings.shape == (4, 2, 1)
    assert cache.each(embedder, [], 8000) == []


def test_patches_that_a_shorter_clip_lacks_are_nan():
    long, short = (Features(np.full((1, count, 2), count, np.float32)) for count in (3, 1))
    found = stacked([short, long]).embeddings
    np.testing.assert_array_equal(found[:, :, 0], [[1, np.nan, np.nan], [3, 3, 3]])
    assert len(pooled(found)[0]) == 4
    for others in ([], [long, Features(np.zeros((1, 2)))], [long, Features(np.zeros((1, 3, 4)))]):
        with pytest.raises(ValueError, match="allowed: those of one network"):
            stacked(others)


def test_an_evaluation_that_was_killed_goes_on(tmp_path, monkeypatch):
    """All blocks but the one that was under way are kept."""
    monkeypatch.setattr(embedders, "BLOCK", 4)
    audio = np.random.default_rng(0).uniform(-0.5, 0.5, (11, 800)).astype(np.float32)
    killed, again = CountingEmbedder(last_call=2), CountingEmbedder()
    with pytest.raises(KeyboardInterrupt):
        FeatureCache(tmp_path).features(killed, audio, 8000)
    found = FeatureCache(tmp_path).features(again, audio, 8000)
    assert (killed.clips, again.clips) == (8, 3)
    expected = CountingEmbedder().embed(audio)
    np.testing.assert_array_equal(found.embeddings, expected.embeddings)
    np.testing.assert_array_equal(found.logits["sign"], expected.logits["sign"])


def test_sounds_are_resampled_to_the_rate_of_the_network(tmp_path, audio):
    embedder = CountingEmbedder()
    FeatureCache(tmp_path).features(embedder, audio, 16_000)
    assert embedder.shape == (3, 400)


@pytest.mark.parametrize("kept", [0, 0.5])
def test_a_damaged_file_is_replaced(tmp_path, audio, caplog, kept):
    cache, embedder = FeatureCache(tmp_path), CountingEmbedder()
    expected = cache.features(embedder, audio, 8000)
    (path,) = tmp_path.rglob("*.npz")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with caplog.at_level(logging.WARNING):
        found = cache.features(embedder, audio, 8000)
    assert embedder.calls == 2
    assert "cannot be read" in caplog.text
    np.testing.assert_array_equal(found.embeddings, expected.embeddings)
    assert path.read_bytes() == whole
