"""The T5 encoder computes what transformers' does, whatever the length, the padding and the batch.

Errors are relative to the largest state, and their bound is that of the sums in a row of all
blocks: 7e-6 for three narrow ones, 6e-5 for eight of the published width. Exchanged names, axes or
buckets make a difference of order 1.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fasttta_jax.convert.write import write_conversion
from fasttta_jax.pretrained.t5 import (
    T5Config,
    T5Encoder,
    load,
    relative_buckets,
)
from tests.support.t5_models import (
    SIZES,
    convert,
    convert_to,
    make_reference,
    save_published,
    torch,
)
from tests.support.tolerance import assert_close, block_terms, rounding

SMALL = T5Config(**{name: value for name, value in SIZES.items() if name != "feed_forward_proj"})


def batch(config: T5Config, lengths: list[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random ids, rows of these lengths padded to the longest."""
    shape = (len(lengths), max(lengths))
    ids = np.random.default_rng(seed).integers(0, config.vocab_size, shape).astype(np.int32)
    mask = np.arange(shape[1])[None] < np.asarray(lengths)[:, None]
    return np.where(mask, ids, 0), mask


def random_params(config: T5Config, seed: int = 0) -> dict[str, Any]:
    """Parameters as `make_reference` draws them."""
    generator = np.random.default_rng(seed)
    ids, mask = batch(config, [2])

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = jax.tree_util.keystr(path)
        if "scale" in name:
            return generator.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        std = leaf.shape[-2] ** -0.5 if "kernel" in name else 1.0
        std *= config.d_kv**-0.5 if "query" in name else 1.0
        return (std * generator.standard_normal(leaf.shape)).astype(np.float32)

    shapes = jax.eval_shape(T5Encoder(config).init, jax.random.key(0), ids, mask)["params"]
    return jax.tree_util.tree_map_with_path(draw, shapes)


def states(
    config: T5Config, params: Any, ids: Any, mask: Any, dtype: str = "float32"
) -> np.ndarray:
    """States of a batch, compiled."""
    apply = jax.jit(T5Encoder(config, jnp.dtype(dtype)).apply)
    return np.asarray(apply({"params": params}, ids, mask))


def states_rounding(config: T5Config, length: int) -> float:
    """Of all blocks and the last norm."""
    block = block_terms(config.d_model, config.d_ff, length, config.d_kv)
    return rounding(config.num_layers * block + config.d_model)


def assert_agrees(ours: Any, reference: Any, mask: Any, config: T5Config) -> None:
    """At positions with a token."""
    bound = states_rounding(config, mask.shape[1])
    assert_close(np.asarray(ours)[mask], np.asarray(reference)[mask], bound)


def error(ours: Any, reference: Any, mask: Any) -> float:
    """Largest difference at positions with a token, relative to the largest state there."""
    ours, reference = np.asarray(ours)[mask], np.asarray(reference)[mask]
    return float(np.abs(ours - reference).max() / np.abs(reference).max())


