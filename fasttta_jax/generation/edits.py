"""What is kept of a sound file, as known tokens: gaps are filled, clips continued or varied.

Tokens are time-major, and a column of G tokens stands for a stretch of samples of its own. Columns
that lie wholly inside the kept ranges are known, or all but a random share of them; everything else
is generated. The kept tokens reach the result bit by bit. The waveform does not: it is decoded as a
whole, without splicing the file back in, because codecs choose their own phases and every joint
would click. So a kept part sounds as the codec renders it.
Dimensions: n clips, N tokens, C channels, P token columns, S audio samples.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from fasttta_jax.audio.files import playback_level, read_audio
from fasttta_jax.codecs import Codec
from fasttta_jax.config.checks import check, shown
from fasttta_jax.decoding.loop import Known
from fasttta_jax.generation.seconds import NUMBER
from fasttta_jax.generation.timeline import Entry, parse_timeline
from fasttta_jax.randomness import stream

Ranges = tuple[tuple[float, float], ...]

SHARE = 0.3
"""Of the columns that are made anew where a sound is varied."""
_RANGE = re.compile(rf"\s*{NUMBER}\s*-\s*{NUMBER}\s*")


class EditError(ValueError):
    """Edits that do not go together; names them."""


@dataclasses.dataclass(frozen=True)
class Edits:
    """How clips differ from those that a model makes by itself.

    Attributes:
      audio: sound file of which a part is kept.
      keep: which part, START-END in seconds, several with commas.
      vary: sound file of which new takes are made.
      share: of its token columns that are made anew, above 0 and up to 1; None is 0.3.
      loop: whether the clip's beginning follows its end.
      timeline: "START-END TEXT; ..." in seconds; the prompt holds where it says nothing.

    Raises:
      EditError: edits that do not go together.
      ValueError: a value is not allowed.
    """

    audio: str | os.PathLike[str] | None = None
    keep: str | None = None
    vary: str | os.PathLike[str] | None = None
    share: float | None = None
    loop: bool = False
    timeline: str | None = None

    def __post_init__(self) -> None:
        if (self.audio is None) != (self.keep is None):
            missing = "audio" if self.audio is None else "keep"
            raise EditError(f"{missing} is missing; audio and keep go together")
        for name in ("audio", "vary"):
            check(getattr(self, name) != "", name, "", "a sound file")
        if self.share is not None:
            if self.vary is None:
                raise EditError("vary is missing; share says how much of its sound is made anew")
            check(0 < self.share <= 1, "share", self.share, "above 0, up to 1")
        for one, others in REFUSED.items():
            for other in others:
                if self.has(one) and self.has(other):
                    raise EditError(
                        f"{one} and {other} do not go together; seconds goes with audio and keep, "
                        "loop and timeline; timeline also with audio and keep, and with loop; vary "
                        "goes with none of them"
                    )
        _ = self.ranges, self.entries  # checks the texts

    def has(self, name: str) -> bool:
        """Whether that is asked for."""
        return getattr(self, name) not in (None, False)

    @property
    def ranges(self) -> Ranges:
        """`keep`, read."""
        return () if self.keep is None else parse_ranges(self.keep)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """`timeline`, read."""
        return () if self.timeline is None else parse_timeline(self.timeline)

    def given(self) -> dict[str, Any]:
        """What is asked for, by name."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if self.has(field.name)
        }


REFUSED: Mapping[str, tuple[str, ...]] = {
    "vary": ("audio", "loop", "timeline"),
    "loop": ("audio",),
}
"""Edits that do not go together."""


class RangeError(ValueError):
    """Ranges that cannot be kept; names what was given and what is allowed."""


def parse_ranges(text: str) -> Ranges:
    """Seconds to keep: "0-1.28" is ((0.0, 1.28),), "0-1,2-2.56" two ranges; they may overlap.

    Raises:
      RangeError: a part is not START-END with START before END.
    """
    ranges = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part)
        if match is None:
            raise RangeError(
                f"{shown(part.strip())} in {shown(text)} is not a range to keep; write START-END "
                "in seconds, such as 0-1.28 or 0-1,2-2.56"
            )
        start, end = map(float, match.groups())
        if start >= end:
            raise RangeError(
                f"the range {shown(part.strip())} ends at {end:g} s; allowed: after its start, "
                f"{start:g}"
            )
        ranges.append((start, end))
    return tuple(ranges)


