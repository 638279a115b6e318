"""Commands that are tried with strange flags: a command line of each that works, and its end here.

What a command line leads to is cut off where it would train, encode, generate, judge or serve: the
checks before are what is tried.
"""

from __future__ import annotations

import contextlib
import functools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np
from absl import flags

import eval as evaluate
import generate
import train
from data import (
    audiocaps,
    audioset,
    clotho,
    embed_text,
    encode_latents,
    esc10,
    manifest,
    pairs,
    spectrogram_codec,
    vae_codec,
    wavcaps,
)
from data import folder as folder_command
from data.common import making
from data.common.shards import ShardedDataset
from data.soundscapes import __main__ as soundscapes
from fasttta_jax.codecs import vae_codec as vae_networks
from fasttta_jax.config import flatten, to_config_dict
from fasttta_jax.convert import __main__ as convert
from fasttta_jax.evaluation.evaluator import Evaluator
from fasttta_jax.evaluation.judging import Judge
from fasttta_jax.input_pipeline.records import EncodedDataset
from fasttta_jax.multihost import distributed
from fasttta_jax.multihost.startup import find_place
from fasttta_jax.tools import aot_report, demo, export, merge, param_overview
from fasttta_jax.training import opening
from tests.campaigns.damage import link_tree
from tests.campaigns.families import converted, state_dicts
from tests.campaigns.fuzz_world import World
from tests.support import helpers
from tests.support.latent_runs import latent_config, save_flow
from tests.support.sound_files import sounds

Line = dict[str, str]
"""Values by flag; names of white space are those of arguments without a flag, in order."""


class Command(NamedTuple):
    """A command.

    Attributes:
      define: its flags.
      main: what it does.
      line: makes what a command line needs in a folder, and returns one that works.
      positional: names of arguments without a flag.
      overrides: whether it takes fields of a config.
    """

    define: Callable[[flags.FlagValues], None]
    main: Callable[..., None]
    line: Callable[[World, pathlib.Path], Line]
    positional: str = ""
    overrides: bool = False


def _stop(*unused: Any, **named: Any) -> Any:
    """In place of what follows the checks."""
    raise SystemExit(0)


def _place_alone(address: Any, count: Any, index: Any, *unused: Any) -> None:
    """Looks for a job as commands of several hosts do, and joins none."""
    find_place(address, count, index)


ENDS: tuple[tuple[Any, str, Callable[..., Any]], ...] = (
    (generate.Job, "run", _stop),
    (making, "audio_dataset", _stop),
    (export, "write_exported", _stop),
    (opening.programs, "make_context", _stop),
    (Evaluator, "run", _stop),
    (Judge, "judge", _stop),
    (Judge, "hear_share", _stop),
    (Judge, "write_reference", _stop),
    (ShardedDataset, "make", _stop),
    (spectrogram_codec, "_moments", _stop),
    (vae_networks, "_encode", _stop),
    (embed_text, "write_table", _stop),
    (embed_text, "save_networks", _stop),
    (demo, "build", _stop),
    (demo, "check_installed", lambda: None),
    (param_overview, "build_model", _stop),
    (aot_report, "text_encoder", _stop),
    (aot_report, "_without_stack_limit", lambda: None),
    (distributed, "initialize", _place_alone),
)
"""Where commands end here, and what takes the place of what would leave this process."""


@contextlib.contextmanager
def cut_off() -> Iterator[None]:
    """A block in which commands end behind their checks."""
    caches = jax.config.jax_enable_compilation_cache
    with contextlib.ExitStack() as stack:
        for owner, name, other in ENDS:
            stack.enter_context(mock.patch.object(owner, name, other))
        try:
            yield
        finally:
            jax.config.update("jax_enable_compilation_cache", caches)


def _config(world: World, folder: pathlib.Path) -> str:
    config = helpers.tiny_teacher_config(world.encoded, num_steps=4, evaluate_every=2)
    return str(helpers.run_config_file(config, folder / "config.py"))


def _train(world: World, folder: pathlib.Path) -> Line:
    return {"config": _config(world, folder), "workdir": str(folder / "out")}


def _evaluate(world: World, folder: pathlib.Path) -> Line:
    data = {"audio_data": str(world.audio), "encoded_data": str(world.encoded)}
    return {"run": f"teacher={world.workdir}", **data, "out": str(folder / "out")}


