"""What an objective is: the loss that trains a head, how the head samples, and what both cost.

The step keeps what all objectives share: masks, conditioning, backbone, alignment with a teacher's
features, the masked mean, the update. An objective sees backbone states and tokens alone, and may
choose the masks and the strength of guidance that a backbone is told.
Dimensions: B clips, N tokens, Q tokens asked for, C channels, D width, M draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Bool, Float

from fasttta_jax.config import ConfigError
from fasttta_jax.masking import MaskDistribution
from fasttta_jax.parallel.sharding import constrain
from fasttta_jax.typing import Hidden, Key, Params, PerToken, Tokens


class HeadFlops(NamedTuple):
    """A head's floating-point operations for one token position.

    Attributes:
      training: the forward pass of the loss, with all its draws.
      sampling: one sample without guidance.
      guided_sampling: one sample with guidance.
    """

    training: float
    sampling: float
    guided_sampling: float


class Passes(NamedTuple):
    """Forward passes of a training step.

    Attributes:
      online: of what the objective trains, a head or a whole network, with gradients behind them.
      target: of the same for its targets; a derivative by time counts as two.
      teacher: of a whole network's teacher.
    """

    online: int
    target: float
    teacher: float


class Guidance(NamedTuple):
    """What a loss is given where the backbone is told a strength of guidance.

    Attributes:
      strength: that of each clip.
      unconditional: the teacher's states for the same masked tokens without text.
    """

    strength: Float[Array, " B"]
    unconditional: Hidden


class Teacher(NamedTuple):
    """The frozen teacher of a run, as a loss sees it.

    Attributes:
      objective: what it was trained by.
      head: parameters of its head.
      hidden: its backbone's states for the same masked tokens.
      guidance: where the objective draws strengths.
    """

    objective: Objective
    head: Params
    hidden: Hidden
    guidance: Guidance | None = None


@runtime_checkable
class Objective(Protocol):
    """A frozen dataclass, equal by value, so that equal programs are compiled once.

    Attributes:
      terms: what `loss` returns, by name, each in words for the title of its curve.
      needs_teacher: whether `loss` asks for the teacher.
      target_decay: decay of the running average of the head that `loss` is given as `target`; None
        where it asks for none.
      taught_by: an objective of the kind that every teacher must be trained by; None where any
        teacher will do.
      min_strength: the weakest guidance that the backbone is told.
      max_strength: the strongest; None where it is told none.
      diagnostics: what `loss` returns beside its terms, and what does not count, in words.
      wants_pairs: whether clips must be pairs: the noise that each was made from is known.
    """

    terms: ClassVar[Mapping[str, str]]

    @property
    def needs_teacher(self) -> bool:
        return False

    @property
    def target_decay(self) -> float | None:
        return None

    @property
    def taught_by(self) -> Objective | None:
        return None

    @property
    def min_strength(self) -> float:
        return 1.0

    @property
    def max_strength(self) -> float | None:
        return None

    @property
    def diagnostics(self) -> Mapping[str, str]:
        return {}

    @property
    def wants_pairs(self) -> bool:
        return False

    @property
    def name(self) -> str:
        """That of its kind, as `RunConfig.objective` has it."""
        return type(self).__name__.lower()

    @property
    def meaning(self) -> Mapping[str, Any]:
        """Config fields that say what the head's outputs mean, by name.

        Another run's head of the same shapes is taken where they agree.
        """
        return {}

    def masks(self, tokens_per_column: int | None) -> MaskDistribution | None:
        """The distribution of training masks; None for that of the run's section `masking`.

        Args:
          tokens_per_column: of the codec; None where no mask is drawn.
        """
        del tokens_per_column
        return None

    def strengths(self, key: Key, has_text: Bool[Array, " B"]) -> Float[Array, " B"] | None:
        """The strength of guidance that the backbone is told for each clip; None where for none.

        Args:
          key: of the draws.
          has_text: whether the clip keeps its caption in this step.
        """
        del key, has_text
        return None

    def init(self, key: Key) -> Params:
        """Fresh float32 parameters of the head."""
        ...

    def head_from(self, teacher: Objective, head: Params) -> Params:
        """The head's first parameters, made of a teacher's, in memory of their own.

        Raises:
          ConfigError: this objective cannot start from that head.
        """
        del head
        raise ConfigError(
            "distillation.head_from_teacher is True; allowed: False, since "
            f"{type(self).__name__} does not say (`head_from`) how its head starts from that of "
            f"{type(teacher).__name__}"
        )

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
        """Terms, whose sum is the loss of each token, and diagnostics; masking and averaging are
        the step's.

        Args:
          head: parameters of the head.
          hidden: backbone states.
          tokens: the clean tokens.
          key: of every draw.
          teacher: the run's teacher, where it has one; no gradient reaches it, nor the next two.
          average: the running average of the head, which samples.
          target: that of decay `target_decay`; None where this objective has none.

        In validation `head`, `average` and `target` are one and the same, so a term that compares
        them is zero there, and no `best_metric`.
        """
        ...

    def sample(
        self,
        head: Params,
        hidden: Float[Array, "B Q D"],
        hidden_unconditional: Float[Array, "B Q D"] | None,
        guidance_scale: jax.Array,
        keys: Key,
        temperature: jax.Array,
    ) -> Float[Array, "B Q C"]:
        """A token for every context; a clip's depend on its own key, [B].

        Args:
          head: parameters of the head.
          hidden: backbone states with text.
          hidden_unconditional: those without; None where nothing is guided.
          guidance_scale: strength of guidance, a number or, for each clip, [B, 1, 1].
          keys: one per clip.
          temperature: below 1 narrows the samples.
        """
        ...

    def flops(self) -> HeadFlops:
        """Operations of the head."""
        ...

    def passes(self) -> Passes:
        """Passes of a training step, for each clip or each draw of a token."""
        return Passes(1, 0, 0)


def for_head(x: Float[Array, "M B N ..."]) -> Float[Array, "M B N ..."]:
    """Draws of tokens or contexts as a head takes them: clips and token positions split.

    A head's parameters are not split over the tensor axis; its tokens are.
    """
    return constrain(x, None, "batch", "token", *[None] * (x.ndim - 3))


def product_flops(rows: float, inputs: int, outputs: int) -> float:
    """Operations of a matrix product [rows, inputs] x [inputs, outputs]."""
    return 2.0 * rows * inputs * outputs


def modulation_flops(width: int, depth: int) -> float:
    """Operations of the projections that modulate a `ModulatedMLP`, for one modulator."""
    return product_flops(1, width, (3 * depth + 2) * width)


def residual_flops(width: int, depth: int) -> float:
    """Operations of the residual blocks of a `ModulatedMLP`, for one token."""
    return 2 * depth * product_flops(1, width, width)
