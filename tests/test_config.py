"""Configs: what is written is read back, what cannot work is refused with its name and range."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import pathlib

import jax
import pytest

from configs import demo_student
from fasttta_jax.config import (
    BackboneConfig,
    ConfigError,
    DataConfig,
    DecodeConfig,
    DiffusionConfig,
    DistillationConfig,
    EnergyConfig,
    HeadConfig,
    MaskingConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TextConfig,
    flatten,
    from_config_dict,
    to_config_dict,
)
from fasttta_jax.models.text_to_audio import build_model
from fasttta_jax.text import abstract_text_encoder
from tests import helpers

CONFIGS = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*.py"))


def test_defaults_survive_the_round_trip():
    assert from_config_dict(to_config_dict(RunConfig())) == RunConfig()


def test_other_values_survive_the_round_trip():
    for config in (helpers.tiny_teacher_config("a"), helpers.tiny_student_config("a", "b")):
        assert from_config_dict(to_config_dict(config)) == config
        assert from_config_dict(to_config_dict(config).to_dict()) == config


def test_a_partial_config_takes_the_defaults():
    found = from_config_dict({"model": {"backbone": {"width": 24, "num_heads": 2}}})
    assert found.model.backbone == BackboneConfig(width=24, num_heads=2)
    assert found.optimizer == OptimizerConfig()


def test_whole_numbers_are_floats_too():
    found = from_config_dict({"optimizer": {"learning_rate": 1}})
    assert type(found.optimizer.learning_rate) is float


REJECTED = [
    (BackboneConfig, {"width": 0}, r"backbone\.width is 0; allowed: above 0"),
    (BackboneConfig, {"encoder_depth": -1}, r"backbone\.encoder_depth is -1; allowed: 0 or more"),
    (BackboneConfig, {"decoder_depth": -1}, r"backbone\.decoder_depth is -1; allowed: above 0"),
    (BackboneConfig, {"num_heads": 0}, r"backbone\.num_heads is 0; allowed: above 0"),
    (BackboneConfig, {"num_heads": 7}, r"backbone\.num_heads is 7; allowed: a divisor .* = 768"),
    (BackboneConfig, {"mlp_ratio": 0}, r"backbone\.mlp_ratio is 0; allowed: above 0"),
    (BackboneConfig, {"attention_dropout": 1.0}, r"backbone\.attention_dropout is 1\.0; allowed"),
    (BackboneConfig, {"projection_dropout": -0.1}, r"backbone\.projection_dropout is -0\.1;"),
    (HeadConfig, {"width": 0}, r"head\.width is 0; allowed: above 0"),
    (HeadConfig, {"depth": 0}, r"head\.depth is 0; allowed: above 0"),
    (HeadConfig, {"noise_dim": 0}, r"head\.noise_dim is 0; allowed: above 0"),
    (HeadConfig, {"roles": "both"}, r"head\.roles is 'both'; .*'context_stream'"),
    (HeadConfig, {"noise": "laplace"}, r"head\.noise is 'laplace'; .*'uniform'"),
    (TextConfig, {"encoder": "t5"}, r"text\.encoder is 't5'; .*'frozen'"),
    (TextConfig, {"encoder": "none"}, r"text\.token_dropout is 0\.1; allowed: 0 where .* 'none'"),
    (
        TextConfig,
        {"encoder": "none", "token_dropout": 0.0},
        r"text\.drop_rate is 0\.1; allowed: 0 where text\.encoder is 'none'",
    ),
    (
        TextConfig,
        {"encoder": "frozen", "token_dropout": 0.0},
        r"text\.streams is \(\); allowed: one or more",
    ),
    (TextConfig, {"streams": (("t5", 77, 1024),)}, r"text\.streams is .* else \(\)"),
    (
        TextConfig,
        {"encoder": "frozen", "token_dropout": 0.0, "streams": (("t5", 77),)},
        r"text\.streams is \('t5', 77\); allowed: \(name, positions, width\)",
    ),
    (
        TextConfig,
        {
            "encoder": "frozen",
            "token_dropout": 0.0,
            "streams": (("t5", 7, 8), ("t5", 1, 8)),
        },
        r"text\.streams is .* allowed: each name once",
    ),
    (TextConfig, {"num_positions": 0}, r"text\.num_positions is 0; allowed: above 0"),
    (TextConfig, {"width": 0}, r"text\.width is 0; allowed: above 0"),
    (TextConfig, {"token_dropout": 1.0}, r"text\.token_dropout is 1\.0; allowed: from 0"),
    (TextConfig, {"drop_rate": 1.5}, r"text\.drop_rate is 1\.5; allowed: from 0"),
    (ModelConfig, {"num_tokens": 0}, r"model\.num_tokens is 0; allowed: above 0"),
    (ModelConfig, {"token_dim": 0}, r"model\.token_dim is 0; allowed: above 0"),
    (ModelConfig, {"dtype": "float16"}, r"model\.dtype is 'float16'; allowed: .*'bfloat16'"),
    (MaskingConfig, {"minimum": 0.0}, r"masking\.minimum is 0\.0; allowed: above 0, at most 1"),
    (MaskingConfig, {"minimum": 1.1}, r"masking\.minimum is 1\.1; allowed: above 0, at most 1"),
    (MaskingConfig, {"std": 0.0}, r"masking\.std is 0\.0; allowed: above 0"),
    (MaskingConfig, {"mean": -0.4}, r"masking\.mean is -0\.4; allowed: from -0\.3 to 2"),
    (MaskingConfig, {"mean": float("nan")}, r"masking\.mean is nan; allowed: from -0\.3 to 2"),
    (DiffusionConfig, {"prediction": "x"}, r"diffusion\.prediction is 'x'; allowed: .*'epsilon'"),
    (DiffusionConfig, {"num_steps": 0}, r"diffusion\.num_steps is 0; allowed: above 0"),
    (DiffusionConfig, {"batch_multiplier": 0}, r"diffusion\.batch_multiplier is 0; allowed"),
    (DiffusionConfig, {"sampling_steps": 1}, r"diffusion\.sampling_steps is 1; .* from 2 .* 1000"),
    (DiffusionConfig, {"sampling_steps": 1001}, r"diffusion\.sampling_steps is 1001; allowed"),
    (EnergyConfig, {"num_draws": 1}, r"energy\.num_draws is 1; allowed: 2 or more"),
    (EnergyConfig, {"alpha": 2.0}, r"energy\.alpha is 2\.0; allowed: above 0 and below 2"),
    (EnergyConfig, {"alpha": 0.0}, r"energy\.alpha is 0\.0; allowed: above 0 and below 2"),
    (EnergyConfig, {"temperature": 0.0}, r"energy\.temperature is 0\.0; allowed: above 0"),
    (EnergyConfig, {"temperature": 1.1}, r"energy\.temperature is 1\.1; allowed: above 0, at most"),
    (DistillationConfig, {"weight": -1.0}, r"distillation\.weight is -1\.0; allowed: 0 or more"),
    (DistillationConfig, {"positions": "some"}, r"distillation\.positions is 'some'; .*'masked'"),
    (
        DistillationConfig,
        {"freeze_backbone": True, "weight": 0.0, "backbone_from_teacher": False},
        r"distillation\.backbone_from_teacher is False; allowed: true",
    ),
    (
        DistillationConfig,
        {"freeze_backbone": True},
        r"distillation\.weight is 1000\.0; allowed: 0 where distillation\.freeze_backbone",
    ),
    (OptimizerConfig, {"learning_rate": 0.0}, r"optimizer\.learning_rate is 0\.0; allowed: above"),
    (OptimizerConfig, {"learning_rate": float("nan")}, r"optimizer\.learning_rate is nan"),
    (OptimizerConfig, {"head_learning_rate_scale": 0.0}, r"head_learning_rate_scale is 0\.0;"),
    (OptimizerConfig, {"accumulation_steps": 0}, r"accumulation_steps is 0; allowed: above 0"),
    (OptimizerConfig, {"clip_norm": 0.0}, r"optimizer\.clip_norm is 0\.0; allowed: above 0"),
    (OptimizerConfig, {"warmup_steps": -1}, r"optimizer\.warmup_steps is -1; allowed: 0 or more"),
    (OptimizerConfig, {"decay_steps": -1}, r"optimizer\.decay_steps is -1; allowed: 0 or more"),
    (OptimizerConfig, {"weight_decay": -0.1}, r"optimizer\.weight_decay is -0\.1; allowed"),
    (OptimizerConfig, {"beta1": 1.0}, r"optimizer\.beta1 is 1\.0; allowed: from 0"),
    (OptimizerConfig, {"beta2": -0.1}, r"optimizer\.beta2 is -0\.1; allowed: from 0"),
    (OptimizerConfig, {"ema_decay": 1.0}, r"optimizer\.ema_decay is 1\.0; allowed: from 0"),
    (DecodeConfig, {"num_iterations": 0}, r"decode\.num_iterations is 0; allowed: from 1"),
    (DecodeConfig, {"guidance_scale": -1.0}, r"decode\.guidance_scale is -1\.0; allowed: 0 or"),
    (DecodeConfig, {"guidance_schedule": "up"}, r"decode\.guidance_schedule is 'up'; .*'linear'"),
    (DecodeConfig, {"temperature": -0.5}, r"decode\.temperature is -0\.5; allowed: 0 or more"),
    (DecodeConfig, {"max_segments": 0}, r"decode\.max_segments is 0; allowed: 1 or more"),
    (DataConfig, {"batch_size": 0}, r"data\.batch_size is 0; allowed: above 0"),
    (DataConfig, {"prefetch": 0}, r"data\.prefetch is 0; allowed: above 0"),
    (DataConfig, {"num_workers": -1}, r"data\.num_workers is -1; allowed: 0 or more"),
    (DataConfig, {"num_threads": -1}, r"data\.num_threads is -1; allowed: 0 or more"),
    (
        BackboneConfig,
        {"remat": "some"},
        r"backbone\.remat is 'some'; allowed: one of 'none', 'full'",
    ),
    (OptimizerConfig, {"max_skipped_steps": -1}, r"optimizer\.max_skipped_steps is -1; allowed: 0"),
    (MeshConfig, {"data": 0}, r"mesh\.data is 0; allowed: above 0, or -1 to fill"),
    (MeshConfig, {"fsdp": -2}, r"mesh\.fsdp is -2; allowed: above 0, or -1 to fill"),
    (MeshConfig, {"tensor": 0}, r"mesh\.tensor is 0; allowed: above 0, or -1 to fill"),
    (
        MeshConfig,
        {"rules": ("head/.*",)},
        r"mesh\.rules is 'head/\.\*'; allowed: a tuple of \(regex",
    ),
    (MeshConfig, {"rules": (("head", "fsdp"),)}, r"mesh\.rules is \('head', 'fsdp'\); allowed: a"),
    (RunConfig, {"stage": "pupil"}, r"stage is 'pupil'; allowed: one of 'teacher', 'student'"),
    (RunConfig, {"seed": -1}, r"seed is -1; allowed: from 0 to 2\*\*32 - 1"),
    (RunConfig, {"seed": 2**32}, r"seed is 4294967296; allowed: from 0"),
    (RunConfig, {"num_steps": 0}, r"num_steps is 0; allowed: above 0"),
    (RunConfig, {"log_every": 0}, r"log_every is 0; allowed: above 0"),
    (RunConfig, {"evaluate_every": 0}, r"evaluate_every is 0; allowed: above 0"),
    (RunConfig, {"checkpoint_every": -1}, r"checkpoint_every is -1; allowed: 0 or more"),
    (RunConfig, {"keep_every": -1}, r"keep_every is -1; allowed: 0 or more"),
    (RunConfig, {"hang_timeout": -1.0}, r"hang_timeout is -1\.0; allowed: 0 or more"),
    (RunConfig, {"best_metric": "energy"}, r"best_metric is 'energy'; allowed: one of \('loss', "),
    (
        RunConfig,
        {
            "stage": "student",
            "best_metric": "align",
            "distillation": DistillationConfig(weight=0.0),
        },
        r"best_metric is 'align'; allowed: one of \('loss', 'energy'\)",
    ),
    (RunConfig, {"checkpoints_to_keep": 0}, r"checkpoints_to_keep is 0; allowed: above 0"),
    (
        RunConfig,
        {"decode": DecodeConfig(num_iterations=257)},
        r"decode\.num_iterations is 257; allowed: from 1 to model\.num_tokens = 256",
    ),
    (
        RunConfig,
        {"num_steps": 10, "optimizer": OptimizerConfig(warmup_steps=6, decay_steps=5)},
        r"optimizer\.warmup_steps \+ optimizer\.decay_steps is 11; allowed: at most .* = 10",
    ),
    (
        RunConfig,
        {"stage": "student", "distillation": DistillationConfig(head_from_teacher=True)},
        r"distillation\.head_from_teacher is True; .* unless diffusion\.prediction is 'v'",
    ),
    (
        RunConfig,
        {
            "stage": "student",
            "distillation": DistillationConfig(head_from_teacher=True),
            "diffusion": DiffusionConfig(prediction="v"),
            "model": ModelConfig(head=HeadConfig(noise_dim=64)),
        },
        r"model\.head\.noise_dim is 64; allowed: model\.token_dim = 128",
    ),
    (
        RunConfig,
        {
            "stage": "student",
            "distillation": DistillationConfig(head_from_teacher=True),
            "diffusion": DiffusionConfig(prediction="v"),
            "model": ModelConfig(head=HeadConfig(roles="context_stream")),
        },
        r"model\.head\.roles is 'context_stream'; allowed: 'noise_stream' where",
    ),
    (
        RunConfig,
        {"optimizer": OptimizerConfig(accumulation_steps=5)},
        r"optimizer\.accumulation_steps is 5; allowed: a divisor of data\.batch_size = 32",
    ),
    (
        RunConfig,
        {"model": ModelConfig(text=TextConfig(encoder="none", token_dropout=0.0, drop_rate=0.0))},
        r"decode\.guidance_scale is 5\.0; allowed: 1 where model\.text\.encoder is 'none'",
    ),
]


@pytest.mark.parametrize(("section", "values", "message"), REJECTED)
def test_rejected_values_name_field_value_and_range(section, values, message):
    with pytest.raises(ConfigError, match=message):
        section(**values)


def test_every_numeric_or_chosen_field_has_a_rejected_value():
    unbounded = {"path", "audio", "cache", "init_from", "sample_prompts"}
    for section in {section for section, _, _ in REJECTED}:
        tried = {name for owner, values, _ in REJECTED if owner is section for name in values}
        for field in dataclasses.fields(section):
            default = None if field.default is dataclasses.MISSING else field.default
            if isinstance(default, bool) or default is None or field.name in unbounded:
                continue
            assert field.name in tried, f"{section.__name__}.{field.name}"


def test_an_unknown_field_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"^sead is not a field; .* stage, seed, num_steps"):
        from_config_dict({"sead": 1})
    with pytest.raises(ConfigError, match=r"model\.backbone\.depth is not .* width, encoder_depth"):
        from_config_dict({"model": {"backbone": {"depth": 1}}})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seed": "zero"}, r"seed is 'zero', a str; allowed: a value of type int"),
        ({"seed": True}, r"seed is True, a bool; allowed: a value of type int"),
        ({"seed": 1.0}, r"seed is 1\.0, a float; allowed: a value of type int"),
        ({"data": {"path": None}}, r"data\.path is None, a NoneType; allowed: .* str"),
        ({"optimizer": {"ema_warmup": 1}}, r"optimizer\.ema_warmup is 1, a int; .* bool"),
        ({"model": {"dtype": 32}}, r"model\.dtype is 32, a int; allowed: .* str"),
        ({"model": 3}, r"^model is 3; allowed: a mapping with the fields num_tokens"),
        ({"model": {"head": None}}, r"^model\.head is None; allowed: a mapping with .* width"),
    ],
)
def test_wrong_types_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        from_config_dict(values)


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
    assert config.stage == "student"
    before, after = (flatten(dataclasses.asdict(one)) for one in (student, config))
    changes = {name: value for name, value in after.items() if value != before[name]}
    assert changes.items() <= demo_student.VARIANTS[variant].items()
    assert (config == student) == (variant in ("", "lambda_1", "draws_2"))


def test_unknown_ablation_is_refused() -> None:
    with pytest.raises(ValueError, match="variant is 'other'; allowed:"):
        demo_student.get_config("other")


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


@pytest.mark.parametrize("stage", ["pretraining", "teacher", "student"])
def test_tiny_has_all_three_stages(stage):
    path = next(path for path in CONFIGS if path.stem == "tiny")
    config = from_config_dict(load(path).get_config(stage))
    assert config.stage == ("student" if stage == "student" else "teacher")
    assert config.model.text.encoder == ("none" if stage == "pretraining" else "learned")
