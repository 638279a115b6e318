"""How much of a token a trained model reads from the tokens around it.

    python -m benchmarks.context --run=teacher=runs/soundscapes/teacher \\
        --run=student=runs/soundscapes/student --audio_data=runs/soundscapes/data \\
        --encoded_data=runs/soundscapes/encoded --out=runs/soundscapes/context

Real test clips of one event are encoded, and some of their tokens hidden: `all`; a random `half`;
one `column`, of which both sides are seen; or a column and all behind it, the `future`. The model
is asked for the hidden column, or for all that is hidden, --num_draws times, with the caption and
without guidance. The table has the share of the tokens' variance, about their event's own mean at
their place, that the mean of its draws explains: 1 where the context says all and the model reads
it, 0 where it knows no more than the event. The error of a mean of few draws is taken off. What
nobody can know, such as the noise of rain, keeps the share below 1.

Writes OUT/context.json and context.md.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from absl import flags
from jaxtyping import Bool, Float

from fasttta_jax import cli
from fasttta_jax.evaluation.clips import read_test_clips
from fasttta_jax.evaluation.labels import events_of
from fasttta_jax.evaluation.setup import EvaluationConfig, EvaluationError, load_setup, parse_named
from fasttta_jax.evaluation.tagger import to_float
from fasttta_jax.input_pipeline.records import Records
from fasttta_jax.metrics.energy_score import Conditional
from fasttta_jax.parallel.compile import Program, compile_sampler
from fasttta_jax.parallel.local import local_mesh
from fasttta_jax.report.text_table import format_table
from fasttta_jax.storage.files import write_atomically, write_json
from fasttta_jax.text.base import TextBatch
from fasttta_jax.typing import Key, Params

BATCH = 8
Moments = tuple[jax.Array, jax.Array]


class Question(NamedTuple):
    """What a model is asked; True marks tokens.

    Attributes:
      hidden: what it does not see.
      asked: what is compared.
    """

    hidden: Bool[np.ndarray, "B N"]
    asked: Bool[np.ndarray, "B N"]


def questions(
    num_clips: int, num_tokens: int, tokens_per_column: int, seed: int
) -> dict[str, Question]:
    """Every kind of question, for so many clips; columns are drawn from the inner half."""
    rng = np.random.default_rng(seed)
    everything = np.ones((num_clips, num_tokens), bool)
    half = rng.permuted(np.tile(np.arange(num_tokens), (num_clips, 1)), axis=1) < num_tokens // 2
    column_of = np.arange(num_tokens) // tokens_per_column
    num_columns = num_tokens // tokens_per_column
    first, last = num_columns // 4, max(num_columns // 4 + 1, 3 * num_columns // 4)
    chosen = rng.integers(first, last, (num_clips, 1))
    column = column_of == chosen
    return {
        "all": Question(everything, everything),
        "half": Question(half, half),
        "column": Question(column, column),
        "future": Question(column_of >= chosen, column),
    }


def moments_program(model: Conditional, num_draws: int) -> Program[Moments]:
    """Compiled once for all questions: mean and variance of draws at every position, unguided.

    Args:
      model: of a run.
      num_draws: M.

    Returns:
      A function of parameters, a batch of tokens [B, N, C], what is hidden [B, N] and text, and a
      key a clip.
    """

    def moments(params: Params, batch: Mapping[str, Any], keys: Key) -> Moments:
        streams = model.condition(params, batch["text"])
        states = model.hidden(params, batch["tokens"], batch["hidden"], streams)

        def draw(keys: Key) -> jax.Array:
            one = jnp.float32(1)
            return model.sample_tokens(params, states, None, one, keys, one)

        split = jax.vmap(lambda key: jax.random.split(key, num_draws), out_axes=1)(keys)
        drawn = jax.lax.map(draw, split)
        return jnp.mean(drawn, axis=0), jnp.var(drawn, axis=0, ddof=1)

    return compile_sampler(moments, local_mesh())


def moments_of(
    program: Program[Moments],
    params: Params,
    tokens: Float[np.ndarray, "n N C"],
    hidden: Bool[np.ndarray, "n N"],
    text: TextBatch,
    seed: int,
) -> tuple[Float[np.ndarray, "n N C"], Float[np.ndarray, "n N C"]]:
    """Mean and variance of a model's draws for all clips."""
    found = []
    for start in tqdm.trange(0, len(tokens), BATCH, unit="batch"):
        rows = np.minimum(np.arange(start, start + BATCH), len(tokens) - 1)
        words = {name: np.asarray(values)[rows] for name, values in text.items()}
        batch = {"tokens": tokens[rows], "hidden": hidden[rows], "text": words}
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), start), BATCH)
        kept = min(BATCH, len(tokens) - start)
        found.append([np.asarray(array)[:kept] for array in program(params, batch, keys)])
    means, variances = zip(*found, strict=True)
    return np.concatenate(means), np.concatenate(variances)


