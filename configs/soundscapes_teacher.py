"""The teacher of the model that comes with the package: the demo's, wider, in three runs.

    python train.py --config=configs/soundscapes_teacher.py --workdir=runs/soundscapes/captions
    python train.py --config=configs/soundscapes_teacher.py:context \\
        --workdir=runs/soundscapes/context
    python train.py --config=configs/soundscapes_teacher.py:forward \\
        --workdir=runs/soundscapes/teacher

The first learns what captions say, under MAR's masks, which leave nine of 32 tokens at most to be
seen. The second goes on from it with masks that hide any share of the tokens, for what unfolds in
time: the course of a siren and the beat of a clock. From the start the second alone does not learn
the captions (docs/package_model.md). The third shows half of the clips as far as a moment and hides
the rest, as where a sound is continued. In all of them the decoder reads the four tokens on either
side of every position, and a regression tells the backbone what the context says.

`make model` builds 20,000 soundscapes and their codec, whose patches overlap, before that.
"""

import dataclasses

import ml_collections

from configs import demo_teacher
from fasttta_jax.config import OptimizerConfig, RunConfig, from_config_dict, to_config_dict

WIDTH = 160
CAPTION_STEPS = 2_000
CONTEXT_STEPS = 8_500
FORWARD_STEPS = 4_000


def _captions() -> RunConfig:
    demo = from_config_dict(demo_teacher.get_config())
    return dataclasses.replace(
        demo,
        num_steps=CAPTION_STEPS,
        log_every=100,
        evaluate_every=1000,
        data=dataclasses.replace(demo.data, path="runs/soundscapes/encoded"),
        model=dataclasses.replace(
            demo.model,
            backbone=dataclasses.replace(demo.model.backbone, width=WIDTH, neighbours=4),
            text=dataclasses.replace(demo.model.text, width=WIDTH),
        ),
        diffusion=dataclasses.replace(demo.diffusion, regression=1.0),
        optimizer=OptimizerConfig(
            learning_rate=1e-3,
            warmup_steps=200,
            decay_steps=200,
            ema_decay=0.998,
            ema_warmup=True,
        ),
    )


def _context() -> RunConfig:
    captions = _captions()
    return dataclasses.replace(
        captions,
        num_steps=CONTEXT_STEPS,
        init_from="runs/soundscapes/captions",
        masking=dataclasses.replace(
            captions.masking, minimum=0.03, mean=1.0, std=0.45, visible_noise=0.3
        ),
        decode=dataclasses.replace(
            captions.decode, num_iterations=16, guidance_schedule="constant", guidance_scale=2.0
        ),
        optimizer=dataclasses.replace(captions.optimizer, learning_rate=1.2e-3, decay_steps=4_000),
    )


def _forward() -> RunConfig:
    context = _context()
    return dataclasses.replace(
        context,
        num_steps=FORWARD_STEPS,
        init_from="runs/soundscapes/context",
        masking=dataclasses.replace(context.masking, forward_share=0.5),
        optimizer=dataclasses.replace(
            context.optimizer, learning_rate=8e-4, warmup_steps=100, decay_steps=3_000
        ),
    )


VARIANTS = {"": _captions, "context": _context, "forward": _forward}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """2,000 steps of 32 clips; 8,500 of "context" from them, and from those 4,000 of "forward"."""
    if variant not in VARIANTS:
        raise ValueError(f"variant is {variant!r}; allowed: {sorted(VARIANTS)}")
    return to_config_dict(VARIANTS[variant]())
