"""Which of a source's transformer blocks a run of another depth starts from.

Source: CALM (Kyutai), whose shallow student starts from the blocks at both ends of its teacher.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from fasttta_jax.config import BackboneConfig, ConfigError
from fasttta_jax.models.stacking import BLOCK_NAME, arrange_layers, unstack_layers
from fasttta_jax.typing import Params

STAGES = ("encoder", "decoder")


@dataclasses.dataclass(frozen=True)
class BlockMap:
    """Numbers of the source's blocks, in the order in which they become those of the run.

    Attributes:
      source: the depths of the source.
      encoder: of its encoder.
      decoder: of its decoder, whose last block reads out the states.
    """

    source: BackboneConfig
    encoder: tuple[int, ...]
    decoder: tuple[int, ...]

    def __call__(self, params: Params, backbone: BackboneConfig) -> dict[str, Any]:
        """The source's parameters with the chosen blocks alone, in the form of `backbone`.

        Args:
          params: the source's, its blocks apart or stacked.
          backbone: of the run.
        """
        if self.is_identity:
            return arrange_layers(params, backbone)
        found = unstack_layers(params, self.source)["backbone"]
        kept = {name: tree for name, tree in found.items() if not BLOCK_NAME.fullmatch(name)}
        for stage in STAGES:
            for index, block in enumerate(getattr(self, stage)):
                kept[f"{stage}_{index}"] = found[f"{stage}_{block}"]
        return arrange_layers({**params, "backbone": kept}, backbone)

    @property
    def is_identity(self) -> bool:
        """Whether every block becomes itself."""
        return all(
            getattr(self, stage) == tuple(range(getattr(self.source, f"{stage}_depth")))
            for stage in STAGES
        )


def choose_blocks(text: str, ours: BackboneConfig, theirs: BackboneConfig) -> BlockMap:
    """The map that a config's `init_blocks` names.

    Args:
      text: "" for equal depths; "ends", "spaced", or numbers.
      ours: depths of the run.
      theirs: depths of the source.

    Raises:
      ConfigError: the source lacks a block, or the map does not have the run's depths.
    """
    chosen = {}
    listed = text.split("/") if "/" in text else None
    for place, stage in enumerate(STAGES):
        depth, available = (getattr(each, f"{stage}_depth") for each in (ours, theirs))
        if (depth == 0) != (available == 0):
            raise ConfigError(
                f"model.backbone.{stage}_depth is {depth}; allowed: {available}, as the source in "
                "init_from has: a backbone without encoder blocks is another network"
            )
        if listed is not None:
            chosen[stage] = tuple(int(number) for number in listed[place].split(",") if number)
        elif text:
            chosen[stage] = CHOICES[text](depth, available) if depth <= available else ()
        else:
            chosen[stage] = tuple(range(available))
        missing = [number for number in chosen[stage] if number >= available]
        if missing:
            raise ConfigError(
                f"init_blocks is {text!r}, which names block {missing[0]} of the {stage}; allowed: "
                f"0 to {available - 1}, those of the source in init_from"
            )
        if len(chosen[stage]) != depth:
            raise ConfigError(
                f"model.backbone.{stage}_depth is {depth}; init_blocks is {text!r}, and the source "
                f"in init_from has {available}; allowed: as many blocks as init_blocks names, by "
                "default those of the source, and for 'ends' and 'spaced' no more than it has"
            )
    return BlockMap(theirs, chosen["encoder"], chosen["decoder"])


def ends(depth: int, available: int) -> tuple[int, ...]:
    """The first and the last blocks; of an odd number, one more of the last."""
    first = depth // 2
    return (*range(first), *range(available - (depth - first), available))


def spaced(depth: int, available: int) -> tuple[int, ...]:
    """Blocks at equal distances, the last and, of two or more, the first among them."""
    if depth == 1:
        return (available - 1,)
    return tuple(round(index * (available - 1) / (depth - 1)) for index in range(depth))


CHOICES = {"ends": ends, "spaced": spaced}
