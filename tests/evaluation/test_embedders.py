"""Features come from the cache for equal sounds and equal networks, and for nothing else."""

import dataclasses
import logging

import numpy as np
import pytest

from fasttta_jax.evaluation.embedders import FeatureCache, Features


@dataclasses.dataclass
class CountingEmbedder:
    """Counts what it is asked; the embedding is the mean, the probability a share of the clip."""

    hash: str = "a"
    sample_rate: int = 8000
    name: str = "counting"
    calls: int = 0
    shape: tuple[int, ...] = ()

    def embed(self, audio):
        self.calls += 1
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
    cache, embedder = FeatureCache(tmp_path), CountingEmbedder()
    changed = audio.copy()
    changed[1, 5] += 1e-3
    for calls, (sounds, rate) in enumerate(
        [(audio, 8000), (changed, 8000), (audio[:2], 8000), (audio, 16_000)], start=1
    ):
        cache.features(embedder, sounds, rate)
        assert embedder.calls == calls
    other = CountingEmbedder(hash="b")
    cache.features(other, audio, 8000)
    assert other.calls == 1
    assert len(list(tmp_path.iterdir())) == 5


def test_sounds_are_resampled_to_the_rate_of_the_network(tmp_path, audio):
    embedder = CountingEmbedder()
    FeatureCache(tmp_path).features(embedder, audio, 16_000)
    assert embedder.shape == (3, 400)


def test_a_damaged_file_is_replaced(tmp_path, audio, caplog):
    cache, embedder = FeatureCache(tmp_path), CountingEmbedder()
    expected = cache.features(embedder, audio, 8000)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with caplog.at_level(logging.WARNING):
        found = cache.features(embedder, audio, 8000)
    assert embedder.calls == 2
    assert "is damaged" in caplog.text
    np.testing.assert_array_equal(found.embeddings, expected.embeddings)
    assert path.read_bytes() == whole
