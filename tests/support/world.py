"""What many tests begin with, made once a session: a dataset, a teacher, a student and a guided
student that learn.

The workers of pytest-xdist share it: the first that asks makes it while the others wait. Tests read
it; one that changes a folder changes a copy.
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
import pathlib
from collections.abc import Callable

import jax
import pytest

from fasttta_jax.config import DistillationConfig, RunConfig
from fasttta_jax.training.loop import Trainer
from tests.support import helpers

TEACHER_STEPS, STUDENT_STEPS = 200, 40
STUDENT_SAVES = 37


def shared(
    factory: pytest.TempPathFactory, name: str, make: Callable[[pathlib.Path], object]
) -> pathlib.Path:
    """A folder of this session that `make` has filled, in this worker or another."""
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder = base / "world" / name
    folder.parent.mkdir(exist_ok=True)
    finished = folder.with_suffix(".finished")
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not finished.exists():
            make(folder)
            finished.touch()
    return folder


def teacher_config(encoded: pathlib.Path) -> RunConfig:
    """A teacher that learns in 200 steps."""
    config = helpers.tiny_teacher_config(encoded, num_steps=TEACHER_STEPS, evaluate_every=100)
    optimizer = dataclasses.replace(config.optimizer, learning_rate=4e-3)
    return dataclasses.replace(config, optimizer=optimizer)


def student_config(encoded: pathlib.Path, teacher: pathlib.Path) -> RunConfig:
    """A student of 40 steps with a fresh head that follows that teacher; step 37 is kept too."""
    return helpers.tiny_student_config(
        encoded,
        teacher,
        num_steps=STUDENT_STEPS,
        evaluate_every=20,
        checkpoint_every=STUDENT_SAVES,
        sample_prompts=("a loud tone", "a quiet noise"),
        distillation=DistillationConfig(weight=10.0, backbone_from_teacher=True),
    )


def guided_config(encoded: pathlib.Path, student: pathlib.Path) -> RunConfig:
    """A run of as many steps that learns that student's guidance, and keeps the same ones."""
    return helpers.tiny_guided_config(
        encoded,
        student,
        num_steps=STUDENT_STEPS,
        evaluate_every=20,
        checkpoint_every=STUDENT_SAVES,
        sample_prompts=("a loud tone",),
    )


def train_runs(folder: pathlib.Path, encoded: pathlib.Path) -> None:
    """The workdirs `teacher` and `student` below a folder."""
    one = jax.devices()[:1]  # which compiles fastest
    teacher, student = folder / "teacher", folder / "student"
    Trainer(teacher_config(encoded), teacher, devices=one).run()
    Trainer(student_config(encoded, teacher), student, devices=one).run()
