"""What heads are trained by and how they sample, by the names that a run's config gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fasttta_jax.config import ConfigError, RunConfig
from fasttta_jax.config.checks import check
from fasttta_jax.masking import MaskDistribution, RandomMasks
from fasttta_jax.objectives.base import Guidance, HeadFlops, Objective, Teacher
from fasttta_jax.objectives.diffusion import Diffusion
from fasttta_jax.objectives.energy import Energy
from fasttta_jax.objectives.guided import Guided
from fasttta_jax.objectives.jump import Jump
from fasttta_jax.objectives.targets import TARGETS

__all__ = [
    "ALIGNMENT",
    "OBJECTIVES",
    "Diffusion",
    "Energy",
    "Guidance",
    "Guided",
    "HeadFlops",
    "Jump",
    "Objective",
    "Teacher",
    "build_objective",
    "losses_of",
    "training_masks",
]

ALIGNMENT = "align"
"""The loss that a run of any objective has beside its terms where it follows a teacher."""

OBJECTIVES: dict[str, Callable[[RunConfig], Objective]] = {
    "diffusion": lambda run: Diffusion(run.model, run.diffusion),
    "energy": lambda run: Energy(run.model, run.energy),
    "guided": Guided.of,
    **dict.fromkeys(TARGETS, Jump.of),
}


def losses_of(config: RunConfig, objective: Objective) -> Mapping[str, str]:
    """The parts of a run's loss and its diagnostics by name, each in words."""
    found = {**objective.terms, **objective.diagnostics}
    if config.distillation.weight > 0:
        found[ALIGNMENT] = "squared distance to the teacher's features"
    return found


def training_masks(
    config: RunConfig, objective: Objective, tokens_per_column: int | None = None
) -> MaskDistribution:
    """The distribution of the masks that a run trains on; `tokens_per_column` is of its codec."""
    return objective.masks(tokens_per_column) or RandomMasks(config.masking, tokens_per_column)


def build_objective(config: RunConfig) -> Objective:
    """The objective that `config.objective` names.

    Raises:
      ConfigError: there is none of that name, or `config.best_metric` is none of the run's losses.
    """
    if config.objective not in OBJECTIVES:
        names = ", ".join(map(repr, OBJECTIVES))
        raise ConfigError(f"objective is {config.objective!r}; allowed: one of {names}")
    if config.model.network != "masked" and config.objective not in TARGETS:
        allowed = f"'masked' where objective is {config.objective!r}, of heads of single tokens"
        check(False, "model.network", config.model.network, allowed)
    objective = OBJECTIVES[config.objective](config)
    allowed = ("loss", *losses_of(config, objective))
    if config.best_metric not in allowed:
        raise ConfigError(f"best_metric is {config.best_metric!r}; allowed: one of {allowed}")
    return objective
