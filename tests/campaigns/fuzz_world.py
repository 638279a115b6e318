"""What inputs are made from: a tiny dataset, a run, its export, and what they hold when whole."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import numpy as np

from fasttta_jax.codecs import SpectrogramCodec
from fasttta_jax.config import RunConfig
from fasttta_jax.parallel.local import local_mesh
from fasttta_jax.text import LearnedTextEncoder
from fasttta_jax.tools.export import export
from fasttta_jax.training.loop import Trainer
from fasttta_jax.workdir.hashes import tree_hash
from fasttta_jax.workdir.restore import TrainedModel, load_trained
from tests.support import helpers

PROMPTS = ("a loud tone", "clicks that is quiet", "", "ünknown wörds 雨")
"""Captions that say whether two text encoders are the same."""


@dataclasses.dataclass(frozen=True, eq=False)
class World:
    """Folders of a whole world; nobody writes to them.

    Attributes:
      path: that all of them lie in.
      audio: an audio dataset.
      encoded: its tokens, codec and tokenizer.
      workdir: of a run on them, of two checkpoints.
      exported: its model.
    """

    path: pathlib.Path
    audio: pathlib.Path
    encoded: pathlib.Path
    workdir: pathlib.Path
    exported: pathlib.Path

    @functools.cached_property
    def mesh(self) -> jax.sharding.Mesh:
        return local_mesh()

    @functools.cached_property
    def of_run(self) -> dict[str, Any]:
        return meaning(self.load(self.workdir))

    @functools.cached_property
    def of_export(self) -> dict[str, Any]:
        return meaning(self.load(self.exported))

    def load(self, source: pathlib.Path) -> TrainedModel:
        return load_trained(source, self.mesh)


def make_world(path: pathlib.Path) -> World:
    """Makes a world below a folder, or opens the one that is there."""
    world = World(path, path / "audio", path / "encoded", path / "run", path / "exported")
    if not world.exported.exists():
        helpers.write_encoded_dataset(path)
        config = helpers.tiny_teacher_config(world.encoded, num_steps=4, evaluate_every=2)
        Trainer(config, world.workdir, devices=jax.devices()[:1]).run()
        export(str(world.workdir), str(world.exported))
    return world


def meaning(model: TrainedModel) -> dict[str, Any]:
    """All that decides the sounds of a model, as values that can be compared."""
    text = model.model.text
    return {
        "config": plain(model.config),
        "step": model.step,
        "parameters": tree_hash(model.params),
        "codec": codec_meaning(model.codec),
        "text": text_meaning(text),
    }


def plain(config: RunConfig) -> Any:
    """A config without what names folders."""
    data = dataclasses.replace(config.data, path="")
    return dataclasses.replace(config, data=data, init_from="")


def codec_meaning(codec: Any) -> Any:
    assert isinstance(codec, SpectrogramCodec)
    arrays = [np.asarray(values) for values in dataclasses.astuple(codec.statistics)]
    return codec.config, [(values.dtype, values.shape, values.tobytes()) for values in arrays]


def text_meaning(text: Any) -> Any:
    assert isinstance(text, LearnedTextEncoder)
    batch = text.tokenize(PROMPTS)
    return {name: values.tolist() for name, values in batch.items()}, text.words, text.hidden_token
