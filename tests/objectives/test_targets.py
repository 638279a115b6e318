"""Targets on flows that are known exactly: the solution is where no gradient pulls away from it.

A network u (1 + p_0) + p_1 + p_2 (t - r) with u exact has, at p = 0, a mean gradient of zero for
every objective: within four standard errors over the draws, plus float32 rounding. Mistakes are
made on purpose, one by one, and have to show.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fasttta_jax.config import FlowConfig
from fasttta_jax.flow.path import over
from fasttta_jax.objectives import targets
from fasttta_jax.objectives.regression import regress
from fasttta_jax.objectives.targets import TARGETS, Networks, Source
from tests.support.gaussian_flow import GaussianFlow, euler_tower
from tests.support.tolerance import unit_roundoff

FLOW = GaussianFlow()
WITHOUT_TEXT = GaussianFlow(-0.2)
NUM_DRAWS = 2**14
ENOUGH = 8.0
"""Standard errors that a mistake has to show."""
GUIDED = FlowConfig(target_guidance=1.5, kappa=0.5)
GUIDED_FLOW = GaussianFlow(-0.2 + 3 * 0.5)
"""Of strength omega / (1 - kappa) = 3."""
TOWERS = {flow: euler_tower(flow, 8) for flow in (FLOW, WITHOUT_TEXT, GaussianFlow(0.55))}


def tower(flow: GaussianFlow, z, r, t):
    """The average velocity of 8 Euler steps, at times of their grid."""
    start, end = (jnp.round(8 * time).astype(jnp.int32) for time in (t, r))
    a, b = (over(jnp.asarray(table, jnp.float32)[start, end], z) for table in TOWERS[flow])
    return (z - (a * z + b)) / over(jnp.where(t > r, t - r, 1.0), z)


def guided_tower(z, r, t):
    """Shortcut's solution at strength 1.5: jumps of one interval are not guided, others are."""
    guided = GaussianFlow(0.55)  # -.2 + 1.5 (.3 + .2)
    return jnp.where(over(t - r < 0.2, z), tower(FLOW, z, r, t), tower(guided, z, r, t))


SHORTCUT = Networks(guided_tower, functools.partial(tower, WITHOUT_TEXT))


def exactly(flow, z, points, start, num_steps, solver):
    """What `solve` does, by a solver without error."""
    del solver
    times = jnp.asarray(points, z.dtype)
    return flow.jump(z, times[start + num_steps], times[start])


NOISES = np.random.default_rng(7).normal(size=(2, NUM_DRAWS, 1, 1)).astype(np.float32)
DATA, PAIR_NOISE = np.float32(FLOW.mean) + np.float32(FLOW.std) * NOISES[0], NOISES[1]


def pulls(name: str, config: FlowConfig, solution, networks: Networks, noise=None, x=DATA):
    """Gradients of every draw's loss by p at 0, [draws, 3], and its loss."""

    def losses(p):
        def online(z, r, t):
            return solution(z, r, t) * (1 + p[0]) + p[1] + p[2] * over(t - r, z)

        own = networks._replace(target=online) if networks.target is solution else networks
        found = TARGETS[name](
            Source(jax.random.key(1), jnp.asarray(x), (NUM_DRAWS,), noise), own, config
        )
        return sum(regress(online, each, config)[0][:, 0] for each in found)

    return jax.jit(lambda: (jax.jacfwd(losses)(jnp.zeros(3)), losses(jnp.zeros(3))))()


def standard_errors(gradients: jax.Array) -> np.ndarray:
    """How many the mean is from zero; rounding of the differences, below 16 in unit, is no pull."""
    gradients = np.float64(gradients)
    rounding = 16 * unit_roundoff()
    error = gradients.std(axis=0) / len(gradients) ** 0.5 + rounding
    return np.abs(gradients.mean(axis=0)) / error


OWN = Networks(target=FLOW)
TAUGHT = Networks(target=FLOW, teacher=FLOW)


@dataclasses.dataclass(frozen=True)
class Case:
    objective: str
    config: FlowConfig
    solution: object = FLOW
    networks: Networks = OWN


