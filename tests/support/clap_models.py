"""CLAP models of transformers with random weights, their files, and RoBERTa-like tokenizers."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers

from fasttta_jax.convert import clap
from fasttta_jax.convert.source import open_source
from fasttta_jax.convert.write import Conversion, write_conversion

VOCABULARY = 300
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "projection_dim": 24,
}
AUDIO = {
    "patch_embeds_hidden_size": 16,
    "hidden_size": 32,
    "depths": [1, 1],
    "num_attention_heads": [2, 4],
    "spec_size": 64,
    "window_size": 4,
    "num_mel_bins": 16,
    "patch_size": 4,
    "patch_stride": [4, 4],
}
FUSION = {"enable_fusion": True, "fusion_type": "aff_2d"}


def redraw(model: Any, seed: int = 0) -> Any:
    """Every parameter and running statistic anew, such that activations are of order 1."""
    generator = torch.Generator().manual_seed(seed)

    def normal(value: torch.Tensor, scale: float) -> torch.Tensor:
        return scale * torch.randn(value.shape, generator=generator)

    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if not value.is_floating_point():
                continue
            if name.endswith("running_var"):
                value.copy_(0.5 + torch.rand(value.shape, generator=generator))
            elif "embeddings.weight" in name:
                value.copy_(normal(value, 1.0))
            elif value.ndim > 1:
                value.copy_(normal(value, 2 * value[0].numel() ** -0.5))
            elif value.ndim == 1 and name.endswith("weight"):
                value.copy_(1 + normal(value, 0.2))
            elif value.ndim == 1:
                value.copy_(normal(value, 0.2))
            else:
                value.copy_(value + normal(value, 0.1))
    return model.eval()


def text_model(seed: int = 0, **changes: Any) -> Any:
    """transformers' text tower alone, as in AudioLDM's text_encoder."""
    config = transformers.ClapTextConfig(**(TEXT | changes))
    return redraw(transformers.ClapTextModelWithProjection(config), seed)


def clap_model(
    seed: int = 0,
    text: dict[str, Any] | None = None,
    audio: dict[str, Any] | None = None,
    projection_dim: int = 24,
) -> Any:
    """transformers' whole model; `text` and `audio` replace sizes of the towers."""
    config = transformers.ClapConfig(
        text_config=TEXT | (text or {}),
        audio_config=AUDIO | (audio or {}),
        projection_dim=projection_dim,
    )
    return redraw(transformers.ClapModel(config), seed)


def embeddings(model: Any, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Normalised embeddings, by a reference of either kind."""
    arguments = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask).long()}
    with torch.no_grad():
        if isinstance(model, transformers.ClapModel):
            return model.get_text_features(**arguments).pooler_output.numpy()
        found = model(**arguments).text_embeds
        return torch.nn.functional.normalize(found, dim=-1).numpy()


def captions(
    lengths: list[int], padded: int, seed: int = 0, pad: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Random tokens of the given lengths between <s> and </s>, padded; ids and mask [B, padded]."""
    rng = np.random.default_rng(seed)
    mask = np.arange(padded) < np.asarray(lengths)[:, None]
    ids = np.where(mask, rng.integers(5, VOCABULARY, mask.shape), pad)
    ids[:, 0] = 0
    for row, length in enumerate(lengths):
        ids[row, max(length - 1, 1)] = 2 if length > 1 else pad
    return ids.astype(np.int32), mask


def write_tokenizer(
    folder: pathlib.Path, size: int = VOCABULARY, first: tuple[str, ...] = ("<s>", "<pad>", "</s>")
) -> pathlib.Path:
    """RoBERTa's tokenizer with `size` tokens, `first` to begin with, and nothing merged."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    names = [*first, "<unk>", "<mask>", *alphabet]
    names += [f"word{number}" for number in range(size - len(names))]
    vocabulary = {name: number for number, name in enumerate(names)}
    transformers.RobertaTokenizer(vocab=vocabulary, merges=[]).save_pretrained(folder)
    return folder


def save(model: Any, folder: pathlib.Path, suffix: str = ".safetensors") -> pathlib.Path:
    """A folder as transformers publishes it, with weights of that suffix and a tokenizer."""
    model.save_pretrained(folder)
    if suffix == ".bin":
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    return write_tokenizer(folder)


def convert(path: pathlib.Path, out: pathlib.Path, **arguments: Any) -> Conversion:
    """Opens, converts and writes, as the command does."""
    with open_source(str(path)) as source:
        conversion = clap.convert(source, **arguments)
    write_conversion(conversion, out)
    return conversion


AUDIO_NAMES = {
    "audio_model.audio_encoder.": "audio_branch.",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.self.": "attn.",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "batch_norm": "bn0",
    "audio_projection.linear1": "audio_projection.0",
    "audio_projection.linear2": "audio_projection.2",
}


class Original(torch.nn.Module):
    """The text side of LAION's model: transformers' RoBERTa, a projection, and a further MLP."""

    def __init__(self, seed: int = 0, **changes: Any) -> None:
        super().__init__()
        sizes = TEXT | {"hidden_size": 128, "num_attention_heads": 2} | changes
        shared = sizes.pop("projection_dim")
        width = sizes["hidden_size"]
        config = transformers.RobertaConfig(**sizes)
        self.text_branch = transformers.RobertaModel(config)
        self.text_projection = self._mlp(width, shared)
        self.text_transform = torch.nn.ModuleDict({"sequential": self._mlp(shared, shared, 3)})
        self.audio_transform = torch.nn.ModuleDict({"sequential": self._mlp(shared, shared, 3)})
        self.logit_scale_a = torch.nn.Parameter(torch.tensor(2.6))
        self.logit_scale_t = torch.nn.Parameter(torch.tensor(2.7))
        redraw(self, seed)

    @staticmethod
    def _mlp(width: int, shared: int, last: int = 2) -> torch.nn.Sequential:
        between = [torch.nn.Dropout()] if last == 3 else []
        linear = torch.nn.Linear
        return torch.nn.Sequential(
            linear(width, shared), torch.nn.ReLU(), *between, linear(shared, shared)
        )

    def forward(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            pooled = self.text_branch(torch.tensor(ids), torch.tensor(mask).long()).pooler_output
            return torch.nn.functional.normalize(self.text_projection(pooled), dim=-1).numpy()


def original_state(text: Original, audio: Any | None = None) -> dict[str, torch.Tensor]:
    """The state dict that LAION's code saves; `audio` is transformers' whole model."""
    state = {
        key: value
        for key, value in text.state_dict().items()
        if audio or not key.startswith("audio_")
    }
    positions = len(text.text_branch.embeddings.position_embeddings.weight)
    state["text_branch.embeddings.position_ids"] = torch.arange(positions)[None]
    for key, value in audio.state_dict().items() if audio else ():
        if not key.startswith("audio_"):
            continue
        if ".query." in key:
            parts = [audio.state_dict()[key.replace("query", name)] for name in ("key", "value")]
            key, value = key.replace("query", "qkv"), torch.cat([value, *parts])
        elif ".key." in key or ".value." in key:
            continue
        for theirs, original in AUDIO_NAMES.items():
            key = key.replace(theirs, original)
        state[key] = value
    return state
