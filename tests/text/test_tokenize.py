"""Token ids are those of transformers' tokenizers, at any length and in any thread or process."""

from __future__ import annotations

import concurrent.futures
import csv
import json
import logging
import pathlib
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tokenizers

from fasttta_jax.convert import tokenizer as convert_tokenizer
from fasttta_jax.convert.stored import ConversionError
from fasttta_jax.convert.tokenizer import check_vocabulary, read_tokenizer
from fasttta_jax.storage.weights import ConvertedError
from fasttta_jax.text import tokenize
from fasttta_jax.text.tokenize import TruncationLog, encode, load_tokenizer
from tests.support.conversions import byte_tokenizer
from tests.support.t5_models import (
    CAPTIONS,
    make_roberta_tokenizer,
    make_t5_tokenizer,
)

MAKERS = {"t5": make_t5_tokenizer, "roberta": make_roberta_tokenizer}
HARD_CAPTIONS = (
    "",
    " ",
    "  two   spaces\tand a tab\n",
    "un mot d'été, 雨の音 🌧",
    "a dog</s> barks <pad> twice",
    "rain falls on a roof " * 500,
)


@pytest.fixture(params=sorted(MAKERS))
def original(request: pytest.FixtureRequest) -> Any:
    """A tokenizer of transformers."""
    return MAKERS[request.param]()


def converted(original: Any, folder: pathlib.Path) -> tokenizers.Tokenizer:
    """The same tokenizer, saved, converted and loaded."""
    original.save_pretrained(folder / "published")
    (folder / "tokenizer.json").write_text(read_tokenizer(folder / "published"), encoding="utf-8")
    return load_tokenizer(folder)


def assert_ids_agree(
    tokenizer: tokenizers.Tokenizer, original: Any, captions: list[str], length: int
) -> None:
    expected = original(
        captions, padding="max_length", truncation=True, max_length=length, return_tensors="np"
    )
    ids, mask = encode(tokenizer, captions, length)
    assert ids.dtype == np.int32
    assert mask.dtype == np.bool_
    np.testing.assert_array_equal(ids, expected["input_ids"])
    np.testing.assert_array_equal(mask, expected["attention_mask"].astype(bool))


@pytest.mark.parametrize("length", [2, 3, 10, 77])
def test_ids_agree(original: Any, length: int, tmp_path: pathlib.Path) -> None:
    """Short and long texts, other scripts, nothing at all, and special tokens written out."""
    tokenizer = converted(original, tmp_path)
    assert_ids_agree(tokenizer, original, [*CAPTIONS, *HARD_CAPTIONS], length)


