"""Sample sheets: what can be heard is written, what is not finite is named."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
from typing import Any

import jax
import numpy as np
import pytest

from fasttta_jax.config import MeshConfig
from fasttta_jax.parallel.mesh import make_mesh
from fasttta_jax.training.samples import SampleSheet
from fasttta_jax.workdir.folder import Workdir
from fasttta_jax.workdir.metrics_log import MetricsWriter
from fasttta_jax.workdir.restore import load_trained

PROMPTS = ("a loud tone", "a quiet noise", "clicks that are loud")


class Broken:
    """A codec that decodes some clips to what is not finite."""

    def __init__(self, codec: Any, rows: list[int]) -> None:
        self._codec, self._rows = codec, rows

    def __getattr__(self, name: str) -> Any:
        return getattr(self._codec, name)

    def decode(self, tokens: Any) -> Any:
        audio = np.array(self._codec.decode(tokens))
        audio[self._rows, 100] = np.inf
        return audio


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("rows", "written", "warning"),
    [
        ([], ["00", "01", "02"], []),
        ([1], ["00", "02"], ["samples of step 7 that are not finite: 1 ('a quiet noise')"]),
        (
            [0, 2],
            ["01"],
            [
                "samples of step 7 that are not finite: 0 ('a loud tone'), "
                "2 ('clicks that are loud')"
            ],
        ),
        (
            [0, 1, 2],
            None,
            [
                "samples of step 7 that are not finite: 0 ('a loud tone'), 1 ('a quiet noise'), "
                "2 ('clicks that are loud')"
            ],
        ),
    ],
)
def test_finite_samples_are_written_and_the_others_named(
    runs: dict[str, pathlib.Path],
    tmp_path: pathlib.Path,
    caplog: pytest.LogCaptureFixture,
    rows: list[int],
    written: list[str] | None,
    warning: list[str],
) -> None:
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    trained = load_trained(str(runs["student"]), mesh)
    config = dataclasses.replace(trained.config, sample_prompts=PROMPTS)
    codec: Any = Broken(trained.codec, rows)
    sheet = SampleSheet(config, trained.model, codec, mesh, Workdir(tmp_path))
    with MetricsWriter(tmp_path) as writer, caplog.at_level(logging.WARNING):
        sheet.write(7, trained.params, writer)
    # Words that the model does not know are named once a process, here or in an earlier test.
    own = [one.message for one in caplog.records if one.name.startswith("fasttta_jax.training")]
    assert own == warning
    if written is None:
        assert not (tmp_path / "samples").exists()
    else:
        names = sorted(path.name for path in (tmp_path / "samples/00000007").iterdir())
        assert names == [f"{name}.{ending}" for name in written for ending in ("png", "wav")]
