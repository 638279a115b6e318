"""The suite checks annotations, in this process and in those forked for commands.

That users' programs load none of it is asserted in `test_imports`.
"""

from __future__ import annotations

import pathlib
import sys

import jax.numpy as jnp
import jaxtyping
import pytest

from fasttta_jax.losses.align import feature_mse
from fasttta_jax.masking import decode_counts
from tests.support import commands, type_checks

WRONG_CALL = """
import jax.numpy as jnp
from fasttta_jax.losses.align import feature_mse
feature_mse(jnp.zeros((2, 3)), jnp.zeros((2, 4)))
"""


def test_wrong_shapes_kinds_and_types_are_refused():
    two_by_three = jnp.zeros((2, 3))
    with pytest.raises(jaxtyping.TypeCheckError, match="'teacher'"):
        feature_mse(two_by_three, jnp.zeros((2, 4)))
    with pytest.raises(jaxtyping.TypeCheckError, match="'student'"):
        feature_mse(two_by_three.astype(jnp.int32), two_by_three)
    with pytest.raises(jaxtyping.TypeCheckError, match="'num_tokens'"):
        decode_counts(4.0, 2)
    assert feature_mse(two_by_three, two_by_three).shape == (2,)


def test_a_block_can_run_as_users_run_it():
    with type_checks.unchecked():
        assert decode_counts(4.0, 2) == (2, 2)
    with pytest.raises(jaxtyping.TypeCheckError):
        decode_counts(4.0, 2)


def test_no_module_of_the_package_goes_unchecked():
    modules = {
        name: type(module.__spec__.loader).__name__
        for name, module in sys.modules.items()
        if name.split(".")[0] == type_checks.PACKAGE
    }
    assert {name for name, loader in modules.items() if loader != "_JaxtypingLoader"} == set()


def test_commands_are_checked(tmp_path: pathlib.Path):
    script = tmp_path / "wrong_call.py"
    script.write_text(WRONG_CALL)
    done = commands.run(script)
    assert done.returncode == 1
    assert "TypeCheckError" in done.stderr
