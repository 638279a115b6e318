"""A text-to-audio system as pure functions of its parameters: text encoder, backbone, objective.

Parameters are a plain dict with the keys text, backbone and head.
Dimensions: B clips, N tokens, Q tokens asked for, L text positions, C channels, D width.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fasttta_jax.config import ModelConfig, RunConfig
from fasttta_jax.config.checks import check
from fasttta_jax.models.mar import MAR
from fasttta_jax.objectives import Objective, build_objective
from fasttta_jax.randomness import stream
from fasttta_jax.text.base import TextBatch, TextEncoder
from fasttta_jax.typing import Conditioning, Hidden, Key, Masked, Params, Tokens


@dataclasses.dataclass(frozen=True)
class TextToAudio:
    """Backbone and head between captions and tokens; equal by value.

    Attributes:
      config: sizes.
      text: the text encoder, with its host-side tokenizer.
      objective: what the head is trained by, and how it samples.
    """

    config: ModelConfig
    text: TextEncoder
    objective: Objective

    @property
    def backbone(self) -> MAR:
        config = self.config
        return MAR(
            config.backbone,
            config.num_tokens,
            self.text.streams,
            jnp.dtype(config.dtype),
            takes_strength=self.guides_itself,
        )

    @property
    def guides_itself(self) -> bool:
        """Whether the backbone is told the strength of guidance, and needs no second pass."""
        return self.objective.max_strength is not None

    def check_strength(self, name: str, strength: float) -> None:
        """Raises ConfigError where the backbone has not learned this strength of guidance.

        Args:
          name: of the setting.
          strength: its value.
        """
        strongest = self.objective.max_strength
        if strongest is not None:
            allowed = f"from 1 to {strongest:g}, what this model has learned to guide itself by"
            check(1 <= strength <= strongest, name, strength, allowed)

    def init(self, key: Key) -> dict[str, Any]:
        """Fresh float32 parameters."""
        text = self.text.init(stream(key, "text"))
        conditioning = self.text.embed(text, self.text.tokenize([""]))
        tokens = jnp.zeros((1, self.config.num_tokens, self.config.token_dim))
        masked = jnp.ones(tokens.shape[:2], jnp.bool_)
        backbone = self.backbone.init(stream(key, "backbone"), tokens, masked, conditioning)
        head = self.objective.init(stream(key, "head"))
        return {"text": text, "backbone": backbone["params"], "head": head}

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
        strength: Float[Array, " B"] | None = None,
        dropout_key: Key | None = None,
    ) -> Hidden:
        """Backbone states of all positions, or of those named; dropout is on with a key.

        A system that `guides_itself` has them guided by `strength`, a number a clip; None is 1.
        """
        return self.backbone.apply(
            {"params": params["backbone"]},
            tokens,
            masked,
            conditioning,
            num_visible=num_visible,
            positions=positions,
            strength=strength,
            deterministic=dropout_key is None,
            rngs=None if dropout_key is None else {"dropout": dropout_key},
        )  # type: ignore[return-value]

    def sample_tokens(
        self,
        params: Params,
        hidden: Float[Array, "B Q D"],
        hidden_unconditional: Float[Array, "B Q D"] | None,
        guidance_scale: jax.Array,
        keys: Key,
        temperature: jax.Array,
    ) -> Float[Array, "B Q C"]:
        """A token for every state, as `Objective.sample` says."""
        return self.objective.sample(
            params["head"], hidden, hidden_unconditional, guidance_scale, keys, temperature
        )


def build_model(config: RunConfig, text: TextEncoder) -> TextToAudio:
    """The system of a run.

    Raises:
      ConfigError: see `build_objective`.
    """
    return TextToAudio(config.model, text, build_objective(config))
