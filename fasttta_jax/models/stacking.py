"""Stacks of transformer blocks: apart or as one tree, how they run, and what their gradient keeps.

Apart, every block is a tree of its own, "encoder_0", "encoder_1", ... With `scan_layers` the blocks
of a stack are one tree, "encoder_stack" or "decoder_stack", whose arrays have the blocks as leading
axis, and `lax.scan` runs over it: one block is compiled, whatever the depth. The decoder's last
block stands alone in both forms, as "decoder_{decoder_depth - 1}". `stack_layers` and
`unstack_layers` lead from one form to the other.
Dimensions: B clips, S positions, D width, Q positions asked for.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from fasttta_jax.config import BackboneConfig
from fasttta_jax.models.layers import Block, Positions
from fasttta_jax.typing import Params

STACKS = ("encoder_stack", "decoder_stack")
"""Names of the trees whose arrays have a leading axis of blocks."""

BLOCK_NAME = re.compile(r"(encoder|decoder)_(\d+|stack)")
REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    # Products with parameters have no batch axes; attention's two have.
    "projections": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def make_block(config: BackboneConfig, name: str, dtype: DTypeLike) -> Block:
    """A block of the config's sizes and dropout."""
    return Block(
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_ratio,
        attention_dropout=config.attention_dropout,
        projection_dropout=config.projection_dropout,
        dtype=dtype,
        name=name,
    )


def make_blocks(config: BackboneConfig, stage: str, depth: int, dtype: DTypeLike) -> list[Block]:
    """The modules of a stack: one for each block, or with `scan_layers` one that stands for all.

    Args:
      config: sizes, and the form.
      stage: "encoder" or "decoder".
      depth: blocks of the stack; 0 makes none.
      dtype: type of the matrix products.
    """
    if not config.scan_layers:
        return [make_block(config, f"{stage}_{index}", dtype) for index in range(depth)]
    return [make_block(config, f"{stage}_stack", dtype)] if depth else []


def run_block(
    block: Block,
    x: Float[Array, "B S D"],
    config: BackboneConfig,
    *,
    key_mask: Bool[Array, "B S"] | None = None,
    positions: Positions | None = None,
    deterministic: bool,
    in_scan: bool = False,
) -> Float[Array, "B Q D"]:
    """`block(x)`, whose gradient keeps what `config.remat` says and computes the rest again.

    Without a gradient `remat` changes nothing. `in_scan` says that forward and backward pass are
    two loops, between which the compiler cannot merge what is computed twice.
    """

    def run(block: Block, x: jax.Array) -> jax.Array:
        return block(x, key_mask=key_mask, positions=positions, deterministic=deterministic)

    if config.remat != "none":
        run = nn.remat(run, policy=REMAT_POLICIES[config.remat], prevent_cse=not in_scan)
    return run(block, x)


def run_blocks(
    blocks: Sequence[Block],
    x: Float[Array, "B S D"],
    config: BackboneConfig,
    *,
    depth: int,
    key_mask: Bool[Array, "B S"] | None = None,
    deterministic: bool,
) -> Float[Array, "B S D"]:
    """Runs a stack.

    Args:
      blocks: what `make_blocks` returned for this depth.
      x: input of the first block.
      config: form and rematerialisation.
      depth: blocks of the stack.
      key_mask: False keys get no weight, in any block.
      deterministic: no dropout. Blocks have dropout, and first parameters, of their own.
    """

    def run(block: Block, x: jax.Array, *, in_scan: bool) -> jax.Array:
        return run_block(
            block, x, config, key_mask=key_mask, deterministic=deterministic, in_scan=in_scan
        )

    if not config.scan_layers:
        for block in blocks:
            x = run(block, x, in_scan=False)
        return x
    scan = nn.scan(
        lambda block, x: (run(block, x, in_scan=True), None),
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        length=depth,
    )
    for block in blocks:  # one, or none where the depth is 0
        x, _ = scan(block, x)
    return x


def _block_names(config: BackboneConfig) -> dict[str, list[str]]:
    """{"encoder_stack": ["encoder_0", ...], "decoder_stack": [...]}, without empty stacks."""
    depths = (("encoder", config.encoder_depth), ("decoder", config.decoder_depth - 1))
    return {
        f"{stage}_stack": [f"{stage}_{index}" for index in range(depth)]
        for stage, depth in depths
        if depth
    }


def _check_form(backbone: Params, config: BackboneConfig) -> bool:
    """Whether the blocks are stacked; raises ValueError where they are not those of the config."""
    stacks = _block_names(config)
    alone = f"decoder_{config.decoder_depth - 1}"
    found = {name for name in backbone if BLOCK_NAME.fullmatch(name)}
    if found == {alone}.union(*stacks.values()):
        return False
    if found != {alone, *stacks}:
        raise ValueError(
            f"the backbone has the blocks {', '.join(sorted(found)) or '(none)'}; allowed for "
            f"encoder_depth {config.encoder_depth} and decoder_depth {config.decoder_depth}: "
            f"{', '.join([*stacks, alone])}, or encoder and decoder blocks counted from 0"
        )
    for stack, blocks in stacks.items():
        lengths = {leaf.shape[0] for leaf in jax.tree.leaves(backbone[stack])}
        if lengths != {len(blocks)}:
            raise ValueError(
                f"backbone/{stack} has arrays of {sorted(lengths)} blocks; allowed: {len(blocks)}, "
                f"for encoder_depth {config.encoder_depth} and decoder_depth "
                f"{config.decoder_depth}"
            )
    return True


def stack_layers(params: Params, config: BackboneConfig) -> dict[str, Any]:
    """Parameters in the form of `scan_layers`; what is stacked already is returned as it is.

    Nothing is copied but the blocks, and nothing computed: `unstack_layers` gives the same arrays
    back. For a tree of shapes, use `jax.eval_shape`.

    Args:
      params: a model's parameters; "backbone" holds blocks in either form, other parts are kept.
      config: the depths. Its `scan_layers` does not matter.

    Raises:
      ValueError: the blocks are not those of the config; says which are found and allowed.
    """
    backbone = dict(params["backbone"])
    if not _check_form(backbone, config):
        for stack, blocks in _block_names(config).items():
            layers = [backbone.pop(block) for block in blocks]
            backbone[stack] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    return {**params, "backbone": backbone}


def unstack_layers(params: Params, config: BackboneConfig) -> dict[str, Any]:
    """Parameters with every block apart; arguments and errors are those of `stack_layers`."""
    backbone = dict(params["backbone"])
    if _check_form(backbone, config):
        for stack, blocks in _block_names(config).items():
            layers = backbone.pop(stack)
            for index, block in enumerate(blocks):
                backbone[block] = jax.tree.map(lambda leaf, index=index: leaf[index], layers)
    return {**params, "backbone": backbone}


def arrange_layers(params: Params, config: BackboneConfig) -> dict[str, Any]:
    """Parameters in the form that `config.scan_layers` names, from either; else `stack_layers`."""
    return (stack_layers if config.scan_layers else unstack_layers)(params, config)
