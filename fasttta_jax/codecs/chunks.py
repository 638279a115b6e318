"""Runs a function of a long sequence over overlapping windows, one after the other.

Memory and compiled code are those of one window, whatever the length. Neighbouring windows share
`overlap` positions; a window counts nothing within `margin` of an edge where the sequence was cut,
and between there one fades linearly into the next. For a function that sees no further than the
margin the result is that of one piece; for any other it is continuous.
Dimensions: B clips, T positions of the input, U positions of an output.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from fractions import Fraction
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

Inputs = TypeVar("Inputs")
Outputs = TypeVar("Outputs")


@dataclasses.dataclass(frozen=True)
class Chunks:
    """How a sequence is cut; all in positions of the input.

    Attributes:
      length: of a window.
      overlap: positions that neighbouring windows share, at least; the last window is moved back to
        end where the sequence ends, and shares more.
      margin: positions at an edge that count nothing.
    """

    length: int
    overlap: int
    margin: int = 0

    def __post_init__(self) -> None:
        if self.margin < 0:
            raise ValueError(f"chunks.margin is {self.margin}; allowed: 0 or more")
        if not 2 * self.margin <= self.overlap < self.length:
            raise ValueError(
                f"chunks.overlap is {self.overlap}; allowed: from 2 * margin = {2 * self.margin} "
                f"to below length = {self.length}"
            )

    def starts(self, num_positions: int) -> tuple[int, ...]:
        """First positions of the windows over a sequence; one where all of it is one window."""
        last = num_positions - self.length
        return (*range(0, last, self.length - self.overlap), max(last, 0))

    def ramp(self, rate: Fraction) -> Float[np.ndarray, " U"]:
        """Weight of a window over the one before it, float32 [length * rate], at `rate`."""
        positions = (np.arange(int(self.length * rate)) + 0.5) / float(rate) - self.margin
        width = self.overlap - 2 * self.margin
        faded = positions / width if width else np.sign(positions)
        return np.clip(faded, 0.0, 1.0).astype(np.float32)


def in_chunks(
    function: Callable[[Inputs], Outputs],
    inputs: Inputs,
    chunks: Chunks,
) -> Outputs:
    """function(inputs) with the memory of one window.

    Args:
      function: a pure function of [B, length, ...] to arrays [B, length * rate, ...]. Any tree of
        arrays will do, each with a rate of its own, which is read off the shapes: 160 for a
        vocoder, 1/4 for an encoder. The positions of an output must lie evenly over those of the
        input.
      inputs: the sequence, which has its positions on the second axis; an array or a tree of them.
      chunks: how to cut it. Up to `chunks.length` positions run in one piece.

    Returns:
      What `function` gives, over the whole sequence.

    Raises:
      ValueError: a window would begin between two positions of an output.
    """
    num_positions = jax.tree.leaves(inputs)[0].shape[1]
    if num_positions <= chunks.length:
        return function(inputs)
    starts = chunks.starts(num_positions)

    def window(start: int | jax.Array) -> Inputs:
        cut = functools.partial(jax.lax.dynamic_slice_in_dim, axis=1)
        return jax.tree.map(lambda x: cut(x, start, chunks.length), inputs)

    outputs, structure = jax.tree.flatten(jax.eval_shape(lambda: function(window(0))))
    rates = [Fraction(output.shape[1], chunks.length) for output in outputs]
    for rate in rates:
        _check_alignment(rate, chunks, num_positions)
    ramps = [chunks.ramp(rate) for rate in rates]

    def blend(whole: jax.Array, part: jax.Array, start: jax.Array, ramp: np.ndarray) -> jax.Array:
        before = jax.lax.dynamic_slice_in_dim(whole, start, part.shape[1], axis=1)
        # the first window has nothing before it
        weight = jnp.where(start == 0, 1.0, ramp).astype(part.dtype)
        weight = weight.reshape(1, -1, *(1 for _ in part.shape[2:]))
        blended = (1 - weight) * before + weight * part
        return jax.lax.dynamic_update_slice_in_dim(whole, blended, start, axis=1)

    def step(wholes: list[jax.Array], start: jax.Array) -> tuple[list[jax.Array], None]:
        parts = jax.tree.leaves(function(window(start)))
        at = [start // rate.denominator * rate.numerator for rate in rates]
        return list(map(blend, wholes, parts, at, ramps)), None

    wholes = [
        jnp.zeros((output.shape[0], int(num_positions * rate), *output.shape[2:]), output.dtype)
        for output, rate in zip(outputs, rates, strict=True)
    ]
    wholes, _ = jax.lax.scan(step, wholes, jnp.asarray(starts, jnp.int32))
    return jax.tree.unflatten(structure, wholes)


def _check_alignment(rate: Fraction, chunks: Chunks, num_positions: int) -> None:
    multiple = rate.denominator
    for name, value in (
        ("chunks.overlap", chunks.overlap),
        ("the length of the sequence", num_positions),
    ):
        if value % multiple:
            raise ValueError(
                f"{name} is {value}; allowed: multiples of {multiple}, since {chunks.length} "
                f"positions of the input give {int(chunks.length * rate)} of the output"
            )