def kept_columns(
    ranges: Ranges, *, num_samples: int, num_columns: int, samples_per_column: int, sample_rate: int
) -> Bool[np.ndarray, " P"]:
    """Columns wholly inside the union of the ranges.

    Args:
      ranges: start and end in seconds.
      num_samples: length of the sound; no range may pass it.
      num_columns: P, columns of the clip.
      samples_per_column: stride of a column.
      sample_rate: samples per second.

    Raises:
      RangeError: a range passes the sound's or the clip's end, no column is kept, or all are.
    """
    clip_samples = num_columns * samples_per_column
    limit = min(num_samples, clip_samples)
    kept = np.zeros(clip_samples, bool)
    for start, end in ranges:
        first, last = round(start * sample_rate), round(end * sample_rate)
        if last > limit:
            raise RangeError(
                f"the range {start:g}-{end:g} ends beyond {limit / sample_rate:g} s; the sound has "
                f"{num_samples / sample_rate:g} s and the clip "
                f"{clip_samples / sample_rate:g} s"
            )
        kept[first:last] = True
    columns = np.all(kept.reshape(num_columns, samples_per_column), axis=1)
    stride = samples_per_column / sample_rate
    if not columns.any():
        raise RangeError(
            f"nothing is kept: no range holds one of the token columns of {stride:g} s, which "
            f"start at multiples of {stride:g} s"
        )
    if columns.all():
        raise RangeError(
            f"nothing is left to generate: all {num_columns} token columns of {stride:g} s are kept"
        )
    return np.asarray(columns)


def known_tokens(
    audio: Float[np.ndarray, " S"], ranges: Ranges, codec: Codec, num_tokens: int
) -> Known:
    """The tokens of a sound that lie inside the ranges.

    Args:
      audio: waveform at the codec's rate; cut, or padded with silence, to the length of a clip.
      ranges: start and end in seconds, inside the sound.
      codec: encodes the sound.
      num_tokens: N, of the clip.

    Returns:
      One clip: NumPy arrays [1, N, C], zero where nothing is kept, and [1, N].

    Raises:
      RangeError: see `kept_columns`.
    """
    num_columns = num_tokens // codec.tokens_per_column
    columns = kept_columns(
        ranges,
        num_samples=audio.size,
        num_columns=num_columns,
        samples_per_column=codec.samples_per_column,
        sample_rate=codec.sample_rate,
    )
    clip = np.zeros((1, num_columns * codec.samples_per_column), np.float32)
    clip[0, : audio.size] = audio[: clip.shape[1]]
    tokens = np.asarray(codec.encode(jnp.asarray(clip)), np.float32)
    mask = np.repeat(columns, codec.tokens_per_column)[None]
    return Known(np.where(mask[..., None], tokens, np.float32(0)), mask)


def read_known(
    path: str | os.PathLike[str], ranges: Ranges, codec: Codec, num_tokens: int
) -> Known:
    """`known_tokens` of a sound file. It keeps its level; peaks beyond full scale are brought down.

    Raises:
      AudioError: the file is missing or cannot be used.
      RangeError: see `kept_columns`.
    """
    return known_tokens(read_sound(path, codec), ranges, codec, num_tokens)


def read_sound(path: str | os.PathLike[str], codec: Codec) -> Float[np.ndarray, " S"]:
    """A sound file at its own level; peaks beyond full scale are brought down.

    Raises:
      AudioError: the file is missing or cannot be used.
    """
    return playback_level(read_audio(path, codec.sample_rate), peak_dbfs=0.0)


def varied_columns(share: float, strata: Sequence[range], seed: int) -> Bool[np.ndarray, " P"]:
    """Columns that a new take makes anew, by its seed: a share of each stretch, at least one.

    Args:
      share: above 0, up to 1.
      strata: stretches of columns that follow one another from the first column on.
      seed: of the clip.
    """
    chosen = np.zeros(strata[-1].stop, bool)
    keys = jax.vmap(lambda n: jax.random.fold_in(stream(jax.random.key(seed), "vary"), n))
    for stretch, key in zip(strata, keys(jnp.arange(len(strata))), strict=True):
        count = max(1, round(share * len(stretch)))
        order = np.asarray(jax.random.permutation(key, len(stretch)))
        chosen[stretch.start + order[:count]] = True
    return chosen
