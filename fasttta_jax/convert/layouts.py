"""Where in a checkpoint a network's state dict lies, and what training code put before its names.

Wrappers put a word before all names (torch's DataParallel "module.", torch.compile "_orig_mod.",
Lightning the name of an attribute), and training loops put the state beside other things, often
twice: as last trained, and averaged. A state is taken where it is the only one that fits; of an
averaged one and the other, the averaged one, as timm and diffusers do. Every key is checked
afterwards (`names.check`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from fasttta_jax.convert.stored import ConversionError

PREFIXES = (
    "module.",
    "_orig_mod.",
    "model.",
    "net.",
    "network.",
    "ema.",
    "ema_model.",
    "model_ema.",
    "online_model.",
)
DEPTH = 4
"""How many prefixes and nested dictionaries may lie around a state."""
SHOWN_KEYS = 5

Fits = Callable[[Mapping[str, Any]], bool]
"""Whether a state dict has the names by which a kind is known."""


class Found(NamedTuple):
    """A state dict that fits.

    Attributes:
      state: keys to StoredTensor, without the prefix.
      inside: the names of dictionaries and the prefixes around it, "ema_model.module."; "" where it
        is the file's own.
    """

    state: Mapping[str, Any]
    inside: str

    @property
    def said(self) -> dict[str, str]:
        """What a conversion's description says of it."""
        return {"inside": self.inside} if self.inside else {}


def choose(tree: Mapping[str, Any], fits: Fits, source: str) -> Found:
    """The state dict of a checkpoint that fits.

    Args:
      tree: the checkpoint.
      fits: tells it.
      source: what to call the checkpoint in the error.

    Returns:
      The tree itself where it fits, or where nothing in it does.

    Raises:
      ConversionError: several fit; names them.
    """
    found = list(_search(tree, fits, "", DEPTH))
    averaged = [one for one in found if "ema" in re.split(r"[._]", one.inside)]
    wanted = averaged or found
    if len(wanted) > 1:
        raise ConversionError(
            f"{source} holds {len(wanted)} state dicts that fit, in "
            f"{', '.join(one.inside for one in wanted)}; save the one that is wanted by itself"
        )
    return wanted[0] if wanted else Found(tree, "")


def _search(tree: Mapping[Any, Any], fits: Fits, inside: str, depth: int) -> Iterator[Found]:
    named = {key: value for key, value in tree.items() if isinstance(key, str)}
    if fits(named):
        yield Found(tree, inside)
        return
    if not depth:
        return
    for key, value in named.items():
        if isinstance(value, Mapping):
            yield from _search(value, fits, f"{inside}{key}.", depth - 1)
    for prefix in PREFIXES:
        behind = {
            key.removeprefix(prefix): value
            for key, value in named.items()
            if key.startswith(prefix) and not isinstance(value, Mapping)
        }
        if behind:
            yield from _search(behind, fits, f"{inside}{prefix}", depth - 1)


def beginning(tree: Mapping[str, Any]) -> str:
    """What there is where nothing fits, and where it was looked for; a part of a sentence."""
    keys = ", ".join(str(key)[:60] for key in list(tree)[:SHOWN_KEYS]) or "nothing"
    return (
        f"its keys begin with {keys} ({len(tree)} in all; looked in nested dictionaries and behind "
        f"{', '.join(PREFIXES)}, too)"
    )
