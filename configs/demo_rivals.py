"""Rivals of the demo's student, in networks of its size that move all tokens of a clip together.

    python train.py --config=configs/demo_rivals.py:flow --workdir=runs/rivals/flow
    python train.py --config=configs/demo_rivals.py:meanflow --workdir=runs/rivals/meanflow

`flow` is the teacher, and comes first. `consistency` (ConsistencyTTA), `latent_consistency`
(AudioLCM) and `trajectory` (SoundCTM) follow it step by step; `reflow` (AudioTurbo) learns from
pairs that `python -m data.pairs` has made with it; `meanflow` and `shortcut` start from it, as
MeanAudio does, where published ones start from nothing: a few minutes teach those little.
`meanflow_head` and `shortcut_head` are heads in place of the student's, on the backbone of
runs/demo/teacher. `make rivals` trains and compares all of them.

Constants are those that suit hundreds of steps, not the published ones of `configs/rivals.py`: a
grid of 8 uniform steps with Heun's method is truer than 50 steps of DDIM; times are uniform, since
MeanFlow's distribution all but never asks for the jump from noise to data.
"""

import dataclasses
from typing import Any

import ml_collections

from configs import demo_student, demo_teacher
from fasttta_jax.config import (
    DecodeConfig,
    DistillationConfig,
    FlowConfig,
    OptimizerConfig,
    RunConfig,
    from_config_dict,
    to_config_dict,
)

TEACHER = "runs/rivals/flow"
PAIRS = "runs/rivals/pairs"
GUIDANCE = 3.0
FROM_TEACHER = DistillationConfig(backbone_from_teacher=True, head_from_teacher=True)

OBJECTIVES = {
    "latent_consistency": "consistency",
    "meanflow_head": "meanflow",
    "shortcut_head": "shortcut",
}
"""Of the names that are not an objective's."""

FLOWS = {
    "flow": FlowConfig(),
    "consistency": FlowConfig(
        guidance_low=1.0, guidance_high=6.0, target_decay=0.95, sampler="renoise"
    ),
    "latent_consistency": FlowConfig(
        grid_steps=16,
        solver="euler",
        distance="huber",
        guidance_low=2.0,
        guidance_high=7.0,
        target_decay=0.95,
        sampler="renoise",
    ),
    "trajectory": FlowConfig(guidance_low=2.0, guidance_high=5.0, target_decay=0.99),
    "reflow": FlowConfig(distance="huber"),
    "meanflow": FlowConfig(endpoint_share=0.2, target_guidance=1.5, kappa=0.5),
    "shortcut": FlowConfig(target_guidance=1.5, target_decay=0.99),
    "meanflow_head": FlowConfig(endpoint_share=0.2),
    "shortcut_head": FlowConfig(),
}
STEPS = {
    "flow": 1500,
    "consistency": 600,
    "latent_consistency": 800,
    "trajectory": 350,
    "reflow": 1000,
    "meanflow": 800,
    "shortcut": 1200,
    "meanflow_head": 500,
    "shortcut_head": 500,
}
"""About four minutes of each on two CPU cores."""


def optimizer(num_steps: int, learning_rate: float, ema_decay: float) -> OptimizerConfig:
    """A rate that falls to zero over the second half."""
    return OptimizerConfig(
        learning_rate=learning_rate,
        warmup_steps=min(50, num_steps // 4),
        decay_steps=num_steps // 2,
        ema_decay=ema_decay,
        ema_warmup=True,
    )


def _latent(name: str, num_steps: int) -> RunConfig:
    demo = from_config_dict(demo_teacher.get_config())
    flow, is_teacher = FLOWS[name], name == "flow"
    depth = demo.model.backbone.encoder_depth + demo.model.backbone.decoder_depth
    text = demo.model.text
    if flow.tells_guidance:
        text = dataclasses.replace(text, drop_rate=0.0)
    tells_or_guides = is_teacher or flow.tells_guidance
    return dataclasses.replace(
        demo,
        objective=OBJECTIVES.get(name, name),
        num_steps=num_steps,
        evaluate_every=max(1, num_steps // 2),
        init_from="" if is_teacher else TEACHER,
        data=dataclasses.replace(demo.data, path=PAIRS if name == "reflow" else demo.data.path),
        model=dataclasses.replace(
            demo.model,
            network="latent",
            backbone=dataclasses.replace(demo.model.backbone, encoder_depth=0, decoder_depth=depth),
            text=text,
        ),
        flow=flow,
        distillation=DistillationConfig() if is_teacher else FROM_TEACHER,
        optimizer=optimizer(num_steps, 1e-3, 0.995)
        if is_teacher
        else optimizer(num_steps, 3e-4, 0.99),
        decode=DecodeConfig(
            num_iterations=8 if is_teacher else 1,
            guidance_schedule="constant",
            guidance_scale=GUIDANCE if tells_or_guides else 1.0,
        ),
    )


def _head(name: str, num_steps: int) -> RunConfig:
    student = from_config_dict(demo_student.get_config())
    return dataclasses.replace(
        student,
        objective=OBJECTIVES[name],
        num_steps=num_steps,
        evaluate_every=max(1, num_steps // 2),
        flow=FLOWS[name],
        distillation=dataclasses.replace(student.distillation, head_from_teacher=False),
        optimizer=dataclasses.replace(
            student.optimizer, decay_steps=num_steps // 2, warmup_steps=min(50, num_steps // 4)
        ),
    )


def rival(name: str, num_steps: int | None = None) -> RunConfig:
    """The run of a rival.

    Args:
      name: one of `FLOWS`.
      num_steps: its length, over whose second half the rate falls; None for that of `STEPS`.
    """
    if name not in FLOWS:
        raise ValueError(f"rival is {name!r}; allowed: {', '.join(FLOWS)}")
    make: Any = _head if name.endswith("_head") else _latent
    return make(name, STEPS[name] if num_steps is None else num_steps)


def get_config(name: str = "flow") -> ml_collections.ConfigDict:
    """One of `FLOWS`."""
    return to_config_dict(rival(name))
