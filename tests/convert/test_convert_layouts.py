"""A state dict is found in whatever training code put around it, or what is wrong fits a screen."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from fasttta_jax.convert import layouts, mar
from fasttta_jax.convert.source import Source
from fasttta_jax.convert.stored import ConversionError, StoredTensor
from fasttta_jax.convert.write import Conversion
from tests.convert.test_convert_command import ear_state

Tree = Mapping[str, Any]
SCREEN = 24


def stored(offset: float = 0.0) -> dict[str, StoredTensor]:
    """The tensors of an EAR."""
    return {
        key: StoredTensor(values.shape, "float32", functools.partial(np.add, values, offset))
        for key, values in ear_state().items()
    }


def behind(prefix: str, state: Tree) -> dict[str, Any]:
    return {f"{prefix}{key}": value for key, value in state.items()}


def convert(tree: Tree, **options: Any) -> Conversion:
    return mar.convert(Source("ear.pth", tree, "0"), num_heads=3, **options)


WRAPPERS: dict[str, Callable[[Tree], Tree]] = {
    "module.": functools.partial(behind, "module."),
    "_orig_mod.": functools.partial(behind, "_orig_mod."),
    "module._orig_mod.": functools.partial(behind, "module._orig_mod."),
    "ema.": functools.partial(behind, "ema."),
    "ema_model.": functools.partial(behind, "ema_model."),
    "model.": functools.partial(behind, "model."),
    "net.": functools.partial(behind, "net."),
    "params.": lambda state: {"params": state, "optimizer": {"state": {0: {"step": 1}}}},
    "model.module.": lambda state: {"model": behind("module.", state), "epoch": 3},
    "state_dict.net.": lambda state: {"state_dict": behind("net.", state) | {"loss.scale": 1.0}},
    "params_ema.": lambda state: {"params_ema": state, "params": stored(1.0)},
    "ema_model.module.": lambda state: {
        **behind("ema_model.module.", state),
        **behind("online_model.module.", stored(1.0)),
        "initted": True,
    },
}


@pytest.mark.parametrize("inside", WRAPPERS)
def test_a_state_is_read_from_what_training_code_put_around_it(inside: str) -> None:
    state = stored()
    bare, found = convert(state), convert(WRAPPERS[inside](state))
    assert found.metadata == bare.metadata | {"inside": inside}
    assert found.params.keys() == bare.params.keys()
    for path, values in bare.params.items():
        np.testing.assert_array_equal(found.params[path], values)


def test_of_two_that_fit_alike_none_is_taken() -> None:
    tree = {"first": stored(), "second": behind("module.", stored(1.0))}
    with pytest.raises(ConversionError, match=r"2 state dicts .* in first., second.module.; save"):
        convert(tree)


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        (
            {f"unet.block_{index}.weight": index for index in range(3000)},
            ["neither MAR nor EAR", "unet.block_0.weight", "3000 in all", "behind module., _orig"],
        ),
        (
            {key: value for key, value in stored().items() if not key.startswith("decoder")}
            | {f"z_proj.{index}": 1.0 for index in range(2000)},
            ["2015 keys are wrong", "and 1995 more that are not expected", "more that are missing"],
        ),
        (
            behind("module.", stored() | {f"{'long' * 5000}{index}": 1.0 for index in range(50)}),
            ["50 keys are wrong", "not expected"],
        ),
        ({}, ["its keys begin with nothing"]),
    ],
)
def test_what_is_wrong_fits_a_screen(tree: Tree, said: list[str]) -> None:
    with pytest.raises(ConversionError) as raised:
        convert(tree)
    message = str(raised.value)
    for text in said:
        assert text in message
    assert message.count("\n") < SCREEN
    assert len(message) < SCREEN * 160


def test_what_fits_as_it_is_is_not_looked_into() -> None:
    tree = {"a": 1, "inner": {"a": 2}}
    assert layouts.choose(tree, lambda state: "a" in state, "x") == (tree, "")
