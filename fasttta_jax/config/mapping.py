"""The one place where an ml_collections ConfigDict becomes a `RunConfig`, and back.

Unknown fields, wrong types and combinations that cannot work are refused.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import ml_collections

from fasttta_jax.config.checks import ConfigError
from fasttta_jax.config.run import RunConfig

T = TypeVar("T")


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


def as_tuples(value: Any) -> Any:
    """Lists, which is what JSON makes of tuples, as tuples, at every depth."""
    return tuple(map(as_tuples, value)) if isinstance(value, list | tuple) else value


def _from_mapping(cls: type[T], values: Any, path: str) -> T:
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{path.removesuffix('.') or 'the config'} is {values!r}; allowed: a mapping with the "
            f"fields {', '.join(fields)}"
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
            arguments[name] = _from_mapping(hint, value, f"{path}{name}.")  # type: ignore[arg-type]
            continue
        if typing.get_origin(hint) is tuple:
            hint, value = tuple, as_tuples(value)
        expected = type(typing.get_args(hint)[0]) if typing.get_origin(hint) is Literal else hint
        if expected is float and type(value) is int:
            value = float(value)
        if type(value) is not expected:
            raise ConfigError(
                f"{path}{name} is {value!r}, a {type(value).__name__}; "
                f"allowed: a value of type {expected.__name__}"
            )
        arguments[name] = value
    return cls(**arguments)


def _without_audio(values: Any) -> Any:
    """The config without data.audio, which older runs have: audio to be encoded as it is read."""
    data = values.get("data") if isinstance(values, Mapping) else None
    if not isinstance(data, Mapping) or "audio" not in data:
        return values
    if data["audio"]:
        raise ConfigError(
            f"data.audio is {data['audio']!r}; allowed: '', as audio is no longer encoded while it "
            "is read. Run `python -m data.encode_latents` on it with the codec in data.path, and "
            "name the result in data.path"
        )
    return {**values, "data": {name: data[name] for name in data if name != "audio"}}


def from_config_dict(config: ml_collections.ConfigDict | dict[str, Any]) -> RunConfig:
    """The checked, frozen form of `config`.

    Raises:
      ConfigError: an unknown field, a wrong type, or values that do not fit together.
    """
    values = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else config
    values = _without_audio(values)
    return _from_mapping(RunConfig, values, "")
