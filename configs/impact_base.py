"""IMPACT, base: the diffusion teacher at the paper's size, in its two stages.

    python train.py --config=configs/impact_base.py:pretraining --workdir=runs/impact/pretraining \
        --config.data.path=AUDIO_DATA --config.init_from=MAR_WEIGHTS
    python train.py --config=configs/impact_base.py --workdir=runs/impact/teacher \
        --config.data.path=CAPTIONED_DATA --config.init_from=runs/impact/pretraining

Stage `pretraining` reads audio without captions (the paper: AudioSet, 5500 h) and may start from
MAR's ImageNet weights (`python -m fasttta_jax.convert mar`); stage `text` (the default) adds
captions (AudioCaps and WavCaps, 1200 h) and starts from the first. Data: 256 tokens of 128 numbers
for 10.24 s, which AudioLDM's VAE gives (`data.vae_codec`; `data.encode_latents --posterior=moments`
keeps the variance that training draws tokens with); captions as embeddings of CLAP (1 x 512) and
Flan-T5-large (77 x 1024), from `data.embed_text --encoder clap=... --encoder t5=...`. Stages
`text_t5` and `text_clap` have one of the two alone.
193 M parameters. Hardware: TPU or GPU. Batch size, warm-up and number of steps are not published;
these are ours.
Published, AudioCaps, 64 iterations: FD 14.7, FAD 1.13, KL 1.09, IS 10.0, CLAP .353.
"""

import dataclasses

import ml_collections

from fasttta_jax.config import (
    BackboneConfig,
    DataConfig,
    DecodeConfig,
    HeadConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TextConfig,
    to_config_dict,
)

BASE = BackboneConfig(width=768, encoder_depth=12, decoder_depth=12, num_heads=12)
CLAP, T5 = ("clap", 1, 512), ("t5", 77, 1024)
TEXT = TextConfig(encoder="frozen", streams=(CLAP, T5), token_dropout=0.0)
NO_TEXT = TextConfig(
    encoder="none", num_positions=TEXT.total_positions, token_dropout=0.0, drop_rate=0.0
)
STAGES = {
    "text": TEXT,
    "text_t5": dataclasses.replace(TEXT, streams=(T5,)),
    "text_clap": dataclasses.replace(TEXT, streams=(CLAP,)),
    "pretraining": NO_TEXT,
}


def teacher(backbone: BackboneConfig, stage: str) -> RunConfig:
    """The teacher's run of a stage."""
    if stage not in STAGES:
        raise ValueError(f"stage is {stage!r}; allowed: {', '.join(STAGES)}")
    return RunConfig(
        objective="diffusion",
        num_steps=500_000,
        log_every=100,
        evaluate_every=10_000,
        data=DataConfig(batch_size=256, num_threads=16, sample_posterior=True),
        model=ModelConfig(
            num_tokens=256,
            token_dim=128,
            dtype="bfloat16",
            backbone=backbone,
            head=HeadConfig(width=1024, depth=3),
            text=STAGES[stage],
        ),
        optimizer=OptimizerConfig(learning_rate=5e-5, warmup_steps=5000),
        decode=DecodeConfig(guidance_scale=1.0 if stage == "pretraining" else 5.0, max_segments=8),
    )


def get_config(stage: str = "text") -> ml_collections.ConfigDict:
    """One of `STAGES`."""
    return to_config_dict(teacher(BASE, stage))
