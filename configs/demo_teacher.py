"""The demo's diffusion teacher on the embedded soundscapes.

python train.py --config=configs/demo_teacher.py --workdir=runs/demo/teacher
"""

import ml_collections

from fasttta_jax.config import (
    BackboneConfig,
    DataConfig,
    DecodeConfig,
    DiffusionConfig,
    HeadConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TextConfig,
    to_config_dict,
)

SAMPLE_PROMPTS = (
    "a high bell rings nearby",
    "rain falls in the distance",
    "footsteps, then thunder",
)


def get_config() -> ml_collections.ConfigDict:
    """1000 steps of 32 clips."""
    return to_config_dict(
        RunConfig(
            objective="diffusion",
            num_steps=1000,
            log_every=20,
            evaluate_every=500,
            sample_prompts=SAMPLE_PROMPTS,
            data=DataConfig(path="runs/demo/encoded", batch_size=32),
            model=ModelConfig(
                num_tokens=32,
                token_dim=64,
                backbone=BackboneConfig(
                    width=128,
                    encoder_depth=2,
                    decoder_depth=3,
                    num_heads=4,
                    attention_dropout=0.0,
                    projection_dropout=0.0,
                ),
                head=HeadConfig(width=192, depth=2),
                text=TextConfig(num_positions=24, width=128, token_dropout=0.15),
            ),
            diffusion=DiffusionConfig(prediction="v", batch_multiplier=2),
            optimizer=OptimizerConfig(
                learning_rate=1e-3,
                warmup_steps=50,
                decay_steps=500,
                ema_decay=0.995,
                ema_warmup=True,
            ),
            decode=DecodeConfig(num_iterations=8, guidance_scale=4.5),
        )
    )
