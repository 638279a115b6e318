"""Encoded datasets are read wherever they lie, and a file that was not copied whole is named."""

from __future__ import annotations

import pathlib
import re
import shutil

import pytest

from fasttta_jax.input_pipeline.records import DatasetError, EncodedDataset, find_records
from fasttta_jax.storage.files import StorageError

ODD = ("run[1] @2,3*?", ".incomplete/incomplete.{a} ~#%20:é", "records-00000-of-00002\n'\"")


@pytest.mark.parametrize("name", ODD)
def test_any_path_can_hold_a_dataset(
    name: str, encoded_dataset: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    shutil.copytree(encoded_dataset, tmp_path / name)
    (tmp_path / "link").symlink_to(tmp_path / name)
    for folder in (tmp_path / name, tmp_path / "link"):
        records = EncodedDataset(folder).split("train")
        expected = EncodedDataset(encoded_dataset).split("train")
        assert len(records) == len(expected)
        assert records[0]["id"] == expected[0]["id"]


@pytest.mark.parametrize(
    "name",
    [
        *("dataset_info.json", "features.json", "metadata.json"),
        *("latents-train.array_record-00000", "codec.json", "statistics.npz"),
    ],
)
@pytest.mark.parametrize("how", ["cut", "emptied", "other", "missing"])
def test_a_damaged_file_is_named(
    name: str, how: str, encoded_dataset: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(encoded_dataset, copy)
    (file,) = copy.rglob(name)
    content = file.read_bytes()
    if how == "missing":
        file.unlink()
    else:
        half = content[: len(content) // 2]
        file.write_bytes({"cut": half, "emptied": b"", "other": b"[]" + bytes(70_000)}[how])
    if (name, how) == ("metadata.json", "missing"):
        return  # datasets of other makers have none
    with pytest.raises((ValueError, OSError), match=re.escape(name)):
        EncodedDataset(copy).split("train")[0]


def test_a_damaged_record_is_named(encoded_dataset: pathlib.Path, tmp_path: pathlib.Path) -> None:
    shutil.copytree(encoded_dataset, tmp_path / "copy")
    folder = find_records(tmp_path / "copy")
    (shard,) = folder.glob("*-train.array_record*")
    content = bytearray(shard.read_bytes())
    content[200] ^= 0xFF
    shard.write_bytes(content)
    with pytest.raises(DatasetError, match=re.escape(shard.name)):
        EncodedDataset(tmp_path / "copy").split("train")[0]


def test_a_codec_that_did_not_make_the_records_is_named(
    encoded_dataset: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """Its tokens would sound otherwise, and nothing else would say so."""
    shutil.copytree(encoded_dataset, tmp_path / "copy")
    file = tmp_path / "copy" / "codec" / "codec.json"
    file.write_text(
        file.read_text().replace('"griffin_lim_iterations": 4', '"griffin_lim_iterations": 5')
    )
    dataset = EncodedDataset(tmp_path / "copy")
    with pytest.raises(DatasetError, match=r"copy/codec is not the codec that made the records"):
        dataset.split("train")


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("dataset_info.json", '"name": "validation"', '"name": "validaton"'),
        ("features.json", "captions", "caption"),
        ("metadata.json", '"sample_rate": 16000', '"sample_rate": 16001'),
    ],
)
def test_a_description_that_was_changed_is_named(
    encoded_dataset: pathlib.Path, tmp_path: pathlib.Path, name: str, old: str, new: str
) -> None:
    shutil.copytree(encoded_dataset, tmp_path / "copy")
    file = find_records(tmp_path / "copy") / name
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    with pytest.raises(StorageError, match=rf"{name} is not what was written"):
        EncodedDataset(tmp_path / "copy").split("train")


def test_a_dataset_behind_a_link_is_found(
    encoded_dataset: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "latents").symlink_to(encoded_dataset / "records")
    for name in ("codec", "text"):
        (tmp_path / name).symlink_to(encoded_dataset / name)
    assert EncodedDataset(tmp_path).fingerprint() == EncodedDataset(encoded_dataset).fingerprint()
