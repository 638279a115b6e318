"""The flags of decoding in place of a run's own settings, in absl."""

from __future__ import annotations

from typing import Any

from absl import flags

from fasttta_jax.generation.pipeline import DECODING


def define(values: flags.FlagValues) -> None:
    """Defines the flags in `values`; what is not given is the run's."""

    def text(name: str, help: str) -> None:
        flags.DEFINE_string(name, None, f"{help} Default: the run's.", flag_values=values)

    def number(name: str, help: str) -> None:
        flags.DEFINE_float(name, None, f"{help} Default: the run's.", flag_values=values)

    flags.DEFINE_integer(
        "num_iterations",
        None,
        "Decoding iterations, 1 to the number of tokens. Default: the run's.",
        flag_values=values,
    )
    text(
        "counts",
        "Tokens that the iterations reveal: cosine, exponential, linear, bisection, or numbers "
        "that sum to the tokens, such as 1,2,5.",
    )
    text(
        "order",
        "Which tokens come first: random, bisection, forward, or all positions, such as 3,(0,2),1 "
        "with those in brackets at random.",
    )
    text(
        "guided",
        "LO,HI: guidance only while the time left, from 1 down to 0, is above LO and at most HI. "
        "An iteration without it costs half.",
    )
    number("guidance_scale", "Classifier-free guidance; 1 is none.")
    number("temperature", "Scale of the noise.")


def read(values: flags.FlagValues) -> dict[str, Any]:
    """Those that are given, by name, as `DecodeConfig.changed` and `GenerateConfig` take them."""
    return {name: values[name].value for name in DECODING if values[name].value is not None}
