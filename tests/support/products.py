"""Matrix products of traced programs, counted, and a model to count them in."""

from __future__ import annotations

import math
from typing import Any

import jax

from fasttta_jax.config import BackboneConfig, HeadConfig, ModelConfig, TextConfig

TEXT = TextConfig(encoder="frozen", streams=(("clap", 1, 48), ("words", 9, 96)), token_dropout=0.0)
MODEL = ModelConfig(
    num_tokens=48,
    token_dim=24,
    backbone=BackboneConfig(width=128, encoder_depth=2, decoder_depth=2, num_heads=4),
    head=HeadConfig(width=96, depth=2),
    text=TEXT,
)


def count_products(jaxpr: Any) -> float:
    """Operations of all matrix products in a traced program; those in loops as often as run."""
    total = 0.0
    for equation in jaxpr.eqns:
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    total += times * count_products(inner)
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            outputs = math.prod(equation.outvars[0].aval.shape)
            total += 2.0 * outputs * math.prod(left[axis] for axis in contracted)
    return total


def traced(function: Any, *arguments: Any) -> float:
    """Operations of all matrix products of a function of arrays or shapes."""
    return count_products(jax.make_jaxpr(function)(*arguments).jaxpr)
