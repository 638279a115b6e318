"""Where published weights come from: a local folder or file, or a repository of the Hub.

A folder has the layout of transformers and diffusers: `config.json` beside one weights file or
several shards with an index. A pipeline's folder (`model_index.json`) is entered at the part that
the kind needs. A single file is a checkpoint of an original project and says nothing of its sizes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import huggingface_hub

from fasttta_jax.convert.read import file_sha256, open_checkpoint
from fasttta_jax.convert.stored import ConversionError

CONFIG_FILE = "config.json"
PIPELINE_FILE = "model_index.json"
WEIGHT_FILES = (
    "model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "pytorch_model.bin",
    "diffusion_pytorch_model.bin",
)
"""In the order of preference; each may also come in shards, with `NAME.index.json`."""
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "spiece.model",
)
PICKLED = (".bin", ".ckpt", ".pth", ".pt")
STATE_DICT = "state_dict"

_HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


@dataclasses.dataclass(frozen=True)
class Source:
    """An opened checkpoint.

    Attributes:
      name: what to call it, in errors and in the description of the result.
      state: keys to StoredTensor, flat.
      sha256: of the weights file; of several shards, over their names and hashes.
      config: the config.json beside the weights; None for the checkpoint of an original project.
      tokenizer: folder with the tokenizer's files, where there is one.
      folder: where the weights lie, for what may lie beside them.
    """

    name: str
    state: Mapping[str, Any]
    sha256: str
    config: Mapping[str, Any] | None = None
    tokenizer: pathlib.Path | None = None
    folder: pathlib.Path | None = None

    def describe(
        self, kind: str, weights: str, dropped: Mapping[str, str], **sizes: Any
    ) -> dict[str, Any]:
        """The description of a conversion, as JSON has it.

        Args:
          kind: what `converted.read_converted` will call it.
          weights: which of the source's weights, or which layout they had.
          dropped: keys or groups of keys that are left out, with reasons.
          sizes: by name; a config may be a dataclass.
        """
        origin = {"kind": kind, "source": self.name, "sha256": self.sha256, "weights": weights}
        described = {**origin, **sizes, "dropped": dict(dropped)}
        return json.loads(json.dumps(described, default=dataclasses.asdict))


@contextlib.contextmanager
def open_source(source: str, *, parts: Sequence[str] = ()) -> Iterator[Source]:
    """Finds and opens weights, for the time of a `with` block.

    Args:
      source: a folder, a file, or the Hub's "owner/name", "owner/name@revision".
      parts: subfolders of a pipeline that hold this kind of model, the first that exists counts.

    Raises:
      ConversionError: nothing is there, a file or a shard is missing or damaged, or the Hub cannot
        be reached; names the files to download.
    """
    path = pathlib.Path(source)
    name = path.name
    if not path.exists():
        match = _HUB_ID.fullmatch(source)
        if match is None or source.endswith(PICKLED):
            raise ConversionError(
                f"{source} does not exist; allowed: a folder, a file, or the Hub's owner/name"
            )
        path = _fetch(match["id"], match["revision"], parts)
        name = f"{match['id']}@{path.name}"
    if path.is_file():
        with open_checkpoint(path) as tree:
            inner = tree.get(STATE_DICT)
            flat = inner if isinstance(inner, Mapping) else tree
            yield Source(name, flat, file_sha256(path), folder=path.parent)
        return
    root, folder = path, _part(path, parts)
    if folder != root:
        name = f"{name}/{folder.name}"
    config = _read_json(folder / CONFIG_FILE)
    with contextlib.ExitStack() as stack:
        state: dict[str, Any] = {}
        files = _weight_files(folder)
        for file in files:
            state |= stack.enter_context(open_checkpoint(file))
        tokenizer = _tokenizer(root, folder)
        yield Source(name, state, _hash(files), config, tokenizer, folder)


def _part(folder: pathlib.Path, parts: Sequence[str]) -> pathlib.Path:
    """The folder itself, or the part of a pipeline that the kind needs."""
    if (folder / CONFIG_FILE).is_file():
        return folder
    for part in parts:
        if (folder / part / CONFIG_FILE).is_file():
            return folder / part
    inside = f", or in {' or '.join(f'{part}/' for part in parts)} inside it" if parts else ""
    raise ConversionError(f"{folder} has no {CONFIG_FILE}{inside}")


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConversionError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ConversionError(f"{path} holds a {type(values).__name__}; expected a JSON object")
    return values


def _weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """One file of weights, or all shards that an index names."""
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            weight_map = _read_json(index).get("weight_map")
            if not isinstance(weight_map, dict) or not weight_map:
                raise ConversionError(f"{index} has no weight_map of keys to shards")
            shards = [folder / pathlib.PurePath(str(shard)).name for shard in weight_map.values()]
            shards = sorted(set(shards))
            missing = [shard.name for shard in shards if not shard.is_file()]
            if missing:
                raise ConversionError(
                    f"{folder} lacks {len(missing)} of the {len(shards)} shards that {index.name} "
                    f"names: {', '.join(missing)}"
                )
            return shards
    found = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
    raise ConversionError(
        f"{folder} holds no weights; allowed: {', '.join(WEIGHT_FILES)}, whole or in shards with "
        f"an index; found: {found}"
    )


def _hash(files: Sequence[pathlib.Path]) -> str:
    if len(files) == 1:
        return file_sha256(files[0])
    lines = "".join(f"{file.name} {file_sha256(file)}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def _tokenizer_folder(part: str) -> str:
    """The folder of a pipeline's tokenizer, from that of its text encoder."""
    return part.replace("text_encoder", "tokenizer")


