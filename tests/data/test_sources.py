"""Whatever audio is kept in, it is read by index as the same clips, or refused by name."""

import io
import json
import shutil

import numpy as np
import pytest
import soundfile
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core import dataset_info, naming, splits

from data import encode_latents, folder
from data.common import records as builder
from data.common import sources
from data.common.tables import Skipped
from fasttta_jax.audio import files as audio_lib
from fasttta_jax.input_pipeline.records import Records
from tests.support import helpers

RATE = 16_000


def tone(frequency=440.0, seconds=0.2, rate=RATE):
    return (0.3 * np.sin(2 * np.pi * frequency * np.arange(round(rate * seconds)) / rate)).astype(
        np.float32
    )


def read_all(source, split="train"):
    items = [item for i in range(source.lengths[split]) for item in source.read(split, i)]
    clips = {item.id: item for item in items if isinstance(item, builder.Clip)}
    return clips, [(item.file, item.reason) for item in items if isinstance(item, Skipped)]


def write_foreign(path, features, records, *, audio=None, metadata=None, split="train"):
    """A dataset of TFDS; `audio` describes the feature "audio" as TensorFlow would."""
    path.mkdir(parents=True)
    features = tfds.features.FeaturesDict(features)
    template = naming.ShardedFileTemplate(
        dataset_name="foreign", data_dir=path, split=split, filetype_suffix="array_record"
    )
    writer = ArrayRecordWriter(
        str(template.sharded_filepath(shard_index=0, num_shards=1)), "group_size:1"
    )
    for record in records:
        writer.write(features.serialize_example(record))
    writer.close()
    info = dataset_info.DatasetInfo(
        builder=dataset_info.DatasetIdentity(
            name="foreign", version=tfds.core.Version("1.0.0"), data_dir=str(path), module_name=""
        ),
        features=features,
        metadata=tfds.core.MetadataDict(**(metadata or {})),
    )
    info.set_file_format("array_record")
    split_info = splits.SplitInfo(
        name=split, shard_lengths=[len(records)], num_bytes=1, filename_template=template
    )
    info.set_splits(splits.SplitDict([split_info]))
    info.write_to_directory(str(path))
    if audio is not None:
        described = json.loads((path / "features.json").read_text())
        described["featuresDict"]["features"]["audio"] = {
            "pythonClassName": "tensorflow_datasets.core.features.audio_feature.Audio",
            "audio": audio,
        }
        (path / "features.json").write_text(json.dumps(described))
    return path


def tensor(*shape, dtype=np.float32):
    return tfds.features.Tensor(shape=shape, dtype=dtype)


@pytest.fixture(scope="module", autouse=True)
def _quiet_tfds():
    tfds.disable_progress_bar()


def test_a_dataset_of_our_own_is_read_as_it_is(tmp_path):
    clips = [builder.Clip("a", tone(), ["x", "y"], {"events": ["dog"]})]
    clips += [builder.Clip("b", np.zeros(0, np.float32), ["z"])]
    helpers.write_clips(tmp_path, "own", {"train": clips}, sample_rate=RATE)
    source = sources.open_audio_source(tmp_path, RATE)
    found, skipped = read_all(source)
    assert skipped == [("b", "empty")]
    stored = Records(tmp_path, "train")[0]["audio"]
    np.testing.assert_array_equal(found["a"].audio, stored.astype(np.float32) / 32767)
    assert (found["a"].captions, found["a"].labels) == (["x", "y"], {"events": ["dog"]})
    plain = sources.open_audio_source(tmp_path, RATE, with_captions=False)
    assert read_all(plain)[0]["a"].captions == []
    assert plain.made_from != source.made_from
    assert sources.open_audio_source(tmp_path, RATE).made_from == source.made_from
    with pytest.raises(ValueError, match="sample rate of 16000 Hz; allowed: 8000"):
        sources.open_audio_source(tmp_path, 8000)
    with pytest.raises(ValueError, match=r"--sample_rate is 8000, but .* says it has 16000"):
        sources.open_audio_source(tmp_path, 8000, source_rate=8000)


