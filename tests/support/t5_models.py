"""Small T5 encoders of transformers with random weights, tiny tokenizers, and their conversion."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

from fasttta_jax.convert import t5
from fasttta_jax.convert.source import open_source
from fasttta_jax.convert.write import Conversion, write_conversion

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
import tokenizers  # noqa: E402

CAPTIONS = (
    "A dog barks while rain falls on a tin roof",
    "An audience gives applause as a man yells and a group sings",
    "Rustling occurs, ducks quack and water splashes",
    "Wind blows; a car passes by, then a train horn sounds twice",
)
SIZES: dict[str, Any] = {
    "vocab_size": 400,
    "d_model": 40,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 3,
    "num_heads": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "feed_forward_proj": "gated-gelu",
}


def make_reference(whole: bool = False, seed: int = 0, **sizes: Any) -> Any:
    """T5EncoderModel, or the whole T5ForConditionalGeneration, all parameters drawn anew.

    Every product has results of order 1, so that a wrong name, axis or bucket shows.
    """
    config = transformers.T5Config(**{**SIZES, **sizes})
    kind = transformers.T5ForConditionalGeneration if whole else transformers.T5EncoderModel
    model = kind(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim == 1:
                value.uniform_(0.5, 1.5, generator=generator)
            elif "embed" in name or "shared" in name or "relative" in name:
                value.normal_(generator=generator)
            else:
                heads = config.d_kv**-0.5 if name.endswith(".q.weight") else 1.0
                value.normal_(std=heads * value.shape[1] ** -0.5, generator=generator)
    return model


def make_t5_tokenizer(vocabulary_size: int = 120, extra_ids: int = 10) -> Any:
    """A T5TokenizerFast with pieces fitted on CAPTIONS."""
    fitted = tokenizers.Tokenizer(tokenizers.models.Unigram())
    fitted.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=vocabulary_size,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    fitted.train_from_iterator(CAPTIONS, trainer)
    pieces = [tuple(entry) for entry in json.loads(fitted.to_str())["model"]["vocab"]]
    pieces += [(f"<extra_id_{index}>", 0.0) for index in reversed(range(extra_ids))]
    return transformers.T5TokenizerFast(vocab=pieces, extra_ids=extra_ids)


def make_roberta_tokenizer(vocabulary_size: int = 350) -> Any:
    """A RobertaTokenizerFast with byte-level BPE fitted on CAPTIONS."""
    fitted = tokenizers.Tokenizer(tokenizers.models.BPE())
    fitted.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    fitted.train_from_iterator(CAPTIONS, trainer)
    model = json.loads(fitted.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    return transformers.RobertaTokenizerFast(vocab=model["vocab"], merges=merges)


def save_published(folder: pathlib.Path, model: Any, *, pickled: bool = False, **save: Any) -> None:
    """A folder as on the Hub: config.json, weights and tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    if pickled:
        model.config.save_pretrained(folder)
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    else:
        model.save_pretrained(folder, **save)
    make_t5_tokenizer().save_pretrained(folder)


def convert(folder: pathlib.Path) -> Conversion:
    """What the command does with the folder, up to writing."""
    with open_source(str(folder)) as source:
        return t5.convert(source)


def convert_to(folder: pathlib.Path, model: Any, **save: Any) -> pathlib.Path:
    """The converted folder of a model, by way of a published one."""
    save_published(folder / "published", model, **save)
    write_conversion(convert(folder / "published"), folder / "converted")
    return folder / "converted"
