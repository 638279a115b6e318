"""Eight virtual CPU devices, strict rank promotion, flags that count as parsed, a tiny dataset."""

import gc
import importlib.metadata
import os
import typing

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the time of these tests is compiling, and much of that is XLA's MLIR emitters. The flag is
# gone from jaxlib 0.11, which refuses to start with a flag that it does not know.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    _flags = os.environ.get("XLA_FLAGS", "").split()
    os.environ["XLA_FLAGS"] = " ".join(["--xla_cpu_use_fusion_emitters=false", *_flags])

import pathlib
from collections.abc import Iterator

import jax
import pytest
import tensorflow_datasets as tfds
from absl import flags

import tests.support.type_checks as type_checks  # before all that imports the package
from fasttta_jax.parallel.compilation_cache import processor_folder
from fasttta_jax.storage import content
from fasttta_jax.training.loop import Trainer
from tests.support import chromium, helpers, labelled_clips, world

# Compiling also takes far less without LLVM's optimisations.
jax.config.update("jax_disable_most_optimizations", True)
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # for the processes that tests start
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Every run builds its own jitted functions; equal programs are compiled once: the workers of
# pytest-xdist, the processes that tests start and the next session share a folder. jax's keys hold
# its version and flags, but not the instructions that the processor has.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _cache = pathlib.Path(__file__).parents[1] / ".cache" / "compiled" / processor_folder()
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_cache))
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"


@pytest.fixture(autouse=True, scope="session")
def _flags_are_parsed() -> None:
    flags.FLAGS.mark_as_parsed()


@pytest.fixture(autouse=True, scope="module")
def _settings_of_jax_stay() -> Iterator[None]:
    """What one file left changed would change, or slow down, the tests of every later one."""
    before = dict(jax.config.values)
    yield
    after = dict(jax.config.values)
    changed = {
        name: (before.get(name), after[name]) for name in after if after[name] != before.get(name)
    }
    assert not changed, f"settings of jax left changed (before, after): {changed}"


@pytest.fixture(autouse=True, scope="session")
def _hashes_are_not_kept_at_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(content, "CACHE", str(tmp_path_factory.mktemp("hashes")))
        yield


@pytest.fixture
def unchecked() -> Iterator[None]:
    """The test runs as users run the package: for wrong arguments, and for stand-ins."""
    with type_checks.unchecked():
        yield


@pytest.fixture(scope="session")
def encoded_dataset(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """`data.path` of a dataset with 24 training clips of 8 tokens; to be read."""
    tfds.disable_progress_bar()
    return world.shared(tmp_path_factory, "dataset", helpers.write_encoded_dataset) / "encoded"


@pytest.fixture(scope="session")
def labelled_dataset(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Folder with `audio`, whose clips have labels of events, and its tokens in `encoded`."""
    tfds.disable_progress_bar()
    return world.shared(tmp_path_factory, "labelled", labelled_clips.write_dataset)


@pytest.fixture(scope="session")
def runs(
    encoded_dataset: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, pathlib.Path]:
    """Workdirs of a teacher and of a student that follows it, trained on one device; to be read."""
    folder = world.shared(
        tmp_path_factory, "runs", lambda folder: world.train_runs(folder, encoded_dataset)
    )
    return {name: folder / name for name in ("teacher", "student")}


@pytest.fixture(scope="session")
def guided_run(
    encoded_dataset: pathlib.Path,
    runs: dict[str, pathlib.Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> pathlib.Path:
    """Workdir of a run that has learned the guidance of the student of `runs`; to be read."""

    def train(folder: pathlib.Path) -> None:
        config = world.guided_config(encoded_dataset, runs["student"])
        Trainer(config, folder, devices=jax.devices()[:1]).run()

    return world.shared(tmp_path_factory, "guided", train)


@pytest.fixture(scope="session")
def datasets() -> pathlib.Path:
    """The folder of real recordings and captions; skips where it is absent."""
    default = pathlib.Path(__file__).parents[2] / "shared" / "datasets"
    folder = pathlib.Path(os.environ.get("FASTTTA_DATASETS", default))
    if not folder.is_dir():
        pytest.skip(f"real data is not at {folder}; FASTTTA_DATASETS names its folder")
    return folder


@pytest.fixture(scope="session")
def chromium_browser() -> Iterator[typing.Any]:
    """A real Chromium; skips where there is none."""
    with chromium.launched() as browser:
        yield browser


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no worker begins one when the other is done."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What is imported stays to the end: the collector need not look through it time and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()
