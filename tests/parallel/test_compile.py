"""Compiled programs do not take all memory mappings of a process."""

from __future__ import annotations

import mmap
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fasttta_jax.parallel import compile, mappings
from fasttta_jax.parallel.local import local_mesh


def double(x: jax.Array) -> jax.Array:
    return 2 * x


def triple(x: jax.Array) -> jax.Array:
    return 3 * x


@pytest.mark.skipif(not mappings.MAPPED.exists(), reason="only Linux counts them")
def test_the_share_of_mappings_is_that_of_the_system() -> None:
    before = mappings.share_of_mappings()
    allowed = int(mappings.ALLOWED.read_text())
    # Neighbours of different rights are mappings of their own.
    rights = (mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE)
    held = [mmap.mmap(-1, mmap.PAGESIZE, prot=rights[number % 2]) for number in range(400)]
    grown = (mappings.share_of_mappings() - before) * allowed
    assert 0 < before < 1
    assert 300 < grown < 500
    assert len(held) == 400


def test_a_system_that_does_not_say_has_room(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setattr(mappings, "MAPPED", tmp_path / "missing")
    assert mappings.share_of_mappings() == 0


def test_programs_are_forgotten_before_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """What somebody holds compiled stays; what is called again is compiled again, and the same."""
    mesh, x = local_mesh(), jnp.arange(8.0)
    program = compile.compile_evaluate(double, mesh)
    held = program.compile(x)
    expected = np.asarray(program(x))
    assert program.jitted._cache_size() == 1
    assert compile.compile_evaluate(double, mesh) is program

    compile.compile_evaluate(triple, mesh)
    assert program.jitted._cache_size() == 1, "there was room"

    monkeypatch.setattr(compile, "share_of_mappings", lambda: compile.FULL)
    compile.compile_evaluate(lambda y: 4 * y, mesh)
    assert program.jitted._cache_size() == 0
    assert compile.compile_evaluate(double, mesh) is not program
    np.testing.assert_array_equal(held(x), expected)
    np.testing.assert_array_equal(program(x), expected)
