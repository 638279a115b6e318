"""Six rivals at the size of `configs/impact_base.py`, with the constants of their publications.

    python train.py --config=configs/rivals.py:flow --workdir=runs/rivals_base/flow \
        --config.data.path=CAPTIONED_DATA
    python train.py --config=configs/rivals.py:consistency --workdir=runs/rivals_base/consistency \
        --config.data.path=CAPTIONED_DATA --config.init_from=runs/rivals_base/flow

Every network is a transformer of 24 blocks over text, time and 256 noisy tokens, 193 M parameters,
where the published ones are UNets or transformers of 120 M to 1 B over latents of their own; data,
text, batch size and steps are those of `impact_base`. All sample with averaged parameters. What
else deviates, by name:

* `flow`, the teacher of the first four: uniform times; the publications took teachers that they
  found (TANGO, Make-An-Audio 2, Auffusion), SoundCTM one of its own.
* `consistency`, ConsistencyTTA: its second stage alone, on a grid of the same times on the straight
  path; predicts velocities, not clean tokens, so that it starts as the teacher; the rate falls by a
  cosine; no CLAP fine-tuning.
* `latent_consistency`, AudioLCM: velocities, not noise, and no c_skip, which is 7e-6 at its first
  step; its guidance of 4 to 12 is 5 to 13 here, where 1 is none; one learning rate, not one that
  grows with devices; 4 steps are spaced evenly.
* `trajectory`, SoundCTM: the squared distance in place of features of the teacher; the weight of
  denoising is fixed, not that of gradients; AdamW in place of RAdam; nu is 1, without the second
  pass that it still takes.
* `reflow`, AudioTurbo, which has published neither code nor constants: those of Rectified
  Diffusion. It needs pairs: `python -m data.pairs` makes them.
* `meanflow`: guidance as published for images (omega 1, kappa .5), and for dropped captions at
  every pair of times, not at equal ones alone.
* `shortcut`: its jumps bootstrap for an eighth of the clips by lot, at any level by lot; no clip of
  values at 4; guidance away from no text.
"""

import dataclasses

import ml_collections

from configs import impact_base
from fasttta_jax.config import (
    DecodeConfig,
    DistillationConfig,
    FlowConfig,
    OptimizerConfig,
    RunConfig,
    to_config_dict,
)

FLOWS = {
    "flow": FlowConfig(),
    "consistency": FlowConfig(
        grid="vp",
        grid_steps=17,
        solver="heun",
        weight="min_snr",
        guidance_low=0.0,
        guidance_high=6.0,
        target_decay=0.95,
        last_interval="data",
        sampler="renoise",
    ),
    "latent_consistency": FlowConfig(
        grid="vp",
        grid_steps=50,
        solver="euler",
        distance="huber",
        guidance_low=5.0,
        guidance_high=13.0,
        target_decay=0.95,
        sampler="renoise",
    ),
    "trajectory": FlowConfig(
        time_distribution="logit_normal",
        time_mean=-1.2,
        time_std=1.2,
        grid="karras",
        grid_steps=39,
        max_skip=39,
        guidance_low=2.0,
        guidance_high=5.0,
        target_decay=0.999,
    ),
    "reflow": FlowConfig(distance="huber"),
    "meanflow": FlowConfig(
        time_distribution="logit_normal",
        equal_share=0.75,
        distance="adaptive",
        target_guidance=1.0,
        kappa=0.5,
    ),
    "shortcut": FlowConfig(
        grid_steps=128, bootstrap_share=0.125, target_guidance=1.5, target_decay=0.999
    ),
}
OPTIMIZERS = {
    "flow": OptimizerConfig(learning_rate=1e-4, warmup_steps=5000, weight_decay=0.0),
    "consistency": OptimizerConfig(
        learning_rate=1e-5, warmup_steps=750, beta2=0.999, weight_decay=1e-4, ema_decay=0.999
    ),
    "latent_consistency": OptimizerConfig(
        learning_rate=2.4e-5, warmup_steps=10_000, beta2=0.999, weight_decay=0.01, clip_norm=1.0
    ),
    "trajectory": OptimizerConfig(
        learning_rate=8e-5,
        warmup_steps=0,
        beta2=0.999,
        weight_decay=0.0,
        clip_norm=1000.0,
        ema_decay=0.999,
    ),
    "reflow": OptimizerConfig(
        learning_rate=5e-6, beta2=0.999, weight_decay=1e-3, clip_norm=1.0, warmup_steps=0
    ),
    "meanflow": OptimizerConfig(learning_rate=1e-4, warmup_steps=0, weight_decay=0.0),
    "shortcut": OptimizerConfig(
        learning_rate=1e-4, warmup_steps=0, beta2=0.999, weight_decay=0.1, ema_decay=0.999
    ),
}
JUMPS = {"flow": 25, "latent_consistency": 2, "reflow": 10}
"""Of sampling, as published; one of the others."""
GUIDANCE = {
    "flow": 5.0,
    "consistency": 4.0,
    "latent_consistency": 5.0,
    "trajectory": 3.5,
    "reflow": 1.5,
}
"""At sampling, as published; none of the others, whose targets are guided."""
FROM_NOTHING = ("flow", "meanflow", "shortcut")


def rival(name: str) -> RunConfig:
    """The run of a rival, one of `FLOWS`."""
    if name not in FLOWS:
        raise ValueError(f"rival is {name!r}; allowed: {', '.join(FLOWS)}")
    base, flow = impact_base.teacher(impact_base.BASE, "text"), FLOWS[name]
    backbone = dataclasses.replace(
        base.model.backbone,
        encoder_depth=0,
        decoder_depth=base.model.backbone.encoder_depth + base.model.backbone.decoder_depth,
        attention_dropout=0.0,
        projection_dropout=0.0,
    )
    text = base.model.text
    if name in ("consistency", "latent_consistency"):
        text = dataclasses.replace(text, drop_rate=0.0)
    fresh = name in FROM_NOTHING
    return dataclasses.replace(
        base,
        objective="consistency" if name == "latent_consistency" else name,
        best_metric="velocity_error" if flow.distance == "adaptive" else "loss",
        model=dataclasses.replace(
            base.model,
            network="latent",
            dtype="float32" if name == "meanflow" else base.model.dtype,
            backbone=backbone,
            text=text,
        ),
        flow=flow,
        distillation=DistillationConfig()
        if fresh
        else DistillationConfig(backbone_from_teacher=True, head_from_teacher=True),
        optimizer=OPTIMIZERS[name],
        decode=DecodeConfig(
            num_iterations=JUMPS.get(name, 1),
            guidance_schedule="constant",
            guidance_scale=GUIDANCE.get(name, 1.0),
        ),
    )


def get_config(name: str = "flow") -> ml_collections.ConfigDict:
    """One of `FLOWS`."""
    return to_config_dict(rival(name))
