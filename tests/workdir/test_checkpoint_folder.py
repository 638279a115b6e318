"""Steps on disk: which stay, which are whole, of which format they are, what cannot be written."""

from __future__ import annotations

import json
import math
import os
import pathlib

import pytest
from etils import epath

from fasttta_jax.workdir import checksums
from fasttta_jax.workdir.checkpoint_folder import (
    CheckpointError,
    CheckpointFolder,
    DamagedCheckpoint,
    best_step,
    steps_to_keep,
)
from tests.support import object_store
from tests.support.object_store import ObjectStore

LOSSES = {1: {"loss": 0.9}, 2: {"loss": 0.1, "mse": 5.0}, 3: {}, 4: {"loss": 0.7}, 5: {}, 6: {}}


def write_step(folder: CheckpointFolder, step: int, *, form: int = 2, loss: float = 0.5) -> None:
    """The files of a step with one small item."""
    path = folder.step(step)
    files = {
        "ema/d/a": b"arrays",
        "rest/d/a": bytes(100),
        "metrics/metrics": json.dumps({"loss": loss}).encode(),
        "progress/progress": json.dumps({"format": form, "progress": {"next": step}}).encode(),
    }
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    checksums.write(path)
    (path / "commit_success.txt").write_text("yes")


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> None:
    """gs:// in memory, with what removing and renaming need."""

    def remove(self: ObjectStore, path: str) -> None:
        self.objects.pop(self._strip_protocol(path), None)

    def copy(self: ObjectStore, source: str, target: str, **_: object) -> None:
        if (content := self.objects.get(self._strip_protocol(source))) is not None:
            self.objects[self._strip_protocol(target)] = content

    object_store.install(monkeypatch)
    monkeypatch.setattr(ObjectStore, "_rm", remove, raising=False)
    monkeypatch.setattr(ObjectStore, "cp_file", copy, raising=False)


def test_newest_best_and_multiples_stay() -> None:
    kept = steps_to_keep(LOSSES, keep=2, keep_every=0, best_metric="loss")
    assert kept == {2, 5, 6}
    assert steps_to_keep(LOSSES, keep=1, keep_every=3, best_metric="loss") == {2, 3, 6}
    assert steps_to_keep(LOSSES, keep=9, keep_every=0, best_metric="loss") == set(LOSSES)
    assert steps_to_keep({7: {}, 8: {}}, keep=1, keep_every=0, best_metric="loss") == {8}
    assert steps_to_keep({}, keep=1, keep_every=2, best_metric="loss") == set()


def test_the_best_step_has_the_lowest_finite_metric() -> None:
    assert best_step(LOSSES, "loss") == 2
    assert best_step(LOSSES, "mse") == 2
    assert best_step(LOSSES, "energy") is None
    values = {1: math.nan, 2: -math.inf, 3: 0.5, 4: 0.5, 5: math.inf}
    assert best_step({step: {"loss": loss} for step, loss in values.items()}, "loss") == 4
    assert best_step({1: {"loss": math.nan}, 2: {}}, "loss") is None


def test_every_damaged_file_of_a_step_is_found(tmp_path: pathlib.Path) -> None:
    folder = CheckpointFolder(tmp_path)
    write_step(folder, 3)
    assert folder.check(3, ["ema", "rest"]).progress == {"next": 3}
    table = checksums.read(folder.step(3))
    assert table is not None
    for name in (*table, checksums.FILE):
        path = folder.step(3) / name
        content = path.read_bytes()
        for damaged in (content[:-1], content[:1] + bytes([content[1] ^ 4]) + content[2:]):
            path.write_bytes(damaged)
            if name.startswith("metrics/"):
                assert folder.all_metrics() == {3: {}}
            else:
                with pytest.raises(DamagedCheckpoint, match=r"step 3 in .* is damaged: "):
                    folder.check(3, ["ema", "rest"])
        path.unlink()
        if not name.startswith("metrics/"):
            with pytest.raises(DamagedCheckpoint, match="is missing"):
                folder.check(3, ["ema", "rest"])
        path.write_bytes(content)
    assert folder.check(3, ["ema", "rest"]).format == 2
    (folder.step(3) / "rest/d/a").unlink()
    assert folder.check(3, ["ema"]).format == 2  # looks at what is read, and no more


