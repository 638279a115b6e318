"""What the three entry points share: flags, errors that read like sentences, logging."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

import ml_collections
from absl import app, flags
from absl import logging as absl_logging

TRACEBACK = flags.DEFINE_bool("traceback", False, "Show where in the code an error arose.")


def _unknown_field(argv: list[str]) -> str | None:
    """A message for the first --config.* argument that names no field, and the right ones."""
    overrides = [argument for argument in argv if argument.lstrip("-").startswith("config.")]
    sys.argv = [argument for argument in argv if argument not in overrides]  # config_flags reads it
    try:
        flags.FLAGS(sys.argv)
    except flags.Error:
        return None
    for argument in overrides:
        name = argument.lstrip("-").split("=")[0]
        node = flags.FLAGS["config"].value
        path = name.split(".")[1:]
        for index, part in enumerate(path):
            if not isinstance(node, ml_collections.ConfigDict):
                break
            if part not in node:
                where = ".".join(["config", *path[:index]])
                return f"{name} is not a field; the fields of {where} are: " + ", ".join(node)
            node = node[part]
    return None


def _parse(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, ValueError) as error:
        has_config = "config" in flags.FLAGS
        message = (_unknown_field(argv) if has_config else None) or str(error)
        sys.exit(f"error: {message}\n`python {argv[0]} --help` shows every flag.")


def _quiet_logs() -> None:
    absl_logging.set_verbosity(absl_logging.ERROR)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    ours = logging.getLogger("fasttta_jax")
    ours.handlers, ours.propagate = [handler], False
    ours.setLevel(logging.INFO)


def run(main: Callable[[], None]) -> None:
    """Parses flags, runs `main`, and turns expected errors into one message and exit code 1."""

    def guarded(argv: list[str]) -> None:
        if len(argv) > 1:
            sys.exit(f"error: {argv[1]!r} is not a flag; flags look like --name=value")
        _quiet_logs()
        try:
            main()
        except (ValueError, OSError, RuntimeError, FloatingPointError) as error:
            if TRACEBACK.value:
                raise
            sys.exit(f"error: {error}")

    app.run(guarded, flags_parser=_parse)
