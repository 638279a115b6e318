"""The frontier of quality and cost: judges and times teachers and students in many settings.

    python -m benchmarks.frontier --teacher=runs/demo/teacher --student=runs/demo/student \\
        --audio_data=runs/demo/data --encoded_data=runs/demo/encoded --out=runs/demo/frontier
    python -m benchmarks.frontier ... --only='^student|x20$' --num_clips=48 --batch_sizes=1
    python -m benchmarks.frontier --paper_sizes --out=runs/paper_sizes
    python -m benchmarks.frontier --this_machine --workdir=runs/demo/student

The first form takes trained runs: a teacher, its student of two passes, and if there are any a
student that needs one pass (--guided) and students of fewer blocks (--shallow). Rows are teacher
{iterations x diffusion steps} and student {iterations, and how they go on}, the cheapest first;
`benchmarks/frontier_grid.py` has them. Each is timed alone, at --batch_sizes where they fit, and
judged by the tagger of eval.py on the same prompts and seeds. Nothing else should run meanwhile.

Writes OUT/frontier.json, frontier.md and frontier.png after every row. Started again, it goes on
where it stopped: rows that were judged and cells that were timed are read from OUT/rows and
OUT/times, whatever --only says. An --out that eval.py has filled has a tagger already.

The second form needs no run: operations of the paper's teacher and students at their own size, with
random weights, and the seconds of those that take no longer than --longest_call.

The third measures what settings of a model take here, from prompts to sound, and keeps that in the
user's cache for `generate.py --max_seconds`. Frontiers keep the order of their rows' quality there.
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from benchmarks import frontier_machine, frontier_run, frontier_sizes, measure
from benchmarks.frontier_grid import STUDENT, TEACHER
from benchmarks.frontier_run import Frontier
from benchmarks.frontier_table import to_markdown
from benchmarks.frontier_times import Limits
from benchmarks.rows import choose
from fasttta_jax import cli
from fasttta_jax.evaluation.setup import EvaluationConfig, EvaluationError
from fasttta_jax.generation.pipeline import Pipeline
from fasttta_jax.workdir.folder import Workdir

GUIDED, SHALLOW = "guided", "shallow"


def named_runs(
    teacher: str | None, student: str | None, guided: str | None, shallow: Sequence[str]
) -> dict[str, str]:
    """Workdirs by the names of their runs; of a shallow student the blocks are in its name.

    Raises:
      EvaluationError: teacher or student is missing, or two shallow ones have as many blocks.
    """
    for name, workdir in ((TEACHER, teacher), (STUDENT, student)):
        if workdir is None:
            raise EvaluationError(f"--{name} is missing: the workdir of the {name}")
    runs = {TEACHER: teacher, STUDENT: student, GUIDED: guided}
    for workdir in shallow:
        blocks = Workdir(workdir).config().model.backbone
        name = f"{SHALLOW}_{blocks.encoder_depth}+{blocks.decoder_depth}"
        if name in runs:
            raise EvaluationError(
                f"--{SHALLOW} is given twice with {name.removeprefix(SHALLOW + '_')} blocks: "
                f"{runs[name]} and {workdir}; allowed: different numbers"
            )
        runs[name] = workdir
    return {name: workdir for name, workdir in runs.items() if workdir is not None}


def _define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    # Not at import, where tests would define them a second time.
    def text(name: str, help: str, default: str | None = None) -> None:
        flags.DEFINE_string(name, default, help, flag_values=values)

    def whole(name: str, default: int, help: str, lowest: int = 1) -> None:
        flags.DEFINE_integer(name, default, help, lower_bound=lowest, flag_values=values)

    def number(name: str, default: float, help: str) -> None:
        flags.DEFINE_float(name, default, help, 0, flag_values=values)

    def switch(name: str, help: str) -> None:
        flags.DEFINE_bool(name, False, help, flag_values=values)

    switch("paper_sizes", "Count, and time what fits, at the paper's size with random weights.")
    switch("this_machine", "Measure what settings of --workdir take here, for --max_seconds.")
    text("teacher", "Workdir of the teacher.")
    text("student", "Workdir of the student of two passes.")
    text("guided", "Workdir of a student that needs one pass, if there is one.")
    flags.DEFINE_multi_string(
        "shallow", [], "Workdirs of students of one pass and fewer blocks.", flag_values=values
    )
    text("workdir", "For --this_machine: a model; default: that of the package.")
    text("checkpoint", "For --this_machine: last, best or a step.", "last")
    text("audio_data", "Folder of the audio dataset.")
    text("encoded_data", "Folder that data.encode_latents made of it.")
    text("out", "Folder for rows, tables and plot.")
    text("only", "Regular expression: only rows whose name it finds are done now.", "")
    flags.DEFINE_enum(
        "figure", "frechet", frontier_run.FIGURES, "What counts as quality.", flag_values=values
    )
    whole("num_clips", 96, "Test clips with one event.")
    whole("num_scenes", 96, "Test clips with several events.", 0)
    whole("batch_size", 8, "Clips that are judged together.")
    whole("seed", 0, "Of tagger and sounds.", 0)
    whole("tagger_steps", 600, "Updates of the tagger's training.")
    flags.DEFINE_list(
        "batch_sizes", ["1", "8", "64"], "That are timed; none times nothing.", flag_values=values
    )
    whole("repeats", 10, "Most warm calls of a cell.")
    number("cell_seconds", 5.0, "After which a cell has enough warm calls.")
    number("longest_call", 20.0, "Seconds; a batch that would take longer is not timed.")
    flags.DEFINE_enum(
        "dtype",
        None,
        ["float32", "bfloat16"],
        "For --paper_sizes: of the matrix products; default: the configs'.",
        flag_values=values,
    )


def _needed(values: flags.FlagValues, *names: str) -> None:
    for name in names:
        if values[name].value is None:
            raise EvaluationError(f"--{name} is missing: {values[name].help.rstrip('.').lower()}")


def _frontier(values: flags.FlagValues, batch_sizes: Sequence[int], limits: Limits) -> None:
    runs = named_runs(values.teacher, values.student, values.guided, values.shallow)
    _needed(values, "audio_data", "encoded_data", "out")
    config = EvaluationConfig(
        runs=runs,
        audio_data=values.audio_data,
        encoded_data=values.encoded_data,
        out=values.out,
        num_clips=values.num_clips,
        num_scenes=values.num_scenes,
        batch_size=values.batch_size,
        seed=values.seed,
        tagger_steps=values.tagger_steps,
    )
    frontier = Frontier(config, figure=values.figure, batch_sizes=batch_sizes, limits=limits)
    print(to_markdown(frontier.run(values.only)))


def main() -> None:
    """The command line."""
    values = flags.FLAGS
    if values.paper_sizes and values.this_machine:
        raise EvaluationError("--paper_sizes and --this_machine do not go together")
    batch_sizes = measure.positive_integers("batch_sizes", values.batch_sizes)
    limits = Limits(values.repeats, values.cell_seconds, values.longest_call)
    if values.this_machine:
        pipeline = Pipeline.open(values.workdir, values.checkpoint)
        print(
            frontier_machine.to_text(frontier_machine.measure_here(pipeline, batch_sizes, limits))
        )
        print(f"\nKept in {pipeline.measured_times.path}")
    elif values.paper_sizes:
        _needed(values, "out")
        rows = choose(frontier_sizes.paper_rows(), values.only)
        text = frontier_sizes.measure_sizes(
            rows, batch_sizes=batch_sizes, limits=limits, dtype=values.dtype, out=values.out
        )
        print(measure.describe_machine(measure.machine()), text, sep="\n\n")
    else:
        _frontier(values, batch_sizes, limits)


if __name__ == "__main__":
    _define_flags()
    cli.run(main)