CASES = {
    "flow": Case("flow", FlowConfig(time_distribution="logit_normal")),
    "consistency": Case("consistency", FlowConfig(grid="vp", weight="min_snr"), FLOW, TAUGHT),
    "consistency, huber": Case("consistency", FlowConfig(distance="huber"), FLOW, TAUGHT),
    "trajectory": Case("trajectory", FlowConfig(denoising_weight=0.0), FLOW, TAUGHT),
    "trajectory, denoising": Case("trajectory", FlowConfig(max_skip=8), FLOW, TAUGHT),
    "meanflow": Case("meanflow", FlowConfig(equal_share=0.25, endpoint_share=0.2)),
    "meanflow, predicted": Case("meanflow", FlowConfig(tangent="predicted")),
    "meanflow, adaptive": Case("meanflow", FlowConfig(distance="adaptive")),
    "meanflow, guided": Case("meanflow", GUIDED, GUIDED_FLOW, Networks(GUIDED_FLOW, WITHOUT_TEXT)),
    "shortcut, guided": Case(
        "shortcut", FlowConfig(bootstrap_share=0.5, target_guidance=1.5), guided_tower, SHORTCUT
    ),
}


def pulls_of(case: Case):
    return pulls(case.objective, case.config, case.solution, case.networks)


@pytest.fixture
def exact_solver(monkeypatch):
    monkeypatch.setattr(targets, "solve", exactly)


@pytest.mark.usefixtures("exact_solver", "unchecked")
@pytest.mark.parametrize("name", CASES)
def test_the_solution_is_stationary(name):
    gradients, losses = pulls_of(CASES[name])
    assert bool(jnp.all(jnp.isfinite(losses)))
    assert standard_errors(gradients).max() < 4.0
    # ... and not because nothing pulls: the draws have gradients, distillations those of rounding
    if name not in ("consistency", "consistency, huber", "trajectory"):
        assert float(jnp.std(gradients[:, 0])) > 0.01


@pytest.mark.usefixtures("unchecked")
def test_a_gradient_through_the_target_pulls(monkeypatch):
    """Without stop_gradient, MeanFlow's residual, which has noise, has another slope."""
    monkeypatch.setattr(targets, "frozen", lambda regression: regression)
    assert standard_errors(pulls_of(CASES["meanflow"])[0]).max() > ENOUGH


def wrong_tangents(velocity, z, r, t, direction):
    """1 for the end of the jump where its start moves."""
    return jax.jvp(velocity, (z, r, t), (direction, jnp.ones_like(r), jnp.zeros_like(t)))[1]


def still_tokens(velocity, z, r, t, direction):
    """Tokens that do not move along."""
    tangents = (jnp.zeros_like(direction), jnp.zeros_like(r), jnp.ones_like(t))
    return jax.jvp(velocity, (z, r, t), tangents)[1]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("mistake", [wrong_tangents, still_tokens])
def test_a_wrong_derivative_pulls(monkeypatch, mistake):
    monkeypatch.setattr(targets, "total_derivative", mistake)
    gradients, _ = pulls_of(CASES["meanflow, predicted"])
    assert standard_errors(gradients).max() > ENOUGH


@pytest.mark.usefixtures("unchecked")
def test_consistency_training_is_biased():
    """Without a teacher; the same noise leads beside the flow on every grid."""
    case = Case("consistency", FlowConfig(grid_steps=2), FLOW, OWN)
    assert standard_errors(pulls_of(case)[0]).max() > ENOUGH


@pytest.mark.usefixtures("exact_solver", "unchecked")
def test_an_interval_that_ends_at_the_data_pulls():
    """ConsistencyTTA's, of which a perfect student is too narrow."""
    config = FlowConfig(grid_steps=2, last_interval="data")
    case = Case("consistency", config, FLOW, TAUGHT)
    assert standard_errors(pulls_of(case)[0]).max() > ENOUGH