def test_a_newer_format_is_no_damage(tmp_path: pathlib.Path) -> None:
    folder = CheckpointFolder(tmp_path)
    write_step(folder, 3, form=3)
    with pytest.raises(CheckpointError, match=r"step 3 in .* has format 3; allowed: up to 2"):
        folder.check(3, ["ema"])
    (folder.step(3) / checksums.FILE).unlink()  # which a newer format may do without
    with pytest.raises(CheckpointError, match=r"has format 3") as caught:
        folder.check(3, ["ema"])
    assert not isinstance(caught.value, DamagedCheckpoint)
    write_step(folder, 4)
    text = (folder.step(4) / "progress/progress").read_text()
    (folder.step(4) / "progress/progress").write_text(text.replace('"format": 2', '"format": 6'))
    with pytest.raises(DamagedCheckpoint, match="progress/progress has other bytes"):
        folder.check(4, ["ema"])


def test_an_older_format_has_nothing_to_check(tmp_path: pathlib.Path) -> None:
    folder = CheckpointFolder(tmp_path)
    write_step(folder, 3)
    (folder.step(3) / checksums.FILE).unlink()
    with pytest.raises(DamagedCheckpoint, match=r"checksums.json is missing"):
        folder.check(3, ["ema"])
    (folder.step(3) / "progress/progress").unlink()
    assert folder.check(3, ["ema"]) == (1, {}, False)


@pytest.mark.parametrize("where", ["local", "gs://bucket/run"])
def test_half_written_steps_are_no_steps(where: str, tmp_path: pathlib.Path, store: None) -> None:
    folder = CheckpointFolder(tmp_path if where == "local" else where)
    folder.remove_half_written()
    folder.check_writable()
    for step, loss in ((2, 0.2), (10, 0.1)):
        write_step(folder, step, loss=loss)
    write_step(folder, 11)
    if where == "local":
        folder.step(11).rename(folder.path / "11.orbax-checkpoint-tmp")
    else:
        (folder.step(11) / "commit_success.txt").unlink()
    (folder.path / "notes").mkdir(exist_ok=True)
    (folder.path / "notes" / "mine.txt").write_text("not a step")
    assert folder.all_metrics() == {2: {"loss": 0.2}, 10: {"loss": 0.1}}
    folder.remove_half_written()
    names = {path.name for path in folder.path.iterdir()}
    assert names == {"2", "10", "notes"}
    folder.remove([2])
    folder.remove([2])  # is warned of, and no error
    assert folder.all_metrics() == {10: {"loss": 0.1}}


@pytest.mark.parametrize("where", ["local", "gs://bucket/run"])
def test_a_step_is_moved_aside_with_the_reason(
    where: str, tmp_path: pathlib.Path, store: None
) -> None:
    folder = CheckpointFolder(tmp_path if where == "local" else where)
    for reason in ("is torn", "is torn again"):
        write_step(folder, 3)
        folder.probe()
        folder.move_aside(3, reason)
        assert folder.all_metrics() == {}
        aside = folder.unreadable
        assert (aside / "3" / "ema" / "d" / "a").read_bytes() == b"arrays"
        assert (aside / "3.txt").read_text() == f"{reason}\n"
    assert {path.name for path in aside.iterdir()} == {"3", "3.txt"}


def test_a_workdir_that_cannot_be_written(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    places = [tmp_path / "file", tmp_path / "file" / "below"]
    if os.geteuid():
        (tmp_path / "closed").mkdir(mode=0o500)
        places.append(tmp_path / "closed")
    for place in places:
        with pytest.raises(CheckpointError, match=r"cannot be written to .*: .*Choose another"):
            CheckpointFolder(place).check_writable()
    folder = CheckpointFolder(tmp_path / "new")
    folder.check_writable()
    assert list(folder.path.iterdir()) == []


def test_a_relative_workdir_is_where_the_run_began(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, store: None
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = CheckpointFolder("run")
    monkeypatch.chdir("/")
    assert folder.path == epath.Path(tmp_path / "run" / "checkpoints")
    assert str(CheckpointFolder("gs://bucket/run")) == "gs://bucket/run/checkpoints"
