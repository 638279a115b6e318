"""Runs that are killed, told to stop, short of disk, or come back on other hosts lose nothing."""

from __future__ import annotations

import pathlib
import re
import resource
import signal
import time
from collections.abc import Iterator

import jax
import numpy as np
import pytest

from fasttta_jax.config import MeshConfig, OptimizerConfig, RunConfig
from fasttta_jax.multihost import exit_codes
from fasttta_jax.training.loop import Trainer
from fasttta_jax.workdir.checkpoint import CheckpointError, StoredCheckpoints
from tests.support import helpers, launch
from tests.support.launch import finished_steps, wait_for_step

EVERY = 20
KILL, TERMINATE = signal.SIGKILL, signal.SIGTERM
ONE = jax.devices()[:1]  # which compiles fastest


def config_of_steps(num_steps: int, encoded: pathlib.Path) -> RunConfig:
    """A run long enough to be interrupted, over all devices that there are, at a low rate."""
    return helpers.tiny_teacher_config(
        encoded,
        optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=10, ema_decay=0.9),
        num_steps=num_steps,
        evaluate_every=EVERY,
        checkpoints_to_keep=3,
        mesh=MeshConfig(data=2, fsdp=-1),
        hang_timeout=45.0,  # where the other host is gone, Gloo would wait for jax's 100 s
    )


