"""The demo's one-step student: it starts from the teacher; energy score and alignment train it.

    python train.py --config=configs/demo_student.py --workdir=runs/demo/student

An argument gives an ablation, such as configs/demo_student.py:lambda_100; `VARIANTS` has them all,
and `python -m benchmarks.sweep` trains and compares them. lambda_1 and draws_2 are the student.
"""

import dataclasses
from typing import Any

import ml_collections

from configs import demo_teacher
from fasttta_jax.config import (
    DistillationConfig,
    EnergyConfig,
    OptimizerConfig,
    from_config_dict,
    to_config_dict,
)

VARIANTS: dict[str, dict[str, Any]] = {
    "": {},
    **{
        f"lambda_{weight}": {"distillation.weight": float(weight)}
        for weight in (0, 1, 10, 100, 1000)
    },
    **{f"draws_{number}": {"energy.num_draws": number} for number in (2, 3, 4)},
    "frozen_backbone": {"distillation.weight": 0.0, "distillation.freeze_backbone": True},
    "from_scratch": {
        "init_from": "",
        "distillation.weight": 0.0,
        "distillation.backbone_from_teacher": False,
        "distillation.head_from_teacher": False,
    },
    "zero_head": {"distillation.head_from_teacher": False},
    "ear": {
        "distillation.head_from_teacher": False,
        "energy.roles": "context_stream",
        "energy.noise": "uniform",
        "energy.temperature": 0.99,
        "optimizer.head_learning_rate_scale": 0.25,
    },
}
"""Fields that each ablation changes; "ear" is the head of EAR in place of AudioDEAR's."""


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """500 steps of 32 clips, from the teacher in runs/demo/teacher."""
    if variant not in VARIANTS:
        raise ValueError(f"variant is {variant!r}; allowed: {sorted(VARIANTS)}")
    teacher = from_config_dict(demo_teacher.get_config())
    config = to_config_dict(
        dataclasses.replace(
            teacher,
            objective="energy",
            num_steps=500,
            evaluate_every=250,
            init_from="runs/demo/teacher",
            energy=EnergyConfig(num_draws=2, noise_dim=64),
            distillation=DistillationConfig(
                weight=1.0, backbone_from_teacher=True, head_from_teacher=True
            ),
            optimizer=OptimizerConfig(
                learning_rate=7e-4,
                warmup_steps=50,
                decay_steps=250,
                ema_decay=0.99,
                ema_warmup=True,
                clip_norm=5.0,
            ),
        )
    )
    config.update_from_flattened_dict(VARIANTS[variant])
    return config
