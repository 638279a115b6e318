"""A run's folder, on this machine and in an object store: made once, compared, read by everyone."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest
from fsspec.registry import _registry

from fasttta_jax.config import RunConfig
from fasttta_jax.input_pipeline.records import EncodedDataset
from fasttta_jax.storage.files import list_files
from fasttta_jax.workdir.folder import (
    Workdir,
    WorkdirError,
    same_files,
)
from tests.support import object_store
from tests.support.helpers import tiny_teacher_config
from tests.support.object_store import ObjectStore


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> None:
    object_store.install(monkeypatch)


@pytest.fixture
def dataset(encoded_dataset: pathlib.Path) -> EncodedDataset:
    return EncodedDataset(encoded_dataset)


@pytest.fixture
def config(encoded_dataset: pathlib.Path) -> RunConfig:
    return tiny_teacher_config(encoded_dataset)


@pytest.fixture(params=["local", "remote"])
def path(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> str:
    """Where the workdir goes."""
    return "gs://bucket/runs/one" if request.param == "remote" else str(tmp_path / "runs" / "one")


def test_a_workdir_holds_what_generation_needs(
    path: str, config: RunConfig, dataset: EncodedDataset, tmp_path: pathlib.Path
) -> None:
    """Read by another host, which has neither prepared it nor the same cache."""
    Workdir(path, str(tmp_path / "first")).prepare(config, dataset)
    workdir = Workdir(path, str(tmp_path / "second"))
    assert workdir.config() == config
    assert same_files(workdir.path / "codec", dataset.path / "codec")
    np.testing.assert_array_equal(workdir.codec().silence(), dataset.codec.silence())
    ids = workdir.text().tokenize(["a loud tone"])["ids"]
    np.testing.assert_array_equal(workdir.text(dataset).tokenize(["a loud tone"])["ids"], ids)
    assert (np.asarray(ids) != 0).any()


def test_both_kinds_hold_the_same_files(
    config: RunConfig, dataset: EncodedDataset, tmp_path: pathlib.Path
) -> None:
    for path in (str(tmp_path / "run"), "gs://bucket/run"):
        Workdir(path).prepare(config, dataset)
    assert list_files("gs://bucket/run") == list_files(tmp_path / "run")
    assert same_files("gs://bucket/run", tmp_path / "run")


def test_a_restart_is_compared(path: str, config: RunConfig, dataset: EncodedDataset) -> None:
    Workdir(path).prepare(config, dataset)
    longer = dataclasses.replace(config, log_every=7)
    Workdir(path).prepare(longer, dataset)
    assert Workdir(path).config() == longer
    with pytest.raises(WorkdirError, match="with other settings: seed is 0 there and 1 here"):
        Workdir(path).prepare(dataclasses.replace(config, seed=1), dataset)
    assert Workdir(path).config() == longer


def test_a_run_may_go_on_longer_and_says_so(
    path: str, config: RunConfig, dataset: EncodedDataset
) -> None:
    Workdir(path).prepare(config, dataset)
    optimizer = dataclasses.replace(config.optimizer, learning_rate=0.5)
    longer = dataclasses.replace(config, num_steps=2 * config.num_steps, optimizer=optimizer)
    for _ in range(2):
        Workdir(path).prepare(longer, dataset)
    assert Workdir(path).config() == longer
    (change,) = json.loads((Workdir(path).path / "config.json").read_text())["changes"]
    assert change["num_steps"] == [config.num_steps, longer.num_steps]
    assert change["optimizer.learning_rate"] == [config.optimizer.learning_rate, 0.5]


def test_other_data_are_refused(
    path: str, config: RunConfig, dataset: EncodedDataset, tmp_path: pathlib.Path
) -> None:
    Workdir(path).prepare(config, dataset)
    shutil.copytree(dataset.path, tmp_path / "data")
    (tmp_path / "data" / "codec" / "another").write_text("x")
    with pytest.raises(WorkdirError, match="was trained on other data than"):
        Workdir(path).prepare(config, EncodedDataset(tmp_path / "data"))


def test_a_half_prepared_workdir_is_prepared_again(
    config: RunConfig, dataset: EncodedDataset
) -> None:
    """The config comes last: without it, nothing else counts."""

    def fail(name: str) -> None:
        if name.endswith("config.json"):
            raise ConnectionError("gone")

    ObjectStore.before_write = fail
    with pytest.raises(WorkdirError, match=r"gs://bucket/run/config\.json cannot be written: gone"):
        Workdir("gs://bucket/run").prepare(config, dataset)
    ObjectStore.objects["bucket/run/codec/codec.json"] = b"{"
    with pytest.raises(WorkdirError, match="holds no run"):
        Workdir("gs://bucket/run").config()
    ObjectStore.before_write = None
    Workdir("gs://bucket/run").prepare(config, dataset)
    assert same_files("gs://bucket/run/codec", dataset.path / "codec")


def test_a_workdir_that_cannot_be_written_is_named(
    config: RunConfig, dataset: EncodedDataset, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkdirError, match=r"workdir .*/file is a file; allowed: a folder"):
        Workdir(tmp_path / "file")
    with pytest.raises(WorkdirError, match=r"workdir: .*/file/run cannot be written: .*Not a dir"):
        Workdir(tmp_path / "file" / "run").prepare(config, dataset)

    def refuse(name: str) -> None:
        raise PermissionError(f"403 for {name}")

    ObjectStore.before_write = refuse
    with pytest.raises(WorkdirError, match=r"gs://bucket/run/.* cannot be written.*403 for bucket"):
        Workdir("gs://bucket/run").prepare(config, dataset)


@pytest.mark.parametrize(("name", "reason"), [("a\\b", "backslash"), ("caf\udce9", "UTF-8")])
def test_a_path_that_cannot_hold_checkpoints_is_refused_at_once(
    tmp_path: pathlib.Path, name: str, reason: str
) -> None:
    with pytest.raises(WorkdirError, match=reason):
        Workdir(tmp_path / name)


@pytest.mark.parametrize(
    "text", ['{"config": {"num_steps"', "", "[]", "{}", '{"config": 3}', '"x"']
)
def test_a_damaged_config_is_named_by_training_and_generation(
    config: RunConfig, dataset: EncodedDataset, tmp_path: pathlib.Path, text: str
) -> None:
    (tmp_path / "config.json").write_text(text)
    for use in (lambda: Workdir(tmp_path).prepare(config, dataset), Workdir(tmp_path).config):
        with pytest.raises(WorkdirError, match=r"config\.json"):
            use()


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("config.json", b'"seed": 0', b'"seed": 8'),
        ("config.json", b'"data_hash": "', b'"data_hash": "0'),
        ("codec/codec.json", b"16000", b"16001"),
        ("codec/statistics.npz", b"PK", b"PQ"),
        ("text/tokenizer.json", b'"a"', b'"o"'),
        ("text/seen_tokens.json", b"[", b"[7, "),
    ],
)
def test_a_changed_file_is_named_by_training_and_generation(
    config: RunConfig,
    dataset: EncodedDataset,
    tmp_path: pathlib.Path,
    name: str,
    old: bytes,
    new: bytes,
) -> None:
    """Each of these changes would give other sounds, and no error of its own."""
    workdir = Workdir(tmp_path)
    workdir.prepare(config, dataset)
    workdir.prepare(config, dataset)
    content = (tmp_path / name).read_bytes()
    assert old in content
    (tmp_path / name).write_bytes(content.replace(old, new, 1))
    use = {"config": workdir.config, "codec": workdir.codec, "text": workdir.text}
    with pytest.raises(WorkdirError, match=name.split("/")[-1]):
        use[name.split("/")[0].removesuffix(".json")]()


def test_a_config_that_was_edited_on_purpose_is_read(
    config: RunConfig, dataset: EncodedDataset, tmp_path: pathlib.Path
) -> None:
    """As the error says, without its hash; its layout and order are nobody's business."""
    Workdir(tmp_path).prepare(config, dataset)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values, sort_keys=True, indent=8))
    assert Workdir(tmp_path).config() == config
    values["config"]["seed"] = 8
    del values["self_sha256"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert Workdir(tmp_path).config() == dataclasses.replace(config, seed=8)


def test_a_store_without_its_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(_registry, "gcs")
    with pytest.raises(WorkdirError, match=r"gs://bucket/run cannot be opened.*pip install gcsfs"):
        Workdir("gs://bucket/run")


def test_a_run_that_is_not_there_or_damaged_is_named(path: str) -> None:
    with pytest.raises(WorkdirError, match=r"one holds no run: config\.json is missing"):
        Workdir(path).config()
    with Workdir(path).folder() as folder:
        (folder / "config.json").write_text("{")
    with pytest.raises(WorkdirError, match=r"one/config\.json is damaged"):
        Workdir(path).config()


def test_what_is_written_into_a_folder_is_in_the_workdir(path: str) -> None:
    workdir = Workdir(path)
    for step in (1, 2):
        with workdir.folder(f"samples/{step:08d}") as folder:
            (folder / "00.wav").write_bytes(b"sound")
    assert list_files(workdir.path) == {
        "samples/00000001/00.wav": 5,
        "samples/00000002/00.wav": 5,
    }


def test_an_older_config_has_the_defaults_of_new_fields(
    config: RunConfig, dataset: EncodedDataset, tmp_path: pathlib.Path
) -> None:
    """A workdir of before there were reading processes, and a prefetch, is gone on with."""
    Workdir(tmp_path).prepare(config, dataset)
    values = json.loads((tmp_path / "config.json").read_text())
    for field in ("num_workers", "prefetch", "cache"):
        del values["config"]["data"][field]
    del values["self_sha256"], values["files"]  # which such a version did not write either
    (tmp_path / "config.json").write_text(json.dumps(values))
    Workdir(tmp_path).prepare(config, dataset)
    assert Workdir(tmp_path).config() == config
