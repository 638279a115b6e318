"""A step of a network that moves all tokens together is the same on one device and on eight."""

from __future__ import annotations

import functools
import math

import jax
import numpy as np
import pytest

from fasttta_jax.config import MeshConfig
from fasttta_jax.parallel.compile import abstract_state, compile_train_step
from fasttta_jax.parallel.mesh import make_mesh
from fasttta_jax.parallel.sharding import batch_sharding
from fasttta_jax.training import programs
from tests.support import helpers
from tests.support.latent_runs import batch, latent_config, params_of
from tests.support.tolerance import model_terms, rounding

STEPS = 2


@functools.cache
def metrics_on(kind: str, sizes: tuple[int, int, int]) -> list[dict[str, float]]:
    """Those of the first steps, whose second sees what the first has changed."""
    run = latent_config(kind)
    context = programs.default_context(run, helpers.tiny_text_encoder())
    mesh = make_mesh(MeshConfig(*sizes), jax.devices()[: math.prod(sizes)])
    abstract = abstract_state(programs.fresh_state(context), mesh)
    split = [not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(abstract)]
    assert any(split) == (sizes not in ((1, 1, 1), (8, 1, 1)))
    start = jax.jit(programs.fresh_state(context))(jax.random.key(0))
    params = params_of(kind)
    start = jax.tree.map(np.asarray, start.replace(params=params, ema=params))
    placed = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    state, frozen, still = jax.device_put(start, placed), {}, {}
    if context.teacher is not None:
        still = abstract_state(context.teacher.init, mesh)
        teacher = jax.tree.map(np.asarray, params_of("flow", 1))
        frozen = jax.device_put(teacher, jax.tree.map(lambda leaf: leaf.sharding, still))
    program = compile_train_step(programs.train_step(context), abstract, still, mesh)
    rows = jax.device_put(batch(), batch_sharding(mesh))
    found = []
    for _ in range(STEPS):
        state, metrics = program(state, frozen, rows, jax.random.key(1))
        found.append({name: float(value) for name, value in metrics.items()})
    return found


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("consistency", (2, 2, 2)),
        pytest.param("meanflow", (2, 2, 2), marks=pytest.mark.long),
        *(
            pytest.param(kind, sizes, marks=pytest.mark.long)
            for kind in ("flow", "consistency", "trajectory", "meanflow", "shortcut")
            for sizes in ((8, 1, 1), (2, 4, 1))
        ),
    ],
)
def test_a_step_is_the_same_on_every_layout(
    kind: str, sizes: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums in another order: an error in each pass, of which a target and a loss have several."""
    monkeypatch.setattr("fasttta_jax.parallel.sharding.MIN_FSDP_SIZE", 64)
    expected, found = metrics_on(kind, (1, 1, 1)), metrics_on(kind, sizes)
    passes = sum(
        programs.build_model(latent_config(kind), helpers.tiny_text_encoder()).objective.passes()
    )
    bound = math.ceil(passes) * rounding(model_terms(latent_config(kind).model))
    assert bound < 1e-3
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            np.testing.assert_allclose(ours[name], value, rtol=bound, err_msg=name)
    assert found[0] != found[1]
