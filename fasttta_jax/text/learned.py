"""A text encoder that needs no weights: byte-level BPE fitted on captions, trained embeddings.

Frequent words are single tokens, rarer ones fall apart into pieces and at last into UTF-8 bytes, so
any script and any length can be written. A run of pieces that no training caption holds has no
meaning to the model; it is read as one hidden token, the one that token dropout shows in training.
Captions are lower-cased. Word order is left to the backbone, whose position embeddings run over the
text positions.
Dimensions: B captions, L positions, E embedding width.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from jaxtyping import Array, Bool

from fasttta_jax.config import TextConfig
from fasttta_jax.models.layers import embedding_init
from fasttta_jax.storage.files import damage, read_json, write_atomically
from fasttta_jax.storage.whole import remove_leftovers
from fasttta_jax.text.base import TextBatch
from fasttta_jax.text.tokenize import check_entries, truncation_log
from fasttta_jax.typing import AnyArray, Conditioning, Key, Params, TextStream

TOKENIZER_FILE = "tokenizer.json"
SEEN_FILE = "seen_tokens.json"
HIDDEN_TOKEN = "<hidden>"
STREAM = "learned"
BYTES = 256
WORD_START = "\u0120"
"""How byte-level BPE writes the space before a word."""


def fit_tokenizer(captions: Sequence[str], vocabulary_size: int) -> tokenizers.Tokenizer:
    """Byte-level BPE with at most `vocabulary_size` entries, deterministic for the same captions.

    Raises:
      ValueError: the vocabulary cannot hold the 256 bytes and the hidden token.
    """
    if vocabulary_size <= BYTES:
        raise ValueError(
            f"vocabulary_size is {vocabulary_size}; allowed: more than {BYTES}, since every byte "
            "and one special token need an entry"
        )
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.NFC(), tokenizers.normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[HIDDEN_TOKEN],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    return tokenizer


@dataclasses.dataclass(frozen=True, eq=False)
class LearnedTextEncoder:
    """Token embeddings behind the `TextEncoder` protocol; equal by value.

    Attributes:
      tokenizer: fitted byte-level BPE.
      seen: the vocabulary entries that occur in training captions.
      config: number of positions and width.
    """

    tokenizer: tokenizers.Tokenizer
    seen: frozenset[int]
    config: TextConfig

    @functools.cached_property
    def _value(self) -> tuple[str, frozenset[int], TextConfig]:
        return self.tokenizer.to_str(), self.seen, self.config

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._value == other._value  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return hash(self._value)

    @classmethod
    def fit(
        cls, captions: Sequence[str], vocabulary_size: int, config: TextConfig
    ) -> LearnedTextEncoder:
        """A tokenizer for these captions, none of whose pieces counts as unseen."""
        tokenizer = fit_tokenizer(captions, vocabulary_size)
        encodings = tokenizer.encode_batch([caption.strip() for caption in captions])
        seen = frozenset(token for encoding in encodings for token in encoding.ids)
        return cls(tokenizer, seen, config)

    @classmethod
    def load(cls, folder: str | pathlib.Path, config: TextConfig) -> LearnedTextEncoder:
        """Reads what `save` or `python -m data.embed_text` wrote into `folder`.

        Raises:
          FileNotFoundError: there is no tokenizer.
          StorageError: one of the two files is damaged; names it.
        """
        path = pathlib.Path(folder) / TOKENIZER_FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} does not exist; `python -m data.embed_text` fits a tokenizer on a dataset"
            )
        seen = read_json(path.parent / SEEN_FILE, list)
        with damage(path):
            tokenizer = tokenizers.Tokenizer.from_file(str(path))
            if tokenizer.token_to_id(HIDDEN_TOKEN) is None:
                raise KeyError(HIDDEN_TOKEN)
            check_entries(tokenizer)
            size = tokenizer.get_vocab_size()
            if max(tokenizer.get_vocab().values()) >= size:  # embeddings are as many as entries
                raise ValueError(f"its entries are not numbered from 0 to {size - 1}")
        with damage(path.parent / SEEN_FILE):
            for token in seen:
                if type(token) is not int or not 0 <= token < size:
                    raise ValueError(f"{token!r} is no entry of the vocabulary")
        return cls(tokenizer, frozenset(seen), config)

    def save(self, folder: str | pathlib.Path) -> None:
        """Writes the tokenizer and the list of seen entries into `folder`."""
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder, deep=False)
        write_atomically(folder / TOKENIZER_FILE, self.tokenizer.to_str(pretty=True).encode())
        write_atomically(folder / SEEN_FILE, f"{json.dumps(sorted(self.seen))}\n".encode())

    @property
    def streams(self) -> tuple[tuple[str, int], ...]:
        """One stream of L positions."""
        return ((STREAM, self.config.num_positions),)

    def tokenize(self, captions: Sequence[str]) -> TextBatch:
        """Token ids [B, L] int32 and which positions hold text [B, L] bool.

        An empty caption has no text at all and reads as unconditional. A caption that is too long
        keeps its first L tokens, and a warning says so.
        """
        length = self.config.num_positions
        ids = np.zeros((len(captions), length), np.int32)
        mask = np.zeros((len(captions), length), np.bool_)
        for row, caption in enumerate(captions):
            found = self._token_ids(caption)
            if len(found) > length:
                truncation_log.add(caption, len(found), length)
            found = found[:length]
            ids[row, : len(found)] = found
            mask[row, : len(found)] = True
        return {"ids": ids, "mask": mask}

    @functools.cached_property
    def hidden_token(self) -> int:
        """The entry that stands for what the model cannot know or must not see."""
        token = self.tokenizer.token_to_id(HIDDEN_TOKEN)
        assert token is not None, HIDDEN_TOKEN
        return token

    def _token_ids(self, caption: str) -> list[int]:
        caption = caption.strip()
        found = self.tokenizer.encode(caption).ids if caption else []
        known = [token if token in self.seen else self.hidden_token for token in found]
        return [
            token
            for index, token in enumerate(known)
            if index == 0 or token != self.hidden_token or known[index - 1] != self.hidden_token
        ]

    @functools.cached_property
    def words(self) -> tuple[str, ...]:
        """The words that training captions hold, in order, less those that fall into pieces."""
        decoder = tokenizers.decoders.ByteLevel()
        pieces = [self.tokenizer.id_to_token(token) or "" for token in self.seen]
        found = [decoder.decode([piece]) for piece in pieces if piece.startswith(WORD_START)]
        return tuple(sorted(word.strip() for word in found if _is_word(word.strip())))

    def unknown_words(self, caption: str) -> list[str]:
        """The words of a caption, in lower case, of which the model reads a part as hidden."""
        caption = caption.strip()
        encoding = self.tokenizer.encode(caption)
        spans: dict[int, tuple[int, int]] = {}
        hidden = set()
        for token, word, (start, end) in zip(
            encoding.ids, encoding.word_ids, encoding.offsets, strict=True
        ):
            assert word is not None  # of special tokens alone
            first, last = spans.get(word, (start, end))
            spans[word] = min(first, start), max(last, end)
            if token not in self.seen:
                hidden.add(word)
        found = [caption[slice(*spans[word])].strip().lower() for word in sorted(hidden)]
        return list(dict.fromkeys(word for word in found if _is_word(word)))

    def init(self, key: Key) -> dict[str, Any]:
        """An embedding for every vocabulary entry, float32 [V, E]."""
        shape = (self.tokenizer.get_vocab_size(), self.config.width)
        return {"embedding": embedding_init(key, shape, jnp.float32)}

    def embed(
        self,
        params: Params,
        batch: TextBatch,
        *,
        hidden_tokens: Bool[Array, "B L"] | None = None,
    ) -> Conditioning:
        """Looks the tokens up; hidden ones read as the special token and keep their place."""
        ids = jnp.asarray(batch["ids"])
        if hidden_tokens is not None:
            ids = jnp.where(hidden_tokens, self.hidden_token, ids)
        return {STREAM: TextStream(params["embedding"][ids], jnp.asarray(batch["mask"]))}


def _is_word(piece: str) -> bool:
    """Not punctuation, and not the end of a word behind an apostrophe."""
    return piece[:1].isalnum()


def sample_hidden_tokens(key: Key, mask: Bool[AnyArray, "B L"], rate: float) -> Bool[Array, "B L"]:
    """Which text tokens training hides, each independently with probability `rate`."""
    return jax.random.bernoulli(key, rate, mask.shape) & mask
