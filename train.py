"""Trains a teacher or a student.

    python train.py --config=configs/demo_teacher.py --workdir=runs/demo/teacher
    python train.py --config=configs/demo_student.py --workdir=runs/demo/student \\
        --config.init_from=runs/demo/teacher

Any field of the config can be set: --config.optimizer.learning_rate=3e-4. Started again with the
same workdir, a run goes on after its last checkpoint.
"""

from absl import flags
from ml_collections import config_flags

from fasttta_jax import cli
from fasttta_jax.config import from_config_dict
from fasttta_jax.training.loop import Trainer

CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/.", lock_config=True)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; resumes if it holds one.", required=True
)
flags.mark_flag_as_required("config")


def main() -> None:
    Trainer(from_config_dict(CONFIG.value), WORKDIR.value).run()


if __name__ == "__main__":
    cli.run(main)
