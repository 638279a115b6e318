"""Batches of clips of any length, with the edits of a call: their tokens, window by window.

Dimensions: n clips, Z columns of a sequence, P columns of a window, G tokens per column, N tokens,
C channels, X texts.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from fasttta_jax.codecs.circular import decode_circular
from fasttta_jax.codecs.columns import num_columns as columns_of
from fasttta_jax.decoding.loop import Known
from fasttta_jax.generation import timeline, windows
from fasttta_jax.generation.edits import (
    SHARE,
    EditError,
    Edits,
    read_known,
    read_sound,
    varied_columns,
)
from fasttta_jax.generation.requests import Request
from fasttta_jax.generation.sampler import Sampler, States
from fasttta_jax.generation.seconds import check_seconds, cut
from fasttta_jax.generation.windows import Window
from fasttta_jax.workdir.restore import TrainedModel


class Made(NamedTuple):
    """A clip's sound and what it was decoded from.

    Attributes:
      audio: float32 waveform.
      tokens: of all columns that were decoded; the sound may have been cut.
      known: True where a token was given.
      states: behind every iteration, of a clip that is one window.
    """

    audio: Float[np.ndarray, " S"]
    tokens: Float[np.ndarray, "N C"]
    known: Bool[np.ndarray, " N"]
    states: States | None


@dataclasses.dataclass(frozen=True, eq=False)
class Sequences:
    """What the clips of a call have in common.

    Attributes:
      trained: network, parameters, codec.
      sampler: the sampler of the call's settings for a scale of guidance, a number of known tokens
        and a number of texts.
      batch_size: windows that are computed together.
      edits: of all clips.
      seconds: their length, where a clip's own is None; None is the model's.
      known: tokens of the first columns, [1, N, C] or one a clip; where edits vary a sound, all of
        its columns and the silence behind it.
    """

    trained: TrainedModel
    sampler: Callable[[float, int, int], Sampler]
    batch_size: int
    edits: Edits
    seconds: float | None
    known: Known | None

    @classmethod
    def plan(
        cls,
        trained: TrainedModel,
        sampler: Callable[[float, int, int], Sampler],
        batch_size: int,
        edits: Edits,
        *,
        seconds: float | None,
        each: bool,
        known: Known | None,
    ) -> Sequences:
        """Reads the sound file, if there is one, and checks that all fits.

        Args:
          trained: see the class, also for `sampler`, `batch_size` and `edits`.
          sampler: makes samplers.
          edits: of all clips.
          seconds: that are asked for.
          each: whether clips have lengths of their own.
          known: tokens that are given.

        Raises:
          ValueError: edits, lengths or tokens that do not fit together or the model.
          AudioError: a sound file cannot be used.
        """
        if known is not None and any(map(edits.has, ("audio", "vary", "loop"))):
            raise EditError("known goes with neither audio, vary nor loop, which say what is known")
        if each and any(map(edits.has, ("audio", "vary", "loop"))):
            raise EditError("with audio, vary or loop, seconds is one number for all clips")
        if edits.vary is not None and seconds is not None:
            raise EditError("vary and seconds do not go together: a take is as long as its sound")
        if edits.entries and seconds is None:
            seconds = max(entry.end for entry in edits.entries)
        codec, sound = trained.codec, None
        if edits.vary is not None:
            sound = read_sound(edits.vary, codec)
            seconds = len(sound) / codec.sample_rate
            check_seconds(f"the length of {edits.vary}", seconds)
        found = cls(trained, sampler, batch_size, edits, seconds, known)
        columns = found.num_columns(seconds)
        line = windows.line(columns, found.length)
        if not trained.model.takes_known:
            found.check_whole(known)
        if edits.loop:
            found.check_circle(columns)
        if edits.audio is not None:
            num_tokens = columns * codec.tokens_per_column
            known = read_known(edits.audio, edits.ranges, codec, num_tokens)
        if sound is not None:
            padded = np.zeros((1, windows.num_columns(line) * codec.samples_per_column), np.float32)
            padded[0, : len(sound)] = sound
            tokens = np.asarray(codec.encode(jnp.asarray(padded)), np.float32)
            known = Known(tokens, np.ones(tokens.shape[:2], bool))
        if known is not None and not each:
            most = windows.num_columns(line) * codec.tokens_per_column
            if known.mask.shape[1] > most or known.mask.shape[1] % codec.tokens_per_column:
                raise ValueError(
                    f"known has {known.mask.shape[1]} tokens; allowed: multiples of "
                    f"{codec.tokens_per_column}, a column's, up to {most}, those of the clip"
                )
        return dataclasses.replace(found, known=known)

    @property
    def length(self) -> int:
        """P, columns of a window."""
        return self.trained.config.model.num_tokens // self.trained.codec.tokens_per_column

    def num_columns(self, seconds: float | None) -> int:
        """Columns that so many seconds need."""
        codec = self.trained.codec
        if seconds is None:
            return self.length
        return columns_of(max(1, round(seconds * codec.sample_rate)), codec.samples_per_column)

    @property
    def num_known(self) -> int:
        """Tokens that are given to the first clip."""
        return 0 if self.known is None else int(np.sum(self.known.mask[0]))

    @property
    def is_one_window(self) -> bool:
        """Whether clips are what the model makes at once, and a caller's known tokens of them."""
        columns = self.num_columns(self.seconds)
        return columns <= self.length and not self.edits.loop and self.edits.vary is None

    def check_whole(self, known: Known | None) -> None:
        """Raises EditError where clips are not made at once, of a model that makes none otherwise.

        Args:
          known: tokens that are given.
        """
        names = [*self.edits.given(), *(["known"] if known is not None else [])]
        if not self.is_one_window:
            longest = self.length * self.trained.codec.samples_per_column
            names.append(f"seconds above {longest / self.trained.codec.sample_rate:g}")
        if names:
            raise EditError(
                f"this model cannot have {' and '.join(names)}: its network moves all tokens of a "
                "clip together, and knows none of them before (model.network is 'latent')"
            )

    def check_circle(self, columns: int) -> None:
        """Raises ValueError where a loop of so many columns is too short."""
        codec, least = self.trained.codec, windows.least_circle(self.length)
        if columns < least:
            stride = codec.samples_per_column / codec.sample_rate
            raise ValueError(
                f"a loop of {columns * stride:g} s is too short; allowed: {least * stride:g} s or "
                "more, so that its ends are known where its seam is made"
            )

    def texts(self, request: Request) -> list[str]:
        """All that the model is to read for a clip."""
        return [request.prompt, request.negative, *(entry.text for entry in self.edits.entries)]

    def lines(self, batch: Sequence[Request]) -> list[tuple[Window, ...]]:
        """The windows of each clip; a varied sound has no joints but its own."""
        lengths = [self.seconds if each.seconds is None else each.seconds for each in batch]
        lines = [windows.line(self.num_columns(seconds), self.length) for seconds in lengths]
        return lines if self.edits.vary is not None else [windows.joined(line) for line in lines]

    def make(self, batch: Sequence[Request], first: int) -> list[Made]:
        """The clips of a batch, of which clip `first` of the call is the first."""
        codec, config = self.trained.codec, self.trained.config.model
        lines = self.lines(batch)
        longest = max(lines, key=len)
        shape = (len(batch), windows.num_columns(longest), codec.tokens_per_column)
        tokens, given = self._start(batch, first, shape)
        states: list[States | None] = []
        # A clip that ends before its neighbours ends as it would alone.
        last = [len(line) + self.edits.loop for line in lines]
        sample = functools.partial(self._sample, batch, last, shape[1], states)
        tokens = windows.fill(longest, tokens, given, sample)
        if self.edits.loop:
            circle = self.num_columns(self.seconds)
            tokens, given = tokens[:, :circle], given[:, :circle]
            around = (windows.seam(circle, self.length),)
            tokens = windows.fill(around, tokens, given, sample, made=True, number=len(longest))
        sizes = [min(windows.num_columns(line), tokens.shape[1]) for line in lines]
        sounds = self._decode(tokens, sizes)
        alone = len(longest) == 1 and not self.edits.loop and len(states) == 1
        made = []
        for row, (request, size) in enumerate(zip(batch, sizes, strict=True)):
            seconds = self.seconds if request.seconds is None else request.seconds
            audio = sounds[row]
            if seconds is not None and not self.edits.loop:
                number = max(1, round(seconds * codec.sample_rate))
                audio = cut(audio, number, codec.sample_rate)
            state = states[0] if alone else None
            made.append(
                Made(
                    audio,
                    tokens[row, :size].reshape(-1, config.token_dim),
                    given[row, :size].ravel(),
                    None if state is None else States(state.tokens[row], state.masked[row]),
                )
            )
        return made

    def _start(
        self, batch: Sequence[Request], first: int, shape: tuple[int, int, int]
    ) -> tuple[Float[np.ndarray, "n Z G C"], Bool[np.ndarray, "n Z G"]]:
        """What is given of every sequence, and where."""
        tokens = np.zeros((*shape, self.trained.codec.token_dim), np.float32)
        given = np.zeros(shape, bool)
        if self.known is None:
            return tokens, given
        number = len(self.known.mask)
        rows = np.arange(first, first + len(batch)) if number > 1 else np.zeros(len(batch), int)
        mask = np.asarray(self.known.mask)[rows].reshape(len(batch), -1, shape[2])[:, : shape[1]]
        found = np.asarray(self.known.tokens, np.float32)[rows].reshape(*mask.shape, -1)
        found = found[:, : shape[1]]
        given[:, : mask.shape[1]] = mask
        tokens[:, : mask.shape[1]] = np.where(mask[..., None], found, 0)
        if self.edits.vary is not None:
            share = SHARE if self.edits.share is None else self.edits.share
            columns = self.num_columns(self.seconds)
            ends = [window.first + window.length for window in windows.line(columns, self.length)]
            bounds = [0, *(min(end, columns) for end in ends)]
            strata = [range(a, b) for a, b in itertools.pairwise(bounds)]
            for row, request in enumerate(batch):
                given[row, :columns] = ~varied_columns(share, strata, request.seed)[:, None]
        return tokens, given

    def _sample(
        self,
        batch: Sequence[Request],
        last: Sequence[int],
        num_columns: int,
        states: list[States | None],
        number: int,
        window: Window,
        tokens: Float[np.ndarray, "n P G C"],
        known: Bool[np.ndarray, "n P G"],
    ) -> Float[np.ndarray, "n P G C"]:
        """A window of all clips that go on; those with as many known tokens are made together.

        Where the model guides itself, those with a negative prompt, which takes a second pass, are
        made apart, so that a clip does not depend on the others.
        """
        texts, weights = self._texts(window, num_columns)
        found, counts = tokens.copy(), known.sum(axis=(1, 2))
        guides_itself = self.trained.model.guides_itself
        apart = np.array([guides_itself and bool(request.negative) for request in batch])
        for count, is_apart in itertools.product(np.unique(counts), np.unique(apart)):
            chosen_rows = (counts == count) & (apart == is_apart) & (np.asarray(last) > number)
            rows = np.flatnonzero(chosen_rows)
            if count == known[0].size or not len(rows):
                continue
            chosen = [batch[int(row)] for row in rows]
            scales = [request.guidance_scale for request in chosen]
            # Which other scale than 1 guides is an input of the program.
            scale = next((scale for scale in scales if scale != 1.0), 1.0)
            made, state = self.sampler(scale, int(count), len(texts))(
                self.trained.params,
                [request.prompt if text is None else text for request in chosen for text in texts],
                [request.seed for request in chosen],
                Known(
                    tokens[rows].reshape(len(rows), -1, tokens.shape[-1]),
                    known[rows].reshape(len(rows), -1),
                )
                if count
                else None,
                negatives=[request.negative for request in chosen],
                scales=scales,
                weights=None if weights is None else np.stack([weights] * len(rows)),
                window=number,
            )
            found[rows] = made.reshape(found[rows].shape)
            states.append(state)
        return found

    def _texts(
        self, window: Window, num_columns: int
    ) -> tuple[list[str | None], Float[np.ndarray, "N X"] | None]:
        """The texts of a window, None for each clip's prompt, and their shares at each token."""
        if not self.edits.entries:
            return [None], None
        codec = self.trained.codec
        stride = codec.samples_per_column / codec.sample_rate
        texts, shares = timeline.weights(self.edits.entries, num_columns, stride)
        here = shares[window.columns]
        used = np.flatnonzero(here.any(axis=0))
        chosen = [None if index == 0 else texts[index - 1] for index in used]
        if len(chosen) == 1:
            return chosen, None
        return chosen, np.repeat(here[:, used], codec.tokens_per_column, axis=0)

    def _decode(
        self, tokens: Float[np.ndarray, "n Z G C"], sizes: Sequence[int]
    ) -> list[Float[np.ndarray, " S"]]:
        """The sound of each clip's columns: fewer clips at once, the longer they are."""
        sounds: list[np.ndarray] = [np.zeros(0, np.float32)] * len(tokens)
        for size in sorted(set(sizes)):
            rows = [row for row, each in enumerate(sizes) if each == size]
            together = max(1, self.batch_size // math.ceil(size / self.length))
            for begin in range(0, len(rows), together):
                some = rows[begin : begin + together]
                part = tokens[some, :size].reshape(len(some), -1, tokens.shape[-1])
                decoded = decode_padded(self.trained, part, together, circular=self.edits.loop)
                for row, sound in zip(some, decoded, strict=True):
                    sounds[row] = sound
        return sounds


def decode_padded(
    trained: TrainedModel,
    tokens: Float[np.ndarray, "n N C"],
    batch_size: int,
    *,
    circular: bool = False,
) -> Float[np.ndarray, "n S"]:
    """Audio of tokens, decoded in a batch of fixed size so that one program serves."""
    padded = np.zeros((batch_size, *tokens.shape[1:]), np.float32)
    padded[: len(tokens)] = tokens
    decode = functools.partial(decode_circular, trained.codec) if circular else trained.codec.decode
    return np.asarray(decode(jnp.asarray(padded)))[: len(tokens)]
