"""The one-step student of scenes; it starts from `scenes_teacher`.

    python train.py --config=configs/scenes_student.py --workdir=runs/scenes/student

`make scenes` runs it after the teacher.
"""

import dataclasses

import ml_collections

from configs import demo_student, scenes_teacher
from fasttta_jax.config import OptimizerConfig, from_config_dict, to_config_dict

NUM_STEPS = 2_000


def get_config() -> ml_collections.ConfigDict:
    """2,000 steps of 16 clips, from the teacher in runs/scenes/teacher."""
    demo = from_config_dict(demo_student.get_config())
    teacher = from_config_dict(scenes_teacher.get_config())
    return to_config_dict(
        dataclasses.replace(
            demo,
            num_steps=NUM_STEPS,
            log_every=100,
            evaluate_every=500,
            init_from="runs/scenes/teacher",
            sample_prompts=teacher.sample_prompts,
            data=teacher.data,
            model=teacher.model,
            decode=teacher.decode,
            optimizer=OptimizerConfig(
                learning_rate=7e-4,
                warmup_steps=100,
                decay_steps=NUM_STEPS // 2,
                ema_decay=0.998,
                ema_warmup=True,
                clip_norm=5.0,
            ),
        )
    )
