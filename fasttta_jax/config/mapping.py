"""The one place where an ml_collections ConfigDict becomes a `RunConfig`, and back.

Unknown fields, wrong types and combinations that cannot work are refused. What earlier versions
wrote is read with the meaning that it had (`upgrade`).
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import ml_collections

from fasttta_jax.config.checks import ConfigError, shown
from fasttta_jax.config.objectives import DistillationConfig
from fasttta_jax.config.run import RunConfig
from fasttta_jax.config.values import as_tuples, read_numbers

T = TypeVar("T")

OBJECTIVE_OF_STAGE = {"teacher": "diffusion", "student": "energy"}


def to_config_dict(config: RunConfig) -> ml_collections.ConfigDict:
    """The editable form of `config`, for `configs/` and command-line overrides."""
    return ml_collections.ConfigDict(dataclasses.asdict(config))


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with keys such as "optimizer.learning_rate"."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def from_mapping(cls: type[T], values: Any, path: str) -> T:
    """A dataclass of the values of a mapping; a field that is left out has its default.

    Args:
      cls: the dataclass.
      values: the mapping.
      path: what to put in front of a field's name in errors, "optimizer." or "".

    Raises:
      ConfigError: no mapping, an unknown field, a wrong type, or a number that is not finite.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{path.removesuffix('.') or 'the config'} is {shown(values)}; allowed: a mapping with "
            f"the fields {', '.join(fields)}"
        )
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise ConfigError(
            f"{path}{unknown[0]} is not a field; the fields of {path or 'the config'} are: "
            + ", ".join(fields)
        )
    hints = typing.get_type_hints(cls)
    arguments = {}
    for name, value in values.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            arguments[name] = from_mapping(hint, value, f"{path}{name}.")  # type: ignore[arg-type]
            continue
        if typing.get_origin(hint) is tuple:
            hint, value = tuple, as_tuples(value)
        elif isinstance(hint, types.UnionType):  # a name, or numbers in its place
            value = read_numbers(value)
            hint = tuple if isinstance(value, tuple) else str
        expected = type(typing.get_args(hint)[0]) if typing.get_origin(hint) is Literal else hint
        if expected is float and type(value) is int:
            value = float(value)
        if type(value) is not expected:
            raise ConfigError(
                f"{path}{name} is {shown(value)}, a {type(value).__name__}; "
                f"allowed: a value of type {expected.__name__}"
            )
        numbers = value if isinstance(value, tuple) else (value,)
        if any(type(number) is float and not math.isfinite(number) for number in numbers):
            raise ConfigError(f"{path}{name} is {shown(value)}; allowed: finite numbers")
        arguments[name] = value
    return cls(**arguments)


def upgrade(values: Mapping[str, Any]) -> dict[str, Any]:
    """A config that an earlier version wrote, with the fields of this one and the same meaning.

    * `stage` named the objective; a "teacher" ignored the section `distillation`, and a "student"
      had weight 1000 and the teacher's backbone unless it said otherwise. One that took nothing of
      a teacher ignored `init_from`.
    * `model.head` held the fields of `energy` that describe the head: noise_dim, noise, roles.
    * `sample_prompts` was one string, with "|" between prompts.
    * `decode.counts` was `decode.mask_schedule`.
    * `data.audio` named audio to be encoded as it is read; it must be empty.

    What is of this version comes back as it is.
    """
    new = dict(values)
    if _has_mapping(new, "data") and "audio" in new["data"]:
        data = dict(new["data"])
        if audio := data.pop("audio"):
            raise ConfigError(
                f"data.audio is {shown(audio)}; allowed: '', as audio is no longer encoded while "
                "it is read. Run `python -m data.encode_latents` on it with the codec in "
                "data.path, and name the result in data.path"
            )
        new["data"] = data
    if _has_mapping(new, "decode") and "mask_schedule" in new["decode"]:
        decode = dict(new["decode"])
        new["decode"] = {"counts": decode.pop("mask_schedule"), **decode}
    if isinstance(prompts := new.get("sample_prompts"), str):
        new["sample_prompts"] = tuple(part for part in prompts.split("|") if part.strip())
    head = dict(new["model"]["head"]) if _has_mapping(new, "model", "head") else {}
    moved = {name: head.pop(name) for name in ("noise_dim", "noise", "roles") if name in head}
    if moved:
        new["model"] = {**new["model"], "head": head}
        new["energy"] = moved | dict(new.get("energy") or {})
    stage = new.pop("stage", None)
    if stage is None:
        return new
    if not isinstance(stage, str) or stage not in OBJECTIVE_OF_STAGE:
        raise ConfigError(
            f"stage is {shown(stage)}, a field of earlier versions; allowed: 'teacher', 'student', "
            "or the field objective in its place"
        )
    new["objective"] = OBJECTIVE_OF_STAGE[stage]
    former = {"weight": 1000.0, "backbone_from_teacher": True}
    former |= dict(new.pop("distillation", None) or {})
    if stage == "student":
        new["distillation"] = former
        if not from_mapping(DistillationConfig, former, "distillation.").uses_teacher:
            new["init_from"] = ""
    return new


def _has_mapping(values: Mapping[str, Any], *path: str) -> bool:
    """Whether mappings lie at every name of the path."""
    for name in path:
        if not isinstance(values, Mapping) or not isinstance(values.get(name), Mapping):
            return False
        values = values[name]
    return True


def from_config_dict(config: ml_collections.ConfigDict | dict[str, Any]) -> RunConfig:
    """The checked, frozen form of `config`, which an earlier version may have written.

    Raises:
      ConfigError: an unknown field, a wrong type, or values that do not fit together.
    """
    values = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else config
    return from_mapping(RunConfig, upgrade(values), "")
