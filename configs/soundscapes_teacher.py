"""The teacher of the model that comes with the package: the demo's, wider and trained longer.

    python train.py --config=configs/soundscapes_teacher.py --workdir=runs/soundscapes/teacher

`make model` builds its 20,000 soundscapes and its codec, whose patches overlap, before that.

What it has beyond the demo's is there for what unfolds in time, the course of a siren and the beat
of a clock, of which attention and the denoising loss alone learn nothing in so short a time: its
decoder reads the four tokens on either side of every position, a regression tells its backbone
what the context says, and masks hide any share of the tokens. Of 32 tokens MAR's masks, from .7
on, leave nine at most to be seen, and decoding knows more than that for most of them.
"""

import dataclasses

import ml_collections

from configs import demo_teacher
from fasttta_jax.config import MaskingConfig, OptimizerConfig, from_config_dict, to_config_dict

NUM_STEPS = 7_000
WIDTH = 160
NEIGHBOURS = 4
MASKING = MaskingConfig(minimum=0.03, mean=0.5, std=1.0)
"""All but uniform."""


def get_config() -> ml_collections.ConfigDict:
    """7,000 steps of 32 clips."""
    demo = from_config_dict(demo_teacher.get_config())
    return to_config_dict(
        dataclasses.replace(
            demo,
            num_steps=NUM_STEPS,
            log_every=100,
            evaluate_every=1750,
            data=dataclasses.replace(demo.data, path="runs/soundscapes/encoded"),
            model=dataclasses.replace(
                demo.model,
                backbone=dataclasses.replace(
                    demo.model.backbone, width=WIDTH, neighbours=NEIGHBOURS
                ),
                text=dataclasses.replace(demo.model.text, width=WIDTH),
            ),
            diffusion=dataclasses.replace(demo.diffusion, regression=1.0),
            masking=MASKING,
            optimizer=OptimizerConfig(
                learning_rate=2e-3,
                warmup_steps=200,
                decay_steps=NUM_STEPS // 2,
                ema_decay=0.998,
                ema_warmup=True,
            ),
        )
    )
