"""Hashes of contents: an edit in place is seen, a file that is what it was is not read again."""

from __future__ import annotations

import builtins
import hashlib
import json
import os
import pathlib

import pytest

from fasttta_jax.storage import content
from fasttta_jax.storage.content import content_hashes

NAMES = ["a", "b", "missing"]


def write(path: pathlib.Path, content: bytes, seconds: int) -> None:
    path.write_bytes(content)
    os.utime(path, (seconds, seconds))


@pytest.fixture
def opened(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are opened, in order."""
    found: list[str] = []
    plain = builtins.open

    def counted(path: pathlib.Path, mode: str) -> object:
        found.append(path.name)
        return plain(path, mode)

    monkeypatch.setattr("fasttta_jax.storage.content.open", counted, raising=False)
    monkeypatch.setattr("fasttta_jax.storage.content.CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("fasttta_jax.storage.content.SETTLED_NS", -(10**9))  # nothing is too young
    return found


def test_only_what_may_have_changed_is_read(tmp_path: pathlib.Path, opened: list[str]) -> None:
    folder = tmp_path / "sounds"
    folder.mkdir()
    for name in NAMES[:2]:
        write(folder / name, name.encode(), 100)
    expected = {name: hashlib.sha256(name.encode()).hexdigest() for name in NAMES[:2]}
    assert content_hashes(folder, NAMES) == {**expected, "missing": None}
    assert content_hashes(folder, NAMES) == {**expected, "missing": None}
    assert sorted(opened) == ["a", "b"]
    write(folder / "a", b"c", 100)  # equal in length and in time of change
    assert content_hashes(folder, NAMES)["a"] == hashlib.sha256(b"c").hexdigest()
    assert sorted(opened) == ["a", "a", "b"]


@pytest.mark.parametrize("found", [b"", b"[]", b'{"a": 3}', b'{"a": [', b"\xff"])
def test_a_damaged_or_unwritable_cache_costs_time_alone(
    tmp_path: pathlib.Path, opened: list[str], monkeypatch: pytest.MonkeyPatch, found: bytes
) -> None:
    write(tmp_path / "a", b"a", 100)
    content_hashes(tmp_path, ["a"])
    (kept,) = (tmp_path / "cache").iterdir()
    kept.write_bytes(found)
    right = {"a": hashlib.sha256(b"a").hexdigest()}
    assert content_hashes(tmp_path, ["a"]) == right
    monkeypatch.setattr("fasttta_jax.storage.content.CACHE", str(tmp_path / "a"))
    assert content_hashes(tmp_path, ["a"]) == right
    assert opened == ["a"] * 3


def test_a_name_that_is_no_text_is_hashed(tmp_path: pathlib.Path, opened: list[str]) -> None:
    name = os.fsdecode(b"caf\xe9")
    write(tmp_path / name, b"a", 100)
    for _ in range(2):
        assert content_hashes(tmp_path, [name])[name] is not None
    assert len(opened) == 2


def test_what_changed_just_now_is_read_again_whatever_the_clock_of_its_server(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The later file is the latest change that is known; the earlier one is old beside it."""
    hour = 3600 * 10**9
    for shift in (-hour, 0, hour):
        stamps = {"old": [1, 0, shift, 1], "new": [1, 0, shift + 10**10, 2]}
        monkeypatch.setattr(content, "_stamp", lambda path, found=stamps: found[path.name])
        monkeypatch.setattr(content, "_sha256", lambda path: path.name)
        folder = tmp_path / str(shift)
        folder.mkdir()
        monkeypatch.setattr(content, "CACHE", str(folder))
        content_hashes(folder, ["old", "new"])
        (kept,) = folder.iterdir()
        assert list(json.loads(kept.read_bytes())) == ["old"]
