"""Published T5 folders become the encoder's parameters, whole, or an error that says what to do."""

from __future__ import annotations

import json
import pathlib
import re
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fasttta_jax.convert import t5
from fasttta_jax.convert.source import open_source
from fasttta_jax.convert.stored import ConversionError
from fasttta_jax.convert.write import Conversion, describe, write_conversion
from fasttta_jax.pretrained.t5 import (
    T5Config,
    T5Encoder,
    load,
)
from fasttta_jax.storage.weights import ConvertedError
from tests.support.t5_models import (
    SIZES,
    convert,
    convert_to,
    make_reference,
    make_t5_tokenizer,
    save_published,
    torch,
)

WEIGHTS = "model.safetensors"


@pytest.fixture
def published(tmp_path: pathlib.Path) -> pathlib.Path:
    """A published folder of the encoder alone."""
    save_published(tmp_path / "published", make_reference())
    return tmp_path / "published"


def edit_json(path: pathlib.Path, **changes: Any) -> None:
    """Changes fields of a JSON file; None takes one out."""
    values = json.loads(path.read_text()) | changes
    kept = {name: value for name, value in values.items() if value is not None}
    path.write_text(json.dumps(kept))


def assert_same(ours: Conversion, other: Conversion) -> None:
    assert ours.params.keys() == other.params.keys()
    for path, values in ours.params.items():
        np.testing.assert_array_equal(values, other.params[path], err_msg=path)


def test_tree_is_complete(published: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Conversion gives every parameter that our initialisation makes, in its shape, no more."""
    conversion = convert(published)
    write_conversion(conversion, tmp_path / "converted")
    config, params = load(tmp_path / "converted")
    ids = np.zeros((1, 2), np.int32)
    expected = jax.eval_shape(T5Encoder(config).init, jax.random.key(0), ids, ids == 0)["params"]

    def shapes(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype.name), tree)

    assert shapes(params) == shapes(expected)
    count = sum(value.numel() for value in make_reference().parameters())
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count
    sizes = {name: value for name, value in SIZES.items() if name != "feed_forward_proj"}
    assert config == T5Config(**sizes)


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_layouts_give_the_same(
    whole: bool, pickled: bool, published: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """The whole model or its encoder, in safetensors or in torch's format with all its aliases."""
    model = make_reference(whole, seed=1)
    encoder = make_reference()
    missing, _ = model.load_state_dict(encoder.state_dict(), strict=False)
    assert all(name.startswith(("decoder.", "lm_head.")) for name in missing)
    save_published(tmp_path / "other", model, pickled=pickled)
    conversion = convert(tmp_path / "other")
    assert_same(conversion, convert(published))
    dropped = conversion.metadata["dropped"]
    assert ("decoder.*" in dropped) == whole
    assert ("lm_head.*" in dropped) == (whole and pickled)
    assert ("encoder.embed_tokens.weight" in dropped) == pickled
    assert not whole or re.search(r"the decoder.*\(\d\d tensors\)", dropped["decoder.*"])
    assert "block_0/mlp_out" in describe(conversion)
    json.dumps(conversion.metadata)


def test_the_embedding_may_have_its_other_name(published: pathlib.Path) -> None:
    expected = convert(published)
    tensors = load_file(published / WEIGHTS)
    name = "shared.weight" if "shared.weight" in tensors else "encoder.embed_tokens.weight"
    other = {"shared.weight", "encoder.embed_tokens.weight"} - {name}
    tensors[other.pop()] = tensors.pop(name)
    save_file(tensors, published / WEIGHTS)
    assert_same(convert(published), expected)


def test_two_embeddings_that_differ_are_refused(published: pathlib.Path) -> None:
    tensors = load_file(published / WEIGHTS)
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"] + 1
    save_file(tensors, published / WEIGHTS)
    with pytest.raises(ConversionError, match=r"embed_tokens\.weight differs from shared\.weight"):
        convert(published)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_becomes_float32(dtype: str, tmp_path: pathlib.Path) -> None:
    model = make_reference().to(getattr(torch, dtype))
    save_published(tmp_path / "half", model)
    save_published(tmp_path / "full", model.float())
    assert_same(convert(tmp_path / "half"), convert(tmp_path / "full"))
    assert {values.dtype.name for values in convert(tmp_path / "half").params.values()} == {
        "float32"
    }


def test_shards_are_joined(published: pathlib.Path, tmp_path: pathlib.Path) -> None:
    save_published(tmp_path / "sharded", make_reference(), max_shard_size="30KB")
    shards = sorted((tmp_path / "sharded").glob("model-*.safetensors"))
    assert len(shards) > 2
    assert_same(convert(tmp_path / "sharded"), convert(published))
    shards[1].unlink()
    with pytest.raises(ConversionError, match=f"lacks 1 of the .*{shards[1].name}"):
        convert(tmp_path / "sharded")


def test_a_damaged_file_is_named(published: pathlib.Path) -> None:
    path = published / WEIGHTS
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ConversionError, match=r"model\.safetensors is no readable safetensors"):
        convert(published)


