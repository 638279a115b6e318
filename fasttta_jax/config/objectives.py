"""Masking, the objectives and their heads, distillation: what a training loss is made of."""

# Annotations are evaluated here, not kept as text: `RunConfig` inherits fields from this file, and
# their types would be looked up in its own.
import dataclasses
from typing import Literal

from fasttta_jax.config.checks import (
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    check,
    check_choice,
    check_fields,
)
from fasttta_jax.config.flow import FlowConfig

Prediction = Literal["epsilon", "v"]
AlignPositions = Literal["all", "masked"]
Roles = Literal["noise_stream", "context_stream"]
Noise = Literal["gaussian", "uniform"]
ScoredStates = Literal["none", "unguided", "mixture"]


@dataclasses.dataclass(frozen=True)
class MaskingConfig:
    """Truncated normal distribution of the mask rate, on [minimum, 1].

    Attributes:
      minimum: smallest share of masked tokens (the paper's masking factor q).
      mean: location of the normal distribution before truncation.
      std: its scale.
      visible_noise: noise augmentation of the visible tokens in training: the greatest standard
        deviation of Gaussian noise; every clip's is uniform from 0 to it. When the model generates,
        the tokens that it sees have its own errors (Pasini et al., 2024, arXiv:2411.18447). 0 is
        MAR's.
      forward_share: share of the clips in which the visible tokens are the first ones in time, as
        where a sound is continued; in the others they are anywhere. 0 is MAR's.
    """

    minimum: float = 0.7
    mean: float = 1.0
    std: float = 0.25
    visible_noise: float = 0.0
    forward_share: float = 0.0

    def __post_init__(self) -> None:
        check(0 < self.minimum <= 1, "masking.minimum", self.minimum, "above 0, at most 1")
        check_fields(self, "masking.", POSITIVE, "std")
        check_fields(self, "masking.", NOT_NEGATIVE, "visible_noise")
        share = self.forward_share
        check(0 <= share <= 1, "masking.forward_share", share, "from 0 to 1")
        lowest, highest = self.minimum - 4 * self.std, 1 + 4 * self.std
        check(
            lowest <= self.mean <= highest,
            "masking.mean",
            self.mean,
            f"from {lowest:g} to {highest:g}, within four masking.std of [masking.minimum, 1]: "
            "farther tails cannot be drawn in float32",
        )

    @property
    def rates(self) -> dict[str, float]:
        """What decides how many tokens are masked, as `masking.sample_masks` takes it."""
        return {"minimum": self.minimum, "mean": self.mean, "std": self.std}


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
    """Diffusion on single tokens.

    Attributes:
      num_steps: length of the cosine schedule in training.
      prediction: what the head's first C outputs mean. "epsilon" is MAR's; "v" keeps the last
        steps well conditioned, which short training needs, and lets the head of a student start
        from it.
      batch_multiplier: independent (time, noise) draws per token and step.
      regression: weight of an auxiliary loss, the squared error of a linear guess of the token from
        its context. It tells the backbone what the context says of the token without the noise of
        the denoising loss. 0 is MAR's.
      sampling_steps: reverse steps when generating.
    """

    num_steps: int = 1000
    prediction: Prediction = "epsilon"
    batch_multiplier: int = 4
    regression: float = 0.0
    sampling_steps: int = 100

    def __post_init__(self) -> None:
        check_choice("diffusion.prediction", self.prediction, Prediction)
        check_fields(self, "diffusion.", POSITIVE, "num_steps", "batch_multiplier")
        check_fields(self, "diffusion.", NOT_NEGATIVE, "regression")
        check(
            2 <= self.sampling_steps <= self.num_steps,
            "diffusion.sampling_steps",
            self.sampling_steps,
            f"from 2 to diffusion.num_steps = {self.num_steps}",
        )


