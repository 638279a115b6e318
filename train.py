"""Trains a teacher or a student.

    python train.py --config=configs/demo_teacher.py --workdir=runs/demo/teacher
    python train.py --config=configs/demo_student.py --workdir=runs/demo/student \\
        --config.init_from=runs/demo/teacher

Any field of the config can be set: --config.optimizer.learning_rate=3e-4. Started again with the
same workdir, a run goes on after its last checkpoint, on the devices and hosts that there are now.

Several hosts run the same command. On TPU pods, GKE, Slurm and Open MPI they find each other;
elsewhere --coordinator_address, --num_processes and --process_id say who they are. launch/ has
recipes. SIGTERM on any host makes all of them save and stop with exit code 75: start again.
Ctrl-C does the same, with exit code 130.
"""

from absl import flags
from ml_collections import config_flags

from fasttta_jax import cli
from fasttta_jax.config import from_config_dict
from fasttta_jax.performance.profiler import parse_window
from fasttta_jax.training.loop import Trainer


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the command line; not done at import, where tests would define it a second time."""
    config_flags.DEFINE_config_file(
        "config", None, "A file of configs/.", lock_config=True, flag_values=values
    )
    flags.DEFINE_string(
        "workdir",
        None,
        "Folder of the run; resumes if it holds one.",
        required=True,
        flag_values=values,
    )
    flags.DEFINE_string(
        "profile",
        None,
        "FIRST:LAST, steps whose trace goes to profile/ in the workdir, such as 10:14.",
        flag_values=values,
    )
    flags.mark_flag_as_required("config", flag_values=values)
    cli.define_distributed_flags(values)


def main() -> None:
    """Trains the run that the flags name."""
    values = flags.FLAGS
    cli.start_distributed()
    config = from_config_dict(values.config)
    profile = None if values.profile is None else parse_window(values.profile)
    Trainer(config, values.workdir, profile=profile).run()


if __name__ == "__main__":
    define_flags()
    cli.run(main)
