"""AudioDEAR, large: the one-step student of `configs/impact_large.py`.

    python train.py --config=configs/audiodear_large.py --workdir=runs/audiodear_large \
        --config.data.path=CAPTIONED_DATA --config.init_from=runs/impact_large/teacher

As `configs/audiodear_base.py`, with 32 blocks of width 1024. The paper prints no figures for it.
"""

import ml_collections

from configs import audiodear_base, impact_large
from fasttta_jax.config import to_config_dict


def get_config(stage: str = "text") -> ml_collections.ConfigDict:
    """The student of the large teacher; stages as in `configs/audiodear_base.py`."""
    return to_config_dict(audiodear_base.student(impact_large.LARGE, stage))
