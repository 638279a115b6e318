"""Shards are what the tools that they are for read, and hold what files would."""

from __future__ import annotations

import io
import json
import tarfile

import msgpack
import numpy as np
import pytest
import soundfile
from array_record.python.array_record_module import ArrayRecordReader

from fasttta_jax.audio.loudness import Level
from fasttta_jax.generation.prompts import Prompts
from tests.support.stand_in_pipeline import RATE, job

pytestmark = pytest.mark.usefixtures("unchecked")  # the pipeline is a stand-in
PROMPTS = Prompts(tuple(f"prompt {index}" for index in range(10)))


def webdataset(path) -> list[dict]:
    """Samples as WebDataset groups them: members that follow one another, by their first dot."""
    samples: list[dict] = []
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, ending = member.name.partition(".")
            if not samples or samples[-1]["__key__"] != key:
                samples.append({"__key__": key})
            file = tar.extractfile(member)
            assert file is not None
            samples[-1][ending] = file.read()
    return [{**one, "json": json.loads(one["json"])} for one in samples]


def array_record(path) -> list[dict]:
    reader = ArrayRecordReader(str(path))
    return [msgpack.unpackb(record) for record in reader.read_all()]


@pytest.mark.parametrize(("store", "read"), [("tar", webdataset), ("array_record", array_record)])
def test_shards_hold_what_files_would(tmp_path, store, read):
    files, shards = tmp_path / "files", tmp_path / "shards"
    job(files, PROMPTS, format="flac").run()
    job(shards, PROMPTS, format="flac", store=store).run()
    names = sorted(path.name for path in shards.iterdir() if path.is_file())
    assert names == [f"clips-00000.{store}", f"clips-00001.{store}", "manifest.jsonl"]
    samples = [sample for name in names[:2] for sample in read(shards / name)]
    rows = [json.loads(line) for line in (shards / "manifest.jsonl").open()]
    plain = [json.loads(line) for line in (files / "manifest.jsonl").open()]
    for index, (sample, row, file) in enumerate(zip(samples, rows, plain, strict=True)):
        assert sample["flac"] == (files / file["file"]).read_bytes()
        assert f"{sample['__key__']}.flac" == row.pop("file") == file.pop("file")
        assert row.pop("shard") == f"clips-{index // 6:05d}.{store}"
        assert row == file == sample["json"]


@pytest.mark.parametrize("format", ["flac", "ogg", "mp3"])
def test_formats_at_a_level(tmp_path, format):
    job(tmp_path, PROMPTS, format=format, level=Level(peak_dbfs=-6.0)).run()
    rows = [json.loads(line) for line in (tmp_path / "manifest.jsonl").open()]
    for row in rows:
        audio, rate = soundfile.read(io.BytesIO((tmp_path / row["file"]).read_bytes()))
        assert rate == RATE
        assert row["file"].endswith(f".{format}")
        # Lossy coders pass a peak a little, above all at the ends of a sound that is cut.
        assert np.max(np.abs(audio)) == pytest.approx(10 ** (-6 / 20), rel=0.3)
        assert row["settings"]["peak_dbfs"] == -6.0
        assert row["gain_db"]
