"""AudioDEAR, base, with guidance in one pass: half the operations of `configs/audiodear_base.py`.

    python train.py --config=configs/audiodear_base_guided.py --workdir=runs/audiodear_guided \
        --config.data.path=CAPTIONED_DATA --config.init_from=runs/audiodear

No paper has it. It learns the states that guidance by two passes of that student gives, at any
strength; batches are the student's, dropout is off. A shallower one costs half again: add
--config.model.backbone.encoder_depth=6 --config.model.backbone.decoder_depth=6
--config.init_blocks=ends --config.optimizer.learning_rate=4e-4.
Hardware: as the student's, with its forward pass on a doubled batch on top.
"""

import dataclasses

import ml_collections

from configs import audiodear_base, impact_base
from fasttta_jax.config import DistillationConfig, OptimizerConfig, to_config_dict

NUM_STEPS = 50_000


def get_config(stage: str = "text") -> ml_collections.ConfigDict:
    """50,000 steps; stages as in `configs/audiodear_base.py`."""
    student = audiodear_base.student(impact_base.BASE, stage)
    backbone = dataclasses.replace(
        student.model.backbone, attention_dropout=0.0, projection_dropout=0.0
    )
    return to_config_dict(
        dataclasses.replace(
            student,
            objective="guided",
            num_steps=NUM_STEPS,
            model=dataclasses.replace(student.model, backbone=backbone),
            distillation=DistillationConfig(backbone_from_teacher=True, head_from_teacher=True),
            optimizer=OptimizerConfig(
                learning_rate=1e-4, warmup_steps=1000, decay_steps=NUM_STEPS - 1000
            ),
        )
    )
