"""A trained model with other settings of sampling is the same model but for these."""

import dataclasses

import pytest

from fasttta_jax.systems import build_model
from fasttta_jax.text import NoText
from fasttta_jax.workdir.restore import TrainedModel, which_checkpoint
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


@pytest.mark.parametrize(
    ("text", "expected"),
    [("last", "last"), ("12", 12), ("²", "²"), ("١", "١"), ("-1", "-1"), ("9" * 5000, "9" * 5000)],
)
def test_a_step_is_of_ascii_digits(text, expected):
    assert which_checkpoint(text) == expected
