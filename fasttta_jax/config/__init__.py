"""Frozen dataclasses of a run.

A file in `configs/` builds a `RunConfig`, `to_config_dict` makes it editable from the command line,
and `from_config_dict` turns it back. Library code only ever sees the dataclasses.
"""

from fasttta_jax.config.checks import ConfigError
from fasttta_jax.config.decode import Counts, DecodeConfig, Order
from fasttta_jax.config.flow import FlowConfig, check_flow
from fasttta_jax.config.mapping import flatten, from_config_dict, from_mapping, to_config_dict
from fasttta_jax.config.model import (
    BackboneConfig,
    ComputeDtype,
    HeadConfig,
    ModelConfig,
    TextConfig,
)
from fasttta_jax.config.objectives import (
    AlignPositions,
    DiffusionConfig,
    DistillationConfig,
    EnergyConfig,
    GuidedConfig,
    MaskingConfig,
    Noise,
    Roles,
)
from fasttta_jax.config.run import (
    DataConfig,
    MeshConfig,
    OptimizerConfig,
    RunConfig,
)

__all__ = [
    "AlignPositions",
    "BackboneConfig",
    "ComputeDtype",
    "ConfigError",
    "Counts",
    "DataConfig",
    "DecodeConfig",
    "DiffusionConfig",
    "DistillationConfig",
    "EnergyConfig",
    "FlowConfig",
    "GuidedConfig",
    "HeadConfig",
    "MaskingConfig",
    "MeshConfig",
    "ModelConfig",
    "Noise",
    "OptimizerConfig",
    "Order",
    "Roles",
    "RunConfig",
    "TextConfig",
    "check_flow",
    "flatten",
    "from_config_dict",
    "from_mapping",
    "to_config_dict",
]
