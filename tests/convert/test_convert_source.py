"""Where weights come from: folders, shards, pipelines, single files, the Hub with and without."""

from __future__ import annotations

import hashlib
import json
import pathlib
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.numpy import save_file

from fasttta_jax.convert import source
from fasttta_jax.convert.source import open_source
from fasttta_jax.convert.stored import ConversionError

ARRAYS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.float32)}
CONFIG = {"model_type": "t5", "d_model": 3}


def write(folder: pathlib.Path, name: str = "model.safetensors") -> pathlib.Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(ARRAYS, folder / name)
    return folder


def write_shards(folder: pathlib.Path) -> pathlib.Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    files = {key: f"model-0000{i + 1}-of-00002.safetensors" for i, key in enumerate(ARRAYS)}
    for key, file in files.items():
        save_file({key: ARRAYS[key]}, folder / file)
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def read(path: object, **options) -> dict[str, np.ndarray]:
    with open_source(str(path), **options) as opened:
        return {key: tensor.read() for key, tensor in opened.state.items()}


@pytest.mark.parametrize("name", ["model.safetensors", "diffusion_pytorch_model.safetensors"])
def test_a_folder_gives_weights_config_and_hash(tmp_path, name):
    folder = write(tmp_path / "flan-t5", name)
    with open_source(str(folder)) as opened:
        assert opened.name == "flan-t5"
        assert opened.config == CONFIG
        assert opened.sha256 == hashlib.sha256((folder / name).read_bytes()).hexdigest()
        assert opened.tokenizer is None
    for key, values in read(folder).items():
        np.testing.assert_array_equal(values, ARRAYS[key])


def test_shards_are_read_together_and_hashed_together(tmp_path):
    folder = write_shards(tmp_path / "large")
    for key, values in read(folder).items():
        np.testing.assert_array_equal(values, ARRAYS[key])
    with open_source(str(folder)) as opened:
        before = opened.sha256
    save_file({"b": 2 * ARRAYS["b"]}, folder / "model-00002-of-00002.safetensors")
    with open_source(str(folder)) as opened:
        assert opened.sha256 != before


def test_a_missing_shard_is_named(tmp_path):
    folder = write_shards(tmp_path / "large")
    (folder / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(ConversionError, match=r"lacks 1 of the 2 shards .*: model-00001-of-00002"):
        read(folder)


def test_a_shard_name_cannot_leave_the_folder(tmp_path):
    folder = write_shards(tmp_path / "large")
    write(tmp_path / "elsewhere", "secret.safetensors")
    index = {"weight_map": {"a.weight": "../elsewhere/secret.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConversionError, match=r"lacks 1 of the 1 shards .*: secret\.safetensors"):
        read(folder)


def test_the_part_of_a_pipeline_and_its_tokenizer_next_door(tmp_path):
    root = tmp_path / "audioldm"
    write(root / "text_encoder")
    (root / "model_index.json").write_text("{}")
    (root / "tokenizer").mkdir()
    (root / "tokenizer" / "vocab.json").write_text("{}")
    for path in (root, root / "text_encoder"):
        with open_source(str(path), parts=("text_encoder",)) as opened:
            assert opened.tokenizer == root / "tokenizer"
    with open_source(str(root), parts=("text_encoder",)) as opened:
        assert opened.name == "audioldm/text_encoder"
    with pytest.raises(ConversionError, match=r"has no config\.json, or in vae/ inside it"):
        read(root, parts=("vae",))


def test_tokenizer_files_beside_the_weights_count_first(tmp_path):
    folder = write(tmp_path / "t5")
    (folder / "spiece.model").write_bytes(b"")
    with open_source(str(folder)) as opened:
        assert opened.tokenizer == folder


def test_a_single_file_has_no_config_and_may_nest_its_state(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "audioldm.ckpt"
    tensors = {key: torch.from_numpy(values) for key, values in ARRAYS.items()}
    torch.save({"state_dict": tensors, "epoch": 3}, path)
    with open_source(str(path)) as opened:
        assert opened.config is None
        assert set(opened.state) == set(ARRAYS)
        np.testing.assert_array_equal(opened.state["b"].read(), ARRAYS["b"])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), r"has no config\.json"),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json cannot be read"),
        (lambda folder: (folder / "config.json").write_text("[]"), "holds a list; expected"),
        (
            lambda folder: (folder / "model.safetensors").unlink(),
            "no weights; .* found: config",
        ),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 40),
            "is no readable safetensors file .* copy or download it again",
        ),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(
                (folder / "model.safetensors").read_bytes()[:-3]
            ),
            "is no readable safetensors file",
        ),
    ],
)
def test_damaged_folders_are_named(tmp_path, spoil, message):
    folder = write(tmp_path / "t5")
    spoil(folder)
    with pytest.raises(ConversionError, match=message):
        read(folder)


