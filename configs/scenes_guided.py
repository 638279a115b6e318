"""The student of scenes with guidance in one pass; it starts from `scenes_student`.

    python train.py --config=configs/scenes_guided.py --workdir=runs/scenes/guided

An argument of "shallow" has one encoder block of two and two decoder blocks of three. `make scenes`
trains both after the student.
"""

import dataclasses

import ml_collections

from configs import demo_guided, scenes_student
from fasttta_jax.config import from_config_dict, to_config_dict

NUM_STEPS = 900
DEPTHS = ("", "shallow")


def get_config(depth: str = "") -> ml_collections.ConfigDict:
    """900 steps of 16 clips, from the student in runs/scenes/student."""
    if depth not in DEPTHS:
        raise ValueError(f"depth is {depth!r}; allowed: {DEPTHS}")
    student = from_config_dict(scenes_student.get_config())
    config = demo_guided.guided(student, "runs/scenes/student", NUM_STEPS, learning_rate=4e-4)
    if depth == "shallow":
        backbone = dataclasses.replace(config.model.backbone, encoder_depth=1, decoder_depth=2)
        model = dataclasses.replace(config.model, backbone=backbone)
        config = dataclasses.replace(config, model=model, init_blocks="ends")
    return to_config_dict(config)
