"""The two systems as pure functions of their parameters: text encoder, backbone and head.

`Teacher` samples tokens by a diffusion chain, `Student` in one step. Both offer what decoding
needs: `hidden` and `sample_tokens`. Parameters are a plain dict with the keys text, backbone and
head.
Dimensions: B clips, N tokens, Q tokens asked of a head, C channels, D width, M draws, Z noise
dimensions.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fasttta_jax.config import DiffusionConfig, ModelConfig, RunConfig
from fasttta_jax.diffusion.sampler import Denoiser, ancestral_sample, guide
from fasttta_jax.diffusion.schedule import Schedule, respaced_schedule
from fasttta_jax.models.diffusion_head import DiffusionHead
from fasttta_jax.models.energy_head import EnergyHead, sample_noise
from fasttta_jax.models.mar import MAR
from fasttta_jax.text.base import TextBatch, TextEncoder
from fasttta_jax.typing import Conditioning, Hidden, Key, Masked, Params, Tokens


@dataclasses.dataclass(frozen=True, eq=False)
class TextToAudio(abc.ABC):
    """What teacher and student share: text encoder and backbone.

    Attributes:
      config: sizes.
      text: the text encoder, with its host-side tokenizer.
    """

    config: ModelConfig
    text: TextEncoder

    @property
    def dtype(self) -> jnp.dtype:
        return jnp.dtype(self.config.dtype)

    @property
    def backbone(self) -> MAR:
        return MAR(self.config.backbone, self.config.num_tokens, self.text.streams, self.dtype)

    def init(self, key: Key) -> dict[str, Any]:
        """Fresh float32 parameters."""
        text_key, backbone_key, head_key = jax.random.split(key, 3)
        text = self.text.init(text_key)
        conditioning = self.text.embed(text, self.text.tokenize([""]))
        tokens = jnp.zeros((1, self.config.num_tokens, self.config.token_dim))
        masked = jnp.ones(tokens.shape[:2], jnp.bool_)
        backbone = self.backbone.init(backbone_key, tokens, masked, conditioning)
        return {"text": text, "backbone": backbone["params"], "head": self.init_head(head_key)}

    @abc.abstractmethod
    def init_head(self, key: Key) -> Params:
        """Fresh parameters of the head alone."""

    def condition(
        self,
        params: Params,
        batch: TextBatch,
        *,
        hidden_tokens: Bool[Array, "B L"] | None = None,
    ) -> Conditioning:
        """Text streams of a tokenized batch."""
        return self.text.embed(params["text"], batch, hidden_tokens=hidden_tokens)

    def hidden(
        self,
        params: Params,
        tokens: Tokens,
        masked: Masked,
        conditioning: Conditioning,
        *,
        num_visible: int | None = None,
        positions: Int[Array, "B Q"] | None = None,
        dropout_key: Key | None = None,
    ) -> Hidden:
        """Backbone states of all positions, or of those named; dropout is on with a key."""
        return self.backbone.apply(
            {"params": params["backbone"]},
            tokens,
            masked,
            conditioning,
            num_visible=num_visible,
            positions=positions,
            deterministic=dropout_key is None,
            rngs=None if dropout_key is None else {"dropout": dropout_key},
        )  # type: ignore[return-value]


@dataclasses.dataclass(frozen=True, eq=False)
class Teacher(TextToAudio):
    """Backbone with a diffusion head."""

    diffusion: DiffusionConfig

    @property
    def head(self) -> DiffusionHead:
        return DiffusionHead(self.config.head, self.config.token_dim, self.dtype)

    def init_head(self, key: Key) -> Params:
        token = jnp.zeros((1, self.config.token_dim))
        hidden = jnp.zeros((1, self.config.backbone.width))
        return self.head.init(key, token, jnp.zeros((1,), jnp.int32), hidden)["params"]

    def denoise(
        self, params: Params, noisy: jax.Array, time: jax.Array, hidden: jax.Array
    ) -> Float[Array, "... 2C"]:
        """The head's answer for corrupted tokens."""
        return self.head.apply({"params": params["head"]}, noisy, time, hidden)  # type: ignore[return-value]

    @property
    def sampling_schedule(self) -> Schedule:
        """The respaced schedule of sampling."""
        return respaced_schedule(self.diffusion.num_steps, self.diffusion.sampling_steps)

    def guided_denoiser(
        self,
        params: Params,
        hidden: Float[Array, "B Q D"],
        hidden_unconditional: Float[Array, "B Q D"] | None,
        guidance_scale: jax.Array,
    ) -> Denoiser:
        """The head as the chain calls it: guided where there are states without text."""

        def denoise(x_t: jax.Array, time: jax.Array) -> jax.Array:
            answer = self.denoise(params, x_t, time, hidden)
            if hidden_unconditional is None:
                return answer
            baseline = self.denoise(params, x_t, time, hidden_unconditional)
            return guide(answer, baseline, guidance_scale)

        return denoise

    def sample_tokens(
        self,
        params: Params,
        hidden: Float[Array, "B Q D"],
        hidden_unconditional: Float[Array, "B Q D"] | None,
        guidance_scale: jax.Array,
        keys: Key,
        temperature: jax.Array,
    ) -> Float[Array, "B Q C"]:
        """Runs the reverse chain for every position; guidance acts on the predicted noise."""
        return ancestral_sample(
            self.guided_denoiser(params, hidden, hidden_unconditional, guidance_scale),
            keys,
            (hidden.shape[1], self.config.token_dim),
            schedule=self.sampling_schedule,
            prediction=self.diffusion.prediction,
            temperature=temperature,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Student(TextToAudio):
    """Backbone with an energy-scoring head."""

    @property
    def head(self) -> EnergyHead:
        return EnergyHead(self.config.head, self.config.token_dim, self.dtype)

    def init_head(self, key: Key) -> Params:
        noise = jnp.zeros((1, self.config.head.noise_dim))
        hidden = jnp.zeros((1, self.config.backbone.width))
        return self.head.init(key, noise, hidden)["params"]

    def draw(
        self,
        params: Params,
        noise: Float[Array, "M ... Z"],
        hidden: Float[Array, "... D"],
        temperature: float | jax.Array = 1.0,
    ) -> Float[Array, "M ... C"]:
        """M tokens per context; the context's part of the head is evaluated once."""
        variables = {"params": params["head"]}
        return self.head.apply(variables, noise, hidden[None], temperature)  # type: ignore[return-value]

    def sample_tokens(
        self,
        params: Params,
        hidden: Float[Array, "B Q D"],
        hidden_unconditional: Float[Array, "B Q D"] | None,
        guidance_scale: jax.Array,
        keys: Key,
        temperature: jax.Array,
    ) -> Float[Array, "B Q C"]:
        """One head evaluation per position; guidance acts on the backbone states."""
        if hidden_unconditional is not None:
            hidden = hidden_unconditional + guidance_scale * (hidden - hidden_unconditional)
        shape = (hidden.shape[1], self.config.head.noise_dim)
        noise = jax.vmap(lambda key: sample_noise(key, shape, self.config.head))(keys)
        return self.draw(params, noise[None], hidden, temperature)[0]


def build_model(config: RunConfig, text: TextEncoder) -> Teacher | Student:
    """The system that `config.stage` names."""
    if config.stage == "teacher":
        return Teacher(config.model, text, config.diffusion)
    return Student(config.model, text)
