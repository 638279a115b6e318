"""Data of several stages speak the tokens of one codec, whoever encoded them and however often."""

import json
import shutil
import signal
import time

import jax
import numpy as np
import pytest
import soundfile
from absl import flags

from data import encode_latents, spectrogram_codec
from data.common import batches, codecs
from data.common.records import Clip
from data.common.sources import open_audio_source
from fasttta_jax.audio.files import INT16_SCALE
from fasttta_jax.audio.mel import log_mel
from fasttta_jax.codecs import load_codec
from fasttta_jax.codecs.spectrogram import SpectrogramConfig, to_patches
from fasttta_jax.input_pipeline.records import (
    CODEC_FOLDER,
    RECORDS_FOLDER,
    EncodedDataset,
    Records,
    find_records,
)
from fasttta_jax.workdir.folder import same_files
from tests.support import helpers, launch
from tests.support.tolerance import assert_one_step_of_float16

SHARES = {"clips_per_shard": 1, "batch_size": 16}


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """Audio of another kind than the codec was fitted on, without captions."""
    folder = tmp_path_factory.mktemp("noise")
    rng = np.random.default_rng(0)
    sounds = [rng.uniform(-0.3, 0.3, helpers.CLIP_SAMPLES).astype(np.float32) for _ in range(5)]
    clips = [Clip(f"n{i}", audio, []) for i, audio in enumerate(sounds)]
    helpers.write_clips(folder, "noise", {"train": clips})
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
    assert metadata["made_from"]["codec_sha256"] == codecs.hash_part(codec_folder)
    clip = Records(noise, "train")[3]
    audio = clip["audio"][None].astype(np.float32) / INT16_SCALE
    expected = np.asarray(load_codec(codec_folder).encode(audio))[0].astype(np.float16)
    record = dataset.split("train")[3]
    assert record["id"] == clip["id"]
    assert record["captions"] == []
    tokens = record["tokens"].reshape(expected.shape)
    inner = slice(None, -helpers.CODEC.bands)  # the last column also sees the padding of a batch
    assert_one_step_of_float16(tokens[inner], expected[inner])
    encode_latents.encode(noise, encoded, codec_folder)
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(ValueError, match="from other data or with other settings: posterior is"):
        encode_latents.encode(noise, encoded, codec_folder, posterior="moments")


def test_variance_kept_is_that_of_the_reconstruction(encoded_dataset, noise):
    """The share that fitting reports on the same data; elsewhere, that of the error."""
    own = open_audio_source(encoded_dataset.parent / "audio", helpers.SAMPLE_RATE)
    codec, fitted = spectrogram_codec.fit(helpers.CODEC, own)
    assert spectrogram_codec.variance_kept(codec, own) == pytest.approx(fitted, abs=1e-5)

    kept = spectrogram_codec.variance_kept(codec, open_audio_source(noise, helpers.SAMPLE_RATE))
    records = Records(noise, "train")
    audio = np.stack([records[i]["audio"] for i in range(len(records))]) / INT16_SCALE
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
    assert codecs.find_codec(inside) == codecs.find_codec(encoded_dataset) == inside
    with pytest.raises(FileNotFoundError, match=r"--codec is '.*', but neither .* codec\.json"):
        codecs.find_codec(tmp_path)


def parsed(*arguments: str) -> flags.FlagValues:
    values = flags.FlagValues()
    spectrogram_codec.define_flags(values)
    values(["spectrogram_codec", "--data=a", *arguments])
    return values


def test_codec_flags_describe_a_codec():
    config = spectrogram_codec.chosen_config(parsed("--out=b", "--token_dim=32", "--floor=0.1"))
    assert config.token_dim == 32
    assert config.mel.floor == 0.1
    assert spectrogram_codec.chosen_config(parsed("--out=b")) == SpectrogramConfig()
    for wrong in ((), ("--out=b", "--measure=c")):
        with pytest.raises(flags.IllegalFlagValueError, match=r"\(out, measure\)"):
            parsed(*wrong)


def test_a_codec_is_fitted_once_and_never_replaced(encoded_dataset, noise, tmp_path):
    """Fitting again on the same data gives the same bytes; other data, another codec."""
    folder = encoded_dataset.parent / "codec"
    again = helpers.fit_codec(encoded_dataset.parent / "audio", tmp_path / "codec")
    assert same_files(folder, again)
    assert same_files(folder, encoded_dataset / CODEC_FOLDER)
    before = {path: path.stat().st_mtime_ns for path in again.iterdir()}
    helpers.fit_codec(encoded_dataset.parent / "audio", again)
    assert {path: path.stat().st_mtime_ns for path in again.iterdir()} == before
    with pytest.raises(ValueError, match="which holds another codec; choose another folder"):
        helpers.fit_codec(noise, again)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="which holds other files; choose another folder"):
        helpers.fit_codec(noise, tmp_path)


