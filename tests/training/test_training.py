"""A run from config to checkpoint: it learns, resumes bit for bit, and stops where it must."""

import dataclasses
import json
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import pytest

from fasttta_jax.config import (
    ConfigError,
    DataConfig,
    DistillationConfig,
    HeadConfig,
    TextConfig,
)
from fasttta_jax.input_pipeline.records import HASHES, METADATA_FILE, DatasetError
from fasttta_jax.parallel.local import local_mesh
from fasttta_jax.storage.sealed import sealed
from fasttta_jax.text import LearnedTextEncoder
from fasttta_jax.training.loop import Trainer
from fasttta_jax.training.opening import open_run
from fasttta_jax.workdir.checkpoint import Checkpoints
from fasttta_jax.workdir.folder import ORIGIN_FILE, WorkdirError
from fasttta_jax.workdir.hashes import tree_hash
from fasttta_jax.workdir.metrics_log import read_metrics
from fasttta_jax.workdir.restore import load_trained
from tests.support import commands, launch
from tests.support.helpers import (
    rows_of,
    run_config_file,
    tiny_model_config,
    tiny_student_config,
    tiny_teacher_config,
    train_command,
)
from tests.support.tolerance import model_terms, rounding

ONE = jax.devices()[:1]  # which compiles fastest


@pytest.fixture
def teacher(runs: dict[str, pathlib.Path]) -> pathlib.Path:
    return runs["teacher"]


@pytest.fixture
def student(runs: dict[str, pathlib.Path]) -> pathlib.Path:
    return runs["student"]


def averages(workdir: pathlib.Path) -> Any:
    """The averaged parameters of a run."""
    return load_trained(str(workdir), local_mesh()).params


def losses(workdir: pathlib.Path, name: str = "train/loss") -> list[float]:
    return [row[name] for row in read_metrics(workdir / "metrics.jsonl") if name in row]


def assert_bitwise_equal(first: Any, second: Any) -> None:
    for (path, a), (_, b) in zip(
        jax.tree_util.tree_leaves_with_path(first),
        jax.tree_util.tree_leaves_with_path(second),
        strict=True,
    ):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), jax.tree_util.keystr(path))


def test_teacher_then_student_learn(teacher: pathlib.Path, student: pathlib.Path) -> None:
    for workdir, name in ((teacher, "train/mse"), (student, "train/energy")):
        curve = losses(workdir, name)
        assert np.mean(curve[-20:]) < 0.8 * np.mean(curve[:5]), (name, curve)
        validation = losses(workdir, "validation/loss")
        assert len(validation) == 2
        assert validation[-1] < validation[0]


def test_student_begins_at_its_teacher(student: pathlib.Path, teacher: pathlib.Path) -> None:
    align = losses(student, "train/align")
    # the square of the states' rounding, which are of order 1
    assert align[0] < rounding(model_terms(tiny_model_config())) ** 2
    assert max(align) > align[0]
    origin = json.loads((student / ORIGIN_FILE).read_text())
    assert origin["step"] == 200
    assert origin["sha256"] == tree_hash(averages(teacher))


def test_workdir_holds_everything(student: pathlib.Path) -> None:
    assert Checkpoints(student).steps() == [37, 40]
    assert Checkpoints(student).best_step() == 40
    assert json.loads((student / "config.json").read_text())["config"]["objective"] == "energy"
    assert len(list(student.glob("events.out.tfevents.*"))) == 1
    assert sorted(path.name for path in (student / "samples" / "00000040").iterdir()) == [
        "00.png",
        "00.wav",
        "01.png",
        "01.wav",
    ]


