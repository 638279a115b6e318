"""Checkpoints: exact round trips, fall-back from a torn one, retention, errors that help."""

from __future__ import annotations

import hashlib
import json
import logging
import pathlib
import textwrap
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fasttta_jax.workdir import checkpoint_folder, checksums
from fasttta_jax.workdir.checkpoint import (
    CheckpointError,
    Checkpoints,
    DamagedCheckpoint,
    StoredCheckpoints,
)
from fasttta_jax.workdir.hashes import tree_hash
from tests.support import commands


def items(value: float) -> dict[str, Any]:
    return {
        "rest": {"step": jnp.int32(value), "params": {"w": jnp.full((4, 3), value)}},
        "ema": {"w": jnp.full((4, 3), value + 0.5)},
    }


def abstract() -> dict[str, Any]:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), items(0))


def save_steps(folder: pathlib.Path, losses: dict[int, float | None], **options: Any) -> None:
    """Saves steps with their losses; None is a checkpoint between evaluations."""
    checkpoints = Checkpoints(folder, **options)
    for step, loss in losses.items():
        metrics = None if loss is None else {"loss": loss, "mse": -loss}
        checkpoints.save(step, items(step), metrics, {"next_batch": 10 * step})
    checkpoints.close()


def names(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def everything(folder: pathlib.Path) -> dict[str, tuple[int, bytes]]:
    """Time of change and content of every file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_round_trip(tmp_path: pathlib.Path) -> None:
    save_steps(tmp_path, {1: 1.0, 2: 0.5})
    restored = Checkpoints(tmp_path).restore_latest(abstract())
    assert restored is not None
    jax.tree.map(np.testing.assert_array_equal, restored.items, items(2))
    assert restored.items["rest"]["step"].dtype == jnp.int32
    assert (restored.step, restored.progress) == (2, {"next_batch": 20})


@pytest.mark.parametrize("name", ["run[1]", "lr=[1e-3,3e-4] ?*{a}$HOME~ #%20:é", "[!a]\n'\""])
def test_any_path_can_hold_checkpoints(tmp_path: pathlib.Path, name: str) -> None:
    save_steps(tmp_path / name, {1: 1.0})
    restored = Checkpoints(tmp_path / name).restore_latest(abstract())
    assert restored is not None
    jax.tree.map(np.testing.assert_array_equal, restored.items, items(1))


def test_nothing_there(tmp_path: pathlib.Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.restore_latest(abstract()) is None
    assert checkpoints.best_step() is None


def test_newest_and_best_are_kept(tmp_path: pathlib.Path) -> None:
    save_steps(tmp_path, {1: 0.9, 2: 0.1, 3: 0.8, 4: 0.7, 5: 0.6})
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.steps() == [2, 4, 5]
    assert checkpoints.best_step() == 2
    checkpoints.save(6, items(6), {"loss": 0.65})
    checkpoints.wait()
    assert checkpoints.steps() == [2, 5, 6]
    assert names(tmp_path) == ["2", "5", "6"]
    assert checkpoints.best_step() == 2
    assert checkpoints.metrics(2) == {"loss": 0.1, "mse": -0.1}
    np.testing.assert_array_equal(
        checkpoints.restore_ema(abstract()["ema"], step=2)["w"], items(2)["ema"]["w"]
    )
    with pytest.raises(CheckpointError, match=r"has no step 3; allowed: \[2, 5, 6\]"):
        checkpoints.restore_ema(abstract()["ema"], step=3)


def test_checkpoints_between_evaluations_are_never_the_best(tmp_path: pathlib.Path) -> None:
    losses = {3: 0.9, 4: None, 6: 0.8, 7: None, 8: None}
    save_steps(tmp_path, losses, keep=1, keep_every=3, best_metric="mse")
    assert names(tmp_path) == ["3", "6", "8"]
    stored = StoredCheckpoints(tmp_path, best_metric="mse")
    assert (stored.best_step(), stored.metrics(8)) == (3, {})
    assert StoredCheckpoints(tmp_path).best_step() == 6
    assert StoredCheckpoints(tmp_path, best_metric="other").best_step() is None


def test_a_step_that_exists_is_left_alone(tmp_path: pathlib.Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, items(3), {"loss": 1.0}, {"next_batch": 30})
    checkpoints.save(3, items(9), None, {"next_batch": 90})  # as at a preemption after a save
    checkpoints.close()
    restored = Checkpoints(tmp_path).restore_latest(abstract())
    assert restored is not None
    assert restored.progress == {"next_batch": 30}
    jax.tree.map(np.testing.assert_array_equal, restored.items, items(3))
    assert checkpoints.metrics(3) == {"loss": 1.0}


def test_saving_waits_for_nothing_and_a_step_appears_whole(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, write = threading.Event(), checksums.write

    def write_late(*arguments: Any, **options: Any) -> None:
        assert go_on.wait(60)
        write(*arguments, **options)

    monkeypatch.setattr(checksums, "write", write_late)
    checkpoints = Checkpoints(tmp_path)
    change = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0, tree), donate_argnums=0)
    noise = np.sin(np.arange(500_000.0, dtype=np.float32))
    saved = {"ema": {"w": jnp.asarray(noise)}}
    wanted = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), saved)
    checkpoints.save(5, saved, None)
    jax.block_until_ready(change(saved))  # as the next training step takes the buffers
    assert checkpoints.steps() == StoredCheckpoints(tmp_path).steps() == []
    go_on.set()
    checkpoints.wait()
    assert checkpoints.steps() == StoredCheckpoints(tmp_path).steps() == [5]
    restored = checkpoints.restore_latest(wanted)
    assert restored is not None
    np.testing.assert_array_equal(restored.items["ema"]["w"], noise)


@pytest.mark.parametrize("lost", ["ema/manifest.ocdbt", "rest/_METADATA", "ema"])
def test_a_step_that_cannot_be_read_back_is_told_and_the_one_before_is_kept(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """As where the library commits a step and has not found its own files."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, items(1), None)
    checkpoints.wait()
    write = checksums.write

    def lose(folder: Any, **options: Any) -> None:
        path = folder / lost
        path.rmtree() if path.is_dir() else path.unlink()
        write(folder, **options)

    monkeypatch.setattr(checksums, "write", lose)
    checkpoints.save(2, items(2), None)
    with pytest.raises(
        CheckpointError, match=r"step 2 could not .* the last good one is step 1.*read back"
    ):
        checkpoints.wait()
    assert names(tmp_path) == ["1"]
    assert (tmp_path / "unreadable" / "2.txt").is_file()
    monkeypatch.setattr(checksums, "write", write)
    checkpoints.save(3, items(3), None)
    checkpoints.close()
    assert names(tmp_path) == ["3"]


def test_a_file_that_is_cut_after_its_checksum_was_taken_is_told(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = checksums.write

    def cut(folder: Any, **options: Any) -> None:
        write(folder, **options)
        (folder / "progress" / "progress").write_text("{")

    monkeypatch.setattr(checksums, "write", cut)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(2, items(2), None)
    with pytest.raises(CheckpointError, match=r"no earlier one.*progress has 1 bytes"):
        checkpoints.wait()
    assert names(tmp_path) == []


@pytest.mark.parametrize("damage", ["truncate", "remove", "flip"])
def test_torn_newest_falls_back(
    damage: str, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_steps(tmp_path, {1: 1.0, 2: 0.5, 3: 0.4}, keep=3)
    payload = list((tmp_path / "checkpoints" / "3" / "rest").glob("**/d/*"))
    assert payload
    for path in payload:
        content = path.read_bytes()
        if damage == "truncate":
            path.write_bytes(content[: len(content) // 2])
        elif damage == "flip":
            path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        else:
            path.unlink()
    checkpoints = Checkpoints(tmp_path, keep=3)
    with caplog.at_level(logging.WARNING):
        restored = checkpoints.restore_latest(abstract())
    assert restored is not None
    assert restored.step == int(restored.items["rest"]["step"]) == 2
    assert "checkpoint of step 3 cannot be read and is moved to" in caplog.text
    assert (tmp_path / "unreadable" / "3").is_dir()
    checkpoints.save(3, items(3), {"loss": 0.3})
    checkpoints.wait()
    assert checkpoints.steps() == [1, 2, 3]


def test_all_torn_is_an_error_not_a_new_start(tmp_path: pathlib.Path) -> None:
    save_steps(tmp_path, {1: 1.0})
    for path in (tmp_path / "checkpoints" / "1").glob("**/d/*"):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"none of the checkpoints \[1\]"):
        Checkpoints(tmp_path).restore_latest(abstract())


def test_checkpoint_of_another_model_is_no_damage(tmp_path: pathlib.Path) -> None:
    save_steps(tmp_path, {1: 1.0})
    before = everything(tmp_path)
    other = abstract()
    other["ema"] = {"w": jax.ShapeDtypeStruct((5, 3), jnp.float32)}
    other["rest"]["params"] = {"v": jax.ShapeDtypeStruct((4, 3), jnp.float32)}
    other["rest"]["step"] = jax.ShapeDtypeStruct((), jnp.float32)
    with pytest.raises(CheckpointError, match=r"step 1 .* read as this model: ") as caught:
        Checkpoints(tmp_path).restore_latest(other)
    for difference in (
        "ema/w is float32[4, 3] in the checkpoint and float32[5, 3] here",
        "rest/params/v is not in the checkpoint",
        "rest/params/w is in the checkpoint only",
        "and 1 more",
    ):
        assert difference in str(caught.value)
    with pytest.raises(CheckpointError, match=r"rest/step is int32\[\] .* and float32\[\] here"):
        Checkpoints(tmp_path).restore_latest(
            {"rest": abstract()["rest"] | {"step": other["rest"]["step"]}}
        )
    with pytest.raises(CheckpointError, match="cannot be read as this model"):
        StoredCheckpoints(tmp_path).restore_ema(other["ema"], step=1)
    with pytest.raises(CheckpointError, match="extra/w is not in the checkpoint"):
        Checkpoints(tmp_path).restore_latest(abstract() | {"extra": other["ema"]})
    assert everything(tmp_path) == before


def test_a_newer_format_is_an_error_and_stays(tmp_path: pathlib.Path) -> None:
    save_steps(tmp_path, {1: 1.0, 2: 0.5})
    newest = tmp_path / "checkpoints" / "2"
    (newest / "progress" / "progress").write_text(json.dumps({"format": 3, "progress": {}}))
    (newest / "checksums.json").unlink()
    before = everything(tmp_path)
    with pytest.raises(CheckpointError, match=r"step 2 .* has format 3; allowed: up to 2"):
        Checkpoints(tmp_path).restore_latest(abstract())
    with pytest.raises(CheckpointError, match="has format 3"):
        StoredCheckpoints(tmp_path).restore_ema(abstract()["ema"], step=2)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("torn", [False, True])
def test_the_format_before_progress_and_checksums(torn: bool, tmp_path: pathlib.Path) -> None:
    save_steps(tmp_path, {1: 1.0, 2: 0.5})
    for step in ("1", "2"):
        (tmp_path / "checkpoints" / step / "checksums.json").unlink()
        (tmp_path / "checkpoints" / step / "progress" / "progress").unlink()
    if torn:
        for path in (tmp_path / "checkpoints" / "2").glob("**/d/*"):
            path.write_bytes(b"")
    restored = Checkpoints(tmp_path).restore_latest(abstract())
    assert restored is not None
    assert (restored.step, restored.progress) == (1 if torn else 2, {})
    assert names(tmp_path) == (["1"] if torn else ["1", "2"])


def test_what_a_killed_save_left_is_no_step(tmp_path: pathlib.Path) -> None:
    save_steps(tmp_path, {1: 1.0})
    half = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    (half / "rest").mkdir(parents=True)
    assert StoredCheckpoints(tmp_path).steps() == [1]
    assert half.is_dir()
    checkpoints = Checkpoints(tmp_path)
    restored = checkpoints.restore_latest(abstract())
    assert restored is not None
    assert restored.step == 1
    assert names(tmp_path) == ["1"]


def test_reading_leaves_no_trace(tmp_path: pathlib.Path) -> None:
    save_steps(tmp_path, {1: 0.1, 2: 0.5})
    for path in (tmp_path / "checkpoints" / "2" / "rest").glob("**/d/*"):
        path.write_bytes(b"")  # of no matter to who reads the average
    before = everything(tmp_path)
    folders = [tmp_path, *(path for path in tmp_path.rglob("*") if path.is_dir())]
    for path in folders:
        path.chmod(0o500)
    stored = StoredCheckpoints(tmp_path)
    found = stored.restore_ema(abstract()["ema"], step=2)
    np.testing.assert_array_equal(found["w"], items(2)["ema"]["w"])
    assert (stored.steps(), stored.best_step()) == ([1, 2], 1)
    for path in folders:
        path.chmod(0o700)
    (tmp_path / "checkpoints" / "2" / "ema" / "_METADATA").write_bytes(b"")
    with pytest.raises(DamagedCheckpoint, match=r"ema/_METADATA has 0 bytes"):
        stored.restore_ema(abstract()["ema"], step=2)
    (tmp_path / "checkpoints" / "2" / "ema" / "_METADATA").write_bytes(
        before[str(tmp_path / "checkpoints" / "2" / "ema" / "_METADATA")][1]
    )
    assert {name: content for name, (_, content) in everything(tmp_path).items()} == {
        name: content for name, (_, content) in before.items()
    }
    assert StoredCheckpoints(tmp_path / "none").steps() == []
    assert not (tmp_path / "none").exists()


def test_a_workdir_that_cannot_be_written_is_an_error_at_once(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"checkpoints cannot be written to .*file/checkpo"):
        Checkpoints(tmp_path / "file")


def test_storage_that_fails_before_a_save(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_steps(tmp_path, {1: 1.0, 2: 2.0}, keep=1)
    checkpoints = Checkpoints(tmp_path, keep=1)

    def full(folder: checkpoint_folder.CheckpointFolder) -> None:
        raise OSError(28, "No space left on device", str(folder.path))

    monkeypatch.setattr(checkpoint_folder.CheckpointFolder, "probe", full)
    with pytest.raises(CheckpointError, match=r"step 3 could not .* good one is step 2.*No space"):
        checkpoints.save(3, items(3), {"loss": 0.1})
    monkeypatch.undo()
    checkpoints.save(3, items(3), {"loss": 0.1})
    checkpoints.close()
    assert names(tmp_path) == ["3"]


def test_progress_that_is_not_json_is_an_error_at_once(tmp_path: pathlib.Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(TypeError, match="not JSON serializable"):
        checkpoints.save(1, items(1), None, {"next_batch": np.int64(3)})
    checkpoints.close()
    assert names(tmp_path) == []


def test_full_disk(tmp_path: pathlib.Path) -> None:
    """A file size limit stands for the full disk: the error names the last good step."""
    script = textwrap.dedent(
        f"""
        import resource, signal
        import jax.numpy as jnp
        from fasttta_jax.workdir.checkpoint import CheckpointError, Checkpoints
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        noise = jnp.sin(jnp.arange(300_000.0) ** 1.5)
        items = {{"rest": {{"w": noise}}, "ema": {{"w": noise}}}}
        checkpoints = Checkpoints({str(tmp_path)!r}, keep=1)
        checkpoints.save(1, items, {{"loss": 1.0}})
        checkpoints.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            checkpoints.save(2, items, {{"loss": 0.5}})
            checkpoints.wait()
        except CheckpointError as error:
            print("CAUGHT", error)
        """
    )
    result = commands.run("-c", script)
    assert "CAUGHT a checkpoint of step 2" in result.stdout, result.stdout + result.stderr
    assert "the last good one is step 1" in result.stdout
    assert names(tmp_path) == ["1"]
    assert Checkpoints(tmp_path).steps() == [1]


def test_restored_onto_any_mesh(tmp_path: pathlib.Path) -> None:
    devices = np.asarray(jax.devices())
    meshes = [Mesh(devices.reshape(shape), ("data", "fsdp")) for shape in ((2, 4), (8, 1))]
    specs = [PartitionSpec("fsdp", "data"), PartitionSpec("data", None)]
    noise = jnp.sin(jnp.arange(8 * 6.0) ** 1.5).reshape(8, 6)
    places = [NamedSharding(mesh, spec) for mesh, spec in zip(meshes, specs, strict=True)]
    tree = {"ema": {"w": jax.device_put(noise, places[0])}}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, tree, None)
    wanted = {"ema": {"w": jax.ShapeDtypeStruct((8, 6), jnp.float32, sharding=places[1])}}
    restored = checkpoints.restore_latest(wanted)
    assert restored is not None
    assert restored.items["ema"]["w"].sharding == places[1]
    assert tree_hash(restored.items) == tree_hash(tree) == tree_hash({"ema": {"w": noise}})


def test_hash_tells_trees_apart() -> None:
    first = tree_hash(items(1))
    assert first == tree_hash(items(1))
    assert first != tree_hash(items(2))
    assert first != tree_hash({"other": items(1)})
    # Workdirs have it written down: name, shape, dtype and bytes, as ever.
    for values in (
        np.arange(6, dtype=np.float32).reshape(2, 3).T,
        np.arange(4).astype(jnp.bfloat16),
        np.int32(3),
        np.zeros((0, 2), np.float32),
    ):
        head = f"['w']{np.shape(values)}{values.dtype}".encode()
        expected = hashlib.sha256(head + values.tobytes()).hexdigest()
        assert tree_hash({"w": values}) == tree_hash({"w": jnp.asarray(values)}) == expected
