"""The teacher of the model that comes with the package: the demo's, wider and trained longer.

    python train.py --config=configs/soundscapes_teacher.py --workdir=runs/soundscapes/teacher

`make model` builds its 20,000 soundscapes and its codec, whose patches overlap, before that.

`:context` is for what unfolds in time, the course of a siren and the beat of a clock, which the
other does not learn (docs/package_model.md). Its decoder reads the four tokens on either side of
every position, a regression tells its backbone what the context says, and its masks hide any share
of the tokens. MAR's, from .7 on, leave nine of 32 at most to be seen, and decoding sees more than
that for most of them.
"""

import dataclasses

import ml_collections

from configs import demo_teacher
from fasttta_jax.config import OptimizerConfig, from_config_dict, to_config_dict

NUM_STEPS = 12_000
WIDTH = 160
VARIANTS = {
    "": {},
    "context": {
        "model.backbone.neighbours": 4,
        "diffusion.regression": 1.0,
        "masking.minimum": 0.03,
        "masking.mean": 0.5,
        "masking.std": 1.0,
        "optimizer.learning_rate": 2e-3,
    },
}
"""Fields that each changes."""


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """12,000 steps of 32 clips."""
    if variant not in VARIANTS:
        raise ValueError(f"variant is {variant!r}; allowed: {sorted(VARIANTS)}")
    demo = from_config_dict(demo_teacher.get_config())
    config = to_config_dict(
        dataclasses.replace(
            demo,
            num_steps=NUM_STEPS,
            log_every=100,
            evaluate_every=2000,
            data=dataclasses.replace(demo.data, path="runs/soundscapes/encoded"),
            model=dataclasses.replace(
                demo.model,
                backbone=dataclasses.replace(demo.model.backbone, width=WIDTH),
                text=dataclasses.replace(demo.model.text, width=WIDTH),
            ),
            optimizer=OptimizerConfig(
                learning_rate=1e-3,
                warmup_steps=200,
                decay_steps=NUM_STEPS // 2,
                ema_decay=0.998,
                ema_warmup=True,
            ),
        )
    )
    config.update_from_flattened_dict(VARIANTS[variant])
    return config