def _tokenizer(root: pathlib.Path, folder: pathlib.Path) -> pathlib.Path | None:
    """The folder with tokenizer files: beside the weights, or next door in a pipeline."""
    next_door = _tokenizer_folder(folder.name)
    for candidate in (folder, root / next_door, folder.parent / next_door):
        if any((candidate / name).is_file() for name in TOKENIZER_FILES):
            return candidate
    return None


def _wanted(files: Sequence[str], parts: Sequence[str]) -> list[str]:
    """Of a repository's files, those that one model needs: no other part, one format of weights."""
    folders = {""} if CONFIG_FILE in files else {*parts, *map(_tokenizer_folder, parts)}
    own = [name for name in files if name.rpartition("/")[0] in folders]
    suffix = ".safetensors" if any(name.endswith(".safetensors") for name in own) else ".bin"
    weights = (suffix, f"{suffix}.index.json")
    small = {CONFIG_FILE, *TOKENIZER_FILES}
    chosen = [name for name in own if name.endswith(weights) or name.rpartition("/")[2] in small]
    return [name for name in (PIPELINE_FILE, *chosen) if name in files]


def _fetch(repository: str, revision: str | None, parts: Sequence[str]) -> pathlib.Path:
    """A snapshot of the Hub's files that matter; its folder is named after the commit."""
    try:
        commit = huggingface_hub.model_info(repository, revision=revision)
        files = [file.rfilename for file in commit.siblings or ()]
        folder = huggingface_hub.snapshot_download(
            repository, revision=commit.sha, allow_patterns=_wanted(files, parts)
        )
    except Exception as error:  # of the Hub's library, or of those that it reads with
        cached = _cached(repository, revision)
        if cached is not None:
            return cached
        where = f"{parts[0]}/" if parts else ""
        raise ConversionError(
            f"{repository} cannot be fetched from the Hub ({_first_line(error)}). Without a "
            f"network, bring these files in one folder, and give that folder instead: "
            f"{where}{CONFIG_FILE}, {where}{WEIGHT_FILES[0]} (or any of "
            f"{', '.join(WEIGHT_FILES[1:])}), and for a text model {', '.join(TOKENIZER_FILES)}"
        ) from error
    return pathlib.Path(folder)


def _first_line(error: BaseException) -> str:
    text = str(error).strip().partition("\n")[0][:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _cached(repository: str, revision: str | None) -> pathlib.Path | None:
    """The snapshot in the Hub's cache on this machine; None where there is none."""
    try:
        folder = huggingface_hub.snapshot_download(
            repository, revision=revision, local_files_only=True
        )
    except Exception:
        return None
    return pathlib.Path(folder)
