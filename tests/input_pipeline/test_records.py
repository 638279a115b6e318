"""Encoded datasets are read wherever they lie, and a file that was not copied whole is named."""

from __future__ import annotations

import pathlib
import shutil

import pytest

from fasttta_jax.input_pipeline.records import EncodedDataset

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


def test_a_dataset_behind_a_link_is_found(
    encoded_dataset: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "latents").symlink_to(encoded_dataset / "records")
    for name in ("codec", "text"):
        (tmp_path / name).symlink_to(encoded_dataset / name)
    assert EncodedDataset(tmp_path).fingerprint() == EncodedDataset(encoded_dataset).fingerprint()
