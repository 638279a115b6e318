"""A trained model with other settings of sampling is the same model but for these."""

import dataclasses

import pytest

from fasttta_jax.systems import build_model
from fasttta_jax.text import NoText
from fasttta_jax.workdir.restore import TrainedModel
from tests.support import helpers


@pytest.mark.usefixtures("unchecked")
def test_settings_of_sampling_change_nothing_else():
    teacher = helpers.tiny_teacher_config("unused")
    whole = TrainedModel(
        teacher, build_model(teacher, NoText(3)), {"head": object()}, None, 7, "somewhere"
    )
    decode = dataclasses.replace(teacher.decode, num_iterations=2)
    found = whole.with_sampling(decode, sampling_steps=3)
    assert found.config.decode == decode
    assert found.model.objective.config.sampling_steps == 3
    assert found.config.diffusion == found.model.objective.config
    assert found.params is whole.params
    assert whole.config == teacher
    assert whole.with_sampling(decode).model is whole.model
