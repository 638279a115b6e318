"""The paper's three stages at the smallest size, on soundscapes, and guidance in one pass: a minute
each on a CPU core.

    python train.py --config=configs/tiny.py:pretraining --workdir=runs/tiny/pretraining
    python train.py --config=configs/tiny.py:teacher --workdir=runs/tiny/teacher
    python train.py --config=configs/tiny.py:student --workdir=runs/tiny/student
    python train.py --config=configs/tiny.py:guided --workdir=runs/tiny/guided

Data as for the demo (`make demo` builds it in runs/demo/encoded). Noise prediction, four draws a
token, a student head that starts from zero: the paper's choices where the demo, which must sound
like something, has others. It shows that the stages fit together, not how well they do.
"""

import dataclasses

import ml_collections

from fasttta_jax.config import (
    BackboneConfig,
    DataConfig,
    DecodeConfig,
    DistillationConfig,
    EnergyConfig,
    HeadConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TextConfig,
    to_config_dict,
)

STAGES = ("pretraining", "teacher", "student", "guided")
OBJECTIVES = {"student": "energy", "guided": "guided"}


def get_config(stage: str = "teacher") -> ml_collections.ConfigDict:
    """100 steps of 32 clips of a stage."""
    if stage not in STAGES:
        raise ValueError(f"stage is {stage!r}; allowed: {STAGES}")
    words = TextConfig(num_positions=24, width=64)
    no_text = dataclasses.replace(words, encoder="none", token_dropout=0.0, drop_rate=0.0)
    distillation = {
        "student": DistillationConfig(weight=1000.0, backbone_from_teacher=True),
        "guided": DistillationConfig(backbone_from_teacher=True, head_from_teacher=True),
    }
    before = {
        "teacher": "runs/tiny/pretraining",
        "student": "runs/tiny/teacher",
        "guided": "runs/tiny/student",
    }
    return to_config_dict(
        RunConfig(
            objective=OBJECTIVES.get(stage, "diffusion"),
            num_steps=100,
            log_every=10,
            evaluate_every=50,
            init_from=before.get(stage, ""),
            data=DataConfig(path="runs/demo/encoded", batch_size=32),
            model=ModelConfig(
                num_tokens=32,
                token_dim=64,
                backbone=BackboneConfig(width=64, encoder_depth=2, decoder_depth=2, num_heads=4),
                head=HeadConfig(width=96, depth=2),
                text=no_text if stage == "pretraining" else words,
            ),
            energy=EnergyConfig(noise_dim=64),
            distillation=distillation.get(stage, DistillationConfig()),
            optimizer=OptimizerConfig(
                learning_rate=5e-4, warmup_steps=10, ema_warmup=True, accumulation_steps=2
            ),
            decode=DecodeConfig(
                num_iterations=8,
                guidance_scale=1.0 if stage == "pretraining" else 3.0,
                max_segments=1,
            ),
        )
    )