def test_shares_and_posteriors_are_checked(noise, encoded_dataset, tmp_path):
    for options, message in (
        ({"num_processes": 0}, "num_processes is 0; allowed: 1 or more"),
        ({"process_id": 2, "num_processes": 2}, "process_id is 2; allowed: 0 to 1"),
        ({"workers": 0}, "workers is 0"),
        ({"batch_size": 12}, "batch_size is 12; allowed: multiples of the 8 local devices"),
        ({"clips_per_shard": 0}, "clips_per_shard is 0"),
        ({"posterior": "median"}, "posterior is 'median'; allowed: 'mean' or 'moments'"),
        ({"posterior": "moments"}, "'moments', but a SpectrogramCodec gives no variance"),
    ):
        with pytest.raises(ValueError, match=message):
            encode_latents.encode(noise, tmp_path / "out", encoded_dataset, **options)
    assert not (tmp_path / "out").exists()


def command(audio, out, codec, *arguments: str) -> launch.Job:
    """The command line, with as many devices as here: they decide the last bit of a sum."""
    flags_ = {"data": audio, "out": out, "codec": codec, **SHARES}
    settings = [f"--{name}={value}" for name, value in flags_.items()]
    return launch.start(
        ["-m", "data.encode_latents", *settings, *arguments],
        num_processes=1,
        devices_per_process=jax.local_device_count(),
    )


@pytest.fixture(scope="module")
def uninterrupted(encoded_dataset, tmp_path_factory):
    """All splits of the tiny dataset in 40 shards, from one process."""
    out = tmp_path_factory.mktemp("uninterrupted") / "encoded"
    audio = encoded_dataset.parent / "audio"
    encode_latents.encode(audio, out, encoded_dataset, **SHARES)
    return out


def test_a_killed_run_goes_on_where_it_was(encoded_dataset, uninterrupted, tmp_path, capsys):
    audio, out = encoded_dataset.parent / "audio", tmp_path / "encoded"
    deadline = time.monotonic() + 120
    # not the whole of `out`: folders that are renamed meanwhile
    incomplete = out / "records.incomplete"
    with command(audio, out, encoded_dataset) as job:
        while len(list(incomplete.glob("*/*/shards/*.json"))) < 3 and time.monotonic() < deadline:
            assert job.processes[0].exitcode is None, job.outputs()
            time.sleep(0.002)
        job.signal(0, signal.SIGKILL)
        job.wait()
    assert not (out / RECORDS_FOLDER).exists()
    notes = [path.relative_to(incomplete) for path in incomplete.glob("*/*/shards/*.json")]
    assert 3 <= len(notes) < sum(helpers.NUM_CLIPS.values())
    finished = {path: (incomplete / path).stat().st_mtime_ns for path in notes}
    with pytest.raises(ValueError, match="clips_per_shard is 1 there and 3 here"):
        encode_latents.encode(audio, out, encoded_dataset, clips_per_shard=3)

    encode_latents.encode(audio, out, encoded_dataset, **SHARES)
    left = {path: (out / RECORDS_FOLDER / path).stat().st_mtime_ns for path in notes}
    assert left == finished
    assert f"{sum(helpers.NUM_CLIPS.values())} clips encoded" in capsys.readouterr().out
    assert EncodedDataset(out).split("train").metadata == (
        EncodedDataset(uninterrupted).split("train").metadata
    )
    encode_latents.encode(audio, out, encoded_dataset, **SHARES)
    assert "nothing to do" in capsys.readouterr().out


def test_two_hosts_make_what_one_makes(encoded_dataset, uninterrupted, tmp_path):
    audio, out = encoded_dataset.parent / "audio", tmp_path / "encoded"
    hosts = [
        command(audio, out, encoded_dataset, f"--process_id={host}", "--num_processes=2")
        for host in range(2)
    ]
    results = [result for job in hosts for result in job.wait(300)]
    assert [result.returncode for result in results] == [0, 0], results
    assert any("clips encoded" in result.stdout for result in results)
    metadata = [EncodedDataset(each).split("train").metadata for each in (out, uninterrupted)]
    assert metadata[0] == metadata[1]
    assert same_files(out / CODEC_FOLDER, uninterrupted / CODEC_FOLDER)
    statistics = [(folder / "statistics.json").read_text() for folder in (out, uninterrupted)]
    assert statistics[0] == statistics[1]
    assert not list(out.glob("*incomplete*"))