def test_what_does_not_exist_is_no_hub_id_either(tmp_path):
    for missing in (tmp_path / "nothing", "weights.pth", "some/weights.ckpt"):
        with pytest.raises(ConversionError, match=r"does not exist; allowed: a folder, a file, or"):
            read(missing)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub of one repository: what was asked of it, and a local copy for an answer."""
    snapshot = write(tmp_path / "cache" / "c0ffee", "model.safetensors")
    asked = []

    def model_info(repository, *, revision):
        assert repository == "google/flan-t5-small"
        asked.append(revision)
        names = ("config.json", "model.safetensors", "pytorch_model.bin", "spiece.model", "x.md")
        return SimpleNamespace(
            sha="c0ffee", siblings=[SimpleNamespace(rfilename=name) for name in names]
        )

    def snapshot_download(repository, *, revision, allow_patterns):
        asked.extend([revision, allow_patterns])
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


@pytest.mark.parametrize("asked", ["google/flan-t5-small", "google/flan-t5-small@main"])
def test_the_hub_is_asked_for_one_commit_and_for_safetensors_only(hub, asked):
    with open_source(asked) as opened:
        assert opened.name == "google/flan-t5-small@c0ffee"
        assert set(opened.state) == set(ARRAYS)
    revision, commit, patterns = hub
    assert revision == ("main" if "@" in asked else None)
    assert commit == "c0ffee"
    assert set(patterns) == {"config.json", "model.safetensors", "spiece.model"}


def test_of_a_pipeline_only_the_part_is_fetched():
    files = [
        "model_index.json",
        "audioldm.safetensors",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "text_encoder/config.json",
        "text_encoder/pytorch_model.bin",
        "tokenizer/vocab.json",
        "vae/config.json",
        "vae/diffusion_pytorch_model.bin",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    assert source._wanted(files, ("vae",)) == [files[0], files[7], files[9]]
    assert source._wanted(files, ("text_encoder", "text_encoder_2")) == [files[0], *files[4:7]]


def nowhere(*_, **__):
    """What huggingface_hub raises today, and what no list of its errors has."""
    raise type("ConnectError", (Exception,), {})("connection refused")


def test_weights_in_the_cache_need_no_network(tmp_path, monkeypatch):
    asked = []

    def snapshot_download(repository, *, revision, local_files_only):
        asked.append((repository, revision, local_files_only))
        return str(write(tmp_path / "cache" / "c0ffee", "model.safetensors"))

    monkeypatch.setattr(huggingface_hub, "model_info", nowhere)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with open_source("google/flan-t5-small") as found:
        assert found.name == "google/flan-t5-small@c0ffee"
    assert asked == [("google/flan-t5-small", None, True)]


def test_an_unknown_error_of_the_library_names_the_files(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "model_info", nowhere)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", nowhere)
    with pytest.raises(ConversionError, match=r"fetched .*ConnectError.*bring these files in one"):
        read("google/flan-t5-small")


def test_without_a_network_the_files_to_download_are_named(monkeypatch):
    def offline(*_, **__):
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(source.huggingface_hub, "model_info", offline)
    monkeypatch.setattr(source.huggingface_hub, "snapshot_download", offline)
    with pytest.raises(
        ConversionError,
        match=r"google/flan-t5-small cannot be fetched .*LocalEntry.*bring these files in one "
        r"folder, .*config\.json, model\.safetensors .*spiece\.model",
    ):
        read("google/flan-t5-small")
    with pytest.raises(ConversionError, match=r"vae/config\.json, vae/model\.safetensors"):
        read("cvssp/audioldm", parts=("vae",))