def reference_states(model: Any, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """What transformers computes."""
    with torch.no_grad():
        found = model(
            input_ids=torch.tensor(ids, dtype=torch.long), attention_mask=torch.tensor(mask).long()
        )
    return found.last_hidden_state.numpy()


@pytest.mark.parametrize("buckets", [(8, 20), (32, 128)])
def test_states_agree(buckets: tuple[int, int], tmp_path: pathlib.Path) -> None:
    """One token to beyond the last bucket, padded and not, one row and several."""
    model = make_reference(
        relative_attention_num_buckets=buckets[0], relative_attention_max_distance=buckets[1]
    )
    config, params = load(convert_to(tmp_path, model))
    for lengths in ([1], [7], [77, 1, 30], [150, 149, 2]):
        ids, mask = batch(config, lengths, seed=max(lengths))
        ours = states(config, params, ids, mask)
        assert ours.dtype == np.float32
        assert_agrees(ours, reference_states(model, ids, mask), mask, config)


def test_full_depth_agrees(tmp_path: pathlib.Path) -> None:
    """All 24 blocks of the large model, narrow."""
    model = make_reference(num_layers=24)
    config, params = load(convert_to(tmp_path, model))
    ids, mask = batch(config, [33, 12])
    ours = states(config, params, ids, mask)
    assert_agrees(ours, reference_states(model, ids, mask), mask, config)


def test_buckets_agree() -> None:
    """Every distance up to far beyond the last bucket, also at edges, where a log is rounded."""
    attention = pytest.importorskip("transformers.models.t5.modeling_t5").T5Attention
    for num_buckets, max_distance in ((32, 128), (8, 20), (64, 512), (4, 8)):
        way = torch.arange(600)[None] - torch.arange(600)[:, None]
        expected = attention._relative_position_bucket(way, True, num_buckets, max_distance)
        np.testing.assert_array_equal(
            relative_buckets(600, num_buckets, max_distance), expected.numpy()
        )


def test_padding_does_not_matter() -> None:
    """Neither its length nor the ids in it change the states of tokens, and they stay finite."""
    params = random_params(SMALL)
    ids, mask = batch(SMALL, [9, 4])
    expected = states(SMALL, params, ids, mask)
    for length in (16, 64):
        padding = ((0, 0), (0, length - 9))
        longer, longer_mask = np.pad(ids, padding), np.pad(mask, padding)
        ours = states(SMALL, params, longer, longer_mask)
        assert np.isfinite(ours).all()
        assert_agrees(ours[:, :9], expected, mask, SMALL)
        noise = np.where(longer_mask, longer, 5)
        np.testing.assert_array_equal(
            states(SMALL, params, noise, longer_mask)[longer_mask], ours[longer_mask]
        )


def test_rows_are_independent() -> None:
    """A row's states are the same beside other rows, beside an empty one, and alone."""
    params = random_params(SMALL)
    ids, mask = batch(SMALL, [12, 12, 5])
    together = states(SMALL, params, ids, mask)
    others = ids.copy()
    others[1:] = (ids[1:] + 7) % SMALL.vocab_size
    np.testing.assert_array_equal(states(SMALL, params, others, mask)[0], together[0])
    emptied = mask & np.asarray([[True], [False], [True]])
    with_empty = states(SMALL, params, ids, emptied)
    assert np.isfinite(with_empty).all()
    np.testing.assert_array_equal(with_empty[[0, 2]], together[[0, 2]])
    alone = states(SMALL, params, ids[:1], mask[:1])
    assert_agrees(alone, together[:1], mask[:1], SMALL)


DEEP = dataclasses.replace(SMALL, num_layers=24)


def test_bfloat16_keeps_small_updates_of_a_large_stream() -> None:
    """Streams of 3e4 to which each block adds some 40, less than half of bfloat16's step there.

    A bfloat16 stream loses most of them, which is 9e-3 of the result; in a float32 one each is off
    by the roundings of a block's eight factors to bfloat16, in one of the two programs.
    """
    params = random_params(DEEP)
    params["embedding"] *= 3e4
    scale_updates(params, 40.0)
    ids, mask = batch(DEEP, [30, 11])
    expected = states(DEEP, params, ids, mask)
    ours = states(DEEP, params, ids, mask, "bfloat16")
    unchanged = states(dataclasses.replace(DEEP, num_layers=1), first_block(params, 0.0), ids, mask)
    lost = error(unchanged, expected, mask)
    assert lost > 5e-3
    assert error(ours, expected, mask) < rounding(8, jnp.bfloat16, margin=2) * lost


def blocks(params: dict[str, Any]) -> list[dict[str, Any]]:
    """Those of all blocks, to be changed in place."""
    return [values for name, values in params.items() if name.startswith("block_")]


def scale_updates(params: dict[str, Any], scale: float) -> None:
    """What every block adds to the stream, times a factor, in place."""
    for block in blocks(params):
        for name in ("projection", "mlp_out"):
            block[name]["kernel"] = block[name]["kernel"] * scale


def first_block(params: dict[str, Any], scale: float) -> dict[str, Any]:
    """The first block alone, its updates times a factor."""
    others = {f"block_{index}" for index in range(1, DEEP.num_layers)}
    found = {name: values for name, values in params.items() if name not in others}
    found = jax.tree.map(lambda leaf: leaf, found)  # dicts of its own
    scale_updates(found, scale)
    return found


def test_bfloat16_bears_outlier_channels() -> None:
    """Two channels of 6e4 whose norm weights are small, as in the published models.

    Their squares are beyond float16. An update is off by the roundings of a block's eight factors
    to bfloat16; 24 of a tenth of the stream each are half of the result. With a bfloat16 stream it
    would be off by 1.6e-2.
    """
    params = random_params(DEEP)
    params["embedding"][:, :2] = np.asarray([6e4, -6e4])
    rms = np.sqrt(2 / DEEP.d_model) * 6e4
    scales = np.where(np.arange(DEEP.d_model) < 2, 1.0, rms).astype(np.float32)
    norms = [block[name] for block in blocks(params) for name in ("norm_1", "norm_2")]
    for norm in (*norms, params["final_norm"]):
        norm["scale"] = scales
    # such a norm does not hold the other channels down, whose growth would be exponential
    scale_updates(params, 0.1)
    ids, mask = batch(DEEP, [30, 11])
    expected = states(DEEP, params, ids, mask)
    ours = states(DEEP, params, ids, mask, "bfloat16")
    assert ours.dtype == np.float32
    assert np.isfinite(ours).all()
    bound = rounding(8, jnp.bfloat16, margin=2) * 0.1 * DEEP.num_layers**0.5
    assert bound < 1.2e-2
    assert 1e-4 < error(ours, expected, mask) < bound


@pytest.mark.usefixtures("unchecked")
def test_float16_is_refused() -> None:
    ids, mask = batch(SMALL, [3])
    with pytest.raises(ValueError, match="dtype is float16; allowed: float32, bfloat16"):
        T5Encoder(SMALL, jnp.dtype("float16")).init(jax.random.key(0), ids, mask)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("ids", "mask"), [((2, 0), (2, 0)), ((2, 3), (2, 4)), ((3,), (3,))])
