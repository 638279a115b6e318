"""Converted Cnn14 computes what the specification in torch computes, from waveforms on.

Errors are relative to the largest embedding or logit; their bound is that of the sums over all
kernels and of the transform. An exchanged axis, band or pooling makes a difference of order 1.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fasttta_jax.audio.files import read_audio
from fasttta_jax.convert import panns
from fasttta_jax.convert.stored import ConversionError
from fasttta_jax.convert.write import write_conversion
from fasttta_jax.pretrained.panns import (
    CNN14_16K,
    CNN14_32K,
    Panns,
    PannsConfig,
    load_panns,
    panns_mel,
)
from tests.support import conversions
from tests.support.mel_reference import transform_terms
from tests.support.tolerance import assert_close, assert_within, kernel_terms, rounding

torch = pytest.importorskip("torch")
from tests.support.panns_models import make_cnn14  # noqa: E402

NARROW: dict[str, Any] = {
    "widths": (4, 6, 8, 12, 16, 20),
    "embedding_size": 10,
    "num_classes": 7,
}
"""No two sizes alike."""
PUBLISHED = {"16k": CNN14_16K, "32k": CNN14_32K}
AGREEMENT = 1e-4
"""Of embeddings and logits, relative to the largest, where no sharper bound can be derived."""


def noise(config: PannsConfig, seconds: float) -> np.ndarray:
    """White noise and a duller one, whose bands are all as loud as a transform's rounding shows."""
    size = (2, round(seconds * config.sample_rate))
    swell = 0.05 + 0.1 * np.sin(np.linspace(0, 20, size[1])) ** 2
    audio = swell * np.random.default_rng(0).standard_normal(size)
    audio[1, 1:] += 0.9 * audio[1, :-1]
    return np.float32(audio)


def save(reference: Any, path: pathlib.Path, **beside: Any) -> pathlib.Path:
    """As the project saves it."""
    torch.save({"iteration": 3, "model": reference.state_dict(), **beside}, path)
    return path


def converted(path: pathlib.Path, folder: pathlib.Path) -> tuple[PannsConfig, Any]:
    write_conversion(conversions.convert(panns, path), folder)
    return load_panns(folder)


def outputs(reference: Any, params: Any, config: PannsConfig, audio: np.ndarray) -> Any:
    """Embeddings and logits of the reference, and ours."""
    with torch.no_grad():
        expected = [values.numpy() for values in reference(torch.tensor(audio))]
    found = jax.jit(Panns(config).apply)({"params": params}, audio)
    assert all(values.dtype == jnp.float32 for values in found)
    return list(zip(found, expected, strict=True))


def terms(config: PannsConfig, params: Any) -> int:
    """In a row: the transform, a band's power and its logarithm, and all kernels."""
    return transform_terms(config.n_fft) + 200 + kernel_terms(params)


@pytest.mark.parametrize("rate", PUBLISHED)
def test_checkpoints_agree(rate: str, tmp_path: pathlib.Path) -> None:
    config = dataclasses.replace(PUBLISHED[rate], **NARROW)
    reference = make_cnn14(config)
    loaded, params = converted(save(reference, tmp_path / "x.pth"), tmp_path / "out")
    assert loaded == config
    shapes = jax.eval_shape(Panns(config).init, jax.random.key(0), noise(config, 2))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes["params"])
    for found, expected in outputs(reference, params, config, noise(config, 2)):
        assert np.ptp(expected, axis=0).max() > 0.01 * np.abs(expected).max()
        assert (expected != 0).mean() > 0.2
        assert_close(found, expected, rounding(terms(config, params)))


@pytest.mark.long
@pytest.mark.parametrize("rate", PUBLISHED)
def test_published_sizes_agree(rate: str, tmp_path: pathlib.Path) -> None:
    config = PUBLISHED[rate]
    reference = make_cnn14(config)
    loaded, params = converted(save(reference, tmp_path / "x.pth"), tmp_path / "out")
    assert loaded == config
    bound = min(AGREEMENT, rounding(terms(config, params)))
    for found, expected in outputs(reference, params, config, noise(config, 10)):
        assert_close(found, expected, bound)


