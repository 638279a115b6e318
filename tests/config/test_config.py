"""Configs: what is written is read back, what cannot work is refused with its name and range."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest

from fasttta_jax.config import (
    BackboneConfig,
    ConfigError,
    DataConfig,
    DecodeConfig,
    DiffusionConfig,
    DistillationConfig,
    EnergyConfig,
    GuidedConfig,
    HeadConfig,
    MaskingConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TextConfig,
    from_config_dict,
    to_config_dict,
)
from fasttta_jax.config.mapping import upgrade
from tests.support import helpers


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("path", ["optimizer.learning_rate", "decode.guidance_scale"])
def test_a_number_that_is_not_finite_is_refused(path: str, value: float) -> None:
    config = to_config_dict(RunConfig()).to_dict()
    section, name = path.split(".")
    config[section][name] = value
    with pytest.raises(ConfigError, match=f"{path} is .*; allowed: finite numbers"):
        from_config_dict(config)


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
    (BackboneConfig, {"neighbours": -1}, r"backbone\.neighbours is -1; allowed: 0 or more"),
    (BackboneConfig, {"decoder_depth": -1}, r"backbone\.decoder_depth is -1; allowed: above 0"),
    (BackboneConfig, {"num_heads": 0}, r"backbone\.num_heads is 0; allowed: above 0"),
    (BackboneConfig, {"num_heads": 7}, r"backbone\.num_heads is 7; allowed: a divisor .* = 768"),
    (BackboneConfig, {"mlp_ratio": 0}, r"backbone\.mlp_ratio is 0; allowed: above 0"),
    (BackboneConfig, {"attention_dropout": 1.0}, r"backbone\.attention_dropout is 1\.0; allowed"),
    (BackboneConfig, {"projection_dropout": -0.1}, r"backbone\.projection_dropout is -0\.1;"),
    (HeadConfig, {"width": 0}, r"head\.width is 0; allowed: above 0"),
    (HeadConfig, {"depth": 0}, r"head\.depth is 0; allowed: above 0"),
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
    (
        ModelConfig,
        {"num_tokens": 8, "backbone": BackboneConfig(neighbours=8)},
        r"model\.backbone\.neighbours is 8; allowed: below model\.num_tokens = 8",
    ),
    (ModelConfig, {"dtype": "float16"}, r"model\.dtype is 'float16'; allowed: .*'bfloat16'"),
    (MaskingConfig, {"minimum": 0.0}, r"masking\.minimum is 0\.0; allowed: above 0, at most 1"),
    (MaskingConfig, {"minimum": 1.1}, r"masking\.minimum is 1\.1; allowed: above 0, at most 1"),
    (MaskingConfig, {"std": 0.0}, r"masking\.std is 0\.0; allowed: above 0"),
    (MaskingConfig, {"visible_noise": -0.1}, r"masking\.visible_noise is -0\.1; allowed: 0 or mo"),
    (
        RunConfig,
        {
            "model": ModelConfig(network="latent", backbone=BackboneConfig(encoder_depth=0)),
            "masking": MaskingConfig(visible_noise=0.1),
        },
        r"masking\.visible_noise is 0\.1; allowed: 0 where model\.network is 'latent'",
    ),
    (
        MaskingConfig,
        {"forward_share": 1.5},
        r"masking\.forward_share is 1\.5; allowed: from 0 to 1",
    ),
    (
        RunConfig,
        {
            "model": ModelConfig(network="latent", backbone=BackboneConfig(encoder_depth=0)),
            "masking": MaskingConfig(forward_share=0.5),
        },
        r"masking\.forward_share is 0\.5; allowed: 0 where model\.network is 'latent'",
    ),
    (MaskingConfig, {"mean": -0.4}, r"masking\.mean is -0\.4; allowed: from -0\.3 to 2"),
    (MaskingConfig, {"mean": float("nan")}, r"masking\.mean is nan; allowed: from -0\.3 to 2"),
    (DiffusionConfig, {"prediction": "x"}, r"diffusion\.prediction is 'x'; allowed: .*'epsilon'"),
    (DiffusionConfig, {"num_steps": 0}, r"diffusion\.num_steps is 0; allowed: above 0"),
    (DiffusionConfig, {"regression": -1.0}, r"diffusion\.regression is -1\.0; allowed: 0 or more"),
    (DiffusionConfig, {"batch_multiplier": 0}, r"diffusion\.batch_multiplier is 0; allowed"),
    (DiffusionConfig, {"sampling_steps": 1}, r"diffusion\.sampling_steps is 1; .* from 2 .* 1000"),
    (DiffusionConfig, {"sampling_steps": 1001}, r"diffusion\.sampling_steps is 1001; allowed"),
    (EnergyConfig, {"num_draws": 1}, r"energy\.num_draws is 1; allowed: 2 or more"),
    (EnergyConfig, {"alpha": 2.0}, r"energy\.alpha is 2\.0; allowed: above 0 and below 2"),
    (EnergyConfig, {"alpha": 0.0}, r"energy\.alpha is 0\.0; allowed: above 0 and below 2"),
    (EnergyConfig, {"temperature": 0.0}, r"energy\.temperature is 0\.0; allowed: above 0"),
    (EnergyConfig, {"temperature": 1.1}, r"energy\.temperature is 1\.1; allowed: above 0, at most"),
    (EnergyConfig, {"sample_guidance": -0.5}, r"energy\.sample_guidance is -0\.5; allowed: from 0"),
    (EnergyConfig, {"noise_dim": 0}, r"energy\.noise_dim is 0; allowed: above 0"),
    (EnergyConfig, {"roles": "both"}, r"energy\.roles is 'both'; .*'context_stream'"),
    (EnergyConfig, {"noise": "laplace"}, r"energy\.noise is 'laplace'; .*'uniform'"),
    (DistillationConfig, {"weight": -1.0}, r"distillation\.weight is -1\.0; allowed: 0 or more"),
    (DistillationConfig, {"positions": "some"}, r"distillation\.positions is 'some'; .*'masked'"),
    (
        DistillationConfig,
        {"freeze_backbone": True},
        r"distillation\.backbone_from_teacher is False; allowed: true",
    ),
    (
        DistillationConfig,
        {"freeze_backbone": True, "backbone_from_teacher": True, "weight": 1000.0},
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
    (
        DecodeConfig,
        {"counts": "up"},
        r"decode\.counts is 'up'; .*'cosine', 'exponential', 'linear'",
    ),
    (DecodeConfig, {"counts": (1, 2, 5)}, r"decode\.counts is \(1, 2, 5\); allowed: 64 whole num"),
    (
        DecodeConfig,
        {"counts": (1, 0), "num_iterations": 2},
        r"decode\.counts is \(1, 0\); .* above",
    ),
    (DecodeConfig, {"counts": [1, 2], "num_iterations": 2}, r"decode\.counts is \[1, 2\]; allowed"),
    (
        DecodeConfig,
        {"order": "raster"},
        r"decode\.order is 'raster'; .* 'random', 'bisection', 'forward'",
    ),
    (DecodeConfig, {"order": (0, 2)}, r"decode\.order is \(0, 2\); allowed: a permutation"),
    (DecodeConfig, {"order": (0, (1, 1))}, r"decode\.order is \(0, \(1, 1\)\); .* a permutation"),
    (DecodeConfig, {"order": ()}, r"decode\.order is \(\); allowed: a permutation"),
    (DecodeConfig, {"order": (0, 1.0)}, r"decode\.order is \(0, 1\.0\); allowed: a permutation"),
    (
        DecodeConfig,
        {"guided": (0.5, 0.5)},
        r"decode\.guided is \(0\.5, 0\.5\); allowed: \(lo, hi\)",
    ),
    (DecodeConfig, {"guided": (0, 1.5)}, r"decode\.guided is \(0, 1\.5\); allowed: .* hi <= 1"),
    (DecodeConfig, {"guided": (-1, 1)}, r"decode\.guided is \(-1, 1\); allowed: .* 0 <= lo"),
    (DecodeConfig, {"guided": (0, 1, 1)}, r"decode\.guided is \(0, 1, 1\); allowed: \(lo, hi\)"),
    (DecodeConfig, {"guided": (0, math.nan)}, r"decode\.guided is \(0, nan\); allowed"),
    (
        DecodeConfig,
        {"guided": (0.0, 0.1), "num_iterations": 8},
        r"decode\.guided is .* the time left before one of the 8 iterations, 1/8 to 1, above lo",
    ),
    (DecodeConfig, {"guidance_schedule": "up"}, r"decode\.guidance_schedule is 'up'; .*'linear'"),
    (DecodeConfig, {"temperature": -0.5}, r"decode\.temperature is -0\.5; allowed: 0 or more"),
    (DecodeConfig, {"max_segments": 0}, r"decode\.max_segments is 0; allowed: 1 or more"),
    (DataConfig, {"batch_size": 0}, r"data\.batch_size is 0; allowed: above 0"),
    (DataConfig, {"prefetch": 0}, r"data\.prefetch is 0; allowed: above 0"),
    (DataConfig, {"num_workers": -1}, r"data\.num_workers is -1; allowed: 0 or more"),
    (DataConfig, {"num_threads": -1}, r"data\.num_threads is -1; allowed: 0 or more"),
    (DataConfig, {"path": "a", "mixture": ("a",)}, r"data\.mixture is \('a',\); .* none that of"),
    (DataConfig, {"mixture": ("b", "b")}, r"data\.mixture is \('b', 'b'\); .* each of them once"),
    (DataConfig, {"path": "a", "mixture": ("",)}, r"data\.mixture is \('',\)"),
    (DataConfig, {"mixture": ("b",)}, r"data\.weights is \(\); allowed: 2 numbers, one for data"),
    (DataConfig, {"weights": (1.0,)}, r"data\.weights is \(1\.0,\); allowed: \(\) where"),
    (DataConfig, {"mixture": ("b",), "weights": (1, 0)}, r"data\.weights is \(1, 0\)"),
    (DataConfig, {"mixture": ("b",), "weights": (math.nan, 1)}, r"data\.weights is \(nan, 1\)"),
    (DataConfig, {"mixture": ("b",), "weights": (math.inf,) * 2}, r"data\.weights is \(inf, inf\)"),
    (DataConfig, {"mixture": ("b",), "weights": (1, "1")}, r"data\.weights is \(1, '1'\)"),
    (DataConfig, {"mixture": ("b",), "weights": (1, 1e-4)}, r"none below 0\.001 of their sum"),
    (DataConfig, {"validation_paths": ("b",)}, r"data\.validation_paths is \('b',\); allowed"),
    (
        ModelConfig,
        {"network": "mar"},
        r"model\.network is 'mar'; allowed: one of 'masked', 'latent'",
    ),
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
    (RunConfig, {"seed": -1}, r"seed is -1; allowed: from 0 to 2\*\*32 - 1"),
    (RunConfig, {"seed": 2**32}, r"seed is 4294967296; allowed: from 0"),
    (RunConfig, {"num_steps": 0}, r"num_steps is 0; allowed: above 0"),
    (RunConfig, {"log_every": 0}, r"log_every is 0; allowed: above 0"),
    (RunConfig, {"evaluate_every": 0}, r"evaluate_every is 0; allowed: above 0"),
    (RunConfig, {"checkpoint_every": -1}, r"checkpoint_every is -1; allowed: 0 or more"),
    (RunConfig, {"keep_every": -1}, r"keep_every is -1; allowed: 0 or more"),
    (RunConfig, {"hang_timeout": -1.0}, r"hang_timeout is -1\.0; allowed: 0 or more"),
    (RunConfig, {"validation_clips": 0}, r"validation_clips is 0; allowed: above 0"),
    (
        RunConfig,
        {"sample_prompts": ("a", " ")},
        r"sample_prompts is \('a', ' '\); allowed: a tuple",
    ),
    (RunConfig, {"init_blocks": "first"}, r"init_blocks is 'first'; allowed: '', 'ends', 'spaced'"),
    (GuidedConfig, {"max_strength": 1.0}, r"guided\.max_strength is 1\.0; allowed: above 1"),
    (GuidedConfig, {"unguided_share": 1.0}, r"guided\.unguided_share is 1\.0; allowed: from 0 up"),
    (GuidedConfig, {"energy": "all"}, r"guided\.energy is 'all'; allowed: one of 'none', 'ung"),
    (GuidedConfig, {"train_head": True}, r"guided\.energy is 'none'; allowed: 'unguided' or 'mi"),
    (RunConfig, {"checkpoints_to_keep": 0}, r"checkpoints_to_keep is 0; allowed: above 0"),
    (
        RunConfig,
        {"decode": DecodeConfig(num_iterations=2, counts=(100, 100))},
        r"decode\.counts is \(100, 100\); allowed: a sum of 256, the number of tokens; found 200",
    ),
    (
        RunConfig,
        {"decode": DecodeConfig(order=(1, (0, 2)))},
        r"decode\.order is \(1, \(0, 2\)\); allowed: .* of 256 positions, .* tokens; found 3",
    ),
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
        {"optimizer": OptimizerConfig(accumulation_steps=5)},
        r"optimizer\.accumulation_steps is 5; allowed: a divisor of data\.batch_size = 32",
    ),
    (
        RunConfig,
        {"model": ModelConfig(text=TextConfig(encoder="none", token_dropout=0.0, drop_rate=0.0))},
        r"decode\.guidance_scale is 5\.0; allowed: 1 where model\.text\.encoder is 'none'",
    ),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("section", "values", "message"), REJECTED)
def test_rejected_values_name_field_value_and_range(section, values, message):
    with pytest.raises(ConfigError, match=message):
        section(**values)


def test_every_numeric_or_chosen_field_has_a_rejected_value():
    unbounded = {"path", "cache", "init_from", "objective", "best_metric"}
    for section in {section for section, _, _ in REJECTED}:
        tried = {name for owner, values, _ in REJECTED if owner is section for name in values}
        for field in dataclasses.fields(section):
            default = None if field.default is dataclasses.MISSING else field.default
            if isinstance(default, bool) or default is None or field.name in unbounded:
                continue
            assert field.name in tried, f"{section.__name__}.{field.name}"


def test_audio_that_was_encoded_as_it_was_read_is_named():
    """Configs of older runs have the field, and mean nothing by it when it is empty."""
    assert from_config_dict({"data": {"audio": "", "path": "x"}}).data.path == "x"
    with pytest.raises(ConfigError, match=r"^data\.audio is 'sounds'; .*data\.encode_latents"):
        from_config_dict({"data": {"audio": "sounds"}})


def test_an_unknown_field_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"^sead is not a field; .* objective, seed, num_steps"):
        from_config_dict({"sead": 1})
    with pytest.raises(ConfigError, match=r"model\.backbone\.depth is not .* width, encoder_depth"):
        from_config_dict({"model": {"backbone": {"depth": 1}}})


@pytest.mark.parametrize("number", [4097, 10**9, 10**30])
def test_more_iterations_than_can_be_planned_are_refused_at_once(number):
    with pytest.raises(ConfigError, match=rf"decode\.num_iterations is {number}; .* to 4096"):
        from_config_dict({"decode": {"num_iterations": number}, "model": {"num_tokens": number}})


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
        ({"seed": "x" * 5000}, r"^seed is 'x{149} \.\.\. x{149}', a str; allowed"),
        ({"model": {"head": None}}, r"^model\.head is None; allowed: a mapping with .* width"),
    ],
)
def test_wrong_types_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        from_config_dict(values)


# --------------------------------------------------------------------------- choices of decoding


CHOSEN = DecodeConfig(
    num_iterations=3, counts=(1, 2, 5), order=(3, (0, 1, 2), 4, (5, 6, 7)), guided=(0.25, 0.75)
)


def test_choices_of_decoding_come_back_from_json_and_from_the_command_line():
    config = helpers.tiny_teacher_config("data", decode=CHOSEN)
    stored = json.loads(json.dumps(to_config_dict(config).to_dict()))
    assert from_config_dict(stored) == config
    edited = to_config_dict(helpers.tiny_teacher_config("data", decode=DecodeConfig(3)))
    edited.decode.counts, edited.decode.order = "1,2,5", "3, (0, 1, 2), 4, (5, 6, 7)"
    edited.decode.guided = (0.25, 0.75)
    assert from_config_dict(edited) == config
    edited.decode.order = "3,("
    with pytest.raises(ConfigError, match=r"decode\.order is '3,\('; allowed: one of 'random'"):
        from_config_dict(edited)


def test_counts_that_are_numbers_say_how_many_iterations_there_are():
    changed = DecodeConfig().changed(counts="1,2,5", guided=[0.25, 0.75], order="(3,(0,1,2),4,5)")
    assert changed.num_iterations == 3
    assert (changed.counts, changed.guided) == ((1, 2, 5), (0.25, 0.75))
    assert changed.order == (3, (0, 1, 2), 4, 5)
    assert changed.changed(counts="cosine", num_iterations=7).num_iterations == 7
    with pytest.raises(ConfigError, match=r"counts is \(1, 2, 5\); allowed: 4 whole numbers"):
        changed.changed(num_iterations=4)
    with pytest.raises(ConfigError, match=r"counts is \(1, 1\); allowed: 3 whole numbers"):
        changed.changed(counts=(1, 1), num_iterations=3)


def test_where_few_tokens_are_left_every_one_has_its_iteration():
    assert CHOSEN.at_most(3) is CHOSEN
    few = CHOSEN.at_most(2)
    assert (few.num_iterations, few.order, few.guided) == (2, CHOSEN.order, CHOSEN.guided)
    late = dataclasses.replace(CHOSEN, guided=(0.0, 0.4)).at_most(2)
    assert late.guided == (0.0, 1.0)  # before the last of two iterations half of the time is left


# -------------------------------------------------------------------- what earlier versions wrote


def earlier(config: RunConfig, stage: str, **changes: Any) -> dict[str, Any]:
    """A config as versions with `stage` wrote it: every field, the head's extras in the head."""
    values = json.loads(json.dumps(to_config_dict(config).to_dict()))
    del values["objective"], values["validation_clips"]
    energy = values["energy"]
    head = {name: energy.pop(name) for name in ("noise_dim", "noise", "roles")}
    values["model"]["head"] |= head
    values["sample_prompts"] = "|".join(values["sample_prompts"])
    return values | {"stage": stage} | changes


