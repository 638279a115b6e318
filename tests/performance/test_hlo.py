"""Collectives of small programs whose communication is known, and HLO as TPUs have it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fasttta_jax.parallel.mesh import AXES
from fasttta_jax.performance import hlo_text
from fasttta_jax.performance.hlo import (
    KINDS,
    Collective,
    find_collectives,
    replica_groups,
    spanned_axes,
    summarize,
)
from fasttta_jax.performance.hlo_text import HloError

FLOAT = 4
ROWS, INNER, COLUMNS = 64, 128, 32


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    """(data, fsdp, tensor) = (2, 2, 2)."""
    devices = np.asarray(jax.devices()).reshape(2, 2, 2)
    return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * 3)


def compiled(
    mesh: Mesh,
    function: Callable[..., Any],
    *arguments: tuple[tuple[int, ...], PartitionSpec],
    out: PartitionSpec,
) -> tuple[Collective, ...]:
    """The collectives of `function` on float32 arrays of these shapes and layouts."""
    shapes = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
        for shape, spec in arguments
    ]
    jitted = jax.jit(function, out_shardings=NamedSharding(mesh, out))
    return find_collectives(jitted.lower(*shapes).compile().as_text(), mesh)


SPLIT = PartitionSpec("data", ("fsdp", "tensor"))
LEFT = (ROWS, INNER), SPLIT
RIGHT = (INNER, COLUMNS), PartitionSpec(("fsdp", "tensor"), None)
RESULT = PartitionSpec("data", None)


def test_a_product_over_a_split_axis_is_one_all_reduce(mesh):
    (found,) = compiled(mesh, jnp.matmul, LEFT, RIGHT, out=RESULT)
    assert (found.kind, found.axes, found.group_size) == ("all-reduce", ("fsdp", "tensor"), 4)
    assert found.array_bytes == ROWS // 2 * COLUMNS * FLOAT
    assert found.sent_bytes == 2 * 3 / 4 * found.array_bytes
    assert found.times == 1
    assert "dot_general" in found.source


def test_using_a_split_parameter_is_one_all_gather(mesh):
    def use(x, kernel):
        whole = jax.lax.with_sharding_constraint(kernel, NamedSharding(mesh, PartitionSpec()))
        return x @ whole

    (found,) = compiled(
        mesh,
        use,
        ((ROWS, INNER), PartitionSpec(("data", "fsdp"), None)),
        ((INNER, COLUMNS), PartitionSpec("fsdp", None)),
        out=PartitionSpec(("data", "fsdp"), None),
    )
    assert (found.kind, found.axes, found.group_size) == ("all-gather", ("fsdp",), 2)
    assert found.array_bytes == INNER * COLUMNS * FLOAT
    assert found.sent_bytes == found.array_bytes / 2


@pytest.mark.parametrize(
    ("kind", "function", "out", "array_bytes", "sent"),
    [
        (
            "reduce-scatter",
            lambda x: jax.lax.psum_scatter(x, "tensor", tiled=True),
            PartitionSpec(("data", "fsdp", "tensor")),
            16 * COLUMNS * FLOAT,
            1 / 2,
        ),
        (
            "all-to-all",
            lambda x: jax.lax.all_to_all(x, "tensor", 1, 0, tiled=True),
            PartitionSpec(("data", "fsdp"), "tensor"),
            16 * COLUMNS * FLOAT,
            1 / 2,
        ),
        (
            "collective-permute",
            lambda x: jax.lax.ppermute(x, "tensor", [(0, 1), (1, 0)]),
            PartitionSpec(("data", "fsdp")),
            16 * COLUMNS * FLOAT,
            1,
        ),
    ],
)
def test_every_other_kind_with_its_bytes(mesh, kind, function, out, array_bytes, sent):
    whole = PartitionSpec(("data", "fsdp"))
    mapped = jax.shard_map(function, mesh=mesh, in_specs=whole, out_specs=out, check_vma=False)
    (found,) = compiled(mesh, mapped, ((ROWS, COLUMNS), whole), out=out)
    assert (found.kind, found.axes) == (kind, ("tensor",))
    assert found.array_bytes == array_bytes
    assert found.sent_bytes == sent * array_bytes


def test_what_is_not_split_sends_nothing(mesh):
    whole = ((ROWS, ROWS), PartitionSpec())
    assert compiled(mesh, jnp.matmul, whole, whole, out=PartitionSpec()) == ()


def looped(mesh: Mesh, *lengths: int) -> Callable[..., jax.Array]:
    """A product over a split axis inside nested loops of these lengths."""

    def turn(x, kernel):
        y = jnp.tanh(x @ kernel) @ kernel.T
        return jax.lax.with_sharding_constraint(y, NamedSharding(mesh, SPLIT))

    def run(x, kernel, lengths=lengths):
        if not lengths:
            return turn(x, kernel)
        return jax.lax.scan(
            lambda x, _: (run(x, kernel, lengths[1:]), None), x, None, length=lengths[0]
        )[0]

    return run


@pytest.mark.parametrize("lengths", [(7,), (3, 5)])
def test_a_collective_in_loops_counts_every_turn(mesh, lengths):
    (found,) = compiled(mesh, looped(mesh, *lengths), LEFT, RIGHT, out=SPLIT)
    assert found.array_bytes == ROWS // 2 * COLUMNS * FLOAT
    assert found.times == math.prod(lengths)
    (row,) = summarize([found])
    assert (row.instructions, row.executions, row.is_exact) == (1, math.prod(lengths), True)
    assert row.sent_bytes == math.prod(lengths) * found.sent_bytes


def test_a_loop_of_unknown_length_is_said_to_be_one(mesh):
    turn = looped(mesh)

    def run(x, kernel):
        return jax.lax.while_loop(lambda x: x[0, 0] < 3, lambda x: turn(x, kernel), x)

    found = compiled(mesh, run, LEFT, RIGHT, out=SPLIT)
    products = [one for one in found if "dot_general" in one.source]
    assert [one.times for one in products] == [None]
    assert not any(row.is_exact for row in summarize(products))


# ------------------------------------------------------------------------------ replica groups

FSDP_OF_4_4 = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]
DATA_OF_4_4 = np.transpose(FSDP_OF_4_4).tolist()


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7},{8,9,10,11},{12,13,14,15}}", FSDP_OF_4_4),
        ("replica_groups=[4,4]<=[16]", FSDP_OF_4_4),
        ("replica_groups=[4,4]<=[4,4]T(1,0)", DATA_OF_4_4),
        ("replica_groups={}", [list(range(16))]),
        ("replica_groups=[1,16]<=[16]", [list(range(16))]),
        ("replica_groups=mesh['a'=4,'b'=4] {'b'}", FSDP_OF_4_4),
        ("replica_groups=mesh['a'=4,'b'=4] {'a'}", DATA_OF_4_4),
        ("replica_groups=mesh['a'=4,'b'=4], device_ids=([4,4]T(1,0)) {'a'}", FSDP_OF_4_4),
        (
            "replica_groups=mesh['axis_0'=4,'axis_1'=1,'axis_2'=4], device_ids=([4,4]T(1,0)) "
            "{'axis_2'}, use_global_device_ids=true",
            DATA_OF_4_4,
        ),
        ("replica_groups=mesh['a'=16] {'a':(4)4}", FSDP_OF_4_4),
        ("replica_groups=mesh['a'=16] {'a':(1)4}", DATA_OF_4_4),
    ],
)
def test_all_ways_to_write_groups(text, groups):
    assert replica_groups(f", channel_id=1, {text}, dimensions={{0}}", 16) == groups


def test_axes_that_groups_lie_along():
    mesh = jax.sharding.AbstractMesh((4, 4, 1), AXES)
    assert spanned_axes(FSDP_OF_4_4, mesh) == ("fsdp",)
    assert spanned_axes(DATA_OF_4_4, mesh) == ("data",)
    assert spanned_axes([[0, 1], [2, 3]], mesh) == ("fsdp",)
    assert spanned_axes([list(range(16))], mesh) == ("data", "fsdp")


# ------------------------------------------------------------------------------- text of TPUs

TPU_TEXT = """
HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[4]{0:T(128)})->f32[4]{0}}

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[]{:T(128)} parameter(0)
  %y = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%x, %y)
}