def explained(
    tokens: Float[np.ndarray, "n N C"],
    mean: Float[np.ndarray, "n N C"],
    variance: Float[np.ndarray, "n N C"],
    asked: Bool[np.ndarray, "n N"],
    num_draws: int,
) -> float:
    """Share of the variance of the asked tokens, about the mean of these clips at their place.

    The mean of M draws is off by its own variance / M, which is no fault of the model's.
    """
    weights = asked[..., None]
    error = np.sum((np.square(mean - tokens) - variance / num_draws) * weights)
    return float(1 - error / np.sum(np.square(tokens - tokens.mean(axis=0)) * weights))


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the command line."""

    def folder(name: str, help: str) -> None:
        flags.DEFINE_string(name, None, help, required=True, flag_values=values)

    def integer(name: str, default: int, least: int, help: str) -> None:
        flags.DEFINE_integer(name, default, help, lower_bound=least, flag_values=values)

    flags.DEFINE_multi_string(
        "run", None, "NAME=WORKDIR of a trained run; several.", required=True, flag_values=values
    )
    folder("audio_data", "The audio dataset, with event labels.")
    folder("encoded_data", "What data.encode_latents made of it.")
    folder("out", "Folder for context.json and context.md.")
    integer("num_clips", 420, 1, "Test clips with one event.")
    integer("num_draws", 8, 2, "Draws of every token.")
    integer("seed", 0, 0, "Of what is hidden and of draws.")


def main() -> None:
    """The command line."""
    values = flags.FLAGS
    runs = parse_named(values.run, "run")
    config = EvaluationConfig(
        runs, values.audio_data, values.encoded_data, values.out, num_clips=values.num_clips
    )
    setup = load_setup(config, local_mesh())
    assert setup.encoded is not None
    assert setup.num_samples is not None
    codec = setup.encoded.codec
    clips = read_test_clips(
        Records(config.audio_data, "test"),
        num_clips=config.num_clips,
        num_scenes=0,
        num_samples=setup.num_samples,
    )
    named = np.asarray([(events_of(labels) or [""])[0] for labels in clips.labels])
    names = [name for name in sorted(set(named)) if name and np.sum(named == name) > 1]
    if not names:
        raise EvaluationError(f"{config.audio_data}: no event has two test clips of its own")
    tokens = np.concatenate(
        [
            np.asarray(codec.encode(to_float(clips.audio[start : start + 1])))
            for start in range(len(clips))
        ]
    )
    asked = questions(len(tokens), tokens.shape[1], codec.tokens_per_column, values.seed)
    results: dict[str, dict[str, dict[str, float]]] = {}
    for run in runs:
        model, params = setup.trained[run].model, setup.trained[run].params
        if not isinstance(model, Conditional):
            raise EvaluationError(
                f"{run} has a network of whole clips; allowed: one that makes tokens given others"
            )
        program = moments_program(model, values.num_draws)
        text = model.text.tokenize(list(clips.prompts))
        results[run] = {}
        for kind, (hidden, wanted) in asked.items():
            mean, variance = moments_of(program, params, tokens, hidden, text, values.seed)
            results[run][kind] = {
                name: explained(
                    tokens[named == name],
                    mean[named == name],
                    variance[named == name],
                    wanted[named == name],
                    values.num_draws,
                )
                for name in names
            }
    lines = [
        [run, kind, *(f"{found[name]:.2f}" for name in names)]
        for run, kinds in results.items()
        for kind, found in kinds.items()
    ]
    table = format_table(["run", "hidden", *names], lines, num_names=2)
    out = pathlib.Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "context.json", results)
    write_atomically(out / "context.md", f"```\n{table}\n```\n".encode())
    print(table)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
