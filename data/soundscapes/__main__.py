"""`python -m data.soundscapes`; see `data.soundscapes.build`.

Processes that synthesise import `build` and not this.
"""

from __future__ import annotations

import os

from absl import flags

from data.soundscapes import build
from fasttta_jax import cli


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the command line; not done at import, where tests would define it a second time."""

    def integer(name: str, default: int, help: str) -> None:
        flags.DEFINE_integer(name, default, help, flag_values=values)

    flags.DEFINE_string(
        "out", None, "Parent folder of the dataset.", required=True, flag_values=values
    )
    integer("num_train", 6000, "Training clips (three captions each).")
    integer("num_validation", 300, "Validation clips.")
    integer("num_test", 600, "Test clips, in wordings that training never uses.")
    integer("seed", 0, "Seed of sounds, scenes and captions.")
    flags.DEFINE_float(
        "clip_seconds", build.CLIP_SECONDS, "Length of every clip, 1 to 60.", flag_values=values
    )
    integer("max_events", build.MAX_EVENTS, "Most events of a sequence, 2 to 4.")
    integer(
        "workers",
        os.cpu_count() or 1,
        "Processes of this host; they change no result.",
    )
    cli.define_share_flags(values)


def main() -> None:
    """The command line."""
    values = flags.FLAGS
    process_id, num_processes = cli.share()
    folder = build.build(
        values.out,
        num_train=values.num_train,
        num_validation=values.num_validation,
        num_test=values.num_test,
        seed=values.seed,
        workers=values.workers,
        clip_seconds=values.clip_seconds,
        max_events=values.max_events,
        process_id=process_id,
        num_processes=num_processes,
    )
    print(folder)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
