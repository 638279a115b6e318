"""Generates audio from text.

    python generate.py --prompt="a high bell rings nearby" --prompt="rain is falling fast" \\
        --out=sounds
    python generate.py --prompts=captions.csv --out=sounds --lufs=-23

This is the model that comes with the package; --workdir=runs/demo/student is one that you trained.
Clip i of the list uses seed + i and depends on nothing but its prompt, its seed and the settings.
The folder gets one sound file a clip and manifest.jsonl, which says how each was made. Started
again, the same command makes what is missing, on as many hosts as one likes.

A clip may be of any length, a loop, or a change of another sound:

    ... --seconds=60                         longer, or shorter, than what the model was trained on
    ... --loop                               its end leads to its beginning
    ... --timeline="0-4 rain; 2-3 thunder"   another prompt at another time
    ... --audio=dog.wav --keep=0-1.28        continues the file after 1.28 s
    ... --audio=dog.wav --keep=0-1,2-2.56    makes what is between 1 and 2 s anew
    ... --vary=dog.wav --share=0.3           makes three tenths of it anew, other ones in each clip

A file should be as loud as the sounds that the model was trained on. Kept tokens come back exactly;
the sound of a clip is decoded as a whole, so that no joint is heard. With --max_seconds=0.5 it is
decoded by the best of the settings that were measured here and take no longer.
"""

import logging
from collections.abc import Sequence
from typing import NamedTuple

from absl import flags

from fasttta_jax import cli
from fasttta_jax.evaluation.ranking import RANKS, check_ranking, open_ranker
from fasttta_jax.generation.candidates import check_candidates
from fasttta_jax.generation.job import Job
from fasttta_jax.generation.job_folder import Share
from fasttta_jax.generation.page import write_page
from fasttta_jax.generation.pipeline import GenerateConfig, Pipeline
from fasttta_jax.generation.time_budget import check_wait
from fasttta_jax.multihost.startup import find_share
from fasttta_jax.tools import decode_flags, edit_flags, job_flags
from fasttta_jax.tools.edit_flags import EditFlags
from fasttta_jax.tools.job_flags import Wishes
from fasttta_jax.workdir.restore import which_checkpoint

logger = logging.getLogger("fasttta_jax.generate")


class Rank(NamedTuple):
    """How candidates are ranked: --rank, --clap and --tagger."""

    by: str
    clap: str | None
    tagger: str | None


class Request(NamedTuple):
    """What a command line asks for."""

    workdir: str | None
    which: str | int
    wishes: Wishes
    edits: EditFlags
    config: GenerateConfig
    rank: Rank
    page: bool
    max_seconds: float | None = None

    @property
    def batch_size(self) -> int:
        """Clips that are computed together: fewer than asked for where there are no more."""
        prompts = self.wishes.prompts
        return min(self.config.batch_size, len(prompts) * prompts.candidates)


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of this command in `values`."""

    def text(name: str, help: str, default: str | None = None, **options: bool) -> None:
        flags.DEFINE_string(name, default, help, flag_values=values, **options)

    def whole(name: str, default: int | None, help: str) -> None:
        flags.DEFINE_integer(name, default, help, lower_bound=1, flag_values=values)

    text(
        "workdir",
        "Folder of a trained teacher or student, or of an exported model, or OWNER/NAME of one on "
        "the Hub. Default: the model that comes with the package.",
    )
    text("checkpoint", "Which one: last, best (lowest validation loss) or a step.", "last")
    job_flags.define(values)
    flags.DEFINE_enum(
        "rank", "none", RANKS, "What scores a clip against its own prompt.", flag_values=values
    )
    text("clap", "For --rank=clap: folder of its converted weights.")
    text("tagger", "For --rank=tagger: folder of one, such as an --out of eval.py.")
    whole("batch_size", 8, "Most clips computed together.")
    decode_flags.define(values)
    flags.DEFINE_float(
        "max_seconds",
        None,
        "How long a batch may take, from prompts to sound, once compiled: chooses the best setting "
        "that `python -m benchmarks.frontier --this_machine` has measured.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "page",
        False,
        "Beside the manifest index.html, one file with a player and a spectrogram for every clip.",
        flag_values=values,
    )
    edit_flags.define(values)


def parse(argv: Sequence[str]) -> Request:
    """What a command line asks for; `argv` begins with the program's name.

    Raises:
      absl.flags.Error: an unknown flag, one that is missing, or a value of the wrong type.
      ValueError: see `request_of`.
    """
    values = flags.FlagValues()
    define_flags(values)
    values(argv)
    return request_of(values)


def request_of(values: flags.FlagValues) -> Request:
    """What parsed flags ask for.

    Raises:
      ValueError: a value that is not allowed, flags that do not go together, no prompts.
      OSError: the table of prompts cannot be read.
    """
    rank = Rank(values.rank, values.clap, values.tagger)
    check_ranking(*rank)
    config = GenerateConfig(
        values.seed,
        values.batch_size,
        with_states=values.pictures,
        **decode_flags.read(values),
    )
    edits = edit_flags.read(values)
    wishes = job_flags.read(values)
    check_candidates(wishes.prompts.candidates, rank.by != "none", wishes.output.name)
    if values.page and wishes.output.store != "files":
        raise ValueError(f"--page and --store={values.store}: a page goes with --store=files")
    if values.max_seconds is not None:
        column = "seconds" if "seconds" in wishes.prompts.columns else None
        names = ("num_iterations", "counts", "order", "guided", "seconds")
        chosen = {name: values[name].value for name in names}
        others = {**chosen, "the column seconds": column, **edits.edits.given()}
        check_wait(values.max_seconds, others)
    which = which_checkpoint(values.checkpoint)
    return Request(
        values.workdir, which, wishes, edits, config, rank, values.page, values.max_seconds
    )


def main() -> None:
    request = request_of(flags.FLAGS)
    place = find_share()
    share = Share(*cli.share(lambda: place[0], lambda: place[1]))
    prompts, output, overwrite = request.wishes
    if any(not prompt.strip() for prompt in prompts.prompts):
        logger.warning("an empty prompt makes an unconditional clip")
    ranker = open_ranker(*request.rank)
    pipeline = Pipeline.open(request.workdir, request.which)
    arguments, notes = request.edits.arguments(), request.edits.given()
    if request.max_seconds is not None:
        pipeline = pipeline.within(request.max_seconds, request.batch_size)
        if pipeline.trained.config.objective == "diffusion":
            notes["sampling_steps"] = pipeline.trained.config.diffusion.sampling_steps
    job = Job(pipeline, prompts, output, request.config, arguments, notes, ranker, share, overwrite)
    result = job.run()
    logger.info("%s: %s", output.out, result)
    if request.page and result.complete:
        logger.info("open %s", write_page(output.out))


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    cli.run(main)
