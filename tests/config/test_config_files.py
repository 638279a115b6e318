"""The files of configs/: each is a valid run, and the papers' have the papers' sizes."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import pathlib

import jax
import pytest

from configs import demo_rivals, demo_student, demo_teacher, impact_base, rivals
from fasttta_jax.config import RunConfig, flatten, from_config_dict
from fasttta_jax.systems import build_model
from fasttta_jax.text import abstract_text_encoder

CONFIGS = sorted((pathlib.Path(__file__).parents[2] / "configs").glob("*.py"))


def load(path: pathlib.Path):
    spec = importlib.util.spec_from_file_location(f"configs_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_file_of_configs_is_a_valid_run(path):
    module = load(path)
    config = from_config_dict(module.get_config())
    assert isinstance(config, RunConfig)
    assert module.__doc__
    assert f"--config=configs/{path.name}" in module.__doc__, "the docstring gives the command"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_unknown_arguments_of_a_config_file_are_refused(path):
    get_config = load(path).get_config
    if inspect.signature(get_config).parameters:
        with pytest.raises(ValueError, match="no_such_variant"):
            get_config("no_such_variant")


def test_there_are_configs():
    assert CONFIGS


@pytest.mark.parametrize("variant", demo_student.VARIANTS)
def test_every_ablation_is_a_student_that_differs_as_it_says(variant: str) -> None:
    student = from_config_dict(demo_student.get_config())
    config = from_config_dict(demo_student.get_config(variant))
    assert config.objective == "energy"
    before, after = (flatten(dataclasses.asdict(one)) for one in (student, config))
    changes = {name: value for name, value in after.items() if value != before[name]}
    assert changes.items() <= demo_student.VARIANTS[variant].items()
    assert (config == student) == (variant in ("", "lambda_1", "draws_2"))


def test_unknown_ablation_is_refused() -> None:
    with pytest.raises(ValueError, match="variant is 'other'; allowed:"):
        demo_student.get_config("other")


@pytest.mark.parametrize("name", [*demo_rivals.FLOWS, *(f"rivals {n}" for n in rivals.FLOWS)])
def test_rivals_are_as_large_as_what_they_are_held_against(name: str) -> None:
    """To half a percent, and in the demo to a tenth: times, which the student's head has none of,
    and the strength of guidance have layers of their own.
    """
    paper = name.startswith("rivals ")
    module, name = (rivals, name.split()[1]) if paper else (demo_rivals, name)
    ours = impact_base if paper else demo_student if name.endswith("_head") else demo_teacher
    sizes = []
    for config in (from_config_dict(module.get_config(name)), from_config_dict(ours.get_config())):
        model = build_model(config, abstract_text_encoder(config.model.text))
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        trained = [shapes[part] for part in ("backbone", "head")]
        sizes.append(sum(leaf.size for leaf in jax.tree.leaves(trained)))
    assert abs(sizes[0] / sizes[1] - 1) < (0.005 if paper else 0.1)


def backbone_formula(width: int, depth: int, text: int, num_tokens: int, token_dim: int) -> int:
    """MAR's count without class table and without text projections.

    Null text and mask token, token projection, its norm, two tables of positions, blocks, encoder
    norm, decoder embedding, decoder norm, head positions.
    """
    return (
        2 * width
        + (token_dim * width + width)
        + 2 * width
        + 2 * (text + num_tokens) * width
        + depth * (12 * width**2 + 13 * width)
        + 2 * width
        + (width**2 + width)
        + 2 * width
        + num_tokens * width
    )


def head_formula(context: int, stream: int, out: int, *, has_time: bool) -> int:
    """The head of 3 blocks of 1024 between `stream` and `out` channels."""
    width, depth = 1024, 3
    time = (256 * width + width) + (width**2 + width)
    return (
        has_time * time
        + (context * width + width)
        + (stream * width + width)
        + depth * (5 * width**2 + 7 * width)
        + (2 * width**2 + 2 * width)
        + (out * width + out)
    )


@pytest.mark.parametrize(
    ("name", "width", "depth", "is_teacher", "millions"),
    [
        ("impact_base", 768, 24, True, 193),
        ("impact_large", 1024, 32, True, 427),
        ("audiodear_base", 768, 24, False, 192),
        ("audiodear_large", 1024, 32, False, 426),
        ("audiodear_base_guided", 768, 24, False, 192),
    ],
)
def test_papers_configs_have_the_published_sizes(name, width, depth, is_teacher, millions):
    path = next(path for path in CONFIGS if path.stem == name)
    config = from_config_dict(load(path).get_config())
    model = build_model(config, abstract_text_encoder(config.model.text))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    found = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    text = (512 * width + width) + (1024 * width + width)
    expected = backbone_formula(width, depth, 78, 256, 128) + text
    expected += head_formula(width, 128, 256 if is_teacher else 128, has_time=is_teacher)
    if name.endswith("guided"):
        expected += (256 * width + width) + (width**2 + width)
    assert found == expected
    assert round(found / 1e6) == millions


@pytest.mark.parametrize(
    ("stage", "streams", "positions"),
    [("text", 2, 78), ("text_t5", 1, 77), ("text_clap", 1, 1), ("pretraining", 0, 78)],
)
def test_the_paper_s_text_is_one_prefix_of_one_or_two_streams(stage, streams, positions):
    for name in ("impact_base", "impact_large", "audiodear_base", "audiodear_large"):
        path = next(path for path in CONFIGS if path.stem == name)
        text = from_config_dict(load(path).get_config(stage)).model.text
        assert (len(text.streams), text.total_positions) == (streams, positions)
        if name.startswith("impact"):
            with pytest.raises(ValueError, match="stage is 'words'; allowed: text, text_t5"):
                load(path).get_config("words")


@pytest.mark.parametrize("stage", ["pretraining", "teacher", "student", "guided"])
def test_tiny_has_all_stages(stage):
    path = next(path for path in CONFIGS if path.stem == "tiny")
    config = from_config_dict(load(path).get_config(stage))
    objectives = {"student": "energy", "guided": "guided"}
    assert config.objective == objectives.get(stage, "diffusion")
    assert config.model.text.encoder == ("none" if stage == "pretraining" else "learned")