def until_signalled(command: list[str], workdir: pathlib.Path, hosts: int, number: int) -> None:
    """Goes on with a run on so many hosts, the last of which gets the signal after a checkpoint."""
    begun = finished_steps(workdir)[-1]
    with launch.start(command, hosts, devices_per_process=4 // hosts) as job:
        wait_for_step(job, workdir, begun + EVERY)
        job.signal(hosts - 1, number)
        results = job.wait(timeout=400)
    assert f"resuming {workdir} after step" in results[0].stderr
    codes = [result.returncode for result in results]
    if number == KILL:
        assert codes[-1] == -KILL
        # Gloo, of the CPU alone, at times aborts the other process in C++, where nothing can speak.
        assert codes[0] in (exit_codes.LOST, exit_codes.HUNG, -signal.SIGABRT), job.outputs()
        if codes[0] > 0:
            assert "host 1 of 2" in results[0].stderr
    else:
        assert codes == [exit_codes.PREEMPTED] * hosts, job.outputs()
        assert f"SIGTERM after step {finished_steps(workdir)[-1]}" in results[0].stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_steps", "interruptions", "hosts_at_last"),
    [
        pytest.param(100, ((2, TERMINATE),), 1, id="once"),
        pytest.param(
            200, ((2, KILL), (1, TERMINATE), (2, TERMINATE)), 2, id="often", marks=pytest.mark.long
        ),
    ],
)
def test_a_run_survives_its_hosts(
    num_steps: int,
    interruptions: tuple[tuple[int, int], ...],
    hosts_at_last: int,
    encoded_dataset: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One host dies in step 25; then as many hosts go on as `interruptions` say, and the last of
    them gets the signal; others go on to the end. The losses are those of a run left alone.

    Who is left by one that was killed waits a minute before it says so, which is for `often`;
    `test_a_killed_host_is_named` has the same in a second.

    Only the order of sums differs between one process and two: rounding, which Adam does not blow
    up once its moments are those of twenty steps, and a low rate does not add up.
    """
    four = jax.devices()[:4]
    config = config_of_steps(num_steps, encoded_dataset)
    workdir = tmp_path / "run"
    file = helpers.run_config_file(config, tmp_path / "run.py")
    command = helpers.train_command(file, workdir)

    class Killed(Exception):
        pass

    trainer = Trainer(config, workdir, devices=four)
    step, calls = trainer.train_step, 0

    def dies(*arguments):
        nonlocal calls
        calls += 1
        if calls == EVERY + 5:
            raise Killed
        return step(*arguments)

    monkeypatch.setattr(trainer, "train_step", dies)
    with pytest.raises(Killed):
        trainer.run()
    assert finished_steps(workdir) == [EVERY]
    for hosts, number in interruptions:
        until_signalled(command, workdir, hosts, number)
        assert finished_steps(workdir)[-1] < num_steps, "the run ended before it could be stopped"
    launch.run(command, hosts_at_last, devices_per_process=4 // hosts_at_last, timeout=600)
    expected = Trainer(config, tmp_path / "whole", devices=four).run()
    assert int(expected.step) == num_steps
    rows = helpers.rows_of(workdir), helpers.rows_of(tmp_path / "whole")
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
    for found, wanted in zip(*rows, strict=True):
        for name in ("train/loss", "validation/loss"):
            if name in wanted:
                message = f"{name} of step {wanted['step']}"
                np.testing.assert_allclose(found[name], wanted[name], rtol=1e-4, err_msg=message)


@pytest.fixture
def disk() -> Iterator[object]:
    """`disk(bytes)` lets no file grow beyond that; a stand-in for a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_run_survives_a_full_disk(
    disk,
    encoded_dataset: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = helpers.tiny_teacher_config(encoded_dataset, num_steps=6, checkpoint_every=2)
    whole = Trainer(config, tmp_path / "whole", devices=ONE).run()
    trainer = Trainer(config, tmp_path / "run", devices=ONE)
    step, calls = trainer.train_step, 0

    def fills_up(*arguments):
        nonlocal calls
        calls += 1
        if calls == 4:
            while 3 not in finished_steps(tmp_path / "run"):  # a thread still writes it
                time.sleep(0.02)
            disk(20_000)
        return step(*arguments)

    monkeypatch.setattr(trainer, "train_step", fills_up)
    with pytest.raises(CheckpointError, match=r"last good one is step 3.*Make room"):
        trainer.run()
    assert max(StoredCheckpoints(tmp_path / "run").steps()) == 3
    disk(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    resumed = Trainer(config, tmp_path / "run", devices=ONE).run()
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    assert helpers.rows_of(tmp_path / "run") == helpers.rows_of(tmp_path / "whole")


def test_steps_that_are_not_finite_are_skipped_and_counted(
    encoded_dataset: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Named, counted across a restart, and no parameter becomes NaN; one too many stops the run."""
    config = helpers.tiny_teacher_config(encoded_dataset, num_steps=6)
    allowed = config.optimizer.__class__(**{**vars(config.optimizer), "max_skipped_steps": 2})
    config = config.__class__(**{**vars(config), "optimizer": allowed})

    def train(bad: set[int], num_calls: int | None = None):
        trainer = Trainer(config, tmp_path, devices=ONE)
        step = trainer.train_step
        before = max(StoredCheckpoints(tmp_path).steps(), default=0)
        calls = before

        def poisoned(state, frozen, batch, key):
            nonlocal calls
            calls += 1
            if calls in bad:
                batch = batch | {"tokens": batch["tokens"] * np.nan}
            if num_calls is not None and calls > num_calls:
                raise KeyboardInterrupt
            return step(state, frozen, batch, key)

        monkeypatch.setattr(trainer, "train_step", poisoned)
        return trainer.run()

    with caplog.at_level("WARNING"), pytest.raises(KeyboardInterrupt):
        train({2}, num_calls=4)
    assert re.search(r"step 2 is skipped: .*loss nan", caplog.text)
    with pytest.raises(
        FloatingPointError,
        match=r"stopped at step 6: .* 2 steps had been skipped.* good checkpoint is step 3",
    ):
        train({5, 6})
    assert finished_steps(tmp_path) == [3]
    state = train({5})
    assert int(state.step) == 6
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(state.params))
    counts = [
        row["train/skipped_steps"] for row in helpers.rows_of(tmp_path) if "train/loss" in row
    ]
    assert counts == [0, 1, 1, 1, 2, 2]
