"""The tokenizer of a published text encoder as the JSON text that `tokenizers` reads by itself.

transformers knows how each project's files (tokenizer.json, spiece.model, vocab.json with
merges.txt) become a tokenizer; it is asked once, in conversion, so that running needs none of it.
"""

from __future__ import annotations

import importlib.util
import pathlib

import tokenizers

from fasttta_jax.convert.stored import ConversionError

FILES = "tokenizer.json, or spiece.model (T5), or vocab.json and merges.txt (CLAP)"
"""What makes a tokenizer, each with tokenizer_config.json beside it."""
SENTENCEPIECE_PACKAGES = {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}
"""Packages by name, with a module of theirs, that transformers reads spiece.model with."""


def read_tokenizer(folder: pathlib.Path) -> str:
    """The tokenizer in a folder, without truncation, padding to the longest of a batch.

    Args:
      folder: with the tokenizer's files as published.

    Returns:
      JSON text of a `tokenizers.Tokenizer`; its padding names the id to pad with.

    Raises:
      ConversionError: files or packages are missing, or the tokenizer pads or cuts on the left.
    """
    _check_files(folder)
    import transformers  # slow, and of no use once converted

    try:
        found = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # whatever is wrong with the files, from many libraries
        raise ConversionError(
            f"{folder} holds no tokenizer that can be read ({type(error).__name__}: {error}); "
            f"add {FILES}, with tokenizer_config.json, from the same repository"
        ) from error
    backend = getattr(found, "backend_tokenizer", None)
    if backend is None:
        raise ConversionError(
            f"{folder} holds a {type(found).__name__}, which has no fast form; add tokenizer.json"
        )
    sides = {"padding_side": found.padding_side, "truncation_side": found.truncation_side}
    for name, side in sides.items():
        if side != "right":
            raise ConversionError(f"{folder}: {name} is {side!r}; allowed: 'right'")
    if found.pad_token_id is None:
        raise ConversionError(f"{folder}: pad_token is None; allowed: a token of the vocabulary")
    tokenizer = tokenizers.Tokenizer.from_str(backend.to_str())
    tokenizer.no_truncation()
    tokenizer.enable_padding(pad_id=found.pad_token_id, pad_token=str(found.pad_token))
    return tokenizer.to_str()


def _check_files(folder: pathlib.Path) -> None:
    def has(*names: str) -> bool:
        return all((folder / name).is_file() for name in names)

    if has("tokenizer.json") or has("vocab.json", "merges.txt"):
        return
    if not has("spiece.model"):
        found = ", ".join(sorted(path.name for path in folder.glob("*"))) or "nothing"
        raise ConversionError(f"{folder} holds no tokenizer; add {FILES}; found: {found}")
    missing = [name for name, module in SENTENCEPIECE_PACKAGES.items() if not _installed(module)]
    if missing:
        raise ConversionError(
            f"{folder / 'spiece.model'} can be read only with {' and '.join(missing)}: "
            f"`pip install {' '.join(missing)}`, or add tokenizer.json from the same repository"
        )


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


def check_vocabulary(tokenizer_json: str, rows: int, source: str) -> None:
    """Whether every entry of a tokenizer has a row in the embedding.

    Args:
      tokenizer_json: from `read_tokenizer`.
      rows: of the embedding; more rows than entries are fine.
      source: what to call the checkpoint in the error.

    Raises:
      ConversionError: the highest id has no row; says both numbers.
    """
    vocabulary = tokenizers.Tokenizer.from_str(tokenizer_json).get_vocab(with_added_tokens=True)
    size = max(vocabulary.values(), default=-1) + 1
    if size > rows:
        raise ConversionError(
            f"{source}: the tokenizer has {size} entries and the embedding {rows} rows; expected "
            "no more entries than rows, so these files do not belong together"
        )
