"""Data of several stages speak the tokens of one codec."""

import numpy as np
import pytest
from absl import flags

from data import builder, encode_latents
from fasttta_jax.codecs import load_codec
from fasttta_jax.codecs.mel import log_mel
from fasttta_jax.codecs.spectrogram import to_patches
from fasttta_jax.input_pipeline import CODEC_FOLDER, RECORDS_FOLDER, EncodedDataset, Records
from fasttta_jax.workdir import same_files
from tests import helpers


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """Audio of another kind than the codec was fitted on, without captions."""
    folder = tmp_path_factory.mktemp("noise")
    rng = np.random.default_rng(0)
    sounds = [rng.uniform(-0.3, 0.3, helpers.CLIP_SAMPLES).astype(np.float32) for _ in range(5)]
    builder.write_dataset(
        folder,
        name="noise",
        description="For tests.",
        sample_rate=helpers.SAMPLE_RATE,
        splits={
            "train": lambda: [builder.Clip(f"n{i}", audio, []) for i, audio in enumerate(sounds)]
        },
    )
    return folder


@pytest.fixture(scope="module")
def encoded(noise, encoded_dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("encoded_noise") / "encoded"
    encode_latents.encode(noise, out, encoded_dataset)
    return out


def test_an_existing_codec_is_taken_over_unchanged(noise, encoded, encoded_dataset, capsys):
    codec_folder = encoded_dataset / CODEC_FOLDER
    assert same_files(encoded / CODEC_FOLDER, codec_folder)
    dataset = EncodedDataset(encoded)
    metadata = dataset.split("train").metadata
    assert metadata["made_from"]["codec_sha256"] == encode_latents.hash_codec(codec_folder)
    clip = Records(noise, "train")[3]
    audio = clip["audio"][None].astype(np.float32) / builder.INT16_SCALE
    expected = np.asarray(load_codec(codec_folder).encode(audio))[0].astype(np.float16)
    record = dataset.split("train")[3]
    assert record["id"] == clip["id"]
    assert record["captions"] == []
    tokens = record["tokens"].reshape(expected.shape)
    inner = slice(None, -helpers.CODEC.bands)  # the last column also sees the padding of a batch
    # One float16 rounding apart, where the batch changes the order of a sum.
    np.testing.assert_allclose(tokens[inner], expected[inner], rtol=2e-3, atol=2e-3)
    encode_latents.encode(noise, encoded, codec_folder)
    assert "already encoded" in capsys.readouterr().out
    with pytest.raises(ValueError, match="another dataset or with other settings"):
        encode_latents.encode(noise, encoded, helpers.CODEC)


def test_variance_kept_is_that_of_the_reconstruction(encoded, encoded_dataset, noise):
    """The share that fitting reports on the same data; elsewhere, that of the error."""
    fitted = Records(encoded_dataset / RECORDS_FOLDER, "train").metadata["variance_kept"]
    codec = load_codec(encoded_dataset / CODEC_FOLDER)
    own = Records(encoded_dataset.parent / "audio", "train")
    assert encode_latents.variance_kept(codec, own) == pytest.approx(fitted, abs=1e-5)

    kept = EncodedDataset(encoded).split("train").metadata["variance_kept"]
    records = Records(noise, "train")
    audio = np.stack([records[i]["audio"] for i in range(len(records))]) / builder.INT16_SCALE
    patches, rebuilt = (
        np.asarray(values, np.float64) for values in _patches(codec, audio.astype(np.float32))
    )
    error = np.sum((patches - rebuilt) ** 2)
    total = np.sum((patches - patches.mean(axis=(0, 1))) ** 2)
    assert kept == pytest.approx(1 - error / total, abs=1e-3)


def _patches(codec, audio):
    return (
        to_patches(picture, codec.config)
        for picture in (log_mel(audio, codec.config.mel), codec.to_log_mel(codec.encode(audio)))
    )


def test_a_codec_is_found_or_named(tmp_path, encoded_dataset):
    inside = encoded_dataset / CODEC_FOLDER
    assert encode_latents.find_codec(inside) == encode_latents.find_codec(encoded_dataset) == inside
    with pytest.raises(FileNotFoundError, match=r"--codec is '.*', but neither .* codec\.json"):
        encode_latents.find_codec(tmp_path)


def parsed(*arguments: str) -> flags.FlagValues:
    values = flags.FlagValues()
    encode_latents.define_flags(values)
    values(["encode_latents", "--data=a", "--out=b", *arguments])
    return values


def test_codec_flags_describe_a_codec_or_are_refused_beside_one():
    assert encode_latents.chosen_codec(parsed("--codec=c")) == "c"
    config = encode_latents.chosen_codec(parsed("--token_dim=32", "--floor=0.1"))
    assert config.token_dim == 32
    assert config.mel.floor == 0.1
    with pytest.raises(ValueError, match=r"--codec is 'c', and --token_dim, --floor would"):
        encode_latents.chosen_codec(parsed("--codec=c", "--floor=0.01", "--token_dim=64"))
    defined = set(parsed()) - {"data", "out", "codec", "?", "help", "helpfull", "helpshort"}
    assert set(encode_latents.CODEC_FLAGS) == {name for name in defined if "help" not in name}