@pytest.mark.usefixtures("unchecked")
def test_guidance_of_another_strength_pulls():
    config = dataclasses.replace(GUIDED, kappa=0.4)
    case = dataclasses.replace(CASES["meanflow, guided"], config=config)
    assert standard_errors(pulls_of(case)[0]).max() > ENOUGH


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("distance", ["mse", "huber"])
def test_pairs_of_the_flow_have_no_loss(distance):
    """Reflow: the velocity along their lines is a function of the token."""
    noise = jnp.asarray(PAIR_NOISE)
    x = FLOW.mean + FLOW.std * noise

    def along_lines(z, r, t):
        del r
        gain = (1 - FLOW.std) / ((1 - over(t, z)) * FLOW.std + over(t, z))
        return gain * (z - (1 - over(t, z)) * FLOW.mean) - FLOW.mean

    config = FlowConfig(distance=distance)
    _, losses = pulls("reflow", config, along_lines, Networks(along_lines), noise, x)
    assert float(losses.max()) < (64 * unit_roundoff()) ** 2 / (0.001 if distance == "huber" else 1)
    _, losses = pulls("flow", config, along_lines, Networks(along_lines), None, x)
    assert float(losses.mean()) > 0.01


# What holds of every objective, for whole clips and for single tokens.

SHAPES = {"clips": (6,), "draws of tokens": (2, 6, 3)}
EVERY = FlowConfig(
    target_guidance=1.5, kappa=0.25, tangent="predicted", grid="karras", grid_steps=39, max_skip=5
)
"""Times down to .002, and half of MeanFlow's pairs equal."""
CONFIGS = dict.fromkeys(TARGETS, EVERY)
CONFIGS["shortcut"] = FlowConfig(target_guidance=1.5, bootstrap_share=0.5)
FORMS = [(name, "draws of tokens") for name in TARGETS]
FORMS += [("trajectory", "clips"), ("meanflow", "clips")]


def some_losses(name: str, time_shape: tuple[int, ...], factors, x):
    """Losses [B, N] of networks with a factor each: online, target, without text, teacher."""
    online, target, without, teacher = (
        lambda z, r, t, factor=factor: factor * FLOW(z, r, t) for factor in factors
    )
    has_text = jnp.arange(6) != 4
    networks = Networks(target, without, teacher, has_text)
    noise = jnp.ones_like(x) if name == "reflow" else None
    config = CONFIGS[name]
    found = TARGETS[name](Source(jax.random.key(5), x, time_shape, noise), networks, config)
    both = [regress(online, each, config) for each in found]
    return sum(losses for losses, _ in both), both[0][1], found


X = np.float32(0.3) + NOISES[0, :36].reshape(6, 3, 2) / 2


def regressed(name: str, seed: int, x, networks: Networks, config: FlowConfig, noise=None):
    """The one regression of an objective for whole clips."""

    def function(x, noise):
        key, shape = jax.random.key(seed), x.shape[:1]
        return TARGETS[name](Source(key, x, shape, noise), networks, config)[0]

    return jax.jit(function)(jnp.asarray(x), noise)


@functools.cache
def compiled(name: str, shape: str):
    """Losses, gradients of their sum by each factor, and what was regressed on, of tokens."""

    def function(x):
        def total(factors):
            losses, errors, found = some_losses(name, SHAPES[shape], factors, jnp.asarray(x))
            return jnp.sum(losses), (losses, errors, found)

        return jax.value_and_grad(total, has_aux=True)(jnp.array([0.9, 1.0, 0.8, 1.0]))

    return jax.jit(function)


@pytest.mark.parametrize(("name", "shape"), FORMS)
def test_gradients_reach_the_network_in_training_alone(name, shape):
    (_, (losses, errors, found)), gradients = compiled(name, shape)(X)
    assert losses.shape == errors.shape == X.shape[:-1]
    assert losses.dtype == jnp.float32
    for each in jax.tree.leaves((losses, errors, found, gradients)):
        assert np.isfinite(each).all()
    assert float(gradients[0]) != 0.0
    np.testing.assert_array_equal(gradients[1:], np.zeros(3))
    for each in found:
        assert each.t.shape == each.r.shape == each.scale.shape == SHAPES[shape]
        assert bool(jnp.all((each.r >= 0) & (each.r <= each.t) & (each.t <= 1)))
        assert bool(jnp.all(each.scale > 0))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ["consistency", "trajectory", "meanflow", "shortcut"])
