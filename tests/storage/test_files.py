"""Paths of both kinds: what lies there is listed, read, written and copied alike."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
from etils import epath
from fsspec.registry import _registry
from safetensors.numpy import load_file, save_file

from fasttta_jax.storage.files import (
    StorageError,
    as_path,
    differences,
    files_below,
    list_files,
    storage_errors,
    write_atomically,
    write_json,
)
from fasttta_jax.storage.weights import copy_folder, is_converted, write_weights
from tests.support import object_store
from tests.support.full_disk import limited_files
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


def test_links_are_followed_but_never_round_in_a_circle(tmp_path: pathlib.Path) -> None:
    for name in ("far/b/one", "far/two", "near/three"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "near" / "more").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "b" / "up").symlink_to(tmp_path / "far")
    (tmp_path / "near" / "nowhere").symlink_to(tmp_path / "missing")
    near = tmp_path / "near"
    found = [path.relative_to(near).as_posix() for path in files_below(near)]
    assert found == ["more/b/one", "more/two", "three"]
    assert list(files_below(tmp_path / "missing")) == []


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


def test_differences_are_told_by_name() -> None:
    assert differences({"a": 1, "b": 2}, {"b": 2, "a": 1}) == []
    assert differences({"b": [1], "a": 1}, {"a": "1", "c": 0}) == [
        "a is 1 there and '1' here",
        "b is [1] there and None here",
        "c is None there and 0 here",
    ]


def test_weights_without_room_are_told_by_name_and_not_there(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, old = tmp_path / "weights.safetensors", {"a": np.ones(3, np.float32)}
    write_weights(path, old)
    with limited_files(1000), pytest.raises(StorageError, match=f"{path} cannot be written"):
        write_weights(path, {"a": np.ones(1000, np.float32)})
    np.testing.assert_array_equal(load_file(path)["a"], old["a"])
    assert list(tmp_path.iterdir()) == [path]


def test_weights_that_are_not_what_was_written_are_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save_other(arrays: dict[str, np.ndarray], path: pathlib.Path) -> None:
        save_file({name: values + 1 for name, values in arrays.items()}, path)

    monkeypatch.setattr("fasttta_jax.storage.weights.save_file", save_other)
    with pytest.raises(StorageError, match="was written, but a cannot be read back"):
        write_weights(tmp_path / "weights.safetensors", {"a": np.ones(3, np.float32)})
    assert list(tmp_path.iterdir()) == []