def test_statistics_are_those_of_the_training_tokens(uninterrupted):
    records = EncodedDataset(uninterrupted).split("train")
    tokens = np.concatenate([records[i]["tokens"].reshape(-1, 8) for i in range(len(records))])
    found = json.loads((uninterrupted / "statistics.json").read_text())
    assert found["splits"] == ["train"]
    assert found["std"] == pytest.approx(tokens.astype(np.float64).std())
    assert found["scaling"] == pytest.approx(1 / found["std"])
    assert records.metadata["statistics"] == found
    assert records.metadata["num_records"] == helpers.NUM_CLIPS


def test_another_codec_cannot_go_on(encoded_dataset, noise, tmp_path, monkeypatch):
    """Shards of one dataset speak the tokens of one codec."""
    audio, out = encoded_dataset.parent / "audio", tmp_path / "encoded"
    with monkeypatch.context() as patch:
        patch.setattr(batches, "encode_clips", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            encode_latents.encode(audio, out, encoded_dataset)
    assert not (out / RECORDS_FOLDER).exists()
    other = helpers.fit_codec(noise, tmp_path / "other")
    with pytest.raises(ValueError, match=r"codec_sha256 is '\w+' there and '\w+' here"):
        encode_latents.encode(audio, out, other)
    shutil.rmtree(out / CODEC_FOLDER)
    encode_latents.encode(audio, out, encoded_dataset)
    assert same_files(out / CODEC_FOLDER, encoded_dataset / CODEC_FOLDER)
    first = EncodedDataset(encoded_dataset).split("train").metadata
    assert EncodedDataset(out).split("train").metadata == first


def test_another_codec_beside_no_records_is_replaced(encoded_dataset, noise, tmp_path):
    """Left by a start that was killed before any shard was planned."""
    out = tmp_path / "encoded"
    other = helpers.fit_codec(noise, tmp_path / "other")
    shutil.copytree(other, out / CODEC_FOLDER)
    encode_latents.encode(noise, out, encoded_dataset)
    assert same_files(out / CODEC_FOLDER, encoded_dataset / CODEC_FOLDER)


def test_what_cannot_be_used_is_skipped_and_counted(encoded_dataset, tmp_path, capsys):
    audio_dir = tmp_path / "sounds"
    audio_dir.mkdir()
    rng = np.random.default_rng(0)
    for index in range(5):
        noise = rng.uniform(-0.3, 0.3, 9000 + 3000 * index)
        soundfile.write(audio_dir / f"{index}.wav", noise, helpers.SAMPLE_RATE)
    soundfile.write(audio_dir / "nan.wav", [0.1, np.nan], helpers.SAMPLE_RATE, "FLOAT")
    soundfile.write(audio_dir / "six.wav", rng.uniform(-1, 1, (9000, 6)), helpers.SAMPLE_RATE)
    (audio_dir / "text.wav").write_text("not audio")
    files = [*(f"{index}.wav" for index in range(5)), "nan.wav", "six.wav", "text.wav"]
    table = "".join(f"{file},a sound,train\n" for file in (*files, "0.wav"))
    (audio_dir / "metadata.csv").write_text("file,caption,split\n" + table)
    out = tmp_path / "encoded"
    encode_latents.encode(audio_dir, out, encoded_dataset, clips_per_shard=3, batch_size=8)
    records = EncodedDataset(out).split("train")
    assert [records[index]["id"] for index in range(len(records))] == files[:5]
    columns = [len(records[index]["tokens"]) for index in range(5)]
    assert columns == [-(-(9000 + 3000 * index) // 2560) for index in range(5)]
    reasons = {"not finite": 1, "channels": 1, "unreadable": 1}
    assert records.metadata["skipped"] == reasons
    assert records.metadata["left_out"] == {"repeated caption": 1}
    listed = (find_records(out / RECORDS_FOLDER) / "skipped.jsonl").read_text().splitlines()
    assert [json.loads(line)["file"] for line in listed] == files[5:]
    printed = capsys.readouterr().out
    assert "5 clips encoded" in printed
    assert all(f"{reason}: 1" in printed for reason in reasons)
