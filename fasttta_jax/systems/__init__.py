"""Text-to-audio systems: text encoder, network and objective as pure functions of parameters."""

from __future__ import annotations

from fasttta_jax.config import RunConfig
from fasttta_jax.objectives import build_objective
from fasttta_jax.systems.base import Clips, Others, System, Terms
from fasttta_jax.systems.latent import FullLatent
from fasttta_jax.systems.masked import TextToAudio
from fasttta_jax.text.base import TextEncoder

__all__ = ["Clips", "FullLatent", "Others", "System", "Terms", "TextToAudio", "build_model"]

NETWORKS: dict[str, type[System]] = {"masked": TextToAudio, "latent": FullLatent}


def build_model(config: RunConfig, text: TextEncoder) -> System:
    """The system of a run.

    Raises:
      ConfigError: see `build_objective`.
    """
    return NETWORKS[config.model.network](config.model, text, build_objective(config))
