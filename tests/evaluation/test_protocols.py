"""Protocols prepare waveforms as published; a list of captions is known by its hash alone."""

import numpy as np
import pytest

from fasttta_jax.audio.sinc import resample_sinc
from fasttta_jax.evaluation.network_metrics import network_metrics
from fasttta_jax.evaluation.protocols import (
    KNOWN_LISTS,
    PROTOCOLS,
    KnownList,
    about_list,
    caption_list_sha256,
)


@pytest.fixture
def stereo() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 1, (48_000, 2)).astype(np.float32)


def test_audioldm_eval_takes_the_first_channel_without_its_mean_and_fills_up_to_two_seconds(stereo):
    found = PROTOCOLS["audioldm_eval"].prepare("panns_16k")(stereo, 48_000, 16_000)
    first = stereo[:, 0] - stereo[:, 0].mean(dtype=np.float64).astype(np.float32)
    assert found.shape == (32_000,)
    np.testing.assert_array_equal(found[:16_000], resample_sinc(first, 48_000, 16_000))
    assert not found[16_000:].any()
    long = PROTOCOLS["audioldm_eval"].prepare("vggish")(np.tile(stereo, (12, 1)), 48_000, 16_000)
    assert len(long) == 12 * 16_000, "it is never cut"


def test_av_benchmark_takes_the_mean_of_the_channels_and_ten_seconds(stereo):
    prepare = PROTOCOLS["av_benchmark"].prepare("clap")
    assert len(prepare(np.tile(stereo, (12, 1)), 48_000, 48_000)) == 480_000
    short = prepare(stereo, 48_000, 48_000)
    mean = stereo.mean(axis=1)
    np.testing.assert_array_equal(short, mean - mean.mean(dtype=np.float64).astype(np.float32))


def test_our_protocol_keeps_the_mean_and_gives_clap_ten_seconds(stereo):
    protocol = PROTOCOLS["ours"]
    long = np.tile(stereo, (12, 1))
    assert len(protocol.prepare("clap")(long, 48_000, 48_000)) == 480_000
    assert len(protocol.prepare("vggish")(long, 48_000, 16_000)) == 12 * 16_000
    found = protocol.prepare("panns_16k")(stereo, 48_000, 48_000)
    np.testing.assert_allclose(found, stereo.mean(axis=1), atol=1e-7)


def test_every_figure_of_a_protocol_is_a_metric_of_ours():
    for protocol in PROTOCOLS.values():
        assert set(protocol.metrics) <= set(network_metrics())


def test_a_list_is_told_by_its_hash_and_never_by_its_length():
    captions = ["rain", "a dog ", "Ärger"]
    digest = caption_list_sha256(captions)
    assert digest == caption_list_sha256(["Ärger", "a dog", " rain"])
    assert digest != caption_list_sha256(["rain", "a dog", "ärger"])
    assert caption_list_sha256(["a", "a"]) != caption_list_sha256(["a"])
    known = (KnownList("theirs", 3, digest), KnownList("others", 4))
    assert about_list(3, digest, known) == "3 clips: theirs, by the hash of the captions"
    assert about_list(3, "0" * 64, known) == "3 clips: as many as theirs, but with other captions"
    assert about_list(4, "0", known).endswith(
        "as many as others; its captions' hash is not known here"
    )
    assert "none of the published lists has as many" in about_list(5, "0", known)
    assert "the clips have no captions" in about_list(964, None)
    assert all(one.sha256 is None for one in KNOWN_LISTS), "no list is held, so no hash is claimed"
