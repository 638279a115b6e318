"""The text tower of CLAP gives what transformers gives with the same weights.

Models with random weights are saved as their projects publish them, converted, written, loaded and
run beside torch in float32. Errors are relative to the largest entry of the result, and their bound
is that of the sums in a row of all blocks: 6e-6 for the small models, 7e-5 for the published one.
An exchanged name, position or head makes a difference of order 1, another activation one of 1e-2.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fasttta_jax.pretrained.clap_text import (
    ClapText,
    ClapTextConfig,
    from_huggingface,
    load,
)
from fasttta_jax.storage.weights import ConvertedError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from tests.support import clap_models  # noqa: E402
from tests.support.clap_models import (  # noqa: E402
    TEXT,
    captions,
    embeddings,
)
from tests.support.clap_rounding import run, text_rounding  # noqa: E402
from tests.support.tolerance import (  # noqa: E402
    assert_close,
    worst_rounding,
)

BATCHES = (([9, 3, 1], 9), ([2], 5), ([4, 4, 17, 38], 38))
"""Lengths of captions, and what they are padded to; 38 is the longest that 40 positions allow."""


def assert_agrees(model: Any, folder: pathlib.Path, batches: Any = BATCHES) -> None:
    """Also that captions are told apart, by far more than the tolerance."""
    for seed, (lengths, padded) in enumerate(batches):
        tolerance = text_rounding(load(folder)[0], padded)
        ids, mask = captions(lengths, padded, seed, pad=load(folder)[0].pad_token_id)
        expected = embeddings(model, ids, mask)
        found = run(folder, ids, mask)
        assert found.dtype == np.float32
        assert_close(found, expected, tolerance)
        for row, embedding in enumerate(expected):
            others = np.delete(expected, row, axis=0)
            distances = np.linalg.norm(others - embedding, axis=-1)
            assert distances.min(initial=np.inf) > 100 * tolerance


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("make", [clap_models.text_model, clap_models.clap_model])
def test_embeddings_agree(make: Any, suffix: str, tmp_path: pathlib.Path) -> None:
    """Of both published forms, for several lengths and batches."""
    model = make()
    clap_models.convert(clap_models.save(model, tmp_path / "hf", suffix), tmp_path / "out")
    assert_agrees(model, tmp_path / "out")


def test_full_depth_agrees(tmp_path: pathlib.Path) -> None:
    """Twelve layers of width 64."""
    model = clap_models.text_model(hidden_size=64, num_hidden_layers=12)
    clap_models.convert(clap_models.save(model, tmp_path / "hf"), tmp_path / "out")
    assert_agrees(model, tmp_path / "out", BATCHES[2:])


def test_every_size_is_heeded(tmp_path: pathlib.Path) -> None:
    """Nothing of the published values is built in: token types, padding and epsilon differ."""
    model = clap_models.text_model(
        type_vocab_size=3, pad_token_id=4, layer_norm_eps=0.3, num_attention_heads=2
    )
    clap_models.convert(
        clap_models.write_tokenizer(
            clap_models.save(model, tmp_path / "hf"), first=("<s>", "</s>", "a", "b", "<pad>")
        ),
        tmp_path / "out",
    )
    assert_agrees(model, tmp_path / "out", batches=(([9, 3, 1], 9), ([35, 17], 35)))


def test_results_depend_on_the_caption_alone(tmp_path: pathlib.Path) -> None:
    """Neither on how far it is padded, nor on what the padding is, nor on the batch around it."""
    model = clap_models.text_model()
    clap_models.convert(clap_models.save(model, tmp_path / "hf"), tmp_path / "out")
    ids, mask = captions([6, 3, 1], 6)
    alone = np.concatenate(
        [
            run(tmp_path / "out", ids[[row], :length], mask[[row], :length])
            for row, length in enumerate((6, 3, 1))
        ]
    )
    order, bound = [2, 0, 0, 1], text_rounding(load(tmp_path / "out")[0], 38)
    for padded in (7, 38):
        wide = np.pad(ids, ((0, 0), (0, padded - 6)), constant_values=1)
        wide_mask = np.pad(mask, ((0, 0), (0, padded - 6)))
        other = np.where(wide_mask, wide, 7)
        batch, batch_mask = [wide, other, wide[order]], [wide_mask, wide_mask, wide_mask[order]]
        found = run(tmp_path / "out", np.concatenate(batch), np.concatenate(batch_mask))
        assert_close(found, np.concatenate([alone, alone, alone[order]]), bound)


def test_bfloat16_is_near_and_normalised(tmp_path: pathlib.Path) -> None:
    model = clap_models.text_model()
    clap_models.convert(clap_models.save(model, tmp_path / "hf"), tmp_path / "out")
    config, params = load(tmp_path / "out")
    ids, mask = captions([9, 3, 5], 9)
    found = jax.jit(ClapText(config, jnp.bfloat16).apply)({"params": params}, ids, mask)
    assert found.dtype == jnp.float32
    norms = jnp.linalg.norm(found, axis=-1)
    np.testing.assert_allclose(norms, 1, rtol=worst_rounding(2 * found.shape[-1]))
    assert np.abs(np.asarray(found) - embeddings(model, ids, mask)).max() < 0.05


def test_trees_are_complete(tmp_path: pathlib.Path) -> None:
    """Conversion gives every parameter that initialisation makes, in its shape, no more."""
    model = clap_models.text_model()
    clap_models.convert(clap_models.save(model, tmp_path / "hf"), tmp_path / "out")
    config, params = load(tmp_path / "out")

    def shapes(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype.name), tree)

    ids, mask = captions([3], 4)
    fresh = jax.eval_shape(ClapText(config).init, jax.random.key(0), ids, mask)
    assert shapes(params) == shapes(fresh["params"])
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count == sum(value.numel() for value in model.parameters())


def test_long_captions_are_refused() -> None:
    """514 positions leave 512 tokens; further ones would be given the last position."""
    config = ClapTextConfig()
    assert config.max_length == 512
    ids = jax.ShapeDtypeStruct((1, 513), jnp.int32)
    mask = jax.ShapeDtypeStruct((1, 513), jnp.bool_)
    with pytest.raises(ValueError, match="padded to 513 tokens; allowed: up to 512"):
        jax.eval_shape(ClapText(config).init, jax.random.key(0), ids, mask)


def test_fields_left_out_have_the_defaults_of_transformers() -> None:
    defaults = transformers.ClapTextConfig()
    for field in dataclasses.fields(ClapTextConfig):
        assert getattr(ClapTextConfig(), field.name) == getattr(defaults, field.name)
    assert from_huggingface({"model_type": "clap_text_model"}) == ClapTextConfig()
    assert from_huggingface({"model_type": "clap", "text_config": {}}) == ClapTextConfig()
    small = from_huggingface({"model_type": "clap_text_model", "hidden_size": 96})
    assert small == ClapTextConfig(hidden_size=96)


def test_the_shared_projection_is_that_of_the_whole_model() -> None:
    """transformers replaces the text_config's by it, given or by default."""
    text = {"projection_dim": 99, "vocab_size": 50}
    for values, size in (({"projection_dim": 20}, 20), ({}, 512)):
        content = {"model_type": "clap", "text_config": text, **values}
        assert from_huggingface(content).projection_dim == size
        whole = transformers.ClapConfig(text_config=dict(text), **values)
        assert whole.text_config.projection_dim == size
    assert from_huggingface({"model_type": "clap_text_model"} | text).projection_dim == 99


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "clip"}, "model_type is 'clip'; allowed: clap, clap_text_model"),
        ({"model_type": None}, "model_type is None"),
        ({"model_type": "clap"}, "text_config is None; allowed: an object"),
        ({"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new'; allowed: 'gelu'"),
        ({"projection_hidden_act": "gelu"}, "projection_hidden_act is 'gelu'; allowed: 'relu'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"is_decoder": True}, "is_decoder is True; allowed: False"),
        ({"hidden_size": "768"}, "hidden_size is '768'; allowed: a whole number from 1"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0; allowed: a whole number from 1"),
        ({"num_attention_heads": 5}, "num_attention_heads is 5; allowed: a divisor of hidden_size"),
        ({"layer_norm_eps": 0}, "layer_norm_eps is 0; allowed: a number between 0 and 1"),
        ({"pad_token_id": None}, "pad_token_id is None; allowed: 0 to 38"),
        ({"pad_token_id": 39}, "pad_token_id is 39; allowed: 0 to 38"),
    ],
)
def test_configs_that_are_not_supported_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_huggingface({"model_type": "clap_text_model"} | TEXT | changes)


def test_the_projections_activation_is_that_of_the_whole_model() -> None:
    values = {"model_type": "clap", "text_config": TEXT, "projection_hidden_act": "gelu"}
    with pytest.raises(ValueError, match="projection_hidden_act is 'gelu'; allowed: 'relu'"):
        from_huggingface(values)


WHOLE = dict(TEXT, pad_token_id=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "t5"}, "holds weights of kind 't5', not 'clap'"),
        ({"config": {"audio": None}}, "holds clap without its text part"),
        ({"config": {"text": TEXT}}, "does not say pad_token_id"),
        (
            {"config": {"text": WHOLE | {"width": 3}}},
            r"does not describe a clap: clap\.width is not a field",
        ),
        ({"config": {"text": WHOLE | {"hidden_size": 33}}}, "a divisor of hidden_size 33"),
    ],
)
def test_other_folders_are_refused(
    changes: dict[str, Any], message: str, tmp_path: pathlib.Path
) -> None:
    model = clap_models.text_model()
    clap_models.convert(clap_models.save(model, tmp_path / "hf"), tmp_path / "out")
    path = tmp_path / "out" / "weights.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ConvertedError, match=message):
        load(tmp_path / "out")


@pytest.mark.long
def test_published_size_agrees(tmp_path: pathlib.Path) -> None:
    """RoBERTa-base as published but for its vocabulary, up to 512 tokens."""
    model = clap_models.redraw(
        transformers.ClapTextModelWithProjection(transformers.ClapTextConfig(vocab_size=1000))
    )
    clap_models.convert(clap_models.save(model, tmp_path / "hf"), tmp_path / "out")
    batches = (([77, 20, 3, 9], 77), ([11], 512))
    assert_agrees(model, tmp_path / "out", batches)
