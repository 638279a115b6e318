"""An exported model is what was trained; whatever else lies in its folder is named, never run."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import pathlib
import pickle
import shutil
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fasttta_jax.config import MeshConfig, TextConfig
from fasttta_jax.evaluation.setup import EvaluationConfig, load_setup
from fasttta_jax.generation.pipeline import Pipeline
from fasttta_jax.input_pipeline.records import EncodedDataset
from fasttta_jax.parallel.local import local_mesh
from fasttta_jax.parallel.mesh import make_mesh
from fasttta_jax.storage.content import file_sha256
from fasttta_jax.storage.files import list_files
from fasttta_jax.systems import build_model
from fasttta_jax.tools.export import export
from fasttta_jax.training.initialization import open_init_from
from fasttta_jax.workdir.exported import (
    CARD_FILE,
    HASHES_FILE,
    MODEL_FILE,
    ExportedError,
    check_files,
    check_target,
    write_exported,
)
from fasttta_jax.workdir.folder import Workdir, WorkdirError
from fasttta_jax.workdir.restore import TrainedModel, load_trained
from tests.support import helpers
from tests.support.tolerance import assert_close, model_terms, rounding

PROMPTS = ["a loud tone", "noise that is quiet"]


def open_on_one_device(source: str | os.PathLike[str]) -> Pipeline:
    return Pipeline.open(source, mesh=make_mesh(MeshConfig(), jax.devices()[:1]))


def load(source: str | os.PathLike[str], which: str | int = "last") -> TrainedModel:
    return load_trained(source, make_mesh(MeshConfig(), jax.devices()[:1]), which=which)


@pytest.fixture(scope="module")
def exported(
    runs: dict[str, pathlib.Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, pathlib.Path]:
    """The models of both runs, float32; to be read."""
    folder = tmp_path_factory.mktemp("exported")
    for name, workdir in runs.items():
        export(str(workdir), str(folder / name))
    return {name: folder / name for name in runs}


@pytest.fixture
def copy(exported: dict[str, pathlib.Path], tmp_path: pathlib.Path) -> pathlib.Path:
    """The student's, to be changed."""
    return pathlib.Path(shutil.copytree(exported["student"], tmp_path / "copy"))


def hash_again(folder: pathlib.Path) -> None:
    """What somebody does who wants a folder of other contents to pass."""
    names = [name for name in list_files(folder) if name != HASHES_FILE]
    values = {"format": 1, "sha256": {name: file_sha256(folder / name) for name in names}}
    (folder / HASHES_FILE).write_text(json.dumps(values))


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_nothing_is_lost(
    runs: dict[str, pathlib.Path], exported: dict[str, pathlib.Path], name: str
) -> None:
    """Parameters and codec bit by bit; the text encoder is equal, and so the program is."""
    run, model = load(runs[name]), load(exported[name])
    jax.tree.map(np.testing.assert_array_equal, run.params, model.params)
    assert model.origin() == run.origin() | {"workdir": str(exported[name])}
    assert model.model == run.model
    np.testing.assert_array_equal(model.codec.silence(), run.codec.silence())
    assert dataclasses.replace(run.config, data=model.config.data, init_from="") == model.config
    assert str(runs[name].parent) not in (exported[name] / "config.json").read_text()


def test_sounds_are_those_of_the_run(
    runs: dict[str, pathlib.Path],
    exported: dict[str, pathlib.Path],
    tmp_path: pathlib.Path,
) -> None:
    """To the bit from float32. A narrower parameter is rounded once, a term of its sums."""
    expected = list(open_on_one_device(runs["student"]).generate(PROMPTS, seed=3))
    for clip, again in zip(
        expected, open_on_one_device(exported["student"]).generate(PROMPTS, seed=3), strict=True
    ):
        np.testing.assert_array_equal(clip.tokens, again.tokens)
        np.testing.assert_array_equal(clip.audio, again.audio)
    config = load(runs["student"]).config
    for dtype in ("float16", "bfloat16"):
        folder = tmp_path / dtype
        export(str(runs["student"]), str(folder), dtype=dtype)  # type: ignore[arg-type]
        pipeline = open_on_one_device(folder)
        jax.tree.map(
            lambda found, whole, to=dtype: np.testing.assert_array_equal(
                found, np.asarray(whole).astype(jnp.dtype(to)).astype(np.float32)
            ),
            pipeline.trained.params,
            load(runs["student"]).params,
        )
        # As in decode_rounding of tests/decoding/test_models.py, for sums of rounded parameters.
        terms = config.decode.num_iterations * model_terms(config.model)
        bound = (2 * config.decode.guidance_scale - 1) * rounding(terms, jnp.dtype(dtype))
        tokens = [clip.tokens for clip in pipeline.generate(PROMPTS, seed=3)]
        assert_close(np.stack(tokens), np.stack([clip.tokens for clip in expected]), bound)


