"""What the three entry points share: flags, errors that read like sentences, logging."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

import ml_collections
from absl import app, flags
from absl import logging as absl_logging

TRACEBACK = flags.DEFINE_bool("traceback", False, "Show where in the code an error arose.")


def _explain(error: flags.Error) -> str:
    """absl's message, and for a config field the list of the fields that exist."""
    message = str(error)
    name = getattr(error, "flagname", "") or ""
    if "config" not in flags.FLAGS or not name.startswith("config."):
        return message
    config = flags.FLAGS["config"].value
    path = name.split(".")[1:]
    for part in path[:-1]:
        if not isinstance(config, ml_collections.ConfigDict) or part not in config:
            break
        config = config[part]
    if isinstance(config, ml_collections.ConfigDict):
        message += "\nThe fields there are: " + ", ".join(sorted(config))
    return message


def _parse(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        sys.exit(f"error: {_explain(error)}\n`python {argv[0]} --help` shows every flag.")


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