def _judge(world: World, folder: pathlib.Path) -> Line:
    sounds(folder / "audio", "a.wav", "b.wav")
    theirs = {"generated": f"theirs={folder / 'audio'}", "audio_data": str(world.audio)}
    return {**theirs, "out": str(folder / "out")}


def _generate(world: World, folder: pathlib.Path) -> Line:
    return {"workdir": str(world.exported), "prompt": "rain", "out": str(folder / "out")}


def _demo(world: World, folder: pathlib.Path) -> Line:
    return {"workdir": str(world.exported)}


def _export(world: World, folder: pathlib.Path) -> Line:
    return {"": str(world.exported), " ": str(folder / "out"), "title": "Mine"}


def _merge(world: World, folder: pathlib.Path) -> Line:
    return {"": str(folder)}


def _convert(world: World, folder: pathlib.Path) -> Line:
    path, table = folder / "model.safetensors", state_dicts.table_of("ear")
    path.write_bytes(state_dicts.safetensors(state_dicts.state_of(table)))
    return {"": "mar", " ": str(path), "  ": str(folder / "out"), "num_heads": "2"}


def _overview(world: World, folder: pathlib.Path) -> Line:
    return {"config": _config(world, folder)}


def _aot_report(world: World, folder: pathlib.Path) -> Line:
    return {"config": _config(world, folder), "topology": "v5e:2x2"}


def _folder(world: World, folder: pathlib.Path) -> Line:
    sounds(folder / "audio", "a.wav")
    (folder / "audio" / "metadata.csv").write_text("file,caption\na.wav,rain\n")
    return {"audio_dir": str(folder / "audio"), "out": str(folder / "out"), "name": "mine"}


def _manifest(world: World, folder: pathlib.Path) -> Line:
    line = _folder(world, folder)
    return {**line, "manifest": f"train={folder / 'audio' / 'metadata.csv'}"}


def _soundscapes(world: World, folder: pathlib.Path) -> Line:
    return {"out": str(folder / "out"), "num_train": "3", "workers": "1"}


def _esc10(world: World, folder: pathlib.Path) -> Line:
    sounds(folder / "audio" / "audio", "a.ogg")
    row = "file_name,fold,category,freesound_id\na.ogg,1,rain,7\n"
    (folder / "audio" / "metadata.csv").write_text(row)
    return {"esc10_dir": str(folder / "audio"), "out": str(folder / "out")}


def _audiocaps(world: World, folder: pathlib.Path) -> Line:
    audio = folder / "audio"
    sounds(audio, "aaaaaaaaaaa.wav")
    row = "audiocap_id,youtube_id,start_time,caption\n1,aaaaaaaaaaa,30,rain\n"
    (audio / "train.csv").write_text(row)
    return {"list": str(audio / "train.csv"), "audio_dir": str(audio), "out": str(folder / "out")}


def _audioset(world: World, folder: pathlib.Path) -> Line:
    audio = folder / "audio"
    sounds(audio, "aaaaaaaaaaa.wav")
    (audio / "train.csv").write_text('aaaaaaaaaaa, 30.000, 40.000, "/m/09x0r"\n')
    given = {"segments": str(audio / "train.csv"), "audio_dir": str(audio)}
    return {**given, "out": str(folder / "out")}


def _clotho(world: World, folder: pathlib.Path) -> Line:
    audio = folder / "audio"
    sounds(audio, "development/a.wav")
    captions = ",".join(f"caption_{number}" for number in range(1, 6))
    text = f"file_name,{captions}\na.wav,a,b,c,d,e\n"
    (audio / "clotho_captions_development.csv").write_text(text)
    return {"clotho_dir": str(audio), "out": str(folder / "out")}


def _wavcaps(world: World, folder: pathlib.Path) -> Line:
    audio = folder / "audio"
    sounds(audio, "7.flac")
    rows = [{"id": "7", "caption": "rain", "duration": 1.0}]
    (audio / "sb_final.json").write_text(json.dumps({"data": rows}))
    return {"wavcaps_dir": str(audio), "blacklist": "none", "out": str(folder / "out")}


def _codec(world: World, folder: pathlib.Path) -> Line:
    return {"data": str(world.audio), "out": str(folder / "out")}


