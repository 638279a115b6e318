"""Checkpoints of two hosts: 2 processes write, 1 reads, 2 read on another mesh, all bit-equal.

All hosts pass over the same damaged step, and an error of one is an error of all within seconds.
"""

from __future__ import annotations

import json
import pathlib
import shutil
from typing import Any

import pytest

from fasttta_jax.workdir.checkpoint import Checkpoints
from fasttta_jax.workdir.hashes import tree_hash
from tests.multihost.multiprocess import checkpoint_program
from tests.support import launch

# The writes of a step take a second; a barrier that waits for a failed host takes 20 minutes.
SOON = 30.0


def run(*arguments: str) -> list[dict[str, Any]]:
    """What every one of two processes prints."""
    command = ["-m", "tests.multihost.multiprocess.checkpoint_program", *arguments]
    results = launch.run(command, num_processes=2, devices_per_process=4, timeout=150)
    lines = [result.stdout.strip().splitlines()[-1] for result in results]
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[dict[str, Any]]]:
    """A workdir that two processes wrote, and what they found."""
    workdir = str(tmp_path_factory.mktemp("two_hosts") / "run")
    return workdir, run("save", workdir)


def test_a_folder_that_is_not_shared_is_refused(saved: tuple[str, list[Any]]) -> None:
    for found in saved[1]:
        assert "is not the same folder on all hosts" in found["not_shared"]


def test_a_full_disk_of_one_host_is_an_error_of_all(saved: tuple[str, list[Any]]) -> None:
    for found in saved[1]:
        for host, (text, seconds, steps) in zip((1, 0), found["full"], strict=True):
            assert text.startswith(f"host {host} of 2: a checkpoint of step 4 could not be written")
            assert "the last good one is step 3" in text
            assert "File too large" in text
            assert seconds < SOON
            assert steps == [1, 2, 3]
        assert found["names"] == ["1", "2", "3"]  # nothing half-written is left
        assert found["steps"] == [1, 2, 3, 4]  # 1 is the best
        assert found["best"] == 1


def test_one_process_reads_what_two_wrote(saved: tuple[str, list[Any]]) -> None:
    mesh = checkpoint_program.make_mesh(8, 1)
    restored = Checkpoints(saved[0], keep=3).restore_latest(checkpoint_program.abstract(mesh))
    checkpoint_program.assert_equal(restored, mesh)
    assert restored is not None
    assert restored.step == 4
    # Bits, shapes and dtypes, whichever hosts hold them.
    assert [found["hash"] for found in saved[1]] == 2 * [tree_hash(restored.items)]


def test_two_processes_read_what_one_wrote_and_pass_over_damage_alike(
    saved: tuple[str, list[Any]], tmp_path: pathlib.Path
) -> None:
    whole = tmp_path / "one_process"
    mesh = checkpoint_program.make_mesh(8, 1)
    checkpoints = Checkpoints(whole)
    checkpoints.save(7, checkpoint_program.arrays(mesh, 7), None, {"next_batch": 70})
    checkpoints.close()
    expected: dict[pathlib.Path, int | str] = {whole: 7}
    for damage in ("truncate", "remove", "flip", "format", "model"):
        workdir = tmp_path / damage
        shutil.copytree(saved[0], workdir)
        newest = workdir / "checkpoints" / "4"
        # The largest file of the second host, which the first need not read.
        files = (newest / "rest" / "ocdbt.process_1" / "d").iterdir()
        path = max(files, key=lambda file: file.stat().st_size)
        content = path.read_bytes()
        expected[workdir] = 3
        if damage == "truncate":
            path.write_bytes(content[:-1])
        elif damage == "remove":
            path.unlink()
        elif damage == "flip":
            middle = len(content) // 2
            path.write_bytes(
                content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
            )
        elif damage == "format":
            note = json.dumps({"format": 3, "progress": {}})
            (newest / "progress" / "progress").write_text(note)
            (newest / "checksums.json").unlink()
            expected[workdir] = "has format 3; allowed: up to 2"
        else:
            shutil.rmtree(workdir)
            other = Checkpoints(workdir)
            trees = checkpoint_program.arrays(mesh, 4)
            other.save(4, {**trees, "ema": {"v": trees["ema"]["w"]}}, None)
            other.close()
            expected[workdir] = "ema/v is in the checkpoint only; ema/w is not in the checkpoint"
    first, second = run("restore", *map(str, expected))
    assert first == second
    for workdir, outcome in expected.items():
        found = first[str(workdir)]
        assert found == outcome if isinstance(outcome, int) else outcome in found
        moved = [path.name for path in (workdir / "unreadable").glob("*")]
        assert sorted(moved) == (["4", "4.txt"] if outcome == 3 else [])
