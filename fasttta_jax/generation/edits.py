"""A sound file and the seconds to keep, as known tokens: gaps are filled, clips are continued.

Tokens are time-major, and a column of G tokens stands for a stretch of samples of its own. Columns
that lie wholly inside the kept ranges are known; everything else is generated. The kept tokens
reach the result bit by bit. The waveform does not: it is decoded as a whole, without splicing the
file back in, because codecs choose their own phases and every joint would click. So a kept part
sounds as the codec renders it.
Dimensions: N tokens, C channels, P token columns, S audio samples.
"""

from __future__ import annotations

import os
import re

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from fasttta_jax.audio.files import playback_level, read_audio
from fasttta_jax.codecs import Codec
from fasttta_jax.decode import Known

Ranges = tuple[tuple[float, float], ...]

_NUMBER = r"(\d+(?:\.\d*)?|\.\d+)"
_RANGE = re.compile(rf"\s*{_NUMBER}\s*-\s*{_NUMBER}\s*")


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
                f"{part.strip()!r} in {text!r} is not a range to keep; write START-END in seconds, "
                "such as 0-1.28 or 0-1,2-2.56"
            )
        start, end = map(float, match.groups())
        if start >= end:
            raise RangeError(
                f"the range {part.strip()!r} ends at {end:g} s; allowed: after its start, {start:g}"
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
                f"{num_samples / sample_rate:g} s and the model's clips "
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
      num_tokens: N.

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
    audio = playback_level(read_audio(path, codec.sample_rate), peak_dbfs=0.0)
    return known_tokens(audio, ranges, codec, num_tokens)