FORMER_DISTILLATION = {
    "weight": 1000.0,
    "positions": "all",
    "freeze_backbone": False,
    "backbone_from_teacher": True,
    "head_from_teacher": False,
}


def test_an_earlier_teacher_had_nothing_of_a_teacher():
    config = helpers.tiny_teacher_config("data", sample_prompts=("a", "b"), init_from="weights")
    found = from_config_dict(earlier(config, "teacher", distillation=FORMER_DISTILLATION))
    assert found == config
    assert found.objective == "diffusion"
    assert found.distillation == DistillationConfig()
    assert found.energy.noise_dim == helpers.TOKEN_DIM


def test_an_earlier_student_keeps_what_it_said():
    config = helpers.tiny_student_config("data", "teacher", best_metric="energy")
    energy = EnergyConfig(noise_dim=5, noise="uniform", roles="context_stream", temperature=0.9)
    config = dataclasses.replace(config, energy=energy)
    assert from_config_dict(earlier(config, "student")) == config


def test_an_earlier_student_had_weight_1000_and_the_teachers_backbone_by_default():
    found = from_config_dict({"stage": "student", "init_from": "teacher"})
    assert found.objective == "energy"
    assert found.distillation == DistillationConfig(weight=1000.0, backbone_from_teacher=True)
    assert found.init_from == "teacher"


