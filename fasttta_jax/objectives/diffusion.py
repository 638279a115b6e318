"""Diffusion of single tokens given their context: MAR's and IMPACT's objective.

Trained by the squared error of the prediction and a bound on the learned variance, and where a
config asks for it that of a linear guess from the context; sampled by an ancestral chain whose
predictions are guided.
Dimensions: B clips, N tokens, Q tokens asked for, C channels, D width, R draws of (time, noise).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fasttta_jax.config import DiffusionConfig, ModelConfig
from fasttta_jax.diffusion.loss import diffusion_loss
from fasttta_jax.diffusion.sampler import Denoiser, ancestral_sample, guide
from fasttta_jax.diffusion.schedule import (
    Schedule,
    corrupt,
    respaced_schedule,
    training_schedule,
)
from fasttta_jax.losses.align import feature_mse
from fasttta_jax.models.diffusion_head import DiffusionHead
from fasttta_jax.models.layers import NUM_SINUSOIDS
from fasttta_jax.objectives.base import (
    HeadFlops,
    Objective,
    Teacher,
    for_head,
    modulation_flops,
    product_flops,
    residual_flops,
)
from fasttta_jax.randomness import stream
from fasttta_jax.typing import Hidden, Key, Params, PerToken, Tokens

REGRESSION = "regression"


@dataclasses.dataclass(frozen=True)
class Diffusion(Objective):
    """The denoising objective of `config`, for the tokens, contexts and head of `model`."""

    model: ModelConfig
    config: DiffusionConfig

    @property
    def terms(self) -> Mapping[str, str]:  # type: ignore[override]
        found = {
            "mse": "squared error of the prediction",
            "vb": "variational bound of the variance",
        }
        if self.config.regression:
            found[REGRESSION] = "squared error of a linear guess from the context, weighted"
        return found

    @property
    def meaning(self) -> Mapping[str, Any]:
        """A head predicts epsilon or v at the steps of one schedule."""
        fields = ("prediction", "num_steps")
        return {f"diffusion.{name}": getattr(self.config, name) for name in fields}

    @property
    def head(self) -> DiffusionHead:
        return DiffusionHead(
            self.model.head,
            self.model.token_dim,
            jnp.dtype(self.model.dtype),
            regresses=self.config.regression > 0,
        )

    @property
    def sampling_schedule(self) -> Schedule:
        """The respaced schedule of sampling."""
        return respaced_schedule(self.config.num_steps, self.config.sampling_steps)

    def init(self, key: Key) -> Params:
        token = jnp.zeros((1, self.model.token_dim))
        hidden = jnp.zeros((1, self.model.backbone.width))
        return self.head.init(key, token, jnp.zeros((1,), jnp.int32), hidden)["params"]

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
        """Means over R draws of time and noise a token."""
        del teacher, average, target
        schedule = training_schedule(self.config.num_steps)
        shape = (self.config.batch_multiplier, *tokens.shape)
        time = jax.random.randint(stream(key, "time"), shape[:-1], 0, schedule.num_steps)
        noise = for_head(jax.random.normal(stream(key, "noise"), shape, jnp.float32))
        clean = for_head(jnp.broadcast_to(tokens[None], shape))
        noisy = corrupt(clean, time, noise, schedule)
        # One projection of the context for all draws.
        output = self.head.apply({"params": head}, noisy, time, for_head(hidden[None]))
        terms = diffusion_loss(
            output,  # type: ignore[arg-type]
            clean,
            noisy,
            time,
            noise,
            schedule=schedule,
            prediction=self.config.prediction,
        )
        found = {name: jnp.mean(term, axis=0) for name, term in terms.items()}
        if self.config.regression:
            guess = self.head.apply({"params": head}, hidden, method="guess")
            found[REGRESSION] = self.config.regression * feature_mse(guess, tokens)  # type: ignore[arg-type]
        return found

    def guided_denoiser(
        self,
        head: Params,
        hidden: Float[Array, "B Q D"],
        hidden_unconditional: Float[Array, "B Q D"] | None,
        guidance_scale: jax.Array,
    ) -> Denoiser:
        """The head as the chain calls it: guided where there are states without text."""
        apply, variables = self.head.apply, {"params": head}

        def denoise(x_t: jax.Array, time: jax.Array) -> jax.Array:
            conditional = apply(variables, x_t, time, hidden)
            if hidden_unconditional is None:
                return conditional  # type: ignore[return-value]
            unconditional = apply(variables, x_t, time, hidden_unconditional)
            return guide(conditional, unconditional, guidance_scale)  # type: ignore[arg-type]

        return denoise

    def sample(
        self,
        head: Params,
        hidden: Float[Array, "B Q D"],
        hidden_unconditional: Float[Array, "B Q D"] | None,
        guidance_scale: jax.Array,
        keys: Key,
        temperature: jax.Array,
    ) -> Float[Array, "B Q C"]:
        """Runs the reverse chain at every position; guidance acts on the predicted noise."""
        return ancestral_sample(
            self.guided_denoiser(head, hidden, hidden_unconditional, guidance_scale),
            keys,
            (hidden.shape[1], self.model.token_dim),
            schedule=self.sampling_schedule,
            prediction=self.config.prediction,
            temperature=temperature,
        )

    def flops(self) -> HeadFlops:
        """The context is projected once for all draws of training, and at every sampling step.

        The modulation depends on the time, so that it belongs to the draw.
        """
        width, depth, channels = self.model.head.width, self.model.head.depth, self.model.token_dim
        context = product_flops(1, self.model.backbone.width, width)
        time = product_flops(1, NUM_SINUSOIDS, width) + product_flops(1, width, width)
        ends = product_flops(1, channels, width) + product_flops(1, width, 2 * channels)
        draw = time + ends + modulation_flops(width, depth) + residual_flops(width, depth)
        guess = 0.0
        if self.config.regression:
            guess = product_flops(1, self.model.backbone.width, channels)
        sampling = self.config.sampling_steps * (context + draw)
        return HeadFlops(
            training=context + guess + self.config.batch_multiplier * draw,
            sampling=sampling,
            guided_sampling=2 * sampling,
        )
