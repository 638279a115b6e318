"""The full-latent system: one network moves all tokens of a clip together, from noise to data.

A bidirectional transformer of MAR's blocks over [text; time; noisy tokens], and the jump head on
its states: the average velocity between two times (`objectives.jump`). The strength of guidance
that a network is told is added to all positions before the tokens.
Dimensions: B clips, N tokens, C channels, W head width, T jumps.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fasttta_jax.config import ConfigError, DecodeConfig
from fasttta_jax.config.checks import check
from fasttta_jax.decoding.loop import (
    DecodeResult,
    DecodeState,
    Guidance,
    Known,
    interleave,
    repeat_rows,
    rows_of,
)
from fasttta_jax.flow.jump import sample_deterministic, sample_renoising
from fasttta_jax.flow.path import Velocity
from fasttta_jax.models.mar import MAR
from fasttta_jax.objectives.jump import Jump
from fasttta_jax.objectives.targets import Networks, Source
from fasttta_jax.randomness import fold_in_each, normal_per_clip, stream
from fasttta_jax.systems.base import Clips, Others, System, Terms
from fasttta_jax.typing import Conditioning, Key, Params, TextStream, unconditional

TIME = "time"
"""The stream whose one position tells the times."""


def noise_of(seeds: Array, shape: tuple[int, ...]) -> Float[Array, "B N C"]:
    """The noise of stored pairs, by their seeds."""
    return normal_per_clip(jax.vmap(jax.random.key)(seeds), shape)


class FullLatent(System):
    """A network of whole clips that jumps along the path from noise to data."""

    objective: Jump

    @property
    def backbone(self) -> MAR:
        config = self.config
        return MAR(
            config.backbone,
            config.num_tokens,
            (*self.text.streams, (TIME, 1)),
            jnp.dtype(config.dtype),
            takes_strength=self.guides_itself,
        )

    def prefix(self, conditioning: Conditioning) -> Conditioning:
        batch_size = next(iter(conditioning.values())).mask.shape[0]
        return self._at(conditioning, jnp.zeros((batch_size, self.config.head.width)))

    def _at(self, conditioning: Conditioning, embedded: Float[Array, "B W"]) -> Conditioning:
        """The text streams and that of the times, which is never dropped."""
        is_there = jnp.ones((len(embedded), 1), jnp.bool_)
        return {**conditioning, TIME: TextStream(embedded[:, None], is_there)}

    def velocity(
        self,
        params: Params,
        conditioning: Conditioning,
        strength: Float[Array, " B"] | None = None,
    ) -> Velocity:
        """The network given its text and the strength of guidance that it is told."""
        head, backbone = self.objective.head, {"params": params["backbone"]}

        def u(z: jax.Array, r: jax.Array, t: jax.Array) -> jax.Array:
            variables = {"params": params["head"]}
            embedded = head.apply(variables, r, t, method="time_embedding")
            hidden = self.backbone.apply(
                backbone,
                z,
                jnp.zeros(z.shape[:2], jnp.bool_),
                self._at(conditioning, embedded),  # type: ignore[arg-type]
                strength=strength,
            )
            return head.apply(variables, z, embedded[:, None], hidden, method="at")  # type: ignore[index, return-value]

        return u

    def guided(
        self,
        params: Params,
        conditioning: Conditioning,
        away: Conditioning,
        scale: Float[Array, " B"],
    ) -> Velocity:
        """v_u + scale (v_c - v_u), both in one pass over a doubled batch.

        Args:
          params: of the network.
          conditioning: the text.
          away: what guidance leads away from.
          scale: its strength for each clip.
        """
        both = self.velocity(params, jax.tree.map(interleave, conditioning, away))

        def u(z: jax.Array, r: jax.Array, t: jax.Array) -> jax.Array:
            found = both(repeat_rows(z, 2), repeat_rows(r, 2), repeat_rows(t, 2))
            conditional, other = rows_of(found, 2)
            return other + scale[:, None, None] * (conditional - other)

        return u

    def losses(
        self, params: Params, clips: Clips, key: Key, others: Others, *, freeze: bool, train: bool
    ) -> Terms:
        """Of the clip's noisy tokens, all of which count; there is no dropout."""
        del freeze, train
        strength = self.objective.strengths(stream(key, "strength"), clips.keep_text)
        held = jax.lax.stop_gradient(params if others.target is None else others.target)
        text = self.condition_clips(held, clips)
        without = None
        if self.objective.config.guides_targets:
            without = self.velocity(held, unconditional(text))
        networks = Networks(
            self.velocity(held, text, strength),
            without,
            self._teacher(clips, others, strength),
            clips.keep_text,
        )
        noise = None
        if self.objective.wants_pairs:
            assert clips.noise_seeds is not None, "data that is no pairs is refused before"
            noise = noise_of(clips.noise_seeds, clips.tokens.shape[1:])
        source = Source(stream(key, "objective"), clips.tokens, clips.tokens.shape[:1], noise)
        online = self.velocity(params, self.condition_clips(params, clips), strength)
        return Terms(self.objective.losses(source, online, networks))

    def _teacher(
        self, clips: Clips, others: Others, strength: Float[Array, " B"] | None
    ) -> Velocity | None:
        system, frozen = others.teacher, others.frozen
        if system is None:
            return None
        assert isinstance(system, FullLatent), "teachers of other networks are refused before"
        text = system.condition_clips(frozen, clips)
        if strength is None:
            return system.velocity(frozen, text)
        return system.guided(frozen, text, unconditional(text), strength)

    def target_part(self, params: Params) -> Params:
        """All of them: the target network reads noisy tokens of its own."""
        return params

    @property
    def takes_known(self) -> bool:
        """No: all tokens move together."""
        return False

    @property
    def takes_negatives(self) -> bool:
        """Where two passes guide."""
        return not self.guides_itself

    def check_decoding(
        self, config: DecodeConfig, tokens_per_column: int | None, num_known: int, num_texts: int
    ) -> None:
        """Raises ValueError where the path has no such jumps, tokens are known or texts several."""
        del tokens_per_column
        self._check_jumps(config, num_known, num_texts)
        self.check_strength("guidance_scale", config.guidance_scale)
        if not self.guides_itself and self.config.text.drop_rate == 0:
            allowed = "1, as this network has learned nothing without text"
            check(config.guidance_scale == 1, "guidance_scale", config.guidance_scale, allowed)

    def _check_jumps(self, config: DecodeConfig, num_known: int, num_texts: int) -> None:
        together = "as this network moves all tokens of a clip together"
        check(num_known == 0, "known tokens", num_known, f"none, {together}")
        check(num_texts == 1, "texts of a clip", num_texts, f"1, {together}")
        config.check_jumps()
        self.objective.points(config.num_iterations)

    def guidance_scales(self, config: DecodeConfig, num_known: int) -> tuple[float, ...]:
        """The same in every jump."""
        del num_known
        return (config.guidance_scale,) * config.num_iterations

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
        guidance: Guidance | None = None,
        weights: Float[Array, "B N X"] | None = None,
        return_states: bool = False,
    ) -> DecodeResult:
        """Jumps from noise to time 0.

        Raises:
          ConfigError: tokens are known, texts several, or the path has no such jumps.
        """
        num_texts = 1 if weights is None else weights.shape[2]
        if guidance is None:
            self.check_decoding(config, tokens_per_column, num_known, num_texts)
        else:  # whose scales stand for the config's
            self._check_jumps(config, num_known, num_texts)
        if known is not None:
            raise ConfigError("known is given; allowed: None")
        velocity = self._sampling_velocity(params, conditioning, key, config, guidance)
        points = self.objective.points(config.num_iterations)
        shape = (self.config.num_tokens, self.config.token_dim)
        temperature = jnp.float32(config.temperature)
        noise = temperature * normal_per_clip(fold_in_each(key, config.num_iterations), shape)
        if self.objective.config.sampler == "renoise":
            found = sample_renoising(velocity, noise, points, key.shape, key, temperature)
        else:
            found = sample_deterministic(velocity, noise, points, key.shape)
        states = DecodeState(found.states, jnp.zeros(found.states.shape[:3], jnp.bool_))
        return DecodeResult(found.tokens, states if return_states else None)

    def _sampling_velocity(
        self,
        params: Params,
        conditioning: Conditioning,
        key: Key,
        config: DecodeConfig,
        guidance: Guidance | None,
    ) -> Velocity:
        scale = jnp.full(key.shape, config.guidance_scale, jnp.float32)
        if guidance is not None:
            scale = guidance.scales[:, 0]
        if self.guides_itself:
            return self.velocity(params, conditioning, scale)
        if config.guidance_scale == 1.0:
            return self.velocity(params, conditioning)
        away = unconditional(conditioning)
        if guidance is not None and guidance.negative is not None:
            away = guidance.negative
        return self.guided(params, conditioning, away, scale)
