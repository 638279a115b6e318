"""The energy score of one-step samples given their context: AudioDEAR's and EAR's objective.

Sources: AudioDEAR, whose head may start from a diffusion teacher's, and EAR. Their guidance acts on
the backbone's states, so that a guided token takes one evaluation of the head as well.
Dimensions: B clips, N tokens, Q tokens asked for, C channels, D width, M draws, Z noise dimensions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fasttta_jax.config import ConfigError, EnergyConfig, ModelConfig
from fasttta_jax.losses.energy import energy_score
from fasttta_jax.models.energy_head import EnergyHead, from_diffusion_head, sample_noise
from fasttta_jax.objectives.base import (
    HeadFlops,
    Objective,
    Teacher,
    for_head,
    modulation_flops,
    product_flops,
    residual_flops,
)
from fasttta_jax.objectives.diffusion import Diffusion
from fasttta_jax.typing import Hidden, Key, Params, PerToken, Tokens

HEAD_TIME_SHARE = 0.997
"""The time that a diffusion teacher's head is frozen at, as a share of its last step."""


@dataclasses.dataclass(frozen=True)
class Energy(Objective):
    """The scoring objective of `config`, for the tokens, contexts and head of `model`."""

    model: ModelConfig
    config: EnergyConfig

    terms: ClassVar[Mapping[str, str]] = {"energy": "energy score"}

    @property
    def meaning(self) -> Mapping[str, Any]:
        """A head transforms noise of one distribution."""
        return {f"energy.{name}": getattr(self.config, name) for name in ("roles", "noise")}

    @property
    def head(self) -> EnergyHead:
        model = self.model
        return EnergyHead(model.head, self.config.roles, model.token_dim, jnp.dtype(model.dtype))

    def init(self, key: Key) -> Params:
        noise = jnp.zeros((1, self.config.noise_dim))
        hidden = jnp.zeros((1, self.model.backbone.width))
        return self.head.init(key, noise, hidden)["params"]

    def head_from(self, teacher: Objective, head: Params) -> Params:
        """The head that gives minus the teacher's v-prediction near its last step.

        Raises:
          ConfigError: the teacher is not a v-predicting diffusion with a head of the same sizes, or
            `energy` has other noise or roles than such a head.
        """
        if not isinstance(teacher, Diffusion) or teacher.config.prediction != "v":
            raise ConfigError(
                "distillation.head_from_teacher is True; allowed: only where the teacher's "
                "objective is 'diffusion' and its diffusion.prediction is 'v', an estimate of the "
                "clean token at the last step"
            )
        needed = {
            "model.head.width": (self.model.head.width, teacher.model.head.width),
            "model.head.depth": (self.model.head.depth, teacher.model.head.depth),
            "energy.noise_dim": (self.config.noise_dim, teacher.model.token_dim),
            "energy.noise": (self.config.noise, "gaussian"),
            "energy.roles": (self.config.roles, "noise_stream"),
        }
        for field, (value, allowed) in needed.items():
            if value != allowed:
                raise ConfigError(
                    f"{field} is {value!r}; allowed: {allowed!r} where "
                    "distillation.head_from_teacher is true: the teacher's head was trained so"
                )
        time = round(HEAD_TIME_SHARE * (teacher.config.num_steps - 1))
        return from_diffusion_head(teacher.head, head, time)

    def draw(
        self,
        head: Params,
        noise: Float[Array, "M ... Z"],
        hidden: Float[Array, "... D"],
        temperature: float | jax.Array = 1.0,
    ) -> Float[Array, "M ... C"]:
        """M tokens per context; the context's part of the head is evaluated once."""
        return self.head.apply({"params": head}, noise, hidden[None], temperature)  # type: ignore[return-value]

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
        """The score of M samples a token."""
        del teacher, average, target
        config = self.config
        shape = (config.num_draws, *tokens.shape[:-1], config.noise_dim)
        noise = for_head(sample_noise(key, shape, config.noise))
        samples = self.draw(head, noise, for_head(hidden[None])[0])
        score = energy_score(samples, tokens, alpha=config.alpha, temperature=config.temperature)
        return {"energy": score}

    def sample(
        self,
        head: Params,
        hidden: Float[Array, "B Q D"],
        hidden_unconditional: Float[Array, "B Q D"] | None,
        guidance_scale: jax.Array,
        keys: Key,
        temperature: jax.Array,
    ) -> Float[Array, "B Q C"]:
        """One evaluation of the head a position, or two where guidance acts on samples as well.

        Of the strength s, s^(1 - p) acts on the backbone's states and s^p on samples of one noise,
        where p is `energy.sample_guidance`.
        """
        shape = (hidden.shape[1], self.config.noise_dim)
        noise = jax.vmap(lambda key: sample_noise(key, shape, self.config.noise))(keys)[None]
        if hidden_unconditional is None:
            return self.draw(head, noise, hidden, temperature)[0]
        share = self.config.sample_guidance
        on_states = guidance_scale ** (1 - share) if share else guidance_scale
        hidden = hidden_unconditional + on_states * (hidden - hidden_unconditional)
        samples = self.draw(head, noise, hidden, temperature)[0]
        if not share:
            return samples
        unconditional = self.draw(head, noise, hidden_unconditional, temperature)[0]
        return unconditional + guidance_scale**share * (samples - unconditional)

    def flops(self) -> HeadFlops:
        """Whatever modulates is projected for every block: once for all draws where the context
        does, which is the case for roles "noise_stream".
        """
        width, depth = self.model.head.width, self.model.head.depth
        context = product_flops(1, self.model.backbone.width, width)
        draw = product_flops(1, self.config.noise_dim, width) + residual_flops(width, depth)
        draw += product_flops(1, width, self.model.token_dim)
        if self.config.roles == "noise_stream":
            context += modulation_flops(width, depth)
        else:
            draw += modulation_flops(width, depth)
        sampling = context + draw
        guided = 2 * sampling if self.config.sample_guidance else sampling
        return HeadFlops(context + self.config.num_draws * draw, sampling, guided)
