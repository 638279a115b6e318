"""Jumps from noise to data: the objectives of flows, of a head of single tokens or a whole network.

One network u(z, r, t), the average velocity between two times, is regressed on the target that a
name of `objectives.targets.TARGETS` has. As the head of a masked network it is MeanFlow's and
Shortcut's in place of the energy head: times of its own for every token and draw, guidance on
states, one jump to sample. Otherwise it moves all tokens of a clip together (`systems.latent`).
Sources: see `objectives.targets`. Dimensions: B clips, N tokens, Q tokens asked for, C channels,
D width, R draws of (times, noise), P points of a grid.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float64

from fasttta_jax.config import ConfigError, FlowConfig, ModelConfig, RunConfig
from fasttta_jax.config.checks import check
from fasttta_jax.config.flow import check_flow
from fasttta_jax.flow.jump import jump
from fasttta_jax.flow.path import Velocity
from fasttta_jax.flow.times import grid
from fasttta_jax.masking import AllMasked, MaskDistribution
from fasttta_jax.models.jump_head import JumpHead
from fasttta_jax.models.layers import NUM_SINUSOIDS
from fasttta_jax.objectives.base import (
    HeadFlops,
    Objective,
    Passes,
    Teacher,
    for_head,
    modulation_flops,
    product_flops,
    residual_flops,
)
from fasttta_jax.objectives.regression import regress
from fasttta_jax.objectives.targets import TARGETS, Networks, Source
from fasttta_jax.randomness import normal_per_clip
from fasttta_jax.typing import Hidden, Key, Params, PerToken, Tokens

VELOCITY_ERROR = "velocity_error"
OF_HEADS = ("meanflow", "shortcut")
"""The targets that a head of single tokens may have, as published."""
WITH_TEACHER = ("consistency", "trajectory")


@dataclasses.dataclass(frozen=True)
class Jump(Objective):
    """What `config` says of the target `kind`, for the tokens and the head of `model`."""

    model: ModelConfig
    config: FlowConfig
    kind: str

    @classmethod
    def of(cls, run: RunConfig) -> Jump:
        """That of a run's config.

        Raises:
          ConfigError: sections of the run do not fit its objective.
        """
        kind, rows = run.objective, run.data.batch_size
        if run.model.network == "latent":
            _check_latent(run)
        else:
            _check_head(run)
            rows *= run.model.num_tokens * run.flow.num_draws
        check_flow(kind, run.flow, rows)
        if run.flow.distance == "adaptive":
            allowed = (
                f"{VELOCITY_ERROR!r} where flow.distance is 'adaptive', near 1 for any network"
            )
            check(run.best_metric == VELOCITY_ERROR, "best_metric", run.best_metric, allowed)
        found = cls(run.model, run.flow, kind)
        if run.model.network == "latent":
            found.points(run.decode.num_iterations)
        return found

    @property
    def terms(self) -> Mapping[str, str]:  # type: ignore[override]
        found = {self.kind: "distance of jumps to their target"}
        if self.kind == "trajectory" and self.config.denoising_weight > 0:
            found["denoising"] = "distance of denoised tokens to clean ones"
        return found

    @property
    def diagnostics(self) -> Mapping[str, str]:
        """The error of velocities, whatever distance trains."""
        return {VELOCITY_ERROR: "squared error of the velocity"}

    @property
    def needs_teacher(self) -> bool:
        return self.kind in WITH_TEACHER

    @property
    def wants_pairs(self) -> bool:
        return self.kind == "reflow"

    @property
    def target_decay(self) -> float | None:
        return self.config.target_decay or None

    @property
    def taught_by(self) -> Jump | None:
        """A flow that is told nothing, where a teacher is needed."""
        return Jump(self.model, FlowConfig(), "flow") if self.needs_teacher else None

    @property
    def name(self) -> str:
        return self.kind

    @property
    def min_strength(self) -> float:
        return self.config.guidance_low

    @property
    def max_strength(self) -> float | None:
        return self.config.guidance_high if self.config.tells_guidance else None

    def masks(self, tokens_per_column: int | None) -> MaskDistribution | None:
        """All tokens are wanted where they move together."""
        del tokens_per_column
        return AllMasked() if self.model.network == "latent" else None

    def strengths(self, key: Key, has_text: Bool[Array, " B"]) -> Float[Array, " B"] | None:
        """Uniform from the weakest to the strongest, where the network is told one."""
        low, high = self.config.guidance_low, self.config.guidance_high
        if not self.config.tells_guidance:
            return None
        return jax.random.uniform(key, has_text.shape, jnp.float32, low, high)

    @property
    def head(self) -> JumpHead:
        return JumpHead(self.model.head, self.model.token_dim, jnp.dtype(self.model.dtype))

    def init(self, key: Key) -> Params:
        token, time = jnp.zeros((1, self.model.token_dim)), jnp.zeros((1,))
        hidden = jnp.zeros((1, self.model.backbone.width))
        return self.head.init(key, token, time, time, hidden)["params"]

    def head_from(self, teacher: Objective, head: Params) -> Params:
        """A copy of that of another flow, which stands for all stretches what it has learned.

        Raises:
          ConfigError: the teacher's head is no such one, or has other sizes.
        """
        if not isinstance(teacher, Jump):
            raise ConfigError(
                "distillation.head_from_teacher is True; allowed: only where the teacher's "
                f"objective is one of {', '.join(TARGETS)}, whose head jumps"
            )
        for field in ("width", "depth"):
            ours, theirs = getattr(self.model.head, field), getattr(teacher.model.head, field)
            allowed = f"{theirs}, as the teacher in init_from has it, whose head this is"
            check(ours == theirs, f"model.head.{field}", ours, allowed)
        return jax.tree.map(jnp.copy, head)

    def losses(self, source: Source, online: Velocity, networks: Networks) -> dict[str, PerToken]:
        """The terms and the diagnostic of any network.

        Args:
          source: clean tokens, and the key of every draw.
          online: the network that trains.
          networks: what targets are made with.
        """
        regressions = TARGETS[self.kind](source, networks, self.config)
        found = [regress(online, regression, self.config) for regression in regressions]
        terms = zip(self.terms, (losses for losses, _ in found), strict=True)
        return {**dict(terms), VELOCITY_ERROR: found[0][1]}

    def _velocity(self, head: Params, hidden: Float[Array, "R B N D"]) -> Velocity:
        """The head given its contexts."""

        def velocity(z: jax.Array, r: jax.Array, t: jax.Array) -> jax.Array:
            return self.head.apply({"params": head}, z, r, t, hidden)  # type: ignore[return-value]

        return velocity

    def loss(
        self,
        head: Params,
        hidden: Hidden,
        tokens: Tokens,
        key: Key,
        *,
        teacher: Teacher | None,
        average: Params,
        target: Params | None,
    ) -> dict[str, PerToken]:
        """Means over R draws of times and noise a token; targets do not move the states."""
        del teacher, average
        context = for_head(hidden[None])
        held = jax.lax.stop_gradient(head) if target is None else target
        networks = Networks(self._velocity(held, jax.lax.stop_gradient(context)))
        source = Source(key, tokens, (self.config.num_draws, *tokens.shape[:2]))
        return self.losses(source, self._velocity(head, context), networks)

    def sample(
        self,
        head: Params,
        hidden: Float[Array, "B Q D"],
        hidden_unconditional: Float[Array, "B Q D"] | None,
        guidance_scale: jax.Array,
        keys: Key,
        temperature: jax.Array,
    ) -> Float[Array, "B Q C"]:
        """One jump from noise at every position; guidance acts on the backbone's states."""
        if hidden_unconditional is not None:
            hidden = hidden_unconditional + guidance_scale * (hidden - hidden_unconditional)
        noise = temperature * normal_per_clip(keys, (hidden.shape[1], self.model.token_dim))
        start = jnp.ones(noise.shape[:2])
        u = self.head.apply({"params": head}, noise, jnp.zeros_like(start), start, hidden)
        return jump(noise, u, jnp.zeros_like(start), start)  # type: ignore[arg-type]

    def points(self, num_jumps: int) -> Float64[np.ndarray, " P"]:
        """Times from 1 to 0 that so many jumps of a whole network go through.

        What learned on a grid jumps between its points; the others between even ones.

        Raises:
          ConfigError: the grid has no such jumps.
        """
        name, steps = "decode.num_iterations", self.config.grid_steps
        if self.kind in ("flow", "reflow", "meanflow"):
            return grid("uniform", num_jumps)
        check(1 <= num_jumps <= steps, name, num_jumps, f"from 1 to flow.grid_steps = {steps}")
        if self.kind == "shortcut":
            allowed = f"a divisor of flow.grid_steps = {steps}: jumps have learned those lengths"
            check(steps % num_jumps == 0, name, num_jumps, allowed)
        chosen = np.rint(np.linspace(0, steps, num_jumps + 1)).astype(int)
        return grid(self.config.grid, steps)[chosen]

    def passes(self) -> Passes:
        """Forward passes of a step, for each clip or, of a head, for each draw of a token."""
        config = self.config
        guided = 1 if config.guides_targets else 0
        branches = 2 if config.tells_guidance else 1
        solving = branches * (2 if config.solver == "heun" else 1)
        if self.kind == "consistency":
            return Passes(1, 1, solving)
        if self.kind == "trajectory":
            mean_steps = (2 * config.max_skip + 1) / 3
            return Passes(len(self.terms), 1, mean_steps * solving)
        if self.kind == "meanflow":
            own = 1 if config.kappa > 0 or config.tangent == "predicted" else 0
            return Passes(1, 2 + own + guided, 0)
        if self.kind == "shortcut":
            return Passes(1, 2 + 2 * guided, 0)
        return Passes(1, 0, 0)

    @property
    def time_flops(self) -> float:
        """The embedding of a pair of times."""
        width = self.model.head.width
        return 2 * product_flops(1, NUM_SINUSOIDS, width) + product_flops(1, width, width)

    def flops(self) -> HeadFlops:
        """The context is projected once for all draws; times are of each token and draw."""
        width, depth = self.model.head.width, self.model.head.depth
        context = product_flops(1, self.model.backbone.width, width)
        one = product_flops(1, self.model.token_dim, width) + residual_flops(width, depth)
        one += product_flops(1, width, self.model.token_dim) + modulation_flops(width, depth)
        one += self.time_flops
        return HeadFlops(context + self.config.num_draws * one, context + one, context + one)


