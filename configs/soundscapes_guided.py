"""Guidance in one pass for the student that comes with the package.

    python train.py --config=configs/soundscapes_guided.py --workdir=runs/soundscapes/guided

It starts from the student in runs/soundscapes/student, or from the package's model:
--config.init_from=fasttta_jax/assets/soundscapes, with data in that model's tokens and words.
"""

import ml_collections

from configs import demo_guided, soundscapes_student
from fasttta_jax.config import from_config_dict, to_config_dict

NUM_STEPS = 1_600


def get_config() -> ml_collections.ConfigDict:
    """1,600 steps of 32 clips, from the student in runs/soundscapes/student."""
    student = from_config_dict(soundscapes_student.get_config())
    workdir = "runs/soundscapes/student"
    return to_config_dict(demo_guided.guided(student, workdir, NUM_STEPS, learning_rate=5e-4))
