"""Text encoders that train nothing: a table of embeddings, the networks behind it, and no text."""

from __future__ import annotations

import json
import logging
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fasttta_jax.config import TextConfig
from fasttta_jax.storage.files import StorageError
from fasttta_jax.text import (
    FrozenTextEncoder,
    NoText,
    abstract_text_encoder,
    load_text_encoder,
    networks,
    save_text_encoder,
    table,
)
from fasttta_jax.text.networks import Networks, open_network, save_networks
from fasttta_jax.text.table import EmbeddingError, TableWriter, write_table
from tests.support import conversions, helpers
from tests.support.tolerance import assert_one_step_of_float16, worst_rounding

CAPTIONS = ["a dog", "rain", "un café"]
CONFIG = TextConfig(encoder="frozen", streams=(("clap", 1, 4), ("t5", 5, 6)), token_dropout=0.0)


def streams() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return {
        "clap": (rng.normal(size=(3, 1, 4)).astype(np.float16), np.ones(3, np.int32)),
        "t5": (rng.normal(size=(3, 5, 6)).astype(np.float16), np.asarray([5, 1, 3])),
    }


@pytest.fixture
def encoder(tmp_path) -> FrozenTextEncoder:
    write_table(tmp_path, CAPTIONS, streams())
    return FrozenTextEncoder(CONFIG, tmp_path, (tmp_path,))


def test_what_is_written_is_looked_up(encoder):
    batch = encoder.tokenize(["rain", "", "un café", "rain"])
    conditioning = encoder.embed({}, batch)
    assert {name: stream.mask.shape[-1] for name, stream in conditioning.items()} == dict(
        encoder.streams
    )
    for name, (embeddings, lengths) in streams().items():
        stream = conditioning[name]
        for row, caption in ((0, 1), (2, 2), (3, 1)):
            held = int(lengths[caption])
            np.testing.assert_array_equal(
                stream.embeddings[row, :held], np.float32(embeddings[caption, :held])
            )
            assert not stream.embeddings[row, held:].any()
        assert stream.mask.sum(axis=1).tolist() == [lengths[1], 0, lengths[2], lengths[1]]


def test_it_trains_nothing(encoder):
    assert encoder.init(jax.random.key(0)) == {}


def test_a_caption_without_embedding_is_named(encoder):
    with pytest.raises(EmbeddingError, match="no embedding of 'thunder'; allowed: the 3 captions"):
        encoder.tokenize(["rain", "thunder"])


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(EmbeddingError, match=r"no finished table .* no networks .* `python -m"):
        load_text_encoder(tmp_path, CONFIG).tokenize(["rain"])


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ((("bert", 5, 6),), r"asks for \('bert', 5, 6\) .* has \('clap', 1, 4\), \('t5', 5, 6\)"),
        ((("t5", 5, 8),), r"asks for \('t5', 5, 8\) .* table of .* has .* \('t5', 5, 6\)"),
    ],
)
def test_streams_that_are_not_in_the_table_are_named(encoder, wanted, message):
    config = TextConfig(encoder="frozen", streams=wanted, token_dropout=0.0)
    with pytest.raises(EmbeddingError, match=message):
        FrozenTextEncoder(config, encoder.folder, (encoder.folder,)).tokenize(["rain"])


@pytest.mark.parametrize(
    ("captions", "change", "message"),
    [
        (["rain", "rain", "a"], {}, "'rain' comes more than once"),
        (["a", "b"], {}, r"'clap' has shape \(3, 1, 4\); allowed: \(2, 1, 4\)"),
        (CAPTIONS, {"t5": (np.zeros((3, 5, 6)), np.asarray([5, 6, 0]))}, "values from 0 to 6"),
        (
            CAPTIONS,
            {"t5": (np.full((3, 5, 6), np.nan), np.zeros(3, int))},
            "'t5' holds values that are not finite",
        ),
    ],
)
def test_tables_that_cannot_be_right_are_refused(tmp_path, captions, change, message):
    with pytest.raises(EmbeddingError, match=message):
        write_table(tmp_path, captions, streams() | change)


def test_the_summary_changes_with_the_contents(tmp_path):
    hashes = []
    for scale in (1.0, 1.0, 2.0):
        arrays = streams()
        arrays["t5"] = (np.float16(scale * arrays["t5"][0]), arrays["t5"][1])
        write_table(tmp_path, CAPTIONS, arrays)
        hashes.append(json.loads((tmp_path / "table.json").read_text())["sha256"])
    assert hashes[0] == hashes[1] != hashes[2]


