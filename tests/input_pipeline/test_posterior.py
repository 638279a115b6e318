"""Tokens drawn from a kept posterior."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

import fasttta_jax.codecs
from data import encode_latents
from fasttta_jax.codecs import load_codec
from fasttta_jax.codecs.base import Posterior
from fasttta_jax.config import DataConfig, MeshConfig
from fasttta_jax.input_pipeline.batches import TrainBatches, evaluation_batches
from fasttta_jax.input_pipeline.records import CODEC_FOLDER, DatasetError, EncodedDataset
from fasttta_jax.parallel.mesh import make_mesh
from tests.support import helpers


@dataclasses.dataclass(frozen=True)
class GaussianCodec:
    """A codec with a variance: tokens of the spectrogram codec, deviation by channel."""

    inner: object

    @classmethod
    def load(cls, folder):
        values = json.loads((pathlib.Path(folder) / "codec.json").read_text())
        return cls(load_codec(values["inner"]))

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def encode_posterior(self, audio):
        mean = self.inner.encode(audio)
        deviation = 0.1 * (1 + np.arange(helpers.TOKEN_DIM, dtype=np.float32))
        log_variance = np.broadcast_to(2 * np.log(deviation), mean.shape)
        return Posterior(mean, jax.numpy.asarray(log_variance))


@pytest.fixture
def gaussian(encoded_dataset, tmp_path, monkeypatch):
    """The folder of such a codec."""
    monkeypatch.setitem(fasttta_jax.codecs.LOADERS, "gaussian", GaussianCodec.load)
    folder = tmp_path / "gaussian"
    folder.mkdir()
    values = {"kind": "gaussian", "inner": str(encoded_dataset / CODEC_FOLDER)}
    (folder / "codec.json").write_text(json.dumps(values))
    return folder


def batches_of(dataset, *, sample_posterior=False, seed=0, first_step=0, num_batches=6):
    with TrainBatches(
        dataset,
        helpers.tiny_text_encoder(),
        DataConfig(batch_size=8, num_threads=1, sample_posterior=sample_posterior),
        num_tokens=helpers.NUM_TOKENS + 2,  # a column more than the clips have
        seed=seed,
        start=first_step,
        mesh=make_mesh(MeshConfig()),
    ) as batches:
        return [jax.tree.map(np.asarray, next(batches)) for _ in range(num_batches)]


@pytest.mark.usefixtures("unchecked")
def test_tokens_are_drawn_from_the_moments(encoded_dataset, gaussian, tmp_path):
    audio, out = encoded_dataset.parent / "audio", tmp_path / "encoded"
    encode_latents.encode(audio, out, gaussian, posterior="moments", batch_size=16)
    dataset = EncodedDataset(out)
    record = dataset.split("train")[0]
    assert record["log_variance"].dtype == record["tokens"].dtype == np.float16
    assert record["log_variance"].shape == record["tokens"].shape

    drawn = batches_of(dataset, sample_posterior=True)
    means = batches_of(dataset)
    jax.tree.map(np.testing.assert_array_equal, drawn, batches_of(dataset, sample_posterior=True))
    resumed = batches_of(dataset, sample_posterior=True, first_step=4, num_batches=2)
    jax.tree.map(np.testing.assert_array_equal, resumed, drawn[4:])
    errors = np.stack([a["tokens"] - b["tokens"] for a, b in zip(drawn, means, strict=True)])
    for a, b in zip(drawn, means, strict=True):
        jax.tree.map(np.testing.assert_array_equal, a["text"], b["text"])
    np.testing.assert_array_equal(errors[:, :, -2:], 0)  # the silence behind the clip
    errors = errors[:, :, :-2]
    assert len(np.unique(errors)) > 0.99 * errors.size
    expected = 0.1 * (1 + np.arange(helpers.TOKEN_DIM))
    count = errors.size / helpers.TOKEN_DIM
    np.testing.assert_allclose(
        errors.std(axis=(0, 1, 2)) / expected, 1, atol=5 / np.sqrt(2 * count)
    )
    assert np.all(np.abs(errors.mean(axis=(0, 1, 2))) < 5 * expected / np.sqrt(count))
    evaluated = next(
        evaluation_batches(
            dataset,
            helpers.tiny_text_encoder(),
            "test",
            batch_size=8,
            num_tokens=helpers.NUM_TOKENS,
            mesh=make_mesh(MeshConfig()),
        )
    )
    mean = dataset.split("test")[0]["tokens"].reshape(-1, helpers.TOKEN_DIM)
    np.testing.assert_array_equal(np.asarray(evaluated["tokens"])[0], mean.astype(np.float32))


def test_without_a_variance_none_can_be_drawn(encoded_dataset):
    with pytest.raises(DatasetError, match=r"data\.sample_posterior is True, but .*log_variance"):
        batches_of(EncodedDataset(encoded_dataset), sample_posterior=True)
