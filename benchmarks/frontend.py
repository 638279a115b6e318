"""How fast clips and captions pass the front end, beside torch on the same machine.

    python -m benchmarks.frontend
    python -m benchmarks.frontend --parts=codec_encode,t5 --batch_sizes=32 --dtype=bfloat16 \\
        --out=frontend.json

Times the log-mel spectrogram, the VAE's two halves, the vocoder, the codec they make together, and
the encoders of text and audio, each as one compiled function with random weights, warm. A clip is
10.24 s at 16 kHz, for CLAP 10 s at 48 kHz, and for the text encoders one caption. Where torch,
diffusers and transformers are installed and JAX runs on a CPU, their implementations of the same
networks run in turns with ours, call by call, on as many threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags

from benchmarks import beside_torch, measure
from benchmarks.frontend_parts import (
    PARTS,
    SIZES,
    TEXT_PARTS,
    Part,
    Sizes,
    check_parts,
    draw_inputs,
)
from fasttta_jax import cli

NUM_CLIPS = 50_000
"""Of AudioCaps, which the derived lines speak of."""
WHOLE_PARTS = {"codec_encode": "encode", "codec_decode": "decode"}


class Case(NamedTuple):
    """What is timed.

    Attributes:
      part: of `PARTS`.
      batch_size: clips.
      text_length: tokens of a caption, for the text encoders.
    """

    part: str
    batch_size: int
    text_length: int

    @property
    def name(self) -> str:
        length = f" {self.text_length}" if self.part in TEXT_PARTS else ""
        return f"{self.part}{length} x {self.batch_size}"


def build_cases(
    parts: Sequence[str], batch_sizes: Sequence[int], text_lengths: Sequence[int]
) -> list[Case]:
    """Every part at every batch size; text encoders at every length, too.

    Raises:
      ValueError: a part is not known, or something is asked for twice.
    """
    cases = [
        Case(part, batch_size, length)
        for part in check_parts(parts)
        for length in (text_lengths if part in TEXT_PARTS else text_lengths[:1])
        for batch_size in batch_sizes
    ]
    twice = sorted({case.name for case in cases if cases.count(case) > 1})
    if twice:
        raise ValueError(f"{twice[0]!r} is asked for more than once; allowed: every case once")
    return cases


def run_case(
    case: Case, sizes: Sizes, *, dtype: str, repeats: int, with_torch: bool
) -> dict[str, Any]:
    """Builds one case, times it in turns with torch's, and lets go of both.

    Args:
      case: what is timed.
      sizes: of the networks.
      dtype: of our matrix products; torch's are in float32.
      repeats: warm calls of each, at least; short ones are repeated more often.
      with_torch: whether torch takes turns with us.

    Returns:
      A row of the results; the columns of torch are there where it ran.

    Raises:
      ValueError: too few repeats, or a caption longer than an encoder allows.
    """
    shape, arrays = draw_inputs(case.part, sizes, case.batch_size, case.text_length)
    part = Part(case.part, sizes, arrays, dtype)
    theirs = None
    if with_torch:
        from benchmarks.frontend_torch import TorchPart

        theirs = TorchPart(case.part, sizes, arrays)
    return {
        "part": case.part,
        "input": shape,
        "batch_size": case.batch_size,
        "dtype": dtype,
        **beside_torch.time_row(
            case.name,
            part,
            theirs,
            batch_size=case.batch_size,
            repeats=repeats,
        ),
    }


def report(results: Mapping[str, Any]) -> str:
    """The table, what it says about a whole dataset, and the state of the machine."""
    lines = [
        beside_torch.describe_minutes(
            entry,
            f"clips of {entry['clip_seconds']:g} s, as many as AudioCaps has",
            WHOLE_PARTS[entry["part"]],
        )
        for entry in results["whole_dataset"]
    ]
    lines.append(beside_torch.describe_conditions(results["conditions"]))
    return "\n\n".join([beside_torch.table(results["rows"]), "\n".join(lines)])


def benchmark(
    cases: Sequence[Case],
    sizes: Sizes,
    *,
    dtype: str,
    repeats: int,
    with_torch: bool,
    num_threads: int,
) -> dict[str, Any]:
    """Times all cases, one after the other.

    Args:
      cases: as `build_cases` gives them.
      sizes: of the networks.
      dtype: of our matrix products.
      repeats: as for `run_case`.
      with_torch: whether torch's implementation takes turns with ours.
      num_threads: of torch; those of XLA are its cores.

    Returns:
      What goes into the JSON file.
    """
    results = beside_torch.run_rows(
        lambda: [
            run_case(case, sizes, dtype=dtype, repeats=repeats, with_torch=with_torch)
            for case in cases
        ],
        with_torch=with_torch,
        num_threads=num_threads,
    )
    seconds = sizes.num_samples / sizes.mel.sample_rate
    whole = [
        beside_torch.minutes_for(row, NUM_CLIPS) | {"clip_seconds": seconds}
        for row in results["rows"]
        if row["part"] in WHOLE_PARTS
    ]
    return {**results, "whole_dataset": whole}


def _define_flags() -> None:
    # Not at import, where tests would define them a second time.
    flags.DEFINE_list("parts", list(PARTS), f"What is timed; of {', '.join(PARTS)}.")
    flags.DEFINE_list("batch_sizes", ["1"], "Clips, or captions, in a batch.")
    flags.DEFINE_list(
        "text_lengths",
        ["32", "77"],
        "Tokens of a caption; a usual one, and what captions are padded to.",
    )
    flags.DEFINE_enum(
        "size", "published", list(SIZES), "Published networks, or small ones to try things out."
    )
    beside_torch.define_flags()


def main() -> None:
    """Runs the benchmark that the flags describe."""
    measure.measure_compilation()
    values = flags.FLAGS
    cases = build_cases(
        values.parts,
        measure.positive_integers("batch_sizes", values.batch_sizes),
        measure.positive_integers("text_lengths", values.text_lengths),
    )
    num_threads = beside_torch.bind_threads(values.threads)
    results = benchmark(
        cases,
        SIZES[values.size],
        dtype=values.dtype,
        repeats=values.repeats,
        with_torch=beside_torch.wants_torch(values.with_torch),
        num_threads=num_threads,
    )
    measure.finish(results, report(results), values.out)


if __name__ == "__main__":
    _define_flags()
    cli.run(main)
