"""Rivals in one or few steps beside the demo's student: trained, tuned, judged and compared.

    python -m benchmarks.rivals
    python -m benchmarks.rivals --systems=meanflow,shortcut --settings=same_steps
    python -m benchmarks.rivals --num_steps=50 --seconds=20 --notimes --out=runs/rivals_quick

Starts from the demo's data, teacher and student (`make demo`, or `make rivals`, which makes what is
missing). Trains the rivals' own teacher, a flow, and then every rival of configs/demo_rivals.py
and the student twice: as many optimizer steps for all (`same_steps`; the demo's student, if it had
as many, is taken as it is), and as many seconds (`same_seconds`: steps that take --seconds, by a
short timing of each compiled step, or --given_steps=NAME=STEPS). Guidance is chosen for each run
and number of network passes by one rule, the lowest Fréchet distance on validation clips. All are
judged on the test clips, at --passes; IMPACT, the demo's diffusion teacher, with all iterations
and diffusion steps, and in its cheapest setting that is as good.

A guided jump or iteration of two passes counts as two. What a system cannot take, such as jumps
that do not divide its grid, is left out, and the table says why.

Writes OUT/rivals.json, rivals.md and a plot for each setting, after every row. Started again, it
goes on where it stopped: a finished run is not trained again, an unfinished one goes on, rows and
times are read from OUT/rows, OUT/rows_validation and OUT/times. Times want a machine on which
nothing else runs; --notimes leaves them out. --docs=docs/rivals.md also writes the tables there,
and plots into docs/images.
"""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Sequence

from absl import flags

from benchmarks import measure
from benchmarks.rivals_plan import OURS, RIVALS, SETTINGS, TEACHER, Options, RivalsError
from benchmarks.rivals_run import RESULT_FILE, TABLE_FILE, compare
from benchmarks.rivals_table import PART, page_part, to_markdown
from benchmarks.scaling_tables import write_page
from fasttta_jax import cli
from fasttta_jax.evaluation.setup import EvaluationConfig


def given_steps(values: Sequence[str]) -> dict[str, int]:
    """Steps by system from "NAME=STEPS".

    Raises:
      RivalsError: another form.
    """
    found = {}
    for value in values:
        name, _, number = value.partition("=")
        if not number.isdecimal():
            allowed = "NAME=STEPS, such as meanflow=800"
            raise RivalsError(f"--given_steps is {value!r}; allowed: {allowed}")
        found[name] = int(number)
    return found


def scales(values: Sequence[str]) -> tuple[float, ...]:
    """The numbers of --scales.

    Raises:
      RivalsError: one is no number.
    """
    try:
        return tuple(float(value) for value in values)
    except ValueError as error:
        raise RivalsError(f"--scales is {','.join(values)!r}; allowed: numbers: {error}") from error


def _define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    # Not at import, where tests would define them a second time.
    def text(name: str, default: str, help: str) -> None:
        flags.DEFINE_string(name, default, help, flag_values=values)

    def some(name: str, default: Sequence[object], help: str) -> None:
        flags.DEFINE_list(name, [str(one) for one in default], help, flag_values=values)

    def whole(name: str, default: int | None, help: str, lowest: int = 1) -> None:
        flags.DEFINE_integer(name, default, help, lower_bound=lowest, flag_values=values)

    text("teacher", "runs/demo/teacher", "Workdir of the demo's diffusion teacher.")
    text("student", "runs/demo/student", "Workdir of the demo's student.")
    text("audio_data", "runs/demo/data", "Folder of the audio dataset.")
    text("encoded_data", "runs/demo/encoded", "Folder that data.encode_latents made of it.")
    text("out", "runs/rivals", "Folder for runs, rows, tables and plots.")
    text("docs", "", "Page whose tables are written anew, with images/ beside it; docs/rivals.md.")
    some("systems", RIVALS, "Rivals; ours and the teachers always are there.")
    some("settings", SETTINGS, "Of training.")
    whole("num_steps", Options.num_steps, "Steps of every system in same_steps.", 2)
    flags.DEFINE_float(
        "seconds",
        Options.seconds,
        "Of every system's steps in same_seconds.",
        0,
        flag_values=values,
    )
    flags.DEFINE_multi_string(
        "given_steps",
        [],
        "NAME=STEPS: of a system in same_seconds, in place of a timing.",
        flag_values=values,
    )
    whole("teacher_steps", None, "Of the rivals' teacher; default: those of the demo's.", 2)
    whole("num_pairs", Options.num_pairs, "Pairs that reflow learns from.")
    whole("pair_steps", Options.pair_steps, "Of the solver that makes them.")
    some("passes", Options.passes, "Network passes of sampling.")
    some("scales", Options.scales, "Of guidance, of which one is chosen.")
    whole("tuning_clips", Options.tuning_clips, "Validation clips that choose it.", 2)
    whole("num_clips", 192, "Test clips with one event.", 2)
    whole("num_scenes", 96, "Test clips with several events.", 0)
    whole("batch_size", 8, "Clips computed together.")
    whole("seed", 0, "Of training, tagger and sounds.", 0)
    whole("tagger_steps", 400, "Updates of the tagger's training.")
    flags.DEFINE_bool("times", Options.times, "Time sampling.", flag_values=values)


def options_of(values: flags.FlagValues) -> Options:
    """What the flags ask for.

    Raises:
      RivalsError, EvaluationError: values that are not allowed.
    """
    evaluation = EvaluationConfig(
        runs={TEACHER: values.teacher, OURS: values.student},
        audio_data=values.audio_data,
        encoded_data=values.encoded_data,
        out=values.out,
        num_clips=values.num_clips,
        num_scenes=values.num_scenes,
        batch_size=values.batch_size,
        seed=values.seed,
        tagger_steps=values.tagger_steps,
    )
    return Options(
        evaluation,
        rivals=tuple(dict.fromkeys(values.systems)),
        settings=tuple(one for one in SETTINGS if one in values.settings)
        + tuple(one for one in values.settings if one not in SETTINGS),
        num_steps=values.num_steps,
        seconds=values.seconds,
        given_steps=given_steps(values.given_steps),
        teacher_steps=values.teacher_steps,
        num_pairs=values.num_pairs,
        pair_steps=values.pair_steps,
        passes=tuple(dict.fromkeys(measure.positive_integers("passes", values.passes))),
        scales=scales(values.scales),
        tuning_clips=values.tuning_clips,
        times=values.times,
    )


def main() -> None:
    """The command line."""
    values = flags.FLAGS
    options = options_of(values)
    results = compare(options)
    print(to_markdown(results))
    if values.docs:
        page = pathlib.Path(values.docs)
        write_page(page, {PART: page_part(results)})
        for plot in results["plots"].values():
            shutil.copyfile(options.out / plot, page.parent / "images" / plot)
        print(f"Written into {values.docs}")
    print(f"{options.out / TABLE_FILE} has these tables, {options.out / RESULT_FILE} all figures.")


if __name__ == "__main__":
    _define_flags()
    cli.run(main)
