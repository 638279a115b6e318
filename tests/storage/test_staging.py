"""A folder of an object store is copied to a host once, whole, and again only when it changed."""

from __future__ import annotations

import collections
import concurrent.futures
import json
import logging
import pathlib
import re
import shutil
import threading

import pytest

from fasttta_jax.input_pipeline.records import DatasetError, EncodedDataset
from fasttta_jax.storage.files import StorageError, list_files
from fasttta_jax.storage.staging import stage
from tests.support import object_store
from tests.support.object_store import ObjectStore

URL = "gs://bucket/data"


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> pathlib.Path:
    """What is in the store at URL."""
    object_store.install(monkeypatch)
    folder = tmp_path / "original"
    for name in ("records/shard_0", "records/shard_1", "text/shard"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() * 1000)
    (folder / "records" / "metadata.json").write_text(json.dumps({"sha256": "0"}))
    object_store.upload(folder, URL)
    return folder


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in list_files(folder)}


def large_reads() -> dict[str, int]:
    """How often each file that is no description was read."""
    counts = collections.Counter(ObjectStore.reads)
    return {name: count for name, count in counts.items() if not name.endswith(".json")}


def test_a_local_path_is_returned_as_it_is(tmp_path: pathlib.Path) -> None:
    assert stage("runs/data", tmp_path / "cache") == pathlib.Path("runs/data")
    assert stage(tmp_path, tmp_path / "cache") == tmp_path
    assert not (tmp_path / "cache").exists()


def test_a_url_is_copied_once(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    first = stage(URL, tmp_path / "cache")
    assert contents(first) == contents(folder)
    assert stage(URL, tmp_path / "cache") == first
    assert set(large_reads().values()) == {1}
    assert len(large_reads()) == 3


def test_processes_that_start_together_copy_once(
    folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """Each has a file of its own that it locks, as threads here have."""
    together = threading.Barrier(4)

    def start(_: int) -> pathlib.Path:
        together.wait(30)
        return stage(URL, tmp_path / "cache")

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        (found,) = set(pool.map(start, range(4)))
    assert contents(found) == contents(folder)
    assert set(large_reads().values()) == {1}


def test_an_interrupted_copy_is_continued(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """What was complete is not read again, and nothing half-written is taken for whole."""

    def fail(name: str) -> None:
        if name.endswith("shard_1"):
            raise ConnectionError("gone")

    ObjectStore.before_read = fail
    with pytest.raises(
        StorageError, match=r"gs://bucket/data cannot be copied to .*cache/data-.*: gone; is it"
    ):
        stage(URL, tmp_path / "cache")
    (partial,) = (tmp_path / "cache").glob("*.partial")
    assert not (partial / "records" / "shard_1").exists()
    assert not [path for path in (tmp_path / "cache").glob("data-*") if "." not in path.name]
    read = [name for name in ("records/shard_0", "text/shard") if (partial / name).is_file()]

    ObjectStore.before_read = None
    assert contents(stage(URL, tmp_path / "cache")) == contents(folder)
    for name in read:
        assert large_reads()[f"bucket/data/{name}"] == 1
    assert not partial.exists()


def test_a_torn_file_is_read_again(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    found = stage(URL, tmp_path / "cache")
    (found / "text" / "shard").write_bytes(b"torn")
    assert stage(URL, tmp_path / "cache") == found
    assert contents(found) == contents(folder)
    assert large_reads()["bucket/data/records/shard_0"] == 1


@pytest.mark.parametrize("name", ["records/metadata.json", "records/shard_0"])
def test_other_data_are_another_copy(
    folder: pathlib.Path, tmp_path: pathlib.Path, name: str
) -> None:
    """A description of the same size, or a shard of another: both are noticed."""
    first, before = stage(URL, tmp_path / "cache"), contents(folder)
    changed = {"records/metadata.json": json.dumps({"sha256": "1"}).encode()}.get(name, b"new")
    ObjectStore.objects[f"bucket/data/{name}"] = changed
    second = stage(URL, tmp_path / "cache")
    assert second != first
    assert contents(second) == before | {name: changed}
    assert contents(first) == before


def test_only_what_is_needed_is_copied(tmp_path: pathlib.Path) -> None:
    found = stage(URL, tmp_path / "cache", only=("text",))
    assert list(list_files(found)) == ["text/shard"]
    with pytest.raises(StorageError, match=r"gs://bucket/data holds no file below codec; allowed"):
        stage(URL, tmp_path / "cache", only=("codec",))


def test_a_folder_that_is_not_there_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(StorageError, match=r"gs://bucket/none holds no file; allowed: a folder"):
        stage("gs://bucket/none", tmp_path / "cache")


def test_a_cache_that_cannot_be_written_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        StorageError, match=r"cannot be copied to .*file/cache.*needs 40,015 bytes.*data\.cache"
    ):
        stage(URL, tmp_path / "file" / "cache")


def test_a_cache_that_is_too_small_says_what_is_needed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(StorageError) as caught:
        stage(URL, tmp_path / "cache")
    found = re.search(r"needs ([\d,]+) bytes, and ([\d,]+) are free", str(caught.value))
    assert found is not None
    needed = sum(len(content) for content in ObjectStore.objects.values())
    assert [int(number.replace(",", "")) for number in found.groups()] == [needed, 100]
    assert not large_reads()


def test_a_file_that_grows_meanwhile_is_refused(tmp_path: pathlib.Path) -> None:
    def grow(name: str) -> None:
        if name.endswith("shard_0"):
            ObjectStore.objects[name] += b"more"

    ObjectStore.before_read = grow
    with pytest.raises(StorageError, match=r"shard_0 was listed with 15,000 bytes and has 15,004"):
        stage(URL, tmp_path / "cache")


def test_progress_is_shown_and_the_size_logged(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="fasttta_jax"):
        stage(URL, tmp_path / "cache")
    assert re.search(r"copying gs://bucket/data to .*: 4 files, 4e-05 GB", caplog.text)
    assert re.search(r"copying gs://bucket/data: 100%.* 4/4 ", capsys.readouterr().err)


def test_a_dataset_can_lie_behind_a_url(
    encoded_dataset: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    object_store.upload(encoded_dataset, "gs://bucket/encoded")
    cache = str(tmp_path / "cache")
    local = EncodedDataset(encoded_dataset)
    remote = EncodedDataset("gs://bucket/encoded", cache)
    assert remote.fingerprint() == local.fingerprint()
    first, second = (dataset.split("train")[3] for dataset in (local, remote))
    assert first["id"] == second["id"]
    assert (first["tokens"] == second["tokens"]).all()
    with pytest.raises(
        DatasetError, match=r"data\.path is .gs://bucket/data/text., which has no records"
    ):
        EncodedDataset("gs://bucket/data/text", cache)