%all-reduce-scatter.1 (input: bf16[16,128]) -> bf16[4,128] {
  %input = bf16[16,128]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.1 = bf16[16,128]{1,0:T(8,128)(2,1)} all-reduce(%input), channel_id=1, \
replica_groups={{0,1,2,3},{4,5,6,7},{8,9,10,11},{12,13,14,15}}, use_global_device_ids=true, \
to_apply=%add
  ROOT %mine = bf16[4,128]{1,0:T(8,128)(2,1)} dynamic-slice(%all-reduce.1), \
dynamic_slice_sizes={4,128}
}

%hidden.start (p: bf16[4,128]) -> bf16[16,128] {
  %p = bf16[4,128]{1,0} parameter(0)
  ROOT %all-gather.1 = bf16[16,128]{1,0:T(8,128)(2,1)S(1)} all-gather(%p), channel_id=7, \
replica_groups=[4,4]<=[16], dimensions={0}, use_global_device_ids=true, \
frontend_attributes={chain_id="0"}
}

%hidden.done (q: bf16[4,128]) -> bf16[16,128] {
  %q = bf16[4,128]{1,0} parameter(0)
  ROOT %all-gather.2 = bf16[16,128]{1,0:T(8,128)(2,1)} all-gather(%q), channel_id=7, \
replica_groups=[4,4]<=[16], dimensions={0}, use_global_device_ids=true, \
frontend_attributes={chain_id="0"}
}

