"""Checks every annotation of the package at run time, shapes included; imported before the package.

jaxtyping's import hook hands each function and dataclass of `fasttta_jax` to beartype. An int may
stand for a float, as in PEP 484. Jitted functions are checked while they are traced, so compiled
ones run as fast as without. Users have none of this.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import jaxtyping

PACKAGE = "fasttta_jax"
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"

assert PACKAGE not in sys.modules, f"{PACKAGE} was imported before its checks"
jaxtyping.install_import_hook(PACKAGE, CHECKER)


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """A block that runs as users run it: for the package's own errors, and for stand-ins."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