@pytest.mark.parametrize("rate", PUBLISHED)
def test_recordings_agree(rate: str, datasets: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Real sounds have silent bands beside loud ones, where a transform's rounding shows in dB.

    It is compared as amplitudes, relative to the loudest of a frame; what the network makes of it
    is compared as a whole.
    """
    config = dataclasses.replace(PUBLISHED[rate], **NARROW)
    reference = make_cnn14(config)
    _, params = converted(save(reference, tmp_path / "x.pth"), tmp_path / "out")
    files = sorted((datasets / "esc10" / "audio").iterdir())[::160]
    length = 2 * config.sample_rate
    audio = np.stack([read_audio(file, config.sample_rate)[:length] for file in files])
    with torch.no_grad():
        expected = reference.log_mel(torch.tensor(audio)).numpy()
    assert_amplitudes(np.asarray(panns_mel(audio, config)), expected, config)
    for found, expected in outputs(reference, params, config, audio):
        assert_close(found, expected, AGREEMENT)


def assert_amplitudes(found: np.ndarray, expected: np.ndarray, config: PannsConfig) -> None:
    """dB [B, T, F] as amplitudes, off by a transform's rounding of the loudest band of a frame."""
    found, expected = (10 ** (np.float64(values) / 20) for values in (found, expected))
    loudest = expected.max(axis=-1, keepdims=True)
    # the reference adds n_fft products for a bin; a logarithm of 200 dB rounds at its size
    bound = rounding(config.n_fft + transform_terms(config.n_fft)) + rounding(200)
    assert_within(found, expected, bound * np.maximum(loudest, 1e-5))


def test_silence_agrees(tmp_path: pathlib.Path) -> None:
    """Digital zeros are -100 dB in every band, on both sides."""
    config = dataclasses.replace(CNN14_16K, **NARROW)
    reference = make_cnn14(config)
    _, params = converted(save(reference, tmp_path / "x.pth"), tmp_path / "out")
    audio = np.zeros((2, 2 * config.sample_rate), np.float32)
    np.testing.assert_array_equal(panns_mel(audio, config), -100.0)
    for found, expected in outputs(reference, params, config, audio):
        assert_close(found, expected, rounding(terms(config, params)))


def test_every_key_is_accounted_for(tmp_path: pathlib.Path) -> None:
    """Arrays of the sampler and counters of training are named and left out."""
    config = dataclasses.replace(CNN14_16K, **NARROW)
    sampler = {"queue": [1, 2], "indexes_per_class": [np.arange(3), np.arange(5)]}
    path = save(make_cnn14(config), tmp_path / "Cnn14_16k_mAP=0.438.pth", sampler=sampler)
    metadata = conversions.convert(panns, path).metadata
    assert metadata["kind"] == "panns"
    assert metadata["weights"] == "model"
    assert metadata["config"]["sample_rate"] == 16_000
    dropped = metadata["dropped"]
    counters = [key for key, reason in dropped.items() if reason == "a counter of training"]
    assert len(counters) == 13
    assert all(key.endswith("num_batches_tracked") for key in counters)
    assert {key: reason for key, reason in dropped.items() if key not in counters} == {
        "iteration": "not the model",
        "sampler": "not the model",
        **dict.fromkeys(
            (
                "spectrogram_extractor.stft.conv_real.weight",
                "spectrogram_extractor.stft.conv_imag.weight",
                "logmel_extractor.melW",
            ),
            "computed by the front end, which was found to be the same",
        ),
    }
    bare = tmp_path / "bare.pth"
    state = make_cnn14(config).state_dict()
    torch.save(state, bare, _use_new_zipfile_serialization=False)  # as in 2019
    assert conversions.convert(panns, bare).metadata["weights"] == "bare"


def refused(tmp_path: pathlib.Path, state: dict[str, Any], name: str = "x.pth") -> str:
    torch.save({"model": state}, tmp_path / name)
    with pytest.raises(ConversionError) as caught:
        conversions.convert(panns, tmp_path / name)
    return str(caught.value)


def test_other_checkpoints_are_refused(tmp_path: pathlib.Path) -> None:
    config = dataclasses.replace(CNN14_16K, **NARROW)
    state = make_cnn14(config).state_dict()
    shallow = {key: value for key, value in state.items() if "conv_block6" not in key}
    assert "holds no Cnn14: there is none of conv_block6.*; its keys begin with" in refused(
        tmp_path, shallow
    )
    assert "pools decisions over time" in refused(
        tmp_path, state, "Cnn14_DecisionLevelMax_mAP=0.385.pth"
    )
    bad = dict(state)
    del bad["conv_block3.bn2.running_var"]
    bad["conv_block2.conv1.weight"] = torch.zeros(6, 4, 5, 5)
    bad["att_block.att.bias"] = torch.zeros(7)
    message = refused(tmp_path, bad)
    assert "3 keys are wrong" in message
    for line in (
        "conv_block3.bn2.running_var: missing, expected shape (8)",
        "conv_block2.conv1.weight: found shape (6, 4, 5, 5), expected (6, 4, 3, 3)",
        "att_block.att.bias: not expected, found of shape (7)",
    ):
        assert line in message
    assert "note: not expected, found a list" in refused(tmp_path, state | {"note": [1] * 1000})
    del bad["fc1.weight"]
    assert "fc1.weight is missing" in refused(tmp_path, bad)


def test_other_front_ends_are_refused(tmp_path: pathlib.Path) -> None:
    """Other bands, another window, another length of it; versions of librosa round otherwise."""
    config = dataclasses.replace(CNN14_16K, **NARROW)
    state = make_cnn14(config).state_dict()
    bands, cosines = "logmel_extractor.melW", "spectrogram_extractor.stft.conv_real.weight"
    wider = make_cnn14(dataclasses.replace(config, f_min=20.0)).state_dict()
    message = refused(tmp_path, {**state, bands: wider[bands]})
    assert f"{bands} is off by" in message
    assert "64 Slaney bands from 50 to 8000 Hz at 16000 Hz" in message
    assert f"{cosines} is off by" in refused(
        tmp_path, {**state, cosines: torch.full_like(state[cosines], torch.nan)}
    )
    short = make_cnn14(dataclasses.replace(config, n_fft=256)).state_dict()
    assert "the window has 256 samples; allowed: 512 (16000 Hz), 1024 (32000 Hz)" in refused(
        tmp_path, short
    )
    torch.save({**state, bands: state[bands] * (1 + 1e-6)}, tmp_path / "rounded.pth")
    assert conversions.convert(panns, tmp_path / "rounded.pth").metadata["kind"] == "panns"