def test_every_wrong_key_is_named(published: pathlib.Path) -> None:
    tensors = load_file(published / WEIGHTS)
    del tensors["encoder.block.1.layer.1.DenseReluDense.wi_1.weight"]
    tensors["encoder.block.7.layer.0.layer_norm.weight"] = np.ones(40, np.float32)
    tensors["encoder.final_layer_norm.weight"] = np.ones(39, np.float32)
    save_file(tensors, published / WEIGHTS)
    with pytest.raises(ConversionError, match="3 keys are wrong") as caught:
        convert(published)
    for line in (
        "block.1.layer.1.DenseReluDense.wi_1.weight: missing, expected shape (48, 40)",
        "block.7.layer.0.layer_norm.weight: not expected",
        "final_layer_norm.weight: found shape (39), expected (40)",
    ):
        assert line in str(caught.value)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("feed_forward_proj", "relu"),
        ("feed_forward_proj", "gated-silu"),
        ("feed_forward_proj", None),
        ("dense_act_fn", "relu"),
        ("is_gated_act", False),
        ("is_decoder", True),
        ("model_type", "umt5"),
        ("num_heads", -3),
        ("d_ff", "many"),
    ],
)
def test_other_networks_are_refused(field: str, value: Any, published: pathlib.Path) -> None:
    edit_json(published / "config.json", **{field: value})
    with pytest.raises(ConversionError, match=f"config.json of published: {field} is {value!r}; "):
        convert(published)


def test_missing_fields_are_named(published: pathlib.Path) -> None:
    """All but the greatest distance, which old configs do not have; the published one is 128."""
    edit_json(published / "config.json", relative_attention_max_distance=None)
    config = convert(published).metadata["config"]
    assert config["relative_attention_max_distance"] == 128
    edit_json(published / "config.json", d_kv=None, num_layers=None)
    with pytest.raises(ConversionError, match=r"published: config\.json lacks d_kv, num_layers"):
        convert(published)


def test_a_vocabulary_that_does_not_fit_is_refused(tmp_path: pathlib.Path) -> None:
    entries = len(make_t5_tokenizer())
    save_published(tmp_path / "fits", make_reference(vocab_size=entries))
    convert(tmp_path / "fits")
    save_published(tmp_path / "short", make_reference(vocab_size=entries - 1))
    with pytest.raises(ConversionError, match=f"has {entries} entries .* {entries - 1} rows"):
        convert(tmp_path / "short")


def test_a_folder_without_tokenizer_names_the_files_to_add(published: pathlib.Path) -> None:
    for path in published.glob("*token*"):
        path.unlink()
    with pytest.raises(ConversionError, match=r"published has no tokenizer.*add tokenizer\.json"):
        convert(published)


def test_a_lone_file_is_refused(published: pathlib.Path) -> None:
    with (
        open_source(str(published / WEIGHTS)) as source,
        pytest.raises(ConversionError, match=r"model\.safetensors is a single file; T5 needs its"),
    ):
        t5.convert(source)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "clap"}, "kind 'clap', not 't5'"),
        ({"config": None}, "does not say vocab_size, d_model, d_kv"),
        ({"config": {"d_model": 3}}, "does not say vocab_size, d_kv"),
    ],
)
def test_other_folders_are_not_loaded(
    changes: dict[str, Any], message: str, tmp_path: pathlib.Path
) -> None:
    folder = convert_to(tmp_path, make_reference(num_layers=1))
    edit_json(folder / "weights.json", **changes)
    with pytest.raises(ConvertedError, match=message):
        load(folder)
