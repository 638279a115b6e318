"""The demo's one-step student: it starts from the teacher, energy distance and alignment train it.

    python train.py --config=configs/demo_student.py --workdir=runs/demo/student

An argument gives the ablations: configs/demo_student.py:no_distillation, :frozen_backbone and
:from_scratch.
"""

import dataclasses

import ml_collections

from configs import demo_teacher
from fasttta_jax.config import (
    DistillationConfig,
    EnergyConfig,
    OptimizerConfig,
    from_config_dict,
    to_config_dict,
)

DISTILLATIONS = {
    "": DistillationConfig(weight=1.0, head_from_teacher=True),
    "no_distillation": DistillationConfig(weight=0.0, head_from_teacher=True),
    "frozen_backbone": DistillationConfig(weight=0.0, freeze_backbone=True, head_from_teacher=True),
    "from_scratch": DistillationConfig(weight=0.0, backbone_from_teacher=False),
}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """500 steps of 32 clips, from the teacher in runs/demo/teacher."""
    if variant not in DISTILLATIONS:
        raise ValueError(f"variant is {variant!r}; allowed: {sorted(DISTILLATIONS)}")
    teacher = from_config_dict(demo_teacher.get_config())
    return to_config_dict(
        dataclasses.replace(
            teacher,
            stage="student",
            num_steps=500,
            evaluate_every=250,
            init_from="runs/demo/teacher",
            energy=EnergyConfig(num_draws=2),
            distillation=DISTILLATIONS[variant],
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
