"""What average velocities are regressed on: the targets of six objectives, in one form.

On the straight path one network u(z, r, t) serves all of them; they differ in times, targets and
weights. None knows whether it serves a network of whole clips or a head of single tokens.
Sources: flow matching (Lipman et al., 2023); reflow (Liu et al., 2023; Rectified Diffusion);
ConsistencyTTA and AudioLCM, which are `consistency` with other constants; SoundCTM; MeanFlow and
iMF (Geng et al., 2025); Shortcut models (Frans et al., 2025).
Dimensions: B clips, N tokens, C channels, R draws; T, the axes of times: [B] for whole clips,
[B, N] or [R, B, N] for single tokens, whose z are [B, N, C] or [R, B, N, C].
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fasttta_jax.config.flow import FlowConfig
from fasttta_jax.flow.jump import jump, solve
from fasttta_jax.flow.path import Velocity, interpolate, over
from fasttta_jax.flow.times import LEVELS, draw_pairs, draw_times, grid
from fasttta_jax.objectives.regression import Regression, frozen
from fasttta_jax.randomness import stream
from fasttta_jax.typing import Key, Tokens

MAX_SNR = 5.0


class Networks(NamedTuple):
    """Velocities that targets are made with; no gradient reaches their parameters.

    Attributes:
      target: the network's own, by the parameters in training or by their running average.
      unconditional: the same without text; None where no target is guided by it.
      teacher: the teacher's, guided by the strength of each clip; None without a teacher.
      has_text: the clips that keep their caption, the only ones whose targets are guided; None
        where all do.
    """

    target: Velocity
    unconditional: Velocity | None = None
    teacher: Velocity | None = None
    has_text: Bool[Array, " B"] | None = None


class Source(NamedTuple):
    """What noisy tokens are drawn from.

    Attributes:
      key: of every draw.
      x: clean tokens.
      time_shape: of the times.
      noise: where it belongs to the tokens, as in stored pairs.
    """

    key: Key
    x: Tokens
    time_shape: tuple[int, ...]
    noise: Float[Array, "B N C"] | None = None

    def draw(self) -> tuple[Float[Array, "... N C"], Float[Array, "... N C"]]:
        """Clean tokens and noise, one draw for each of the leading axes of times of tokens."""
        shape, noise = self.time_shape[:-2] + self.x.shape, self.noise
        if noise is None:
            noise = jax.random.normal(stream(self.key, "noise"), shape, jnp.float32)
        return jnp.broadcast_to(self.x, shape), jnp.broadcast_to(noise, shape)


@runtime_checkable
class Target(Protocol):
    """Draws times and noise, and makes what is regressed on of them."""

    def __call__(
        self, source: Source, networks: Networks, config: FlowConfig, /
    ) -> tuple[Regression, ...]:
        """Regressions whose losses are added.

        Args:
          source: clean tokens and the key of every draw.
          networks: what the target is made with.
          config: the run's section `flow`.
        """
        ...


def _where_text(
    networks: Networks, guided: Float[Array, "... N C"], plain: Float[Array, "... N C"]
) -> Float[Array, "... N C"]:
    """Guided velocities for clips that keep their caption."""
    if networks.has_text is None:
        return guided
    has_text = networks.has_text.reshape((1,) * (plain.ndim - 3) + (-1, 1, 1))
    return jnp.where(has_text, guided, plain)


def _velocity_regression(source: Source, config: FlowConfig) -> Regression:
    x, noise = source.draw()
    t = draw_times(stream(source.key, "time"), source.time_shape, config)
    ones = jnp.ones_like(t)
    return Regression(interpolate(x, noise, t), t, t, noise - x, ones, ones)


def flow(source: Source, networks: Networks, config: FlowConfig) -> tuple[Regression, ...]:
    """The velocity of single times: e - x."""
    del networks
    return (frozen(_velocity_regression(source, config)),)


def reflow(source: Source, networks: Networks, config: FlowConfig) -> tuple[Regression, ...]:
    """The velocity between noise and what a teacher made of it, as stored in pairs.

    Distance "huber" counts at the clean tokens, as Rectified Diffusion does: t (e - x).
    """
    assert source.noise is not None, "reflow regresses on stored pairs"
    (found,) = flow(source, networks, config)
    if config.distance == "huber":
        target = over(found.t, found.z) * found.target
        found = found._replace(target=target, scale=found.t)
    return (found,)


def consistency(source: Source, networks: Networks, config: FlowConfig) -> tuple[Regression, ...]:
    """The jump to time 0 agrees with the one from the grid's next point.

    The teacher's solver leads there; without a teacher the same noise does (consistency training),
    whose solution is biased on any grid.
    """
    x, noise = source.draw()
    key, time_shape = source.key, source.time_shape
    points = grid(config.grid, config.grid_steps)
    times = jnp.asarray(points, jnp.float32)
    index = jax.random.randint(stream(key, "time"), time_shape, 0, config.grid_steps)
    t, following = times[index], times[index + 1]
    end = jnp.zeros_like(t)
    z = interpolate(x, noise, t)
    if networks.teacher is None:
        there = interpolate(x, noise, following)
    else:
        there = solve(networks.teacher, z, points, index, 1, config.solver)
    arrives = jump(there, networks.target(there, end, following), end, following)
    if config.last_interval == "data":
        arrives = jnp.where(over(following, x) == 0.0, x, arrives)
    weight = jnp.ones_like(t)
    if config.weight == "min_snr":
        levels = LEVELS[config.grid](config.grid_steps)[:-1]
        snr = jnp.asarray(((1.0 - levels) / levels) ** 2, jnp.float32)
        weight = jnp.minimum(snr, MAX_SNR)[index]
    return (frozen(Regression(z, end, t, z - arrives, t, weight)),)


def trajectory(source: Source, networks: Networks, config: FlowConfig) -> tuple[Regression, ...]:
    """The jump from t to s agrees with h steps of the teacher's solver and the jump from there.

    All clips have one h, so that the teacher works no longer than that. The denoising loss beside
    it has EDM's weight for data of unit variance, (sigma^2 + 1) / sigma^2 of a clean token.
    """
    assert networks.teacher is not None, "trajectory has a teacher"
    clean, noise = source.draw()
    key, time_shape = source.key, source.time_shape
    points = grid(config.grid, config.grid_steps)
    times = jnp.asarray(points, jnp.float32)
    skips = jnp.arange(1, config.max_skip + 1)
    skip = 1 + jax.random.categorical(stream(key, "skip"), jnp.log(skips.astype(jnp.float32)))
    last = config.grid_steps - skip
    first = jax.random.randint(stream(key, "start"), time_shape, 0, last + 1)
    final = jax.random.randint(stream(key, "end"), time_shape, first + skip, config.grid_steps + 1)
    t, middle, s = times[first], times[first + skip], times[final]
    z = interpolate(clean, noise, t)
    there = solve(networks.teacher, z, points, first, skip, config.solver)
    arrives = jump(there, networks.target(there, s, middle), s, middle)
    found = Regression(z, s, t, z - arrives, t - s, jnp.ones_like(t))
    if config.denoising_weight == 0:
        return (frozen(found),)
    source = source._replace(key=stream(key, "denoising"), noise=None)
    denoising = _velocity_regression(source, config)
    weight = config.denoising_weight * (denoising.t**2 + (1.0 - denoising.t) ** 2)
    return frozen(found), frozen(denoising._replace(weight=weight))


def total_derivative(
    velocity: Velocity,
    z: Float[Array, "... N C"],
    r: Float[Array, " *T"],
    t: Float[Array, " *T"],
    direction: Float[Array, "... N C"],
) -> Float[Array, "... N C"]:
    """du/dt where z moves in `direction` and r stays."""
    tangents = (direction, jnp.zeros_like(r), jnp.ones_like(t))
    return jax.jvp(velocity, (z, r, t), tangents)[1]


def meanflow(source: Source, networks: Networks, config: FlowConfig) -> tuple[Regression, ...]:
    """The average velocity by its differential identity: u = v - (t - r) du/dt.

    Guided, v is omega (e - x) + kappa v_c + (1 - omega - kappa) v_u, of the network's own
    velocities with and without text; clips without a caption keep e - x.
    """
    x, noise = source.draw()
    key, time_shape = source.key, source.time_shape
    r, t = draw_pairs(stream(key, "time"), time_shape, config)
    z = interpolate(x, noise, t)
    velocity = noise - x
    own = functools.cache(lambda: networks.target(z, t, t))
    if config.guides_targets:
        assert networks.unconditional is not None, "the target is guided"
        omega, kappa = config.target_guidance, config.kappa
        guided = omega * velocity + (1.0 - omega - kappa) * networks.unconditional(z, t, t)
        if kappa > 0:
            guided = guided + kappa * own()
        velocity = _where_text(networks, guided, velocity)
    direction = own() if config.tangent == "predicted" else velocity
    slope = total_derivative(networks.target, z, r, t, direction)
    target = velocity - over(t - r, z) * slope
    ones = jnp.ones_like(t)
    return (frozen(Regression(z, r, t, target, ones, ones)),)


def shortcut(source: Source, networks: Networks, config: FlowConfig) -> tuple[Regression, ...]:
    """A jump is two jumps of half its length; the shortest, one interval, is the velocity.

    Each clip draws for itself whether it bootstraps, and a level: 2, 4, ..., K intervals. Where the
    halves are single intervals they are guided by the network without text, as published.
    """
    x, noise = source.draw()
    key, time_shape = source.key, source.time_shape
    num_steps = config.grid_steps
    bootstraps = jax.random.bernoulli(stream(key, "kind"), config.bootstrap_share, time_shape)
    level = jax.random.randint(stream(key, "level"), time_shape, 1, num_steps.bit_length())
    length = jnp.where(bootstraps, 2**level, 1)
    place = 1 + jax.random.randint(stream(key, "time"), time_shape, 0, num_steps // length)
    t = (place * length).astype(jnp.float32) / num_steps
    r = ((place - 1) * length).astype(jnp.float32) / num_steps
    middle = 0.5 * (t + r)
    z = interpolate(x, noise, t)
    half = functools.partial(_half_jump, networks, config, length == 2)
    first = half(z, middle, t)
    second = half(jump(z, first, middle, t), r, middle)
    target = jnp.where(over(bootstraps, z), 0.5 * (first + second), noise - x)
    ones = jnp.ones_like(t)
    return (frozen(Regression(z, r, t, target, ones, ones)),)


def _half_jump(
    networks: Networks,
    config: FlowConfig,
    is_shortest: Bool[Array, " *T"],
    z: Float[Array, "... N C"],
    r: Float[Array, " *T"],
    t: Float[Array, " *T"],
) -> Float[Array, "... N C"]:
    found = networks.target(z, r, t)
    if config.target_guidance == 1.0:
        return found
    assert networks.unconditional is not None, "the target is guided"
    without = networks.unconditional(z, r, t)
    guided = without + config.target_guidance * (found - without)
    return jnp.where(over(is_shortest, z), _where_text(networks, guided, found), found)


TARGETS: Mapping[str, Target] = {
    "flow": flow,
    "reflow": reflow,
    "consistency": consistency,
    "trajectory": trajectory,
    "meanflow": meanflow,
    "shortcut": shortcut,
}
"""By the names of their objectives."""
