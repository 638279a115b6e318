"""Guidance in one pass: a finished student's guided states, distilled into a backbone that is told
the strength.

Trained by the squared distance of its states to h_u + s (h_c - h_u) of the frozen student, with and
without text, weighted by 1 / s^2 as in GFT: of the unguided state within, an error is 1 / s of that
of the guided one. Tokens are masked as parallel decoding has them. The head is the student's.
Sources: CALM (Kyutai), which guides states before a one-step head and distils them; GFT, for the
distribution of strengths and for data under guidance.
Dimensions: B clips, N tokens, Q tokens asked for, C channels, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fasttta_jax.config import ConfigError, DecodeConfig, GuidedConfig, RunConfig
from fasttta_jax.config.checks import check
from fasttta_jax.losses.align import feature_mse
from fasttta_jax.masking import DecodingMasks
from fasttta_jax.objectives.base import HeadFlops, Objective, Teacher
from fasttta_jax.objectives.energy import Energy
from fasttta_jax.randomness import stream
from fasttta_jax.typing import Hidden, Key, Params, PerToken, Tokens


@dataclasses.dataclass(frozen=True)
class Guided(Objective):
    """What `config` says of distilling a finished student's guidance.

    Attributes:
      student: what that one was trained by; its head samples.
      config: strengths, and whether data counts, too.
      decode: iterations, counts and order of the decoding whose masks it learns from.
    """

    student: Energy
    config: GuidedConfig
    decode: DecodeConfig

    @classmethod
    def of(cls, run: RunConfig) -> Guided:
        """That of a run's config.

        Raises:
          ConfigError: other sections ask for what it cannot do.
        """
        why = "where objective is 'guided'"
        for field in ("backbone_from_teacher", "head_from_teacher"):
            allowed = f"True {why}: it starts from the student whose guidance it learns"
            check(getattr(run.distillation, field), f"distillation.{field}", False, allowed)
        weight, frozen = run.distillation.weight, run.distillation.freeze_backbone
        allowed = f"0 {why}: the teacher's states that it learns are the guided ones"
        check(weight == 0, "distillation.weight", weight, allowed)
        allowed = f"False {why}: it is the backbone that learns"
        check(not frozen, "distillation.freeze_backbone", frozen, allowed)
        encoder = run.model.text.encoder
        allowed = f"'learned' or 'frozen' {why}: without text there is nothing to be guided by"
        check(encoder != "none", "model.text.encoder", encoder, allowed)
        share = run.energy.sample_guidance
        allowed = f"0 {why}: one pass learns guidance of states alone"
        check(share == 0, "energy.sample_guidance", share, allowed)
        scale, strongest = run.decode.guidance_scale, run.guided.max_strength
        allowed = f"from 1 to guided.max_strength = {strongest:g}"
        check(1 <= scale <= strongest, "decode.guidance_scale", scale, allowed)
        decode = DecodeConfig(
            num_iterations=run.decode.num_iterations,
            counts=run.decode.counts,
            order=run.decode.order,
        )
        return cls(Energy(run.model, run.energy), run.guided, decode)

    @property
    def terms(self) -> Mapping[str, str]:  # type: ignore[override]
        found = {"guidance": "squared distance to the guided states, over squared strength"}
        return found if self.config.energy == "none" else {**found, **self.student.terms}

    @property
    def needs_teacher(self) -> bool:
        return True

    @property
    def taught_by(self) -> Energy:
        return self.student

    @property
    def max_strength(self) -> float:
        return self.config.max_strength

    @property
    def meaning(self) -> Mapping[str, Any]:
        """That of the student's head."""
        return self.student.meaning

    def masks(self, tokens_per_column: int | None) -> DecodingMasks:
        """Those that decoding finds, which ends where random masks have no clip."""
        return DecodingMasks(self.decode, tokens_per_column)

    def strengths(self, key: Key, has_text: Bool[Array, " B"]) -> Float[Array, " B"]:
        """1 for a share of the clips and where there is no text; otherwise 1 / s is uniform."""
        lowest = 1.0 / self.config.max_strength
        inverse = jax.random.uniform(stream(key, "inverse"), has_text.shape, minval=lowest)
        unguided = jax.random.bernoulli(
            stream(key, "unguided"), self.config.unguided_share, has_text.shape
        )
        return 1.0 / jnp.where(unguided | ~has_text, 1.0, inverse)

    def init(self, key: Key) -> Params:
        return self.student.init(key)

    def head_from(self, teacher: Objective, head: Params) -> Params:
        """A copy of the student's.

        Raises:
          ConfigError: it has other sizes, noise or roles.
        """
        assert isinstance(teacher, Energy), "`taught_by` is checked before"
        ours, theirs = self.student, teacher
        needed = {
            "model.head.width": (ours.model.head.width, theirs.model.head.width),
            "model.head.depth": (ours.model.head.depth, theirs.model.head.depth),
            "energy.noise_dim": (ours.config.noise_dim, theirs.config.noise_dim),
            "energy.noise": (ours.config.noise, theirs.config.noise),
            "energy.roles": (ours.config.roles, theirs.config.roles),
        }
        for field, (value, allowed) in needed.items():
            if value != allowed:
                raise ConfigError(
                    f"{field} is {value!r}; allowed: {allowed!r}, as the student in init_from has "
                    "it, whose head this is"
                )
        return jax.tree.map(jnp.copy, head)

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
        """The distance, and the energy score where the config asks for it."""
        assert teacher is not None, "`needs_teacher`"
        assert teacher.guidance is not None, "`strengths` draws"
        strength = teacher.guidance.strength[:, None, None]
        unconditional = teacher.guidance.unconditional
        guided = unconditional + strength * (teacher.hidden - unconditional)
        terms = {"guidance": feature_mse(hidden, guided) / jnp.square(strength[..., 0])}
        if self.config.energy == "none":
            return terms
        if self.config.energy == "mixture":
            hidden = hidden / strength + (1.0 - 1.0 / strength) * unconditional
        if not self.config.train_head:
            head = jax.lax.stop_gradient(head)
        found = self.student.loss(
            head, hidden, tokens, key, teacher=None, average=average, target=target
        )["energy"]
        if self.config.energy == "unguided":
            found = jnp.where(strength[..., 0] == 1.0, found, 0.0)
        return {**terms, "energy": found}

    def sample(
        self,
        head: Params,
        hidden: Float[Array, "B Q D"],
        hidden_unconditional: Float[Array, "B Q D"] | None,
        guidance_scale: jax.Array,
        keys: Key,
        temperature: jax.Array,
    ) -> Float[Array, "B Q C"]:
        """As the student samples: by the states alone, or guided by two passes of strength 1."""
        return self.student.sample(
            head, hidden, hidden_unconditional, guidance_scale, keys, temperature
        )

    def flops(self) -> HeadFlops:
        """The student's; nothing in training where no energy counts."""
        found = self.student.flops()
        return found._replace(training=0.0) if self.config.energy == "none" else found
