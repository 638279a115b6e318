"""Commands keep what they compile: where, where they are told to, or not at all; and say so."""

import pathlib
from collections.abc import Iterator

import jax
import pytest

from fasttta_jax.parallel import compilation_cache
from fasttta_jax.parallel.compilation_cache import CacheState, default_folder, turn_on
from tests.support import commands

SETTINGS = (
    "jax_enable_compilation_cache",
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_persistent_cache_min_compile_time_secs",
)


@pytest.fixture(autouse=True)
def nothing_set(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """jax as it is where nothing names a cache, and a user's cache of the test's own."""
    before = {name: jax.config.values[name] for name in SETTINGS}
    for name in SETTINGS:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def setting(name: str) -> object:
    return jax.config.values[f"jax_{name}"]


def test_programs_are_kept_in_the_users_cache_up_to_a_size(tmp_path: pathlib.Path) -> None:
    """In a folder of the processor, whose instructions jax's keys do not hold."""
    state = turn_on(None)
    assert state == CacheState(str(default_folder()))
    assert default_folder().is_relative_to(tmp_path / "user" / "fasttta_jax" / "compiled")
    assert default_folder().is_dir()
    assert setting("compilation_cache_dir") == state.folder
    assert setting("compilation_cache_max_size") == compilation_cache.MOST_BYTES
    assert setting("persistent_cache_min_compile_time_secs") == compilation_cache.LEAST_SECONDS


def test_the_flag_goes_before_the_environment(tmp_path: pathlib.Path) -> None:
    """A folder that is named is the user's: nothing is deleted there."""
    before = setting("compilation_cache_max_size")
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "environment"))
    assert turn_on(None) == CacheState(str(tmp_path / "environment"))
    assert turn_on(str(tmp_path / "flag")) == CacheState(str(tmp_path / "flag"))
    assert setting("compilation_cache_dir") == str(tmp_path / "flag")
    assert turn_on("gs://bucket/compiled") == CacheState("gs://bucket/compiled")
    assert setting("compilation_cache_max_size") == before


def test_what_the_environment_says_of_jax_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    before = setting("persistent_cache_min_compile_time_secs")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "7")
    turn_on(None)
    assert setting("persistent_cache_min_compile_time_secs") == before


def test_none_are_kept_where_that_is_the_wish() -> None:
    assert turn_on(compilation_cache.OFF) == CacheState(None)
    assert not setting("enable_compilation_cache")
    assert turn_on(None) == CacheState(None)  # as with JAX_ENABLE_COMPILATION_CACHE=false
    assert not default_folder().exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    state = turn_on(str(tmp_path / "file" / "compiled"))
    assert state.folder is None
    assert state.reason == f"{tmp_path}/file/compiled: Not a directory"
    assert not setting("enable_compilation_cache")


COMPILES = """
import jax
from fasttta_jax import cli
from fasttta_jax.performance import compilations

def main():
    compilations.count()
    print(jax.jit(lambda x: jax.numpy.sort(x) + 1)(jax.numpy.arange(9.0)).sum())
    print(compilations.count().describe_cache())

cli.run(main)
"""


def test_a_second_command_compiles_nothing(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And both say where programs are kept; a command that cannot keep them runs, and says so."""
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    folder = tmp_path / "compiled"
    first, second = (
        commands.run("-c", COMPILES, f"--compilation_cache={folder}") for _ in range(2)
    )
    for result in (first, second):
        assert result.returncode == 0, result.stderr
        assert f"compiled programs are kept in {folder}" in result.stderr
    assert "compilation cache: 0 hits" in first.stdout
    assert ", 0 misses" in second.stdout
    (tmp_path / "file").touch()
    unkept = commands.run("-c", COMPILES, f"--compilation_cache={tmp_path}/file/x")
    assert unkept.returncode == 0, unkept.stderr
    assert "programs are not kept for the next command" in unkept.stderr
    assert "no compilation cache" in unkept.stdout