def test_shapes_are_checked(ids: tuple[int, ...], mask: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"ids have shape \(.*allowed: both \[B, L\], L >= 1"):
        T5Encoder(SMALL).init(jax.random.key(0), np.zeros(ids, np.int32), np.zeros(mask, np.bool_))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("d_model", 0),
        ("num_heads", 2.5),
        ("vocab_size", True),
        ("num_layers", "24"),
        ("layer_norm_epsilon", 0),
        ("relative_attention_num_buckets", 30),
        ("relative_attention_max_distance", 2),
    ],
)
def test_impossible_sizes_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field} is {value!r}; allowed: "):
        dataclasses.replace(SMALL, **{field: value})


@pytest.mark.long
def test_large_shape_agrees(tmp_path: pathlib.Path) -> None:
    """The shape of flan-t5-large, but for the vocabulary and the number of blocks.

    All 24 blocks want three times the memory; the depth is tested at another width.
    """
    model = make_reference(
        vocab_size=1000,
        d_model=1024,
        d_kv=64,
        d_ff=2816,
        num_layers=8,
        num_heads=16,
        relative_attention_num_buckets=32,
        relative_attention_max_distance=128,
    )
    ids, mask = batch(T5Config.from_huggingface(model.config.to_dict()), [77, 20])
    expected = reference_states(model, ids, mask)
    save_published(tmp_path / "published", model)
    del model
    write_conversion(convert(tmp_path / "published"), tmp_path / "converted")
    config, params = load(tmp_path / "converted")
    assert_agrees(states(config, params, ids, mask), expected, mask, config)