def _check_head(run: RunConfig) -> None:
    """Raises ConfigError where a head of single tokens cannot be trained so."""
    why = f"where objective is {run.objective!r} and model.network is 'masked'"
    if run.objective not in OF_HEADS:
        allowed = f"'latent' where objective is {run.objective!r}, which moves all tokens together"
        check(False, "model.network", run.model.network, allowed)
    allowed = f"1 {why}: guidance acts on states"
    guidance = run.flow.target_guidance
    check(guidance == 1, "flow.target_guidance", guidance, allowed)
    check(run.flow.kappa == 0, "flow.kappa", run.flow.kappa, f"0 {why}: guidance acts on states")


def _check_latent(run: RunConfig) -> None:
    """Raises ConfigError where a whole network cannot be trained or sampled so."""
    why = "where model.network is 'latent'"
    backbone, text, decode = run.model.backbone, run.model.text, run.decode
    for field in ("attention_dropout", "projection_dropout"):
        rate = getattr(backbone, field)
        allowed = f"0 {why}: targets are made by the same network, without dropout"
        check(rate == 0, f"model.backbone.{field}", rate, allowed)
    weight, frozen = run.distillation.weight, run.distillation.freeze_backbone
    check(weight == 0, "distillation.weight", weight, f"0 {why}: it has no states to align")
    check(not frozen, "distillation.freeze_backbone", frozen, f"False {why}: it trains as a whole")
    decode.check_jumps()
    if run.flow.tells_guidance or run.flow.guides_targets:
        name = "flow.guidance_high" if run.flow.tells_guidance else "flow.target_guidance"
        allowed = f"'learned' or 'frozen' where {name} is not 1: without text nothing is guided"
        check(text.encoder != "none", "model.text.encoder", text.encoder, allowed)
    without_text = run.flow.guides_targets or (
        decode.guidance_scale != 1 and not run.flow.tells_guidance
    )
    if without_text:
        guides = "flow.target_guidance" if run.flow.guides_targets else "decode.guidance_scale"
        allowed = f"above 0 where {guides} is not 1: what has no text must be learned"
        check(text.drop_rate > 0, "model.text.drop_rate", text.drop_rate, allowed)
    if run.flow.tells_guidance:
        low, high = run.flow.guidance_low, run.flow.guidance_high
        allowed = f"from flow.guidance_low = {low:g} to flow.guidance_high = {high:g}"
        scale = decode.guidance_scale
        check(low <= scale <= high, "decode.guidance_scale", scale, allowed)
