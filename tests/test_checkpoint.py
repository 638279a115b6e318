"""Checkpoints: exact round trips, fall-back from a torn one, retention, errors that help."""

import logging
import pathlib
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fasttta_jax.checkpoint import CheckpointError, Checkpoints, tree_hash


def items(value: float) -> dict:
    return {
        "rest": {"step": jnp.int32(value), "params": {"w": jnp.full((4, 3), value)}},
        "ema": {"w": jnp.full((4, 3), value + 0.5)},
    }


def abstract() -> dict:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), items(0))


def save_steps(folder: pathlib.Path, losses: dict[int, float], keep: int = 2) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep=keep)
    for step, loss in losses.items():
        checkpoints.save(step, items(step), {"loss": loss})
    checkpoints.wait()
    return checkpoints


def test_round_trip(tmp_path: pathlib.Path) -> None:
    save_steps(tmp_path, {1: 1.0, 2: 0.5}).close()
    restored = Checkpoints(tmp_path).restore_latest(abstract())
    assert restored is not None
    jax.tree.map(np.testing.assert_array_equal, restored, items(2))
    assert restored["rest"]["step"].dtype == jnp.int32


def test_nothing_there(tmp_path: pathlib.Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.restore_latest(abstract()) is None
    assert checkpoints.best_step() is None


def test_newest_and_best_are_kept(tmp_path: pathlib.Path) -> None:
    losses = {1: 0.9, 2: 0.1, 3: 0.8, 4: 0.7, 5: 0.6}
    checkpoints = save_steps(tmp_path, losses)
    assert checkpoints.steps() == [2, 4, 5]
    assert checkpoints.best_step() == 2
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(6, items(6), {"loss": 0.65})
    checkpoints.wait()
    assert checkpoints.steps() == [2, 5, 6]
    assert checkpoints.best_step() == 2
    assert checkpoints.metrics(2) == {"loss": 0.1}
    np.testing.assert_array_equal(
        checkpoints.restore_ema(abstract()["ema"], step=2)["w"], items(2)["ema"]["w"]
    )
    with pytest.raises(CheckpointError, match=r"has no step 3; allowed: \[2, 5, 6\]"):
        checkpoints.restore_ema(abstract()["ema"], step=3)


@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_torn_newest_falls_back(
    damage: str, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_steps(tmp_path, {1: 1.0, 2: 0.5, 3: 0.4}, keep=3).close()
    payload = list((tmp_path / "checkpoints" / "3" / "rest").glob("**/d/*"))
    assert payload
    for path in payload:
        if damage == "truncate":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        else:
            path.unlink()
    checkpoints = Checkpoints(tmp_path, keep=3)
    with caplog.at_level(logging.WARNING):
        restored = checkpoints.restore_latest(abstract())
    assert restored is not None
    assert int(restored["rest"]["step"]) == 2
    assert "checkpoint of step 3 cannot be read and is moved to" in caplog.text
    assert (tmp_path / "unreadable" / "3").is_dir()
    checkpoints.save(3, items(3), {"loss": 0.3})
    checkpoints.wait()
    assert checkpoints.steps() == [1, 2, 3]


def test_all_torn_is_an_error_not_a_new_start(tmp_path: pathlib.Path) -> None:
    save_steps(tmp_path, {1: 1.0}).close()
    for path in (tmp_path / "checkpoints" / "1").glob("**/d/*"):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"none of the checkpoints \[1\]"):
        Checkpoints(tmp_path).restore_latest(abstract())


def test_checkpoint_of_another_model(tmp_path: pathlib.Path) -> None:
    save_steps(tmp_path, {1: 1.0}).close()
    other = {"w": jax.ShapeDtypeStruct((5, 3), jnp.float32)}
    with pytest.raises(CheckpointError, match="cannot be read as this model"):
        Checkpoints(tmp_path).restore_ema(other, step=1)


def test_full_disk(tmp_path: pathlib.Path) -> None:
    """A file size limit stands for the full disk: the error names the last good step."""
    script = textwrap.dedent(
        f"""
        import resource, signal
        import jax.numpy as jnp
        from fasttta_jax.checkpoint import CheckpointError, Checkpoints
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        noise = jnp.sin(jnp.arange(300_000.0) ** 1.5)
        items = {{"rest": {{"w": noise}}, "ema": {{"w": noise}}}}
        checkpoints = Checkpoints({str(tmp_path)!r})
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
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert "CAUGHT a checkpoint" in result.stdout, result.stdout + result.stderr
    assert "the last good one is step 1" in result.stdout
    assert Checkpoints(tmp_path).steps() == [1]


def test_hash_tells_trees_apart() -> None:
    first = tree_hash(items(1))
    assert first == tree_hash(items(1))
    assert first != tree_hash(items(2))
    assert first != tree_hash({"other": items(1)})
