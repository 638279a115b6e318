"""Paths of both kinds; JSON and other small files are whole or not there."""

from __future__ import annotations

import json
import pathlib

import pytest
from etils import epath
from fsspec.registry import _registry

from fasttta_jax.storage.files import (
    StorageError,
    as_path,
    list_files,
    storage_errors,
    write_atomically,
    write_json,
)
from fasttta_jax.storage.weights import copy_folder, is_converted
from tests.support import object_store
from tests.support.object_store import ObjectStore


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> None:
    object_store.install(monkeypatch)


def test_only_urls_leave_this_machine(tmp_path: pathlib.Path) -> None:
    assert type(as_path(str(tmp_path))) is type(tmp_path)
    assert as_path("runs/a") == pathlib.Path("runs/a")
    remote = as_path("gs://bucket/run")
    assert str(remote / "config.json") == "gs://bucket/run/config.json"
    assert as_path(remote) == remote


def test_a_scheme_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match=r"gopher://x begins with gopher://; allowed: gs://, s3"):
        as_path("gopher://x")
    monkeypatch.delitem(_registry, "gcs")
    with pytest.raises(StorageError, match=r"gs://bucket/x cannot be opened.*pip install gcsfs"):
        as_path("gs://bucket/x")


@pytest.mark.parametrize("remote", [False, True])
def test_json_and_bytes_are_read_back(tmp_path: pathlib.Path, remote: bool) -> None:
    folder = epath.Path("gs://bucket/run") if remote else tmp_path
    for values in ({"a": 1}, {"b": "“bell”"}):
        write_json(folder / "values.json", values)
        write_atomically(folder / "new" / "file", json.dumps(values).encode())
        assert json.loads((folder / "values.json").read_text()) == values
        assert json.loads((folder / "new" / "file").read_bytes()) == values
    assert list(list_files(folder)) == ["new/file", "values.json"]
    with pytest.raises(TypeError):
        write_json(folder / "values.json", {"c": object()})
    assert json.loads((folder / "values.json").read_text()) == {"b": "“bell”"}
    assert list(list_files(folder)) == ["new/file", "values.json"]


def test_files_are_listed_with_their_sizes(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "deep").write_bytes(b"123")
    (tmp_path / "a" / "top").write_bytes(b"")
    object_store.upload(tmp_path, "gs://bucket/folder")
    found = {"a/b/deep": 3, "a/top": 0}
    assert list_files(tmp_path) == list_files("gs://bucket/folder") == found
    assert list_files(tmp_path / "none") == list_files("gs://bucket/none") == {}


def test_folders_are_copied_between_machine_and_store(tmp_path: pathlib.Path) -> None:
    source = tmp_path / "source"
    (source / "part").mkdir(parents=True)
    (source / "part" / "weights.safetensors").write_bytes(bytes(range(256)))
    (source / "weights.json").write_text("{}")
    copy_folder(source, "gs://bucket/one")
    copy_folder("gs://bucket/one", "gs://bucket/other")
    copy_folder("gs://bucket/other", tmp_path / "back")
    copy_folder(source, tmp_path / "linked")
    for folder in (tmp_path / "back", tmp_path / "linked"):
        assert list_files(folder) == list_files(source)
        for name in list_files(source):
            assert (folder / name).read_bytes() == (source / name).read_bytes()
    assert is_converted("gs://bucket/one")
    assert not is_converted("gs://bucket/nothing")


def test_errors_of_a_store_name_the_path() -> None:
    def refuse(name: str) -> None:
        raise RuntimeError(f"403, {name}")

    ObjectStore.before_read = refuse
    path = epath.Path("gs://bucket/x")
    ObjectStore.objects["bucket/x"] = b""
    with (
        pytest.raises(StorageError, match=r"gs://bucket/x cannot be read: 403, bucket/x; is it"),
        storage_errors(path, "read"),
    ):
        path.read_bytes()