def test_a_target_that_is_not_stopped_shows(monkeypatch, name):
    """Where the residual of the solution is zero, the gradient by the target tells alone."""
    monkeypatch.setattr(targets, "frozen", lambda regression: regression)

    def function(factors):
        return jnp.sum(some_losses(name, (6,), factors, jnp.asarray(X))[0])

    gradients = jax.jit(jax.jacfwd(function))(jnp.array([0.9, 1.0, 0.8, 1.0]))
    assert float(gradients[1]) != 0.0


@pytest.mark.parametrize(("name", "shape"), FORMS)
def test_a_clip_does_not_know_its_neighbours(name, shape):
    (_, (losses, *_)), _ = compiled(name, shape)(X)
    (_, (others, *_)), _ = compiled(name, shape)(
        np.where(np.arange(6).reshape(6, 1, 1) == 2, X, 3 - X)
    )
    np.testing.assert_array_equal(losses[2], others[2])
    assert bool(jnp.any(losses != others))


@pytest.mark.usefixtures("unchecked")
def test_at_equal_times_a_jump_is_the_velocity():
    """MeanFlow regresses on e - x there, whatever the derivative; Shortcut in one interval."""
    config = FlowConfig(equal_share=0.5)
    noise = jnp.ones_like(X)
    found = regressed("meanflow", 2, X, OWN, config, noise)
    equal = np.asarray(found.r == found.t)
    assert 0 < equal.sum() < 6
    np.testing.assert_array_equal(found.target[equal], (noise - X)[equal])
    found = regressed("shortcut", 2, X, OWN, config, noise)
    shortest = np.asarray(found.t - found.r == 1 / 8)
    assert 0 < shortest.sum() < 6
    np.testing.assert_array_equal(found.target[shortest], (noise - X)[shortest])


def test_every_length_of_jump_is_drawn_alike():
    """Of 8 steps: a quarter of the clips has lengths 1/4, 1/2 and 1, at multiples of them."""
    config = FlowConfig(grid_steps=8, bootstrap_share=0.25)
    found = regressed("shortcut", 0, jnp.asarray(DATA), OWN, config)
    length, t = np.asarray(found.t - found.r), np.asarray(found.t)
    for each, share in ((1 / 8, 3 / 4), (1 / 4, 1 / 12), (1 / 2, 1 / 12), (1, 1 / 12)):
        bound = 5 * (share * (1 - share) / NUM_DRAWS) ** 0.5
        assert abs((length == each).mean() - share) <= bound
        assert set(t[length == each]) == set(np.arange(each, 1.01, each))


@pytest.mark.parametrize("name", ["meanflow", "shortcut"])
def test_guidance_ends_where_the_caption_is_dropped(name):
    """Clip 4 has no text: its target is that without guidance."""
    guided = FlowConfig(target_guidance=1.5, grid_steps=2, bootstrap_share=0.9, equal_share=0.0)
    plain = dataclasses.replace(guided, target_guidance=1.0)
    networks = Networks(FLOW, WITHOUT_TEXT, has_text=jnp.arange(6) != 4)
    found, expected = (regressed(name, 5, X, networks, each).target for each in (guided, plain))
    differs = np.any(np.abs(found - expected) > 1e-3, axis=(1, 2))  # far above rounding
    assert not differs[4]
    assert differs.any()


def test_what_a_regression_holds_is_a_jump():
    """z less scale times the exact velocity is where the teacher goes."""
    config = FlowConfig(grid_steps=64, max_skip=3, denoising_weight=0.0)
    for name in ("consistency", "trajectory"):
        found = regressed(name, 3, X, TAUGHT, config)
        exact = FLOW.jump(*map(np.asarray, (found.z, found.r, found.t)))
        np.testing.assert_allclose(found.z - found.target, exact, atol=1e-4)  # Heun's, of 1/64
