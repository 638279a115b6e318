"""Parameters of one model as the start of another: what fits is taken, and everything is reported.

Sources: IMPACT starts its blocks from MAR's ImageNet weights and its conditional teacher from the
unconditional one.
Dimensions: D backbone width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float

from fasttta_jax.typing import Params

SEPARATOR = "/"
WITH_TEXT = ("encoder_positions", "decoder_positions")
WITHOUT_TEXT = "head_positions"


@dataclasses.dataclass(frozen=True)
class Layout:
    """How long a model's sequence is.

    Attributes:
      num_text: text positions (or class slots) in front.
      num_tokens: audio (or image) tokens behind.
    """

    num_text: int
    num_tokens: int


@dataclasses.dataclass
class Report:
    """Names of parameters, "backbone/encoder_0/norm_1/scale", by what became of them.

    Attributes:
      taken: copied, or for a head that starts from a teacher's computed from that.
      resized: position tables of another length, interpolated.
      fresh: initialised anew, with the reason.
      unused: in the source only.
    """

    taken: list[str] = dataclasses.field(default_factory=list)
    resized: list[str] = dataclasses.field(default_factory=list)
    fresh: dict[str, str] = dataclasses.field(default_factory=dict)
    unused: list[str] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        """One line for a log."""
        parts = [f"{len(self.taken)} parameters taken"]
        if self.resized:
            parts.append("resized: " + ", ".join(self.resized))
        if self.fresh:
            reasons: dict[str, list[str]] = {}
            for name, reason in self.fresh.items():
                reasons.setdefault(reason, []).append(name)
            parts += [f"fresh ({reason}): {_shorten(names)}" for reason, names in reasons.items()]
        if self.unused:
            parts.append(f"not used: {_shorten(self.unused)}")
        return "; ".join(parts)


def _shorten(names: list[str], most: int = 4) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def resize_positions(table: Float[Array, "old D"], length: int) -> Float[Array, "new D"]:
    """Position embeddings for another length, linear between neighbours, ends on ends."""
    old = table.shape[0]
    if old == length:
        return table
    place = jnp.linspace(0.0, old - 1.0, length)
    low = jnp.floor(place).astype(jnp.int32)
    high = jnp.minimum(low + 1, old - 1)
    share = (place - low)[:, None]
    return (1.0 - share) * table[low] + share * table[high]


def _resize(name: str, table: Any, source: Layout, target: Layout) -> Any:
    if name.rsplit(SEPARATOR, 1)[-1] == WITHOUT_TEXT:
        return resize_positions(table, target.num_tokens)
    text = resize_positions(table[: source.num_text], target.num_text)
    return jnp.concatenate([text, resize_positions(table[source.num_text :], target.num_tokens)])


def plan(
    source: Params,
    target: Params,
    source_layout: Layout,
    target_layout: Layout,
    *,
    same_words: bool,
    head_reason: str = "",
) -> Report:
    """Which parameters `transfer` will take; works on shapes alone.

    A head is taken whole or not at all. A learned text encoder and its projection are taken only
    where both models read the same vocabulary.

    Args:
      source: parameters, or their shapes, with some of the parts text, backbone and head.
      target: those of the model that starts.
      source_layout: of the source.
      target_layout: of the target.
      same_words: whether learned text embeddings mean the same words in both.
      head_reason: why the head cannot be taken, where its shapes do not show it.
    """
    old: dict[str, Any] = flatten_dict(source, sep=SEPARATOR)
    new: dict[str, Any] = flatten_dict(target, sep=SEPARATOR)
    report = Report(unused=[name for name in old if name not in new])
    heads = [
        {name: leaf.shape for name, leaf in tree.items() if name.startswith("head/")}
        for tree in (old, new)
    ]
    for name, leaf in new.items():
        is_words = name.startswith(("text/", "backbone/text_learned/"))
        if name not in old:
            report.fresh[name] = "not in the source"
        elif name.startswith("head/") and (head_reason or heads[0] != heads[1]):
            report.fresh[name] = head_reason or "the source's head has other sizes"
        elif is_words and not same_words:
            report.fresh[name] = "the source reads another vocabulary"
        elif old[name].shape == leaf.shape and (
            not name.endswith(WITH_TEXT) or source_layout == target_layout
        ):
            report.taken.append(name)
        elif name.endswith((*WITH_TEXT, WITHOUT_TEXT)) and old[name].shape[1] == leaf.shape[1]:
            report.resized.append(name)
        else:
            report.fresh[name] = f"shape {old[name].shape} became {leaf.shape}"
    return report


def plan_parts(source: Params, target: Params, reasons: Mapping[str, str]) -> Report:
    """What becomes of the parameters where whole parts are taken, as from a teacher.

    Args:
      source: parameters, or their shapes, with the parts text, backbone and head.
      target: those of the model that starts.
      reasons: why a part is not taken, for those that are not.
    """

    def reason_of(name: str) -> str | None:
        return reasons.get(name.partition(SEPARATOR)[0])

    names = flatten_dict(source, sep=SEPARATOR)
    report = Report(unused=[name for name in names if reason_of(name)])
    for name in flatten_dict(target, sep=SEPARATOR):
        if reason := reason_of(name) or ("" if name in names else "not in the source"):
            report.fresh[name] = reason
        else:
            report.taken.append(name)
    return report


def transfer(
    source: Params,
    target: Params,
    *,
    taken: Sequence[str],
    resized: Sequence[str],
    source_layout: Layout,
    target_layout: Layout,
) -> dict[str, Any]:
    """The target's parameters with those that a `Report` names replaced by the source's."""
    old: dict[str, Any] = flatten_dict(source, sep=SEPARATOR)
    new: dict[str, Any] = flatten_dict(target, sep=SEPARATOR)
    for name in taken:
        new[name] = jnp.array(old[name], jnp.float32)
    for name in resized:
        new[name] = _resize(name, jnp.asarray(old[name]), source_layout, target_layout)
    # Parts without parameters (a text encoder that trains nothing) are lost by flattening.
    empty = {name: tree for name, tree in target.items() if not jax.tree.leaves(tree)}
    return empty | unflatten_dict(new, sep=SEPARATOR)
