"""Commands in this process: their flags, their main and the handler of errors that users meet."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple
from unittest import mock

import absl.flags
from absl import flags

from fasttta_jax import cli
from tests.campaigns.trying import RIGHT, SCREEN, Kind, Refused, Wrong


class Ended(NamedTuple):
    """Exit code and standard error of a command."""

    code: int
    errors: str


@contextlib.contextmanager
def _own_flags(define: Callable[[flags.FlagValues], None]) -> Iterator[None]:
    """A block with the flags of one command alone."""
    flags.FLAGS.mark_as_parsed()  # absl's own
    values = flags.FlagValues()
    define(values)
    for name in ("traceback", "compilation_cache"):
        values[name] = flags.FLAGS[name]
    with mock.patch.object(absl.flags, "FLAGS", values):
        yield


def run(
    define: Callable[[flags.FlagValues], None],
    main: Callable[..., None],
    arguments: Sequence[str],
    positional: str = "",
) -> Ended:
    """Runs a command as the console does, but for logs and the folder of compiled programs.

    Args:
      define: its flags.
      main: what it does.
      arguments: behind its name.
      positional: names of those that stand without a flag.
    """
    errors = io.StringIO()
    with (
        _own_flags(define),
        mock.patch.object(sys, "argv", ["command", *arguments]),
        mock.patch.object(sys, "unraisablehook", sys.unraisablehook),
        mock.patch.object(cli, "_keep_compiled"),
        mock.patch.object(cli, "_quiet_logs"),
        mock.patch("absl.app._run_init", lambda argv, parser: parser(argv)),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(errors),
    ):
        try:
            cli.run(main, positional)
            code: object = 0
        except SystemExit as stop:
            code = stop.code
    if isinstance(code, str):
        errors.write(code)
        code = 1
    return Ended(int(code or 0), errors.getvalue())  # type: ignore[call-overload]


def judged(ended: Ended, *names: str) -> Kind:
    """What a command's end counts as.

    Args:
      ended: its end.
      names: of which its error has one.

    Raises:
      Refused: it said what is wrong in a line.
      Wrong: it did not.
    """
    if ended.code == 0:
        return RIGHT
    lines = ended.errors.strip().splitlines()
    text = next((line for line in lines if line.startswith("error: ")), "")
    if not text or "Traceback" in ended.errors or len(ended.errors) > SCREEN:
        raise Wrong(f"the command's end is no line of text: {ended.errors[-500:]}")
    if names and not any(name in ended.errors for name in names):
        raise Wrong(f"the command's error names neither flag nor file: {ended.errors[-500:]}")
    raise Refused(text)