def test_no_text_is_empty_whatever_the_captions():
    text = load_text_encoder(
        "nowhere", TextConfig(encoder="none", num_positions=7, token_dropout=0.0, drop_rate=0.0)
    )
    assert text == NoText(7)
    conditioning = text.embed({}, text.tokenize(["rain", ""]))
    assert conditioning["none"].embeddings.shape == (2, 7, 0)
    assert not conditioning["none"].mask.any()


@pytest.mark.parametrize("kind", ["learned", "frozen", "none"])
def test_abstract_encoders_have_the_shapes_of_the_real_ones(kind, encoder):
    learned = helpers.tiny_text_encoder()
    no_text = TextConfig(encoder="none", num_positions=7, token_dropout=0.0, drop_rate=0.0)
    real, config = {
        "learned": (learned, learned.config),
        "frozen": (encoder, CONFIG),
        "none": (NoText(7), no_text),
    }[kind]
    abstract = abstract_text_encoder(config, learned.tokenizer.get_vocab_size())
    assert abstract.streams == real.streams

    def shapes(text, caption):
        params = text.init(jax.random.key(0))
        batch = text.tokenize([caption, caption])
        found = (params, batch, text.embed(params, batch))
        return jax.tree.map(lambda leaf: (leaf.shape, np.dtype(leaf.dtype)), found)

    assert shapes(abstract, "rain") == shapes(real, "rain")


CLAP_AND_T5 = TextConfig(
    encoder="frozen", streams=(("clap", 1, 6), ("t5", 20, 12)), token_dropout=0.0
)


@pytest.fixture(scope="module")
def opened(tmp_path_factory) -> tuple[dict[str, pathlib.Path], Networks]:
    folder = tmp_path_factory.mktemp("networks")
    sources = {
        "clap": conversions.random_clap(folder / "clap"),
        "t5": conversions.random_t5(folder / "t5"),
    }
    positions = {"clap": None, "t5": 20}
    found = {name: open_network(path, positions[name], "float32") for name, path in sources.items()}
    return sources, Networks(found, "float32")


def test_networks_answer_what_the_table_lacks(opened, tmp_path):
    sources, frozen = opened
    assert frozen.streams == CLAP_AND_T5.streams
    captions = ["rain", "a dog barks twice"]
    write_table(tmp_path, captions, frozen.encode(captions))
    save_networks(tmp_path, sources, frozen)
    both = load_text_encoder(tmp_path, CLAP_AND_T5).tokenize([*captions, "", "thunder"])
    (tmp_path / "table.json").unlink()
    networks_alone = load_text_encoder(tmp_path, CLAP_AND_T5).tokenize([*captions, "", "thunder"])
    for name in both:
        assert_one_step_of_float16(both[name], networks_alone[name])
    # a byte is a token, and T5 ends with a special one
    assert both["t5_mask"].sum(axis=1).tolist() == [5, 18, 0, 8]
    assert both["clap_mask"].sum(axis=1).tolist() == [1, 1, 0, 1]
    norms = np.linalg.norm(np.float32(both["clap"][:2, 0]), axis=-1)
    np.testing.assert_allclose(norms, 1, rtol=worst_rounding(1, jnp.float16) + worst_rounding(12))


@pytest.mark.parametrize("streams", [CLAP_AND_T5.streams[:1], CLAP_AND_T5.streams[1:]])
def test_one_of_the_networks_alone_works_too(opened, tmp_path, streams):
    sources, frozen = opened
    save_networks(tmp_path, sources, frozen)
    config = TextConfig(encoder="frozen", streams=streams, token_dropout=0.0)
    text = load_text_encoder(tmp_path, config)
    conditioning = text.embed({}, text.tokenize(["rain"]))
    assert [name for name, _ in text.streams] == list(conditioning) == [streams[0][0]]


def test_a_result_depends_on_its_own_caption_alone(opened):
    _, frozen = opened
    captions = ["rain", "a dog barks", "wind in the trees"]
    together = frozen.encode(captions)
    for row, caption in enumerate(captions):
        for name, (values, lengths) in frozen.encode([caption]).items():
            assert_one_step_of_float16(values[0], together[name][0][row])
            assert lengths[0] == together[name][1][row]