def test_interrupted_run_equals_uninterrupted(
    encoded_dataset: pathlib.Path,
    teacher: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Parameters, optimizer, average, data order, randomness and metrics, bit for bit.

    Also where the run was to be longer at first.
    """
    config = tiny_student_config(encoded_dataset, teacher)
    whole = Trainer(config, tmp_path / "whole", devices=ONE).run()

    class Killed(Exception):
        pass

    longer = dataclasses.replace(config, num_steps=config.num_steps + 1)
    trainer = Trainer(longer, tmp_path / "parts", devices=ONE)
    step = trainer.train_step
    calls = 0

    def dies_in_step_five(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise Killed
        return step(*arguments)

    monkeypatch.setattr(trainer, "train_step", dies_in_step_five)
    with pytest.raises(Killed):
        trainer.run()
    assert_bitwise_equal(whole, Trainer(config, tmp_path / "parts", devices=ONE).run())
    assert rows_of(tmp_path / "whole") == rows_of(tmp_path / "parts")


@pytest.mark.slow
def test_kill_minus_nine_resumes(encoded_dataset: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A killed process, started again, ends where one that was left alone ends.

    The latter also traces two steps, which changes no number and compiles nothing.
    """
    config = tiny_teacher_config(
        encoded_dataset, num_steps=40, evaluate_every=5, checkpoints_to_keep=1
    )
    file = run_config_file(config, tmp_path / "run.py")
    command = train_command(file, tmp_path / "killed")
    launch.killed_at(command, tmp_path / "killed", 10)
    again = commands.run(*command)
    assert again.returncode == 0, again.stderr
    assert "resuming" in again.stderr
    left_alone = commands.run(*train_command(file, tmp_path / "whole", "--profile=21:22"))
    assert left_alone.returncode == 0, left_alone.stderr
    rows = [rows_of(tmp_path / name) for name in ("killed", "whole")]
    assert rows[0] == rows[1]
    assert max(row["step"] for row in rows[0]) == 40
    assert len(list((tmp_path / "whole" / "profile").glob("**/*.xplane.pb"))) == 1
    compiled = {
        row["step"]: row["throughput/compilations"]
        for row in read_metrics(tmp_path / "whole" / "metrics.jsonl")
        if "throughput/compilations" in row
    }
    assert [compiled[step] for step in (21, 22, 23)] == [0, 0, 0]


def test_frozen_backbone_moves_only_the_head(
    encoded_dataset: pathlib.Path,
    teacher: pathlib.Path,
    tmp_path: pathlib.Path,
) -> None:
    config = tiny_student_config(
        encoded_dataset,
        teacher,
        distillation=DistillationConfig(freeze_backbone=True, backbone_from_teacher=True),
    )
    state = Trainer(config, tmp_path, devices=ONE).run()
    start = averages(teacher)
    for name in ("text", "backbone"):
        assert_bitwise_equal(state.params[name], start[name])
    assert tree_hash(state.params["head"]) != tree_hash(state.ema["head"])


def test_nan_stops_the_run_and_keeps_the_checkpoint(
    encoded_dataset: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless a config allows for some; that is in `multiprocess/test_faults`."""
    config = tiny_teacher_config(encoded_dataset)
    trainer = Trainer(config, tmp_path, devices=ONE)
    step = trainer.train_step
    calls = 0

    def poisoned(state: Any, frozen: Any, batch: Any, key: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 5:
            batch = batch | {"tokens": batch["tokens"] * np.nan}
        return step(state, frozen, batch, key)

    monkeypatch.setattr(trainer, "train_step", poisoned)
    with pytest.raises(FloatingPointError, match=r"stopped at step 5: .*good checkpoint is step 3"):
        trainer.run()
    assert Checkpoints(tmp_path).steps() == [3]
    assert int(Trainer(config, tmp_path, devices=ONE).run().step) == 6


def test_no_recompilation_after_the_first_step(
    encoded_dataset: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """Counted by the metrics: the evaluation at step 3 and its checkpoint compile, steps do not."""
    config = tiny_teacher_config(encoded_dataset, num_steps=6)
    trainer = Trainer(config, tmp_path, devices=ONE)
    trainer.run()
    rows = read_metrics(tmp_path / "metrics.jsonl")
    counts = {
        row["step"]: row["throughput/compilations"]
        for row in rows
        if "throughput/compilations" in row
    }
    assert sorted(counts) == [1, 2, 3, 4, 5, 6]
    assert [counts[step] for step in (2, 3, 5, 6)] == [0, 0, 0, 0]
    assert trainer.opened.evaluate_step.jitted._cache_size() == 1


def test_another_run_in_the_workdir_is_refused(
    encoded_dataset: pathlib.Path,
    teacher: pathlib.Path,
    tmp_path: pathlib.Path,
) -> None:
    workdir = tmp_path / "run"
    config = tiny_teacher_config(encoded_dataset)
    Trainer(config, workdir, devices=ONE)
    wider = dataclasses.replace(config, model=tiny_model_config(head=HeadConfig(width=48, depth=1)))
    with pytest.raises(WorkdirError, match=r"model.head.width is 32 there and 48 here"):
        Trainer(wider, workdir, devices=ONE)
    Trainer(dataclasses.replace(config, log_every=2), workdir, devices=ONE)


def test_a_run_that_is_refused_leaves_its_workdir_to_the_next(
    encoded_dataset: pathlib.Path, teacher: pathlib.Path, student: pathlib.Path, tmp_path
) -> None:
    """A wrong name, a wrong source: the corrected config begins in the same folder."""
    config = tiny_student_config(encoded_dataset, teacher)
    for wrong, message in (
        (dataclasses.replace(config, objective="enrgy"), "objective is 'enrgy'; allowed"),
        (dataclasses.replace(config, best_metric="los"), "best_metric is 'los'; allowed"),
        (dataclasses.replace(config, init_from=str(student)), "objective is 'diffusion'"),
        (tiny_teacher_config(encoded_dataset, init_from="nowhere"), "nowhere"),
    ):
        with pytest.raises(ValueError, match=message):
            open_run(wrong, tmp_path / "run", devices=ONE)
    open_run(config, tmp_path / "run", devices=ONE)
    with pytest.raises(ConfigError, match="objective is 'enrgy'"):
        open_run(dataclasses.replace(config, objective="enrgy"), tmp_path / "other", devices=ONE)
    assert not (tmp_path / "other" / "config.json").exists()
    with pytest.raises(WorkdirError, match="objective is 'energy' there and 'enrgy' here"):
        open_run(dataclasses.replace(config, objective="enrgy"), tmp_path / "run", devices=ONE)


def test_workdir_that_is_a_file(encoded_dataset: pathlib.Path, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "run"
    path.write_text("")
    with pytest.raises(WorkdirError, match="is a file; allowed: a folder"):
        Trainer(tiny_teacher_config(encoded_dataset), path, devices=ONE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_from": ""}, "init_from is ''; allowed: the workdir of a teacher"),
        ({"data": DataConfig(path="")}, "data.path is empty"),
        ({"data": DataConfig(path="nowhere")}, "has no records/ folder"),
        ({"model": tiny_model_config(token_dim=4)}, "token_dim is 4"),
        ({"model": tiny_model_config(num_tokens=7)}, "model.num_tokens is 7; allowed: multiples"),
    ],
)
def test_what_does_not_fit_is_named(
    changes: dict[str, Any],
    message: str,
    encoded_dataset: pathlib.Path,
    teacher: pathlib.Path,
    tmp_path: pathlib.Path,
) -> None:
    changes = {"distillation": DistillationConfig(weight=1.0), **changes}
    config = tiny_student_config(encoded_dataset, teacher, **changes)
    with pytest.raises(ValueError, match=message):
        Trainer(config, tmp_path, devices=ONE)


def test_student_of_a_student_is_refused(
    encoded_dataset: pathlib.Path, student: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(ConfigError, match="only where the teacher's objective is 'diffusion'"):
        Trainer(tiny_student_config(encoded_dataset, student), tmp_path, devices=ONE)


def test_batch_that_does_not_divide(
    encoded_dataset: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_teacher_config(
        encoded_dataset, data=DataConfig(path=str(encoded_dataset), batch_size=12)
    )
    with pytest.raises(ConfigError, match=r"batch_size is 12; allowed: multiples .* 8 or 16"):
        Trainer(config, tmp_path)


def test_student_needs_its_teachers_tokenizer(
    encoded_dataset: pathlib.Path, teacher: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(encoded_dataset, other)
    LearnedTextEncoder.fit(["other words"], 300, TextConfig()).save(other / "text")
    with pytest.raises(ConfigError, match="text"):
        Trainer(tiny_student_config(other, teacher), tmp_path / "run", devices=ONE)


def test_dataset_without_validation_split(
    encoded_dataset: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(encoded_dataset, other)
    (path,) = other.glob("records/**/dataset_info.json")
    info = json.loads(path.read_text())
    info["splits"] = [split for split in info["splits"] if split["name"] != "validation"]
    path.write_text(json.dumps(info))
    metadata = path.with_name(METADATA_FILE)  # as earlier versions wrote it, without hashes
    metadata.write_text(json.dumps(sealed({**json.loads(metadata.read_text()), HASHES: {}})))
    with pytest.raises(DatasetError, match="has no split 'validation'; allowed: "):
        Trainer(tiny_teacher_config(other), tmp_path / "run", devices=ONE)
