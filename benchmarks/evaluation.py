"""How fast the networks that judge sounds are, beside torch on the same machine.

    python -m benchmarks.evaluation
    python -m benchmarks.evaluation --networks=vggish,clap_base --batch_sizes=1,8 \\
        --out=networks.json

Times PANNs' Cnn14, VGGish and CLAP's audio tower from waveforms to features, front end included,
each as one compiled function with random weights, warm. A clip is 10 s at the network's own sample
rate. Where torch and transformers are installed and JAX runs on a CPU, the same networks in torch
run in turns with ours, call by call, on as many threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from benchmarks import beside_torch, measure
from benchmarks.evaluation_parts import (
    NETWORKS,
    SECONDS,
    SIZES,
    Config,
    build,
    draw_inputs,
)
from fasttta_jax import cli

NUM_CLIPS = 1000
"""Of a set that is judged, which the derived lines speak of."""


def run_case(
    name: str, config: Config, batch_size: int, *, dtype: str, repeats: int, with_torch: bool
) -> dict[str, Any]:
    """Builds one network, times it in turns with torch's, and lets go of both.

    Args:
      name: of `NETWORKS`.
      config: its sizes.
      batch_size: clips of a call.
      dtype: of our matrix products; torch's are in float32.
      repeats: warm calls of each, at least; short ones are repeated more often.
      with_torch: whether torch takes turns with us.

    Returns:
      A row of the results; the columns of torch are there where it ran.
    """
    audio = draw_inputs(config, batch_size)
    ours = beside_torch.OurProgram(*build(config, dtype), [audio])
    theirs = None
    if with_torch:
        from benchmarks.evaluation_torch import TorchNetwork

        theirs = TorchNetwork(config, audio)
    times = beside_torch.time_row(
        f"{name} x {batch_size}", ours, theirs, batch_size=batch_size, repeats=repeats
    )
    shape = f"{audio.shape[1]} samples"
    return {"part": name, "input": shape, "batch_size": batch_size, "dtype": dtype, **times}


def report(results: Mapping[str, Any]) -> str:
    """The table, what it says about a set of clips, and the state of the machine."""
    lines = [
        beside_torch.describe_minutes(entry, f"clips of {SECONDS} s", entry["part"])
        for entry in results["whole_sets"]
    ]
    lines.append(beside_torch.describe_conditions(results["conditions"]))
    return "\n\n".join([beside_torch.table(results["rows"]), "\n".join(lines)])


def benchmark(
    names: Sequence[str],
    batch_sizes: Sequence[int],
    sizes: Mapping[str, Config],
    *,
    dtype: str,
    repeats: int,
    with_torch: bool,
    num_threads: int,
) -> dict[str, Any]:
    """Times networks at batch sizes, one after the other; what goes into the JSON file.

    Raises:
      ValueError: a network is not known, or none is given.
    """
    for name in names or [""]:
        if name not in sizes:
            raise ValueError(f"--networks holds {name!r}; allowed: {', '.join(NETWORKS)}")
    results = beside_torch.run_rows(
        lambda: [
            run_case(
                name,
                sizes[name],
                batch_size,
                dtype=dtype,
                repeats=repeats,
                with_torch=with_torch,
            )
            for name in names
            for batch_size in batch_sizes
        ],
        with_torch=with_torch,
        num_threads=num_threads,
    )
    return {
        **results,
        "whole_sets": [beside_torch.minutes_for(row, NUM_CLIPS) for row in results["rows"]],
    }


def _define_flags() -> None:
    # Not at import, where tests would define them a second time.
    flags.DEFINE_list("networks", list(NETWORKS), f"What is timed; of {', '.join(NETWORKS)}.")
    flags.DEFINE_list("batch_sizes", ["8"], "Clips in a batch.")
    flags.DEFINE_enum(
        "size", "published", list(SIZES), "Published networks, or small ones to try things out."
    )
    beside_torch.define_flags()


def main() -> None:
    """Runs the benchmark that the flags describe."""
    measure.measure_compilation()
    values = flags.FLAGS
    batch_sizes = measure.positive_integers("batch_sizes", values.batch_sizes)
    num_threads = beside_torch.bind_threads(values.threads)
    results = benchmark(
        values.networks,
        batch_sizes,
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
