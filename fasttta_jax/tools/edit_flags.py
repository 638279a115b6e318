"""The flags of what differs from clip to clip beside its prompt, and of edits, in absl."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from absl import flags

from fasttta_jax.generation.edits import EditError, Edits
from fasttta_jax.generation.seconds import check_seconds


class EditFlags(NamedTuple):
    """What was given.

    Attributes:
      negative: of all clips.
      seconds: of all clips; None is the model's, or what an edit says.
      edits: of all clips.
    """

    negative: str
    seconds: float | None
    edits: Edits

    def arguments(self) -> dict[str, Any]:
        """As arguments of `Pipeline.generate`."""
        edits = {field.name: getattr(self.edits, field.name) for field in dataclasses.fields(Edits)}
        return {"negative": self.negative, "seconds": self.seconds, **edits}

    def given(self) -> dict[str, Any]:
        """What is not as without flags, by name: for a manifest."""
        same = {"negative": self.negative, "seconds": self.seconds}
        return {name: value for name, value in same.items() if value} | self.edits.given()


def define(values: flags.FlagValues) -> None:
    """Defines the flags in `values`."""

    def text(name: str, help: str) -> None:
        flags.DEFINE_string(name, None, help, flag_values=values)

    def number(name: str, help: str) -> None:
        flags.DEFINE_float(name, None, help, flag_values=values)

    text("negative", "What guidance leads away from: a prompt of what is not to be heard.")
    number("seconds", "Length of the clips, up to a day. Default: what the model was trained on.")
    text("audio", "Sound file of which --keep is kept in every clip.")
    text(
        "keep",
        "Seconds of --audio to keep: START-END, several with commas; whole token columns inside "
        "them.",
    )
    text("vary", "Sound file of which new takes are made, one a clip.")
    number("share", "Of the token columns of --vary that are made anew. Default: 0.3.")
    flags.DEFINE_bool(
        "loop",
        False,
        "Clips that can be repeated: the end leads to the beginning.",
        flag_values=values,
    )
    text(
        "timeline",
        "What is to be heard when, in seconds: '0-4 rain; 2-3 thunder'. The prompt is heard where "
        "it says nothing.",
    )


def read(values: flags.FlagValues) -> EditFlags:
    """What the flags say.

    Raises:
      ValueError: a value is not allowed, or flags do not go together.
    """
    edits = Edits(
        values.audio, values.keep, values.vary, values.share, values.loop, values.timeline
    )
    if values.seconds is not None:
        check_seconds("seconds", values.seconds)
        if edits.vary is not None:
            raise EditError("vary and seconds do not go together: a take is as long as its sound")
    return EditFlags(values.negative or "", values.seconds, edits)
