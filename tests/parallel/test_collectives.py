"""What the compiled training step and sampler send between eight devices: what the layout needs.

Counted in the programs that a run compiles, by kind, mesh axes and bytes.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import pytest

from fasttta_jax.config import (
    BackboneConfig,
    DataConfig,
    DecodeConfig,
    DistillationConfig,
    EnergyConfig,
    HeadConfig,
    MeshConfig,
    ModelConfig,
    RunConfig,
    TextConfig,
)
from fasttta_jax.generation.sampler import Sampler, Start, TextGuidance
from fasttta_jax.parallel.compile import abstract_state, compile_train_step
from fasttta_jax.parallel.mesh import make_mesh
from fasttta_jax.parallel.sharding import batch_sharding
from fasttta_jax.performance.hlo import Collective, find_collectives
from fasttta_jax.text import abstract_text_encoder
from fasttta_jax.training import programs

BLOCKS = 4
BATCH, LENGTH, WIDTH = 16, 24 + 32, 128
FLOAT32 = 4
SCALARS = 2**10
"""Bytes that losses, weights and norms may take in all."""


def run_config(**changes: Any) -> RunConfig:
    """Large enough for fsdp to split every kernel."""
    fields: dict[str, Any] = {
        "objective": "energy",
        "num_steps": 2000,
        "data": DataConfig(batch_size=BATCH),
        "model": ModelConfig(
            num_tokens=32,
            token_dim=64,
            backbone=BackboneConfig(width=WIDTH, encoder_depth=2, decoder_depth=2, num_heads=4),
            head=HeadConfig(width=128, depth=1),
            text=TextConfig(num_positions=24, width=64),
        ),
        "energy": EnergyConfig(noise_dim=64),
        "decode": DecodeConfig(num_iterations=4, max_segments=2),
    }
    return RunConfig(**fields | changes)


def key_shape(shape: tuple[int, ...] = (), sharding: Any = None) -> jax.ShapeDtypeStruct:
    dtype = jax.eval_shape(lambda: jax.random.key(0)).dtype
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


@functools.cache
def step_collectives(objective: str, *sizes: int) -> tuple[Any, Any, tuple[Collective, ...]]:
    """State and frozen parameters as shapes with shardings, and what a training step sends."""
    distillation = {
        "diffusion": DistillationConfig(),
        "energy": DistillationConfig(weight=1000.0),
        "guided": DistillationConfig(backbone_from_teacher=True, head_from_teacher=True),
    }
    config = run_config(
        objective=objective,
        mesh=MeshConfig(*sizes),
        distillation=distillation[objective],
    )
    mesh = make_mesh(config.mesh)
    text = abstract_text_encoder(config.model.text)
    context = programs.default_context(config, text)
    state = abstract_state(programs.fresh_state(context), mesh)
    frozen = {} if context.teacher is None else abstract_state(context.teacher.init, mesh)
    step = compile_train_step(programs.train_step(context), state, frozen, mesh)
    batch = programs.abstract_batch(config, text, mesh)
    compiled = step.lower(state, frozen, batch, key_shape()).compile()
    return state, frozen, find_collectives(compiled.as_text(), mesh)


def num_bytes(tree: Any, *, split: bool | None = None) -> int:
    """Of whole arrays; with `split` only of those that are (not) split over devices."""
    return sum(
        leaf.size * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if split is None or split != leaf.sharding.is_fully_replicated
    )


def kinds(found: tuple[Collective, ...]) -> set[tuple[str, tuple[str, ...]]]:
    return {(one.kind, one.axes) for one in found}


def total(found: tuple[Collective, ...], kind: str) -> int:
    return sum(one.array_bytes for one in found if one.kind == kind)


@pytest.mark.parametrize(
    "objective", ["diffusion", "energy", pytest.param("guided", marks=pytest.mark.long)]
)
def test_data_parallel_steps_reduce_their_gradients_and_send_nothing_else(objective: str) -> None:
    state, _, found = step_collectives(objective, 8, 1, 1)
    assert kinds(found) == {("all-reduce", ("data",))}
    assert len(found) <= 3
    reduced = total(found, "all-reduce")
    still = {"head"} if objective == "guided" else set()
    moved = {name: tree for name, tree in state.params.items() if name not in still}
    assert num_bytes(moved) <= reduced <= num_bytes(moved) + SCALARS


def test_fsdp_steps_gather_every_split_kernel_once_a_pass() -> None:
    """The teacher's head has no part in a student's step; the backward pass gathers nothing."""
    state, frozen, found = step_collectives("energy", 1, 8, 1)
    assert kinds(found) == {("all-gather", ("fsdp",)), ("all-reduce", ("fsdp",))}
    used = num_bytes(state.params, split=True) + num_bytes(frozen["backbone"], split=True)
    assert total(found, "all-gather") == used
    reduced = total(found, "all-reduce")
    assert num_bytes(state.params) <= reduced <= num_bytes(state.params) + SCALARS


def test_three_axes_add_only_what_each_of_them_needs() -> None:
    """Tensor parallelism: a sum of activations after attention and MLP, forward and backward, and
    the gradients of the states gathered from the head's tokens.

    The one kernel of the backbone that is not split over the tensor axis, decoder_embedding's, is
    gathered by way of it: XLA moves parts to where that axis gathers them.
    """
    *_, found = step_collectives("energy", 2, 2, 2)
    detour = [one for one in found if "decoder_embedding" in one.source and "tensor" in one.axes]
    assert sum(one.kind == "collective-permute" for one in detour) <= 3
    assert max(one.array_bytes for one in detour) <= WIDTH * WIDTH * FLOAT32
    rest = [one for one in found if one not in detour]
    assert {one.kind for one in rest} == {"all-gather", "all-reduce"}
    gathers = [one for one in rest if one.kind == "all-gather"]
    assert {one.axes for one in gathers} == {("fsdp",), ("tensor",)}
    hidden = BATCH // 4 * 32 * WIDTH * FLOAT32
    assert [one.array_bytes for one in gathers if one.axes == ("tensor",)] == [hidden]
    sums = [one for one in rest if one.kind == "all-reduce" and one.axes == ("tensor",)]
    forward, backward = 2 * 2 * BLOCKS, 2 * BLOCKS
    assert len(sums) <= forward + backward + 3


def test_the_sampler_sends_nothing() -> None:
    config = run_config(mesh=MeshConfig(8, 1, 1))
    mesh = make_mesh(config.mesh)
    text = abstract_text_encoder(config.model.text)
    model = programs.default_context(config, text).model
    sampler = Sampler(model, config.decode, mesh, BATCH)
    rows = batch_sharding(mesh)
    params = abstract_state(model.init, mesh)
    batch = programs.abstract_batch(config, text, mesh)
    scales = jax.ShapeDtypeStruct((BATCH, config.decode.num_iterations), "float32", sharding=rows)
    guidance = TextGuidance(scales, batch["text"])  # type: ignore[arg-type]
    start = Start(key_shape((BATCH,), rows), None, guidance)  # type: ignore[arg-type]
    assert sampler.guided
    compiled = sampler.program.lower(params, batch["text"], start).compile()
    assert math.prod(mesh.shape.values()) == 8
    assert find_collectives(compiled.as_text(), mesh) == ()