def test_a_folder_gives_the_clips_that_data_folder_makes_of_it(tmp_path):
    audio_dir = tmp_path / "audio"
    audio_dir.mkdir()
    soundfile.write(audio_dir / "a.wav", 0.1 * tone(rate=48_000) + 0.2, 48_000)
    soundfile.write(audio_dir / "b.flac", np.stack([tone(300), tone(500)], 1), RATE)
    soundfile.write(audio_dir / "c.wav", np.append(tone(), np.nan), RATE, "FLOAT")
    soundfile.write(audio_dir / "d.wav", np.stack([tone()] * 6, 1), RATE)
    rows = [{"file": f, "caption": f, "split": "train"} for f in ("a.wav", "b.flac", "c.wav")]
    rows += [{"file": "d.wav", "caption": "d", "split": "train", "events": "dog"}]
    (audio_dir / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    made = folder.build(audio_dir, tmp_path / "made", name="made", max_skipped_fraction=1)
    expected, _ = read_all(sources.open_audio_source(made, RATE))
    found, skipped = read_all(sources.open_audio_source(audio_dir, RATE))
    assert skipped == [("c.wav", "not finite"), ("d.wav", "channels")]
    assert found.keys() == expected.keys() == {"a.wav", "b.flac"}
    for name, clip in found.items():
        np.testing.assert_allclose(clip.audio, expected[name].audio, atol=0.51 / 32767)
        assert clip.captions == expected[name].captions
        assert clip.labels == expected[name].labels


def test_a_folder_without_a_table_is_taken_when_that_is_said(tmp_path):
    for index in range(3):
        soundfile.write(tmp_path / f"{index}.wav", tone(), RATE)
    with pytest.raises(FileNotFoundError, match=r"holds neither .*--without_captions"):
        sources.open_audio_source(tmp_path, RATE)
    source = sources.open_audio_source(tmp_path, RATE, with_captions=False)
    assert sum(source.lengths.values()) == 3
    before = source.made_from
    soundfile.write(tmp_path / "1.wav", tone(seconds=0.3), RATE)
    assert sources.open_audio_source(tmp_path, RATE, with_captions=False).made_from != before
    with pytest.raises(ValueError, match="say it themselves"):
        sources.open_audio_source(tmp_path, RATE, source_rate=RATE, with_captions=False)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        sources.open_audio_source(tmp_path / "nowhere", RATE)


@pytest.mark.parametrize("dtype", [np.int16, np.int64, np.float32])
def test_a_foreign_dataset_is_resampled_and_levelled(tmp_path, dtype):
    scale = 1 if dtype == np.float32 else 20_000
    waves = [(scale * tone(rate=8000) + scale * 0.1).astype(dtype), np.zeros(0, dtype)]
    records = [
        {"audio": waves[0], "text": " a dog ", "youtube_id": "x", "audio_id": 7},
        {"audio": waves[0], "text": "  ", "youtube_id": "x", "audio_id": 8},
        {"audio": waves[1], "text": "nothing", "youtube_id": "x", "audio_id": 9},
    ]
    text = tfds.features.Text()
    features = {"text": text, "youtube_id": text, "audio_id": tensor(dtype=np.int64)}
    path = write_foreign(
        tmp_path / "foreign",
        {"audio": tensor(None, dtype=dtype), **features},
        records,
        audio={
            "shape": {"dimensions": ["-1"]},
            "dtype": np.dtype(dtype).name,
            "sampleRate": "8000",
            "encoding": "NONE",
        },
        split="val",
    )
    source = sources.open_audio_source(path, RATE)
    clips, skipped = read_all(source, "validation")
    assert skipped == [("8", "no caption"), ("9", "empty")]
    assert clips["7"].captions == ["a dog"]
    audio = clips["7"].audio
    assert (audio.dtype, audio.size) == (np.float32, 3200)
    assert np.max(np.abs(audio)) == pytest.approx(0.5)
    samples = waves[0].astype(np.float32) / (1 if scale == 1 else 32768)
    expected = audio_lib.level(audio_lib.resample_audio(samples, 8000, RATE, name=""))
    np.testing.assert_allclose(audio, expected, atol=1e-6)


def test_a_foreign_dataset_may_keep_the_files_themselves(tmp_path):
    def file(samples, format):
        buffer = io.BytesIO()
        soundfile.write(buffer, samples, 8000, format=format)
        return buffer.getvalue()

    stored = [file(tone(rate=8000), "FLAC"), file(np.stack([tone()] * 3, 1), "WAV"), b"no audio"]
    stored += [file(tone(rate=8000, seconds=70), "FLAC")]
    text = tfds.features.Text()
    path = write_foreign(
        tmp_path / "foreign",
        {"audio": text, "captions": tfds.features.Sequence(text)},
        [{"audio": data, "captions": ["one", "", "two", "one"]} for data in stored],
        audio={"shape": {"dimensions": ["-1"]}, "dtype": "int64", "lazyDecode": True},
    )
    clips, skipped = read_all(sources.open_audio_source(path, RATE))
    assert skipped == [("train_0000001", "channels"), ("train_0000002", "unreadable")]
    assert clips["train_0000000"].captions == ["one", "two"]
    assert clips["train_0000000"].audio.size == 3200
    pieces = [clips[f"train_0000003#{index}"].audio.size for index in range(2)]
    assert pieces == [35 * RATE, 35 * RATE]


def test_what_is_missing_or_ambiguous_is_named(tmp_path):
    text, wave = tfds.features.Text(), tensor(None)
    one = {"audio": tone(), "waveform": tone(), "caption": "a", "text": "b", "words": 1.0}
    kinds = {"audio": wave, "waveform": wave, "caption": text, "text": text, "words": tensor()}

    def opened(*names, audio=None, metadata=None, **options):
        path = tmp_path / f"dataset{len(list(tmp_path.iterdir()))}"
        features = {name: kinds[name] for name in names}
        record = {name: one[name] for name in names}
        write_foreign(path, features, [record], audio=audio, metadata=metadata)
        return sources.open_audio_source(path, RATE, **options)

    rate = {"metadata": {"sample_rate": RATE}}
    with pytest.raises(ValueError, match=r"no audio; .* caption \(Text\), words \(Tensor\)"):
        opened("caption", "words", **rate)
    with pytest.raises(ValueError, match=r"audio in audio, waveform; allowed: one"):
        opened("audio", "waveform", **rate)
    with pytest.raises(ValueError, match=r"captions in caption, text; allowed: one of"):
        opened("audio", "caption", "text", **rate)
    with pytest.raises(
        ValueError, match="does not say its sample rate; give it with --sample_rate"
    ):
        opened("audio")
    with pytest.raises(ValueError, match=r"--sample_rate is 8000, but .* says it has 16000 Hz"):
        opened("audio", source_rate=8000, **rate)
    for source in (opened("audio", "words", source_rate=RATE), opened("waveform", **rate)):
        clips, skipped = read_all(source)
        assert (list(clips), skipped) == (["train_0000000"], [])
        assert clips["train_0000000"].captions == []
    both = opened("audio", "caption", "text", with_captions=False, **rate)
    assert read_all(both)[0]["train_0000000"].captions == []

    path = tmp_path / "dataset0"
    info = (path / "dataset_info.json").read_text()
    (path / "dataset_info.json").write_text(info.replace("array_record", "tfrecord", 1))
    with pytest.raises(ValueError, match="kept as tfrecord; allowed: array_record"):
        sources.open_audio_source(path, RATE)


def test_a_description_that_tfds_cannot_read_is_named(tmp_path, encoded_dataset):
    shutil.copytree(encoded_dataset.parent / "audio", tmp_path / "audio")
    (metadata,) = (tmp_path / "audio").rglob("metadata.json")
    metadata.unlink()  # as with data of others, which have no hashes
    (info,) = (tmp_path / "audio").rglob("dataset_info.json")
    info.write_text(json.dumps({**json.loads(info.read_text()), "description": 3}))
    with pytest.raises(ValueError, match=r"dataset_info\.json is damaged"):
        sources.open_audio_source(tmp_path / "audio", 16_000)


def test_a_foreign_dataset_with_an_id_twice_is_refused(tmp_path, encoded_dataset):
    features = {"audio": tensor(None), "key": tfds.features.Text()}
    keys = ["a", "b", "a"]
    records = [{"audio": tone(rate=helpers.SAMPLE_RATE), "key": key} for key in keys]
    path = write_foreign(tmp_path / "foreign", features, records)
    with pytest.raises(ValueError, match="split 'train' has two clips with the id 'a', in items"):
        encode_latents.encode(
            path,
            tmp_path / "encoded",
            encoded_dataset,
            source_rate=helpers.SAMPLE_RATE,
            with_captions=False,
            clips_per_shard=2,
        )
    assert not (tmp_path / "encoded/records").exists()
