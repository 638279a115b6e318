"""The one-step student of `esc10_teacher`.

python train.py --config=configs/esc10_student.py --workdir=runs/esc10/student
"""

import dataclasses

import ml_collections

from configs import demo_student, esc10_teacher
from fasttta_jax.config import from_config_dict, to_config_dict


def get_config() -> ml_collections.ConfigDict:
    """500 steps of 32 clips, from the teacher in runs/esc10/teacher."""
    teacher = from_config_dict(esc10_teacher.get_config())
    student = from_config_dict(demo_student.get_config())
    return to_config_dict(
        dataclasses.replace(
            teacher,
            objective="energy",
            num_steps=500,
            evaluate_every=250,
            init_from="runs/esc10/teacher",
            energy=student.energy,
            distillation=student.distillation,
            optimizer=dataclasses.replace(student.optimizer, decay_steps=250),
        )
    )