def test_long_captions_are_cut_and_it_is_said(opened, caplog):
    _, frozen = opened
    with caplog.at_level(logging.WARNING, "fasttta_jax"):
        values, lengths = frozen.encode(["x" * 500])["t5"]
    assert lengths.tolist() == [20]
    assert np.isfinite(values).all()
    cut, _ = frozen.encode(["x" * 600])["t5"]
    np.testing.assert_array_equal(values, cut)


def test_networks_travel_with_links(opened, tmp_path):
    sources, frozen = opened
    save_networks(tmp_path / "data", sources, frozen)
    save_text_encoder(tmp_path / "data", tmp_path / "run", CLAP_AND_T5)
    weights = tmp_path / "run" / networks.FOLDER / "t5" / "weights.safetensors"
    assert weights.samefile(sources["t5"] / "weights.safetensors")
    first, second = (
        load_text_encoder(tmp_path / name, CLAP_AND_T5).tokenize(["rain"])
        for name in ("data", "run")
    )
    jax.tree.map(np.testing.assert_array_equal, dict(first), dict(second))


def test_networks_that_cannot_be_are_refused(opened, tmp_path):
    sources, _ = opened
    with pytest.raises(EmbeddingError, match="is CLAP with 3 positions; allowed: 1"):
        open_network(sources["clap"], 3, "float32")
    with pytest.raises(EmbeddingError, match="dtype is 'float16'; allowed: float32, bfloat16"):
        open_network(sources["t5"], None, "float16")
    vocoder = conversions.random_vocoder(tmp_path / "vocoder")
    with pytest.raises(EmbeddingError, match="holds 'hifigan'; allowed: t5, clap"):
        open_network(vocoder, None, "float32")


def writer(folder: pathlib.Path, captions: list[str], **made_from: str) -> TableWriter:
    return TableWriter(folder, captions, (("t5", 5, 6),), made_from)


def test_shards_are_written_once_and_the_table_appears_with_the_last(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "SHARD_SIZE", 2)
    captions = ["a", "b", "c", "d", "e"]
    rng = np.random.default_rng(0)
    values = rng.normal(size=(5, 5, 6)).astype(np.float16)
    lengths = np.array([1, 5, 0, 2, 3])
    write_table(tmp_path / "whole", captions, {"t5": (values, lengths)})
    hosts = [writer(tmp_path / "parts", captions) for _ in range(2)]
    for host in hosts:
        host.start()
    shards = hosts[0].work.missing()
    assert [hosts[0].captions_of(shard) for shard in shards] == [["a", "b"], ["c", "d"], ["e"]]
    assert [hosts[0].work.missing(host, 2) for host in range(2)] == [shards[::2], shards[1::2]]
    for index in (2, 0, 1):
        shard = shards[index]
        assert not hosts[0].finish()
        assert not hosts[0].is_complete
        rows = slice(shard.start, shard.stop)
        assert shard in hosts[1].work.missing()
        hosts[1].write(shard, {"t5": (values[rows], lengths[rows])})
        hosts[0].write(shard, {"t5": (values[rows], lengths[rows])})  # both may: it is the same
        assert shard not in hosts[0].work.missing()
    next(tmp_path.glob("parts/embeddings/00001/t5.npy")).unlink()
    hosts[1].start()
    assert hosts[1].work.missing() == [shards[1]], "a shard that lost a file is made again"
    hosts[1].write(shards[1], {"t5": (values[2:4], lengths[2:4])})
    half = tmp_path / "parts" / "embeddings" / ".00001.0a1b2c3d.tmp"  # of a killed process
    half.mkdir()
    assert hosts[0].finish()
    assert not half.exists()
    assert hosts[1].finish()
    assert hosts[1].is_complete
    hashes = [
        json.loads((tmp_path / name / "table.json").read_text())["sha256"]
        for name in ("whole", "parts")
    ]
    assert hashes[0] == hashes[1]
    found = table.read_table(tmp_path / "parts")
    assert found is not None
    for row, caption in enumerate(captions):
        np.testing.assert_array_equal(found.lookup(caption)["t5"], values[row, : lengths[row]])


def test_another_table_in_the_same_place_is_refused(tmp_path):
    writer(tmp_path, ["a", "b"], t5="one").start()
    writer(tmp_path, ["a", "b"], t5="one").start()
    with pytest.raises(StorageError, match=r"made_from is .*'one'.* there and .*'two'"):
        writer(tmp_path, ["a", "b"], t5="two").start()
    with pytest.raises(StorageError, match="num_captions is 2 there and 1 here"):
        writer(tmp_path, ["a"], t5="one").start()
