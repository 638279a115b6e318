"""Where numba may keep nothing it is given a temporary place, and only there."""

from __future__ import annotations

import os
import pathlib
import stat

import pytest

from fasttta_jax.audio import NUMBA_CACHE, give_numba_a_cache


def test_a_place_that_can_be_written_or_is_said_stays(tmp_path: pathlib.Path) -> None:
    environ: dict[str, str] = {}
    give_numba_a_cache(environ, [pathlib.Path("/dev/null/none"), tmp_path / "not" / "yet"])
    assert environ == {}
    environ = {NUMBA_CACHE: "mine"}
    give_numba_a_cache(environ, [])
    assert environ == {NUMBA_CACHE: "mine"}


def test_without_such_a_place_there_is_a_temporary_one(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ: dict[str, str] = {}
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        give_numba_a_cache(environ, [tmp_path])
    folder = pathlib.Path(environ[NUMBA_CACHE])
    assert folder.is_dir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
