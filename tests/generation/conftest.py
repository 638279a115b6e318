"""What the tests of generation share: the student of the session's runs on one device."""

from __future__ import annotations

import pathlib

import jax
import pytest

from fasttta_jax.config import MeshConfig
from fasttta_jax.generation.pipeline import Pipeline
from fasttta_jax.parallel.mesh import make_mesh


@pytest.fixture(scope="package")
def student(runs: dict[str, pathlib.Path]) -> Pipeline:
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    return Pipeline.open(str(runs["student"]), mesh=mesh)
