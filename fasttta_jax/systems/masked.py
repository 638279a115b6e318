"""The masked autoregressive system: MAR over visible tokens, and a head that makes the others.

Dimensions: B clips, N tokens, Q tokens asked for, L text positions, C channels, D width.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fasttta_jax.config import DecodeConfig
from fasttta_jax.decoding import loop
from fasttta_jax.decoding.loop import DecodeResult, Known, parallel_decode
from fasttta_jax.decoding.plan import plan_segments
from fasttta_jax.masking import order_stages
from fasttta_jax.models.mar import MAR
from fasttta_jax.objectives import Guidance, Teacher
from fasttta_jax.randomness import stream
from fasttta_jax.systems.base import Clips, Others, System, Terms
from fasttta_jax.typing import Conditioning, Hidden, Key, Masked, Params, Tokens


class TextToAudio(System):
    """MAR and a head on its states; tokens are decoded in parallel, some in each iteration."""

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

    def losses(
        self, params: Params, clips: Clips, key: Key, others: Others, *, freeze: bool, train: bool
    ) -> Terms:
        """Those of the head, given the states of one masked pass; the teacher sees the same masks,
        captions, dropped captions and hidden words, and has no dropout.
        """
        strength = self.objective.strengths(stream(key, "strength"), clips.keep_text)
        hidden = self.hidden(
            params,
            clips.visible,
            clips.masked,
            self.condition_clips(params, clips),
            num_visible=clips.num_visible,
            strength=strength,
            dropout_key=stream(key, "dropout") if train else None,
        )
        if freeze:
            hidden = jax.lax.stop_gradient(hidden)
        teacher = self._teacher(clips, others, strength)
        values = self.objective.loss(
            params["head"],
            hidden,
            clips.tokens,
            stream(key, "objective"),
            teacher=teacher,
            average=jax.lax.stop_gradient(others.average["head"]),
            target=jax.lax.stop_gradient(others.target),
        )
        return Terms(values, None if teacher is None else (hidden, teacher.hidden))

    def _teacher(
        self, clips: Clips, others: Others, strength: Float[Array, " B"] | None
    ) -> Teacher | None:
        """What the loss sees of the teacher; with a strength of guidance also without text."""
        system, frozen = others.teacher, others.frozen
        if system is None:
            return None
        assert isinstance(system, TextToAudio), "teachers of other networks are refused before"
        conditioning = system.condition_clips(frozen, clips)
        run = functools.partial(system.hidden, frozen, num_visible=clips.num_visible)
        if strength is None:
            hidden = run(clips.visible, clips.masked, conditioning)
            return Teacher(system.objective, frozen["head"], hidden)
        rows = run(
            loop.repeat_rows(clips.visible, 2),
            loop.repeat_rows(clips.masked, 2),
            loop.with_unconditional(conditioning),
        )
        hidden, unconditional = loop.rows_of(rows, 2)
        guidance = Guidance(strength, jax.lax.stop_gradient(unconditional))
        return Teacher(system.objective, frozen["head"], hidden, guidance)

    def target_part(self, params: Params) -> Params:
        """The head: states are those of the backbone that trains."""
        return params["head"]

    def check_decoding(
        self, config: DecodeConfig, tokens_per_column: int | None, num_known: int, num_texts: int
    ) -> None:
        """Raises ValueError where there are more iterations than tokens to generate, or counts or
        an order of other tokens.
        """
        del num_texts
        plan_segments(config, self.config.num_tokens, num_known)
        order_stages(config, self.config.num_tokens, tokens_per_column)

    def guidance_scales(self, config: DecodeConfig, num_known: int) -> tuple[float, ...]:
        """Those of the plan's segments."""
        segments = plan_segments(config, self.config.num_tokens, num_known)
        return tuple(scale for segment in segments for scale in segment.guidance_scales)

    def generate(
        self,
        params: Params,
        conditioning: Conditioning,
        key: Key,
        config: DecodeConfig,
        *,
        tokens_per_column: int | None = None,
        known: Known | None = None,
        num_known: int = 0,
        guidance: loop.Guidance | None = None,
        weights: Float[Array, "B N X"] | None = None,
        return_states: bool = False,
    ) -> DecodeResult:
        """`parallel_decode`."""
        return parallel_decode(
            self,
            params,
            conditioning,
            key,
            config,
            num_tokens=self.config.num_tokens,
            token_dim=self.config.token_dim,
            tokens_per_column=tokens_per_column,
            known=known,
            num_known=num_known,
            guidance=guidance,
            weights=weights,
            return_states=return_states,
        )
