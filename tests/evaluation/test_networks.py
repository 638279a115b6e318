"""Public networks as embedders: what they compute, for clips of every length, and what they refuse.

The networks themselves are held against torch in tests/pretrained. Here they are narrow, with
random weights.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from fasttta_jax.evaluation import networks
from fasttta_jax.evaluation.embedders import EachEmbedder, FeatureCache, TextEmbedder, stacked
from fasttta_jax.evaluation.networks import (
    load_clap,
    load_network,
    load_panns,
    load_vggish,
)
from fasttta_jax.pretrained.clap_audio import ClapAudio, load_audio
from fasttta_jax.pretrained.clap_mel import NUM_SAMPLES, batch_waveforms, clap_mel
from fasttta_jax.pretrained.clap_text import ClapText
from fasttta_jax.pretrained.panns import CNN14_16K, CNN14_32K, Panns
from fasttta_jax.pretrained.vggish import Vggish
from fasttta_jax.storage.weights import ConvertedError
from fasttta_jax.text.tokenize import encode
from tests.support.clap_rounding import audio_rounding, text_rounding
from tests.support.conversions import random_clap_towers, random_panns, random_vggish
from tests.support.tolerance import assert_close, assert_within, kernel_terms, rounding

LENGTHS = (9_000, 16_000, 9_000)
"""Samples at 16 kHz, with an odd number of rows in different blocks."""


@pytest.fixture(autouse=True)
def _one_clip_for_each_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "BATCH_SIZE", 1)
    monkeypatch.setattr(networks, "CAPTIONS", 1)
    monkeypatch.setattr(networks, "PATCHES", 1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    """Converted weights by the names of the networks."""
    root = tmp_path_factory.mktemp("converted")
    return {
        "panns_16k": random_panns(root / "panns_16k", CNN14_16K),
        "panns_32k": random_panns(root / "panns_32k", CNN14_32K),
        "vggish": random_vggish(root / "vggish"),
        "clap": random_clap_towers(root / "clap"),
        "fused": random_clap_towers(root / "fused", fusion=True),
    }


def noise(*lengths: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [np.float32(0.1 * rng.normal(size=length)) for length in lengths]


# ---------------------------------------------------------------------------------------- panns


def test_panns_reads_nothing_behind_the_end_of_a_clip(folders: dict[str, pathlib.Path]) -> None:
    """Clips of many lengths at once are what each is alone, without any padding."""
    embedder = load_panns(folders["panns_16k"], 16_000)
    waveforms = noise(*LENGTHS)
    apply = jax.jit(Panns(embedder.config).apply)
    bound = rounding(kernel_terms(embedder.params))
    for features, waveform in zip(embedder.embed_each(waveforms), waveforms, strict=True):
        alone: Any = apply({"params": embedder.params}, waveform[None])
        assert_close(features.embeddings, alone.embeddings, bound)
        assert_close(features.logits["audioset"], alone.logits, bound)


@pytest.mark.parametrize(("name", "rate"), [("panns_16k", 16_000), ("panns_32k", 32_000)])
def test_panns_gives_a_vector_and_logits_for_each_clip(
    name: str, rate: int, folders: dict[str, pathlib.Path]
) -> None:
    """More clips than a batch has, the last one filled up."""
    embedder = load_network(name, folders[name])
    count = jax.local_device_count() + 1
    audio = np.stack(noise(*[rate] * count))
    features = embedder.embed(audio)
    assert (embedder.name, embedder.sample_rate) == (name, rate)
    assert features.embeddings.shape == (count, 8)
    assert features.logits["audioset"].shape == (count, 5)
    assert isinstance(embedder, EachEmbedder)
    bound = rounding(kernel_terms(embedder.params))
    last = embedder.embed(audio[-1:])
    assert_close(last.embeddings, features.embeddings[-1:], bound)


# --------------------------------------------------------------------------------------- vggish


@pytest.mark.parametrize("options", [{}, {"final_relu": True, "pca": True, "quantize": True}])
def test_vggish_takes_clips_of_every_length(
    options: dict[str, bool], folders: dict[str, pathlib.Path]
) -> None:
    """Patch by patch what each clip is alone; what is left of a patch at the end is dropped."""
    embedder = load_vggish(folders["vggish"], **options)
    waveforms = noise(16_000, 40_000, 15_600)
    network = Vggish(embedder.config, **({"final_relu": False} | options))
    apply = jax.jit(network.apply)
    bound = rounding(kernel_terms(embedder.params))
    found = embedder.embed_each(waveforms)
    assert [one.embeddings.shape for one in found] == [(1, 1, 8), (1, 2, 8), (1, 1, 8)]
    for features, waveform in zip(found, waveforms, strict=True):
        alone = np.asarray(apply({"params": embedder.params}, waveform[None]))
        if options:  # where rounding turns to the next step of 8 bits
            assert_within(features.embeddings, alone, 1)
        else:
            assert_close(features.embeddings, alone, bound)
    assert bool((found[0].embeddings < 0).any()) == (not options)
    assert np.isnan(stacked(found).embeddings).sum() == 2 * 8


def test_principal_components_must_be_there(tmp_path: pathlib.Path) -> None:
    folder = random_vggish(tmp_path, pca=False)
    with pytest.raises(ConvertedError, match="has no principal components; convert VGGish with"):
        load_vggish(folder, pca=True)
    with pytest.raises(ValueError, match="quantize is True and pca False"):
        load_vggish(folder, quantize=True)


# ----------------------------------------------------------------------------------------- clap


@pytest.mark.parametrize("name", ["clap", "fused"])
def test_clap_takes_the_first_ten_seconds_or_repeats(
    name: str, folders: dict[str, pathlib.Path]
) -> None:
    """As the network computes clips of ten seconds; with fusion, too, where none is longer."""
    embedder = load_clap(folders[name])
    assert isinstance(embedder, TextEmbedder)
    assert isinstance(embedder, EachEmbedder)
    short, long = noise(200_000, NUM_SAMPLES + 50_000)
    twice = np.concatenate([short, short, np.zeros(NUM_SAMPLES - 2 * len(short), np.float32)])
    cut = long[:NUM_SAMPLES]
    found = stacked(embedder.embed_each([short, long, twice, cut])).embeddings
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=rounding(6))
    np.testing.assert_array_equal(found[:2], found[2:])
    if name == "fused":
        config, params = load_audio(folders[name])
        clips = clap_mel(*batch_waveforms([twice, cut], embedder.mel), embedder.mel)
        expected = jax.jit(ClapAudio(config).apply)({"params": params}, *clips)
        assert_close(found[2:], expected, audio_rounding(config))


def test_captions_are_embedded_in_their_order(folders: dict[str, pathlib.Path]) -> None:
    embedder = load_clap(folders["clap"])
    captions = [length * "a dog barks " for length in (5, 1, 0, 3)] + ["rain"] * 9
    found = embedder.embed_text(captions)
    ids, mask = encode(embedder.tokenizer, captions, 77)
    expected = jax.jit(ClapText(embedder.text).apply)(
        {"params": embedder.params["text"]}, ids, mask
    )
    assert_close(found, expected, text_rounding(embedder.text, 77))
    with pytest.raises(ValueError, match="there are no captions for clap"):
        embedder.embed_text([])


# --------------------------------------------------------------------------------------- hashes


def test_hashes_tell_weights_and_settings_apart(
    folders: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    def hashes(load: Callable[..., Any], folder: pathlib.Path, **arguments: Any) -> list[str]:
        return [load(folder, dtype=dtype, **arguments).hash for dtype in ("float32", "bfloat16")]

    found = [
        *hashes(load_panns, folders["panns_16k"], sample_rate=16_000),
        *hashes(load_panns, folders["panns_32k"], sample_rate=32_000),
        *hashes(load_vggish, folders["vggish"]),
        *hashes(load_vggish, folders["vggish"], pca=True),
        *hashes(load_vggish, folders["vggish"], final_relu=True),
        *hashes(load_clap, folders["clap"]),
        *hashes(load_clap, folders["fused"]),
    ]
    assert len(set(found)) == len(found)
    again = random_clap_towers(tmp_path / "clap")
    assert load_clap(again).hash == load_clap(folders["clap"]).hash
    embedder = load_clap(folders["clap"])
    kernel = embedder.params["audio"]["projection_out"]["bias"]
    kernel[0] += 1
    assert embedder.hash != load_clap(folders["clap"]).hash


def test_features_of_networks_are_cached_clip_by_clip(
    folders: dict[str, pathlib.Path], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder, cache = load_panns(folders["panns_16k"], 16_000), FeatureCache(tmp_path)
    waveforms = noise(*LENGTHS)
    first = cache.each(embedder, waveforms[:3], 16_000)
    monkeypatch.setattr(embedder.__class__, "embed_each", lambda *unused: pytest.fail("computed"))
    again = cache.each(embedder, waveforms[2::-1], 16_000)
    for one, other in zip(first, again[::-1], strict=True):
        np.testing.assert_array_equal(one.embeddings, other.embeddings)
        np.testing.assert_array_equal(one.logits["audioset"], other.logits["audioset"])


# ------------------------------------------------------------------------------------ bad input


def test_clips_that_cannot_be_embedded_are_named(folders: dict[str, pathlib.Path]) -> None:
    embedder = load_panns(folders["panns_16k"], 16_000)
    (good,) = noise(8_000)
    with pytest.raises(ValueError, match="there are no clips for panns_16k"):
        embedder.embed_each([])
    with pytest.raises(ValueError, match=r"clip 1 has shape \(100,\); panns_16k takes .* 4960"):
        embedder.embed_each([good, good[:100]])
    with pytest.raises(ValueError, match="clip 1 has NaN"):
        embedder.embed_each([good, good * np.float32(np.nan)])


def test_other_names_and_folders_are_refused(
    folders: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    with pytest.raises(
        ValueError, match="the network is 'panns'; allowed: panns_16k, panns_32k, v"
    ):
        load_network("panns", folders["panns_16k"])
    with pytest.raises(ConvertedError, match="holds weights of kind 'clap', not 'panns'"):
        load_network("panns_16k", folders["clap"])
    with pytest.raises(ConvertedError, match="holds weights of kind 'panns', not 'clap'"):
        load_network("clap", folders["panns_16k"])
    with pytest.raises(ConvertedError, match="panns at 16000 Hz; panns_32k is panns at 32000 Hz"):
        load_network("panns_32k", folders["panns_16k"])
    with pytest.raises(ConvertedError, match=r"weights\.json is missing"):
        load_network("clap", tmp_path)
    with pytest.raises(ValueError, match="vggish: dtype is 'float16'; allowed: float32, bfloat16"):
        load_vggish(folders["vggish"], dtype="float16")


def test_weights_of_another_description_are_refused(tmp_path: pathlib.Path) -> None:
    """Files of two conversions in one folder, as a copy by hand makes them."""
    audio = np.zeros((1, 16_000), np.float32)
    folder, other = random_vggish(tmp_path / "vggish"), random_clap_towers(tmp_path / "clap")
    (folder / "weights.safetensors").write_bytes((other / "weights.safetensors").read_bytes())
    network = load_network("vggish", folder)
    with pytest.raises(ConvertedError, match=r"not those that its weights\.json describes.*conv_0"):
        network.embed(audio)