def test_two_exports_are_equal_and_a_third_replaces(
    runs: dict[str, pathlib.Path], exported: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    folder = tmp_path / "student"
    for _ in range(2):
        export(str(runs["student"]), str(folder))
        assert list_files(folder) == list_files(exported["student"])
        for name in list_files(folder):
            assert (folder / name).read_bytes() == (exported["student"] / name).read_bytes()
            assert (folder / name).stat().st_mode & 0o444 == 0o444
    export(str(folder), str(tmp_path / "narrow"), dtype="float16")
    assert load(tmp_path / "narrow").step == load(folder).step


def test_one_of_its_checkpoints(
    runs: dict[str, pathlib.Path], exported: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    export(str(runs["student"]), str(tmp_path / "early"), which=37)
    early = load(tmp_path / "early", 37)
    assert early.step == 37
    assert early.origin()["sha256"] != load(exported["student"]).origin()["sha256"]
    with pytest.raises(WorkdirError, match="checkpoint is 'best'; allowed: last or 37, the only"):
        load(tmp_path / "early", "best")
    with pytest.raises(WorkdirError, match="checkpoint is 40; allowed: last or 37"):
        load(tmp_path / "early", 40)


FAULTS: dict[str, Callable[[pathlib.Path], object]] = {
    "flipped": lambda path: path.write_bytes(
        bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]
    ),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "removed": lambda path: path.unlink(),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_damaged_file_is_named(
    copy: pathlib.Path, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    names = list(list_files(copy))
    assert len(names) == 8
    assert {"config.json", MODEL_FILE, "codec/codec.json", "text/tokenizer.json"} < set(names)
    for name in names:
        content = (copy / name).read_bytes()
        FAULTS[fault](copy / name)
        if name == CARD_FILE:  # which people edit, and `load` does not read
            with caplog.at_level(logging.WARNING, "fasttta_jax"):
                check_files(copy)
            assert CARD_FILE in caplog.text
        else:
            with pytest.raises(ExportedError) as caught:
                load(copy)
            assert name in str(caught.value)
            assert str(copy) in str(caught.value)
            if fault != "removed" and name != HASHES_FILE:
                assert f"has the SHA-256 {file_sha256(copy / name)}, not " in str(caught.value)
        (copy / name).write_bytes(content)
    check_files(copy)


class Bomb:
    """A pickle of it makes a file when it is read."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return pathlib.Path.touch, (self.path,)


def test_pickles_are_never_read(copy: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Even where the hashes are those of the pickles."""
    bomb = Bomb(tmp_path / "bomb")
    pickle.loads(pickle.dumps(bomb))
    assert bomb.path.exists()
    bomb.path.unlink()
    whole = {name: (copy / name).read_bytes() for name in list_files(copy)}
    for name in (name for name in whole if name not in (CARD_FILE, HASHES_FILE)):
        if name.endswith(".npz"):
            np.savez(copy / name, mean=np.array([bomb]), basis=np.array([bomb]))
        else:
            (copy / name).write_bytes(pickle.dumps(bomb))
        hash_again(copy)
        with pytest.raises(WorkdirError, match=name.split("/")[0]):
            load(copy)
        (copy / name).write_bytes(whole[name])
    assert not bomb.path.exists()


def test_another_models_parameters_are_named(copy: pathlib.Path) -> None:
    arrays = load_file(copy / MODEL_FILE)
    name = next(iter(arrays))
    changes = {
        f"{name} is missing": {key: values for key, values in arrays.items() if key != name},
        "more is not part of the model": arrays | {"more": np.zeros(3, np.float32)},
        r"is float32\[3\], not float32\[": arrays | {name: np.zeros(3, np.float32)},
        f"{name} is int32": arrays | {name: np.zeros(arrays[name].shape, np.int32)},
    }
    for message, values in changes.items():
        save_file(values, copy / MODEL_FILE)
        hash_again(copy)
        with pytest.raises(
            ExportedError, match=f"safetensors does not fit config.json: .*{message}"
        ):
            load(copy)


def test_a_folder_of_another_kind_is_named(copy: pathlib.Path) -> None:
    (copy / "codec" / ".DS_Store").write_text("")
    check_files(copy)
    (copy / "codec" / "more.npz").write_text("")
    with pytest.raises(ExportedError, match=r"codec/more\.npz is not one of its files"):
        load(copy)
    hashes = json.loads((copy / HASHES_FILE).read_text())
    for values, message in [
        ({**hashes, "format": 2}, "has format 2; allowed: up to 1"),
        ({**hashes, "sha256": {"../x": "0" * 64}}, "'../x': .* is no file and SHA-256"),
        ({**hashes, "sha256": {"x": "0"}}, "is no file and SHA-256"),
        ({**hashes, "sha256": {"x": "0" * 64}}, "config.json is not in it"),
        ([], "cannot be read"),
    ]:
        (copy / HASHES_FILE).write_text(json.dumps(values))
        with pytest.raises(ExportedError, match=message):
            load(copy)


def test_what_a_folder_holds_is_not_lost(copy: pathlib.Path, tmp_path: pathlib.Path) -> None:
    check_target(copy)
    (copy / ".git").mkdir()
    (copy / ".git" / "HEAD").write_text("ref")
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("")
    for target, message in {
        str(copy): ".git/HEAD, which is no part of an exported model and would be lost",
        str(tmp_path / "file"): "file is a file; allowed: a new folder",
        str(tmp_path / "full"): "full is not empty, and no exported model",
        "gs://bucket/model": "is a URL; allowed: a folder here",
    }.items():
        with pytest.raises(ExportedError, match=message):
            check_target(target)


def test_an_export_that_fails_leaves_nothing(
    runs: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    trained = load(runs["student"])
    wrong = jax.tree.map(lambda leaf: leaf, trained.params)
    wrong["head"] = jax.tree.map(lambda leaf: leaf + 7e4, wrong["head"])
    arguments: dict[str, Any] = {
        "config": trained.config,
        "origin": runs["student"],
        "described": {"step": 1},
        "card": "",
    }
    with pytest.raises(
        ExportedError, match=r"head/.* has a value of 7\d+.*, which float16 does not"
    ):
        write_exported(tmp_path / "out", params=wrong, dtype="float16", **arguments)
    shutil.copytree(runs["student"] / "text", tmp_path / "half" / "text")
    shutil.copy(runs["student"] / "config.json", tmp_path / "half")
    arguments["origin"] = tmp_path / "half"
    with pytest.raises(OSError, match="codec"):
        write_exported(tmp_path / "out", params=trained.params, **arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["half"]


def test_frozen_text_is_carried_or_refused(
    runs: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    """A folder that could not encode a prompt is not written."""
    trained = load(runs["student"])
    text = TextConfig(encoder="frozen", streams=(("clap", 1, 4),), token_dropout=0.0)
    model = helpers.tiny_model_config(text=text)
    origin = tmp_path / "run"
    shutil.copytree(runs["student"] / "codec", origin / "codec")
    shutil.copy(runs["student"] / "config.json", origin)
    arguments: dict[str, Any] = {
        "config": dataclasses.replace(trained.config, model=model),
        "params": trained.params,
        "origin": origin,
        "described": {"step": 1},
        "card": "",
    }
    with pytest.raises(ExportedError, match=r"text has no networks\.json: .*data\.embed_text"):
        write_exported(tmp_path / "out", **arguments)
    network = origin / "text" / "networks" / "clap"
    network.mkdir(parents=True)
    (network / "weights.safetensors").write_bytes(b"weights")
    (origin / "text" / "networks.json").write_text("{}")
    write_exported(tmp_path / "out", **arguments)
    check_files(tmp_path / "out")
    assert (tmp_path / "out/text/networks/clap/weights.safetensors").read_bytes() == b"weights"


def test_a_student_starts_from_an_exported_teacher(
    encoded_dataset: pathlib.Path,
    runs: dict[str, pathlib.Path],
    exported: dict[str, pathlib.Path],
    tmp_path: pathlib.Path,
) -> None:
    """Follows it, or takes what fits: the same parameters, words and all."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    source = exported["teacher"]
    expected = load(runs["teacher"]).params
    for config in (
        helpers.tiny_student_config(encoded_dataset, source),
        helpers.tiny_teacher_config(encoded_dataset, init_from=str(source)),
    ):
        workdir = Workdir(tmp_path / config.objective)
        workdir.prepare(config, EncodedDataset(encoded_dataset))
        model = build_model(config, workdir.text())
        start = open_init_from(config, workdir, mesh, model)
        assert start is not None
        assert {"text", "backbone"} <= {name.split("/")[0] for name in start.report.taken}
        jax.tree.map(np.testing.assert_array_equal, start.params, expected)


def test_an_exported_model_is_evaluated_as_its_run_is(
    encoded_dataset: pathlib.Path, exported: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    config = EvaluationConfig(
        runs={name: str(folder) for name, folder in exported.items()},
        audio_data=str(encoded_dataset.parent / "audio"),
        encoded_data=str(encoded_dataset),
        out=str(tmp_path),
    )
    setup = load_setup(config, local_mesh())
    assert setup.warnings() == []
    assert list(setup.trained) == ["teacher", "student"]
