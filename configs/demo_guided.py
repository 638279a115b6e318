"""The demo's student with guidance in one pass: it learns the states that two passes give.

    python train.py --config=configs/demo_guided.py --workdir=runs/demo/guided

As deep as the student whose guidance it learns. A shallower one starts from some of its blocks:
add --config.model.backbone.decoder_depth=2 --config.init_blocks=ends.
"""

import dataclasses

import ml_collections

from configs import demo_student
from fasttta_jax.config import (
    DistillationConfig,
    OptimizerConfig,
    RunConfig,
    from_config_dict,
    to_config_dict,
)

NUM_STEPS = 600


def guided(student: RunConfig, workdir: str, num_steps: int, learning_rate: float) -> RunConfig:
    """The run that learns the guidance of a student in its workdir, in minutes.

    Args:
      student: its config.
      workdir: where it lies.
      num_steps: length of the run, over which the rate falls to zero.
      learning_rate: its peak. 1e-4 keeps close to the student in long runs; short ones, and those
        of another depth, take 4e-4 and more.
    """
    warmup_steps = 30
    return dataclasses.replace(
        student,
        objective="guided",
        num_steps=num_steps,
        evaluate_every=num_steps // 2,
        init_from=workdir,
        distillation=DistillationConfig(backbone_from_teacher=True, head_from_teacher=True),
        optimizer=OptimizerConfig(
            learning_rate=learning_rate,
            warmup_steps=warmup_steps,
            decay_steps=num_steps - warmup_steps,
            ema_decay=0.99,
            ema_warmup=True,
        ),
    )


def get_config() -> ml_collections.ConfigDict:
    """600 steps of 32 clips, from the student in runs/demo/student."""
    student = from_config_dict(demo_student.get_config())
    # In one program, not four, it compiles in a third of the time and runs as fast.
    decode = dataclasses.replace(student.decode, max_segments=1)
    student = dataclasses.replace(student, decode=decode)
    return to_config_dict(guided(student, "runs/demo/student", NUM_STEPS, learning_rate=5e-4))
