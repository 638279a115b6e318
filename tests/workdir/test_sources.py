"""A model is found in a folder, on the Hub and in the package, or one error says why it is not."""

from __future__ import annotations

import fnmatch
import pathlib
import runpy
import shutil

import huggingface_hub
import jax
import numpy as np
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

import fasttta_jax
from fasttta_jax.config import MeshConfig
from fasttta_jax.parallel.mesh import make_mesh
from fasttta_jax.storage.files import list_files
from fasttta_jax.tools.export import export
from fasttta_jax.workdir import sources
from fasttta_jax.workdir.exported import HASHES_FILE, ExportedError, check_files
from fasttta_jax.workdir.folder import WorkdirError
from fasttta_jax.workdir.restore import load_trained
from fasttta_jax.workdir.sources import PACKAGE_MODEL, find_model
from tests.support import object_store
from tests.support.object_store import ObjectStore

REPOSITORY = pathlib.Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
MOST_BYTES = 6_000_000


@pytest.fixture(scope="module")
def model(runs: dict[str, pathlib.Path], tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("model") / "student"
    export(str(runs["student"]), str(folder))
    return folder


@pytest.fixture
def hub(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """An empty cache of the Hub, on a machine that may not use the network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put_into_cache(hub: pathlib.Path, name: str, folder: pathlib.Path) -> pathlib.Path:
    """A snapshot as huggingface_hub keeps it."""
    repository = hub / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    shutil.copytree(folder, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return snapshot


def test_a_snapshot_in_the_cache_needs_no_network(hub: pathlib.Path, model: pathlib.Path) -> None:
    snapshot = put_into_cache(hub, "ann/bells", model)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    for name in ("ann/bells", "ann/bells@main", f"ann/bells@{COMMIT}"):
        assert find_model(name) == (f"ann/bells@{COMMIT}", str(snapshot), True)
    trained = load_trained("ann/bells", mesh)
    assert trained.origin() == load_trained(model, mesh).origin() | {
        "workdir": f"ann/bells@{COMMIT}"
    }
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(ExportedError, match=r"model\.safetensors is missing"):
        load_trained("ann/bells", mesh)


def test_without_network_and_snapshot_one_error_says_so(hub: pathlib.Path) -> None:
    message = (
        "'ann/bells' is no folder here, and cannot be had from the Hub: it is not in the cache, "
        r"and the Hub cannot be reached \(.*offline mode"
    )
    with pytest.raises(ExportedError, match=message):
        fasttta_jax.load("ann/bells")
    with pytest.raises(ExportedError, match="'ann/bells@v2' is no folder here, and cannot"):
        fasttta_jax.load("ann/bells@v2")


def test_a_repository_of_something_else_is_not_downloaded(
    hub: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    put_into_cache(hub, "google/huge", tmp_path / "other")
    asked = []
    whole = huggingface_hub.snapshot_download

    def download(*arguments: str, **options: list[str]) -> str:
        asked.append(options["allow_patterns"])
        return whole(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ExportedError, match=f"google/huge on the Hub is no .*no {HASHES_FILE}"):
        find_model("google/huge")
    assert asked == [[HASHES_FILE]]


@pytest.mark.parametrize("error", [RepositoryNotFoundError, HfHubHTTPError])
def test_what_the_hub_answers_is_one_error(
    hub: pathlib.Path, monkeypatch: pytest.MonkeyPatch, error: type[HfHubHTTPError]
) -> None:
    def refuse(*arguments: str, **options: list[str]) -> str:
        raise error.__new__(error)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ExportedError, match="'ann/bells' is no folder here, and cannot be had"):
        find_model("ann/bells")


def test_paths_are_not_looked_for_on_the_hub(hub: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Not even those that are misspelt."""
    (tmp_path / "runs").mkdir()
    for name in ("runs/new", "nothing", "./runs", "a/b/c", str(tmp_path / "x"), "../x"):
        assert find_model(name) == (name, name, False)
        with pytest.raises(WorkdirError, match="holds no run"):
            fasttta_jax.load(name)


def test_a_model_in_an_object_store(
    model: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    object_store.install(monkeypatch)
    monkeypatch.setenv("HOME", str(tmp_path))  # where copies go
    for name in list_files(model):
        ObjectStore.objects[f"bucket/model/{name}"] = (model / name).read_bytes()
    found = find_model("gs://bucket/model")
    assert found.name == "gs://bucket/model"
    check_files(found.path)


def test_an_installation_without_a_model_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "PACKAGE_MODEL", "assets/nothing")
    with pytest.raises(ExportedError, match=r"no model comes with this installation: .*nothing is"):
        fasttta_jax.load()


@pytest.fixture
def package_model() -> pathlib.Path:
    folder = pathlib.Path(fasttta_jax.__file__).parent / PACKAGE_MODEL
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    return folder


def test_the_model_of_the_package_is_whole_and_small(package_model: pathlib.Path) -> None:
    check_files(package_model)
    assert sum(list_files(package_model).values()) <= MOST_BYTES
    trained = load_trained(None, make_mesh(MeshConfig(), jax.devices()[:1]))
    assert trained.name == f"fasttta_jax {fasttta_jax.__version__}"
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(trained.params))


def test_the_model_of_the_package_is_installed(
    package_model: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file of it is one that setup.py names."""
    import setuptools

    found: dict[str, dict[str, list[str]]] = {}
    monkeypatch.setattr(setuptools, "setup", lambda **options: found.update(options))
    monkeypatch.chdir(REPOSITORY)
    runpy.run_path(str(REPOSITORY / "setup.py"))
    patterns = found["package_data"]["fasttta_jax"]
    for name in list_files(package_model):
        assert any(fnmatch.fnmatch(f"{PACKAGE_MODEL}/{name}", pattern) for pattern in patterns)


@pytest.mark.long
def test_the_model_of_the_package_sounds(package_model: pathlib.Path) -> None:
    [clip] = fasttta_jax.load().generate(["rain is falling fast"])
    assert clip.is_finite
    assert 0.001 < np.sqrt(np.mean(np.square(clip.audio))) < 1