def test_real_captions_agree(original: Any, datasets: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with (datasets / "audiocaps_captions" / "val.csv").open(encoding="utf-8", newline="") as file:
        captions = [row["caption"] for row in csv.DictReader(file)]
    assert len(captions) > 2000
    assert_ids_agree(converted(original, tmp_path), original, captions, 32)


def test_an_empty_caption_is_its_special_tokens(original: Any, tmp_path: pathlib.Path) -> None:
    tokenizer = converted(original, tmp_path)
    special = original.num_special_tokens_to_add()
    ids, mask = encode(tokenizer, ["", CAPTIONS[0]], 12)
    assert mask.sum(axis=1)[0] == special
    assert ids[0, special - 1] == ids[1, 11] == tokenizer.token_to_id("</s>")
    assert (ids[0, special:] == original.pad_token_id).all()
    assert [part.shape for part in encode(tokenizer, [], 12)] == [(0, 12), (0, 12)]


def test_lengths_without_room_are_refused(original: Any, tmp_path: pathlib.Path) -> None:
    tokenizer = converted(original, tmp_path)
    special = original.num_special_tokens_to_add()
    assert encode(tokenizer, [CAPTIONS[0]], special)[1].all()
    for length in (special - 1, 0, -1):
        with pytest.raises(ValueError, match=f"length is {length}; allowed: at least {special}"):
            encode(tokenizer, [CAPTIONS[0]], length)


def test_tokenizers_without_padding_are_refused() -> None:
    with pytest.raises(ValueError, match="has no padding; allowed: one from load_tokenizer"):
        encode(tokenizers.Tokenizer(tokenizers.models.BPE()), ["a dog"], 5)


def test_threads_and_processes_get_the_same(original: Any, tmp_path: pathlib.Path) -> None:
    """Several lengths at once from one tokenizer, and from its pickled copy."""
    tokenizer = converted(original, tmp_path)
    captions = [*CAPTIONS, *HARD_CAPTIONS]
    lengths = [2 + index % 40 for index in range(80)]
    expected = {length: encode(tokenizer, captions, length) for length in set(lengths)}
    before = tokenizer.to_str()
    copy = pickle.loads(pickle.dumps(tokenizer))

    def run(length: int) -> tuple[np.ndarray, np.ndarray]:
        return encode(copy if length % 2 else tokenizer, captions, length)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for length, found in zip(lengths, pool.map(run, lengths), strict=True):
            np.testing.assert_array_equal(found, expected[length])
    assert tokenizer.to_str() == before


def test_long_captions_warn_once_and_are_counted(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenize, "truncation_log", TruncationLog())
    tokenizer = converted(make_t5_tokenizer(), tmp_path)
    with caplog.at_level(logging.WARNING, logger="fasttta_jax.text.tokenize"):
        for _ in range(3):
            encode(tokenizer, ["rain"], 9)
        assert not caplog.records
        for index in range(40):
            encode(tokenizer, [f"{index} {CAPTIONS[0]}", "rain"], 9)
    first, count = (record.getMessage() for record in caplog.records)
    assert first.startswith("caption '0 A dog barks")
    assert "the first 9 count" in first
    assert count.startswith("10 captions so far")


def test_counting_is_safe_in_threads(caplog: pytest.LogCaptureFixture) -> None:
    log = TruncationLog()
    with (
        caplog.at_level(logging.WARNING, logger="fasttta_jax.text.tokenize"),
        concurrent.futures.ThreadPoolExecutor(8) as pool,
    ):
        list(pool.map(lambda index: log.add(str(index), 9, 3), range(1000)))
    assert sorted(record.getMessage()[:5] for record in caplog.records[1:]) == [
        "10 ca",
        "100 c",
        "1000 ",
    ]


def test_running_needs_no_transformers(tmp_path: pathlib.Path) -> None:
    converted(make_t5_tokenizer(), tmp_path)
    code = (
        "import sys\n"
        "from fasttta_jax.text.tokenize import encode, load_tokenizer\n"
        "ids, _ = encode(load_tokenizer(sys.argv[1]), ['a dog'], 5)\n"
        "assert ids.any() and not {'transformers', 'torch'} & set(sys.modules)\n"
    )
    folder = pathlib.Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=folder)


