"""A diffusion teacher on the 320 real recordings of ESC-10, made a dataset by `data.esc10`.

    python -m data.esc10 --esc10_dir=ESC10 --out=runs/esc10/data
    python -m data.spectrogram_codec --data=runs/esc10/data --out=runs/esc10/codec
    python -m data.encode_latents --data=runs/esc10/data --out=runs/esc10/encoded \\
        --codec=runs/esc10/codec
    python -m data.embed_text --data=runs/esc10/encoded
    python train.py --config=configs/esc10_teacher.py --workdir=runs/esc10/teacher

For a folder of your own, use `data.folder` in place of `data.esc10` and set --config.data.path.
"""

import dataclasses

import ml_collections

from configs import demo_teacher
from fasttta_jax.config import (
    BackboneConfig,
    DataConfig,
    DecodeConfig,
    ModelConfig,
    OptimizerConfig,
    from_config_dict,
    to_config_dict,
)

SAMPLE_PROMPTS = (
    "a dog is barking",
    "rain is falling",
    "a clock is ticking",
    "a rooster is crowing",
)


def get_config() -> ml_collections.ConfigDict:
    """1500 steps of 32 clips of 5.12 s: 64 tokens, twice the demo's."""
    demo = from_config_dict(demo_teacher.get_config())
    return to_config_dict(
        dataclasses.replace(
            demo,
            num_steps=1500,
            evaluate_every=300,
            sample_prompts=SAMPLE_PROMPTS,
            data=DataConfig(path="runs/esc10/encoded", batch_size=32),
            model=ModelConfig(
                num_tokens=64,
                token_dim=64,
                backbone=BackboneConfig(
                    width=128,
                    encoder_depth=2,
                    decoder_depth=3,
                    num_heads=4,
                    attention_dropout=0.0,
                    projection_dropout=0.1,
                ),
                head=demo.model.head,
                text=dataclasses.replace(demo.model.text, num_positions=16),
            ),
            optimizer=OptimizerConfig(
                learning_rate=1e-3,
                warmup_steps=50,
                decay_steps=700,
                ema_decay=0.995,
                ema_warmup=True,
            ),
            decode=DecodeConfig(
                num_iterations=12, guidance_scale=3.0, guidance_schedule="constant"
            ),
        )
    )