def _vae_codec(world: World, folder: pathlib.Path) -> Line:
    networks = {
        flag: str(converted.folder_of(world.path.parent, kind))
        for flag, kind in (("vae", "vae"), ("vocoder", "hifigan"))
    }
    return {**networks, "out": str(folder / "out")}


def _encode(world: World, folder: pathlib.Path) -> Line:
    return {"data": str(world.audio), "codec": str(world.encoded), "out": str(folder / "out")}


def _embed(world: World, folder: pathlib.Path) -> Line:
    return {"data": str(link_tree(world.encoded, folder / "out")), "vocabulary_size": "300"}


@functools.cache
def _flow(world: World) -> str:
    """A workdir of it, beside what all inputs share."""
    config = latent_config("flow", world.encoded)
    return save_flow(world.path.parent / "flow", config, world.encoded)


def _pairs(world: World, folder: pathlib.Path) -> Line:
    line = {"workdir": _flow(world), "data": str(world.encoded), "out": str(folder / "out")}
    return {**line, "number": "4"}


@functools.cache
def _captions(encoded: pathlib.Path) -> list[str]:
    return list(embed_text.all_captions(EncodedDataset(encoded)))


def _embed_file(world: World, folder: pathlib.Path) -> Line:
    captions = np.array(_captions(world.encoded))
    np.savez(folder / "captions.npz", captions=captions, t5=np.ones((len(captions), 2, 3)))
    return {"data": str(world.encoded), "embeddings": str(folder / "captions.npz")}


def _embed_network(world: World, folder: pathlib.Path) -> Line:
    network = converted.folder_of(world.path.parent, "t5")
    return {"data": str(world.encoded), "encoder": f"t5={network}", "positions": "t5=8"}


COMMANDS = {
    "train.py": Command(train.define_flags, train.main, _train, overrides=True),
    "eval.py": Command(evaluate.define_flags, evaluate.main, _evaluate),
    "eval.py, folders": Command(evaluate.define_flags, evaluate.main, _judge),
    "generate.py": Command(generate.define_flags, generate.main, _generate),
    "convert": Command(convert.define_flags, convert.main, _convert, "KIND SOURCE OUT"),
    "demo": Command(demo.define_flags, demo.main, _demo),
    "export": Command(export.define_flags, export.main, _export, "WORKDIR OUT"),
    "merge": Command(lambda values: None, merge.main, _merge, "FOLDER"),
    "param_overview": Command(
        param_overview.define_flags, param_overview.main, _overview, overrides=True
    ),
    "aot_report": Command(aot_report.define_flags, aot_report.main, _aot_report, overrides=True),
    "data.folder": Command(folder_command.define_flags, folder_command.main, _folder),
    "data.manifest": Command(manifest.define_flags, manifest.main, _manifest),
    "data.soundscapes": Command(soundscapes.define_flags, soundscapes.main, _soundscapes),
    "data.esc10": Command(esc10.define_flags, esc10.main, _esc10),
    "data.audiocaps": Command(audiocaps.define_flags, audiocaps.main, _audiocaps),
    "data.audioset": Command(audioset.define_flags, audioset.main, _audioset),
    "data.clotho": Command(clotho.define_flags, clotho.main, _clotho),
    "data.wavcaps": Command(wavcaps.define_flags, wavcaps.main, _wavcaps),
    "data.spectrogram_codec": Command(
        spectrogram_codec.define_flags, spectrogram_codec.main, _codec
    ),
    "data.vae_codec": Command(vae_codec.define_flags, vae_codec.main, _vae_codec),
    "data.encode_latents": Command(encode_latents.define_flags, encode_latents.main, _encode),
    "data.pairs": Command(pairs.define_flags, pairs.main, _pairs),
    "data.embed_text": Command(embed_text.define_flags, embed_text.main, _embed),
    "data.embed_text, file": Command(embed_text.define_flags, embed_text.main, _embed_file),
    "data.embed_text, networks": Command(embed_text.define_flags, embed_text.main, _embed_network),
}


def fields() -> Mapping[str, Any]:
    """By flag, the fields of a config and what they are."""
    found = flatten(to_config_dict(helpers.tiny_teacher_config("data")).to_dict())
    return {f"config.{name}": value for name, value in sorted(found.items())}