def test_padding_that_is_no_entry_of_the_vocabulary_is_named(tmp_path: pathlib.Path) -> None:
    """Its embedding would be another token's."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    tokenizer.enable_padding(pad_id=2)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConvertedError, match=r"tokenizer\.json is damaged: 2 is no entry"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_that_panics_is_named(tmp_path: pathlib.Path) -> None:
    """Its template names a special token that has no id; the library says so as it encodes."""
    values = json.loads(byte_tokenizer("<pad>", "<s>", "</s>"))
    values["post_processor"]["single"][0]["SpecialToken"]["id"] = "<x>"
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(ConvertedError, match=r"tokenizer\.json is damaged: .*cannot encode a text"):
        load_tokenizer(tmp_path)


def test_folders_without_usable_tokenizer_are_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConvertedError, match=r"holds no tokenizer: tokenizer\.json is missing"):
        load_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text("{")
    with pytest.raises(ConvertedError, match=r"tokenizer\.json is damaged: .*convert again"):
        load_tokenizer(tmp_path)
    changes: tuple[Callable[[Any], None], ...] = (
        lambda tokenizer: tokenizer.no_padding(),
        lambda tokenizer: tokenizer.enable_padding(length=5),
        lambda tokenizer: tokenizer.enable_truncation(5),
    )
    for change in changes:
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
        tokenizer.enable_padding()
        change(tokenizer)
        tokenizer.save(str(path))
        with pytest.raises(ConvertedError, match=r"has padding .* allowed: padding to the longest"):
            load_tokenizer(tmp_path)


def test_vocabulary_and_merges_make_the_same_tokenizer(tmp_path: pathlib.Path) -> None:
    """CLAP's files without a tokenizer.json."""
    original = make_roberta_tokenizer()
    model = json.loads(original.backend_tokenizer.to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = ["#version: 0.2", *(" ".join(merge) for merge in model["merges"])]
    (tmp_path / "merges.txt").write_text("\n".join(merges) + "\n", encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "RobertaTokenizer"}')
    (tmp_path / "tokenizer.json").write_text(read_tokenizer(tmp_path), encoding="utf-8")
    assert_ids_agree(load_tokenizer(tmp_path), original, [*CAPTIONS, *HARD_CAPTIONS], 20)


def test_settings_of_a_published_tokenizer_are_taken_out(tmp_path: pathlib.Path) -> None:
    """Truncation and fixed padding in tokenizer.json, as training scripts leave them there."""
    original = make_t5_tokenizer()
    original.save_pretrained(tmp_path)
    inner = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    inner.enable_truncation(4)
    inner.enable_padding(length=6, pad_id=3)
    inner.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer.json").write_text(read_tokenizer(tmp_path), encoding="utf-8")
    assert_ids_agree(load_tokenizer(tmp_path), original, list(CAPTIONS), 20)


def test_unreadable_tokenizers_name_the_files_to_add(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    with pytest.raises(ConversionError, match=r"add tokenizer\.json, .*found: tokenizer_config"):
        read_tokenizer(tmp_path)
    (tmp_path / "spiece.model").write_bytes(b"no sentencepiece model")
    monkeypatch.setattr(convert_tokenizer, "_installed", lambda module: module != "sentencepiece")
    with pytest.raises(ConversionError, match=r"only with sentencepiece: `pip install sentencepie"):
        read_tokenizer(tmp_path)
    monkeypatch.setattr(convert_tokenizer, "_installed", lambda module: True)
    with pytest.raises(ConversionError, match=r"holds no tokenizer that can be read"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ConversionError, match=r"can be read \(JSONDecodeError.*; add tokenizer"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize("side", ["padding_side", "truncation_side"])
def test_left_sided_tokenizers_are_refused(side: str, tmp_path: pathlib.Path) -> None:
    make_t5_tokenizer().save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {side: "left"}))
    with pytest.raises(ConversionError, match=f"{side} is 'left'; allowed: 'right'"):
        read_tokenizer(tmp_path)


def test_sentencepiece_models_are_read(tmp_path: pathlib.Path) -> None:
    """A T5 folder without tokenizer.json, where the packages for it are installed."""
    sentencepiece = pytest.importorskip("sentencepiece")
    path = tmp_path / "spiece.model"
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CAPTIONS * 5),
            model_writer=file,
            vocab_size=50,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            minloglevel=2,
        )
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    (tmp_path / "tokenizer.json").write_text(read_tokenizer(tmp_path), encoding="utf-8")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.get_vocab_size() == 150
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    for caption in CAPTIONS:
        ids, mask = encode(tokenizer, [caption], 100)
        assert ids[mask].tolist() == [*model.encode(caption), 1]


def test_vocabularies_are_compared_with_rows(original: Any, tmp_path: pathlib.Path) -> None:
    original.save_pretrained(tmp_path)
    text = read_tokenizer(tmp_path)
    entries = len(original)
    check_vocabulary(text, entries, "here")
    check_vocabulary(text, entries + 28, "here")
    with pytest.raises(ConversionError, match=f"here: .* {entries} entries .* {entries - 1} rows"):
        check_vocabulary(text, entries - 1, "here")