%body (state: (s32[], f32[4], /*index=2*/s32[])) -> (s32[], f32[4], s32[]) {
  %state = (s32[]{:T(128)}, f32[4]{0:T(128)}, /*index=2*/s32[]{:T(128)}) parameter(0)
  %turn = s32[]{:T(128)} get-tuple-element(%state), index=0
  %values = f32[4]{0:T(128)} get-tuple-element(%state), index=1
  %stride = s32[]{:T(128)} get-tuple-element(%state), index=2
  %next = s32[]{:T(128)} add(%turn, %stride), metadata={op_name="while/body/add"}
  %total = f32[4]{0:T(128)} all-reduce(%values), channel_id=3, replica_groups={}, to_apply=%add
  ROOT %new = (s32[]{:T(128)}, f32[4]{0:T(128)}, s32[]{:T(128)}) tuple(%next, %total, %stride)
}

%condition (state.1: (s32[], f32[4], s32[])) -> pred[] {
  %state.1 = (s32[]{:T(128)}, f32[4]{0:T(128)}, s32[]{:T(128)}) parameter(0)
  %turn.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  %limit = s32[]{:T(128)} constant(LIMIT)
  ROOT %less = pred[]{:T(512)} compare(%turn.1, %limit), direction=LT
}

ENTRY %main (given: f32[4], rows: bf16[16,128]) -> f32[4] {
  %given = f32[4]{0:T(128)} parameter(0)
  %rows = bf16[16,128]{1,0:T(8,128)(2,1)} parameter(1)
  %fused = bf16[4,128]{1,0} fusion(%rows), kind=kCustom, calls=%all-reduce-scatter.1
  %begin = bf16[16,128]{1,0} fusion(%fused), kind=kCustom, calls=%hidden.start
  %ended = bf16[16,128]{1,0} fusion(%fused), kind=kCustom, calls=%hidden.done
  %gathering = (bf16[4,128]{1,0}, bf16[16,128]{1,0}) all-gather-start(%fused), channel_id=9, \
replica_groups=[4,4]<=[16], dimensions={0}, use_global_device_ids=true
  %gathered = bf16[16,128]{1,0} all-gather-done(%gathering)
  %zero = s32[]{:T(128)} constant(0)
  %one = s32[]{:T(128)} constant(STRIDE)
  %copied = s32[]{:T(128)} copy(%zero)
  %first = (s32[]{:T(128)}, f32[4]{0:T(128)}, s32[]{:T(128)}) tuple(%copied, %given, %one)
  %looped = (s32[]{:T(128)}, f32[4]{0:T(128)}, s32[]{:T(128)}) while(%first), \
condition=%condition, body=%body
  ROOT %result = f32[4]{0:T(128)} get-tuple-element(%looped), index=1
}
"""


def tpu_collectives(limit: int = 7, stride: int = 2, text: str = TPU_TEXT):
    mesh = jax.sharding.AbstractMesh((4, 4, 1), AXES)
    return find_collectives(text.replace("LIMIT", str(limit)).replace("STRIDE", str(stride)), mesh)


def test_a_fused_all_reduce_that_keeps_a_part_is_a_reduce_scatter():
    scatter = tpu_collectives()[0]
    assert (scatter.kind, scatter.axes) == ("reduce-scatter", ("fsdp",))
    assert scatter.array_bytes == 16 * 128 * 2
    assert scatter.sent_bytes == 3 / 4 * scatter.array_bytes


def test_what_is_written_twice_or_begun_and_ended_counts_once():
    gathers = [one for one in tpu_collectives() if one.kind == "all-gather"]
    assert [one.name for one in gathers] == ["all-gather.1", "gathering"]
    assert {one.array_bytes for one in gathers} == {16 * 128 * 2}
    assert {one.times for one in gathers} == {1}


@pytest.mark.parametrize(
    ("limit", "stride", "turns"), [(7, 1, 7), (7, 2, 4), (8, 2, 4), (0, 1, 0), (5, -1, None)]
)
def test_turns_are_counted_where_they_are_not_stated(limit, stride, turns):
    (reduced,) = (one for one in tpu_collectives(limit, stride) if one.kind == "all-reduce")
    assert reduced.times == turns
    assert reduced.axes == ("data", "fsdp")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("direction=LT", "direction=GT"),
        ("tuple(%next, %total, %stride)", "tuple(%next, %total, %next)"),
        ("%copied = s32[]{:T(128)} copy(%zero)", "%copied = s32[]{:T(128)} rng(%zero)"),
        ("add(%turn, %stride)", "multiply(%turn, %stride)"),
    ],
)
def test_turns_are_not_guessed(old, new):
    assert old in TPU_TEXT
    found = tpu_collectives(text=TPU_TEXT.replace(old, new))
    assert [one.times for one in found if one.kind == "all-reduce"] == [None]


def test_equal_channels_alone_do_not_make_one_collective():
    found = tpu_collectives(text=re.sub(r"channel_id=\d+", "channel_id=1", TPU_TEXT))
    assert [(one.kind, one.name) for one in found] == [
        (one.kind, one.name) for one in tpu_collectives()
    ]


def test_a_computation_that_is_called_twice_counts_twice():
    call = "  %again = bf16[4,128]{1,0} fusion(%rows), kind=kCustom, calls=%all-reduce-scatter.1\n"
    found = tpu_collectives(text=TPU_TEXT.replace("  %zero =", call + "  %zero ="))
    assert [one.times for one in found if one.kind == "reduce-scatter"] == [2]


def test_summary_is_in_the_order_of_the_kinds():
    rows = summarize(tpu_collectives())
    assert [row.kind for row in rows] == ["all-gather", "all-reduce", "reduce-scatter"]
    assert [KINDS.index(row.kind) for row in rows] == sorted(KINDS.index(row.kind) for row in rows)
    assert rows[0].instructions == rows[0].executions == 2


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("f32[]", 4),
        ("bf16[2,3]{1,0:T(8,128)(2,1)}", 12),
        ("(f32[8]{0}, /*index=1*/pred[3], u8[2])", 37),
        ("s4[6]", 3),
        ("f8e4m3fn[10]", 10),
        ("token[]", 0),
        ("f32[<=8]", 32),
    ],
)
def test_sizes_of_types(text, size):
    assert hlo_text.type_bytes(text) == size


def test_other_text_is_refused():
    mesh = jax.sharding.AbstractMesh((2, 2, 2), AXES)
    with pytest.raises(HloError, match="no ENTRY computation"):
        find_collectives("module @jit_f { func.func public @main() }", mesh)
    with pytest.raises(HloError, match="no replica groups"):
        replica_groups(", channel_id=1", 8)
    with pytest.raises(HloError, match="the size of 'strange'"):
        hlo_text.type_bytes("strange[4]")