@dataclasses.dataclass(frozen=True)
class EnergyConfig:
    """The energy score of samples that a head makes in one evaluation from noise and context.

    Attributes:
      num_draws: M, samples per token and step.
      alpha: exponent of the distance, strictly between 0 and 2.
      temperature: factor on the distance between samples. 1 is the proper score; EAR's fine-tuning
        uses .99, which makes the samples slightly narrower than the data.
      noise_dim: Z, dimensions of the noise.
      noise: its distribution, standard "gaussian", or "uniform" on [-1/2, 1/2] as in EAR.
      roles: which input of the head is the residual stream; the other one modulates every block.
        "noise_stream" is AudioDEAR's, "context_stream" is EAR's.
      sample_guidance: how much of guidance acts on samples, as an exponent of its strength; the
        rest acts on the backbone's states. 0 is AudioDEAR's, all of it on states; at 1 a guided
        token lies on the line through two samples of one noise, with the caption and without.
    """

    num_draws: int = 2
    alpha: float = 1.0
    temperature: float = 1.0
    noise_dim: int = 128
    noise: Noise = "gaussian"
    roles: Roles = "noise_stream"
    sample_guidance: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, "energy.", POSITIVE, "noise_dim")
        share = self.sample_guidance
        check(0 <= share <= 1, "energy.sample_guidance", share, "from 0 to 1")
        check_choice("energy.noise", self.noise, Noise)
        check_choice("energy.roles", self.roles, Roles)
        check(self.num_draws >= 2, "energy.num_draws", self.num_draws, "2 or more")
        check(0 < self.alpha < 2, "energy.alpha", self.alpha, "above 0 and below 2")
        check(
            0 < self.temperature <= 1, "energy.temperature", self.temperature, "above 0, at most 1"
        )


@dataclasses.dataclass(frozen=True)
class GuidedConfig:
    """Guidance in one pass: a student whose states, at a strength that it is told, are those that
    guidance by two passes of a finished student gives.

    Attributes:
      max_strength: the strongest guidance that it learns.
      unguided_share: of the clips, those that train at strength 1; the inverse of every other
        strength is uniform from 1 / max_strength to 1.
      energy: what the energy score counts beside the distance to the guided states: "none";
        "unguided", the clips of strength 1; "mixture", all clips, with the mixture of guided and
        unconditional states that stands for the unguided one (GFT) in place of the state.
      train_head: whether the head trains by that score; otherwise it stays the finished student's.
    """

    max_strength: float = 6.0
    unguided_share: float = 0.25
    energy: ScoredStates = "none"
    train_head: bool = False

    def __post_init__(self) -> None:
        check(self.max_strength > 1, "guided.max_strength", self.max_strength, "above 1")
        check_fields(self, "guided.", SHARE, "unguided_share")
        check_choice("guided.energy", self.energy, ScoredStates)
        if self.train_head:
            allowed = "'unguided' or 'mixture' where guided.train_head is true: nothing else does"
            check(self.energy != "none", "guided.energy", self.energy, allowed)


@dataclasses.dataclass(frozen=True)
class ObjectiveConfigs:
    """The sections of all objectives in a run's config; a run reads that of its own."""

    diffusion: DiffusionConfig = dataclasses.field(default_factory=DiffusionConfig)
    energy: EnergyConfig = dataclasses.field(default_factory=EnergyConfig)
    guided: GuidedConfig = dataclasses.field(default_factory=GuidedConfig)
    flow: FlowConfig = dataclasses.field(default_factory=FlowConfig)


@dataclasses.dataclass(frozen=True)
class DistillationConfig:
    """What a run, whatever its objective, has from the teacher whose workdir `init_from` names.

    By default nothing.

    Attributes:
      weight: lambda, the factor of the mean squared distance to the teacher's backbone states.
      positions: the tokens that count: "all" or only the "masked" ones.
      freeze_backbone: train the head alone on the teacher's backbone.
      backbone_from_teacher: start backbone and text encoder from the teacher's averaged weights.
      head_from_teacher: start the head from the teacher's, as `Objective.head_from` says.
    """

    weight: float = 0.0
    positions: AlignPositions = "all"
    freeze_backbone: bool = False
    backbone_from_teacher: bool = False
    head_from_teacher: bool = False

    @property
    def uses_teacher(self) -> bool:
        """Whether the run needs a teacher's parameters, at its start or all along."""
        return self.weight > 0 or self.backbone_from_teacher or self.head_from_teacher

    def __post_init__(self) -> None:
        check_fields(self, "distillation.", NOT_NEGATIVE, "weight")
        check_choice("distillation.positions", self.positions, AlignPositions)
        if self.freeze_backbone:
            check(
                self.backbone_from_teacher,
                "distillation.backbone_from_teacher",
                False,
                "true where distillation.freeze_backbone is true: "
                "a frozen random backbone cannot learn",
            )
            check(
                self.weight == 0,
                "distillation.weight",
                self.weight,
                "0 where distillation.freeze_backbone is true: the features cannot move",
            )