def test_an_earlier_student_from_scratch_took_nothing_of_init_from():
    alone = FORMER_DISTILLATION | {"weight": 0.0, "backbone_from_teacher": False}
    found = from_config_dict({"stage": "student", "init_from": "there", "distillation": alone})
    assert found.distillation == DistillationConfig()
    assert not found.init_from


def test_prompts_in_one_string_are_taken_apart():
    found = from_config_dict({"sample_prompts": "a dog|  |rain, then wind"})
    assert found.sample_prompts == ("a dog", "rain, then wind")
    assert from_config_dict({"sample_prompts": ""}).sample_prompts == ()


def test_the_mask_schedule_is_called_counts_now():
    found = from_config_dict({"decode": {"mask_schedule": "linear", "num_iterations": 3}})
    assert found.decode == DecodeConfig(num_iterations=3, counts="linear")


def test_what_is_of_this_version_is_not_touched():
    for config in (helpers.tiny_teacher_config("a"), helpers.tiny_student_config("a", "b")):
        values = to_config_dict(config).to_dict()
        assert upgrade(values) == values


def test_an_earlier_stage_that_never_was_is_refused():
    with pytest.raises(ConfigError, match="stage is 'pupil', a field of earlier versions"):
        from_config_dict({"stage": "pupil"})
    with pytest.raises(ConfigError, match=r"stage is \[1\], a field of earlier versions"):
        from_config_dict({"stage": [1]})
