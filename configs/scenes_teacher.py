"""The teacher of scenes: clips of 10.24 s in 128 tokens, with up to four events in sequence.

    python train.py --config=configs/scenes_teacher.py --workdir=runs/scenes/teacher

The smallest setting in which the number of iterations matters: at most an eighth of the demo's
tokens come at once in 8 iterations, and of these tokens a quarter of a clip. `make scenes` builds
the 8,000 clips and their codec before it.
"""

import dataclasses

import ml_collections

from configs import demo_teacher
from fasttta_jax.config import OptimizerConfig, from_config_dict, to_config_dict

NUM_STEPS = 5_000
SAMPLE_PROMPTS = (
    "rain falls in the distance",
    "first footsteps going by, then a clock ticking, and at last a high bell ringing nearby",
    "a bird sings while a siren wails",
)


def get_config() -> ml_collections.ConfigDict:
    """5,000 steps of 16 clips."""
    demo = from_config_dict(demo_teacher.get_config())
    return to_config_dict(
        dataclasses.replace(
            demo,
            num_steps=NUM_STEPS,
            log_every=100,
            evaluate_every=1000,
            sample_prompts=SAMPLE_PROMPTS,
            data=dataclasses.replace(demo.data, path="runs/scenes/encoded", batch_size=16),
            model=dataclasses.replace(
                demo.model,
                num_tokens=128,
                text=dataclasses.replace(demo.model.text, num_positions=48),
            ),
            optimizer=OptimizerConfig(
                learning_rate=1e-3,
                warmup_steps=100,
                decay_steps=NUM_STEPS // 2,
                ema_decay=0.998,
                ema_warmup=True,
            ),
            decode=dataclasses.replace(demo.decode, num_iterations=32),
        )
    )
