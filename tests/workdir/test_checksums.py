"""Checksums: every change of a file is found, and hosts share the work out without gaps."""

from __future__ import annotations

import errno
import json
import pathlib

import numpy as np
import pytest
from etils import epath

from fasttta_jax.workdir import checksums

CONTENTS = {"top": b"", "rest/d/a": bytes(range(256)) * 40, "rest/d/b": b"b", "ema/d/c": b"cc"}


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> epath.Path:
    """Four files and their checksums."""
    for name, content in CONTENTS.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    checksums.write(epath.Path(tmp_path))
    return epath.Path(tmp_path)


def test_a_whole_folder_has_no_problems(folder: epath.Path) -> None:
    table = checksums.read(folder)
    assert table is not None
    assert {name: size for name, (size, _) in table.items()} == {
        name: len(content) for name, content in CONTENTS.items()
    }
    assert table["rest/d/b"][1] == 0x71BEEFF9  # zlib.crc32(b"b") by its definition
    assert checksums.problems(folder) == []
    checksums.write(folder, leave_out=["top"])  # a table is not a file of itself
    assert set(checksums.read(folder) or {}) == set(CONTENTS) - {"top"}


def test_a_file_in_blocks_has_the_checksum_of_the_whole(
    folder: epath.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = checksums.file_checksum(folder / "rest/d/a")
    monkeypatch.setattr(checksums, "BLOCK_BYTES", 100)
    assert checksums.file_checksum(folder / "rest/d/a") == whole


@pytest.mark.parametrize("place", [0, 5000, 10239])
@pytest.mark.parametrize("bit", [0, 7])
def test_every_flipped_bit_is_found(folder: epath.Path, place: int, bit: int) -> None:
    content = bytearray(CONTENTS["rest/d/a"])
    content[place] ^= 1 << bit
    (folder / "rest/d/a").write_bytes(bytes(content))
    assert checksums.problems(folder) == ["rest/d/a has other bytes than were written"]


def test_truncated_and_removed_files_are_named(folder: epath.Path) -> None:
    (folder / "rest/d/a").write_bytes(CONTENTS["rest/d/a"][:100])
    (folder / "ema/d/c").unlink()
    (folder / "more").write_bytes(b"of no matter")
    assert sorted(checksums.problems(folder)) == [
        "ema/d/c is missing",
        "rest/d/a has 100 bytes; 10240 were written",
    ]
    assert checksums.problems(folder, prefixes=["ema/"]) == ["ema/d/c is missing"]
    assert checksums.problems(folder, prefixes=["top"]) == []


@pytest.mark.parametrize("table", [b"", b"{", b"[]", b'{"crc32": {"top": [1]}}', b"\xff\xfe"])
def test_a_damaged_table_is_a_problem(folder: epath.Path, table: bytes) -> None:
    (folder / checksums.FILE).write_bytes(table)
    (problem,) = checksums.problems(folder)
    assert problem.startswith("checksums.json is no table of checksums")
    (folder / checksums.FILE).unlink()
    assert checksums.problems(folder) == ["checksums.json is missing"]
    assert checksums.read(folder) is None


def test_failing_storage_is_damage_and_a_refusal_is_not(
    folder: epath.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(number: int) -> None:
        def checksum(path: epath.Path) -> checksums.Checksum:
            raise OSError(number, "no", str(path))

        monkeypatch.setattr(checksums, "file_checksum", checksum)

    fail(errno.EIO)
    assert len(checksums.problems(folder)) == len(CONTENTS)
    fail(errno.EACCES)
    with pytest.raises(PermissionError):
        checksums.problems(folder)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_hosts_share_the_files_out(count: int) -> None:
    rng = np.random.default_rng(count)
    table = {f"f{i}": (int(size), 0) for i, size in enumerate(rng.integers(0, 1000, 50))}
    shares = [checksums.share(table, index, count) for index in range(count)]
    assert sorted(name for names in shares for name in names) == sorted(table)
    loads = [sum(table[name][0] for name in names) for names in shares]
    # Largest first to the least loaded: two hosts differ by at most one file.
    assert max(loads) - min(loads) <= max(size for size, _ in table.values()) + len(table)


def test_every_host_finds_its_own_problems(folder: epath.Path) -> None:
    for name in CONTENTS:
        (folder / name).unlink()
    found = [checksums.problems(folder, index=index, count=3) for index in range(3)]
    assert sorted(line for lines in found for line in lines) == sorted(
        f"{name} is missing" for name in CONTENTS
    )
    assert json.loads((folder / checksums.FILE).read_text())["crc32"].keys() == CONTENTS.keys()
