"""Public networks as embedders: PANNs' Cnn14, VGGish and CLAP, from folders of converted weights.

Clips go through in batches of one fixed size, the last one filled up, so that a network compiles
once; they are spread over this host's devices. A clip's features do not depend on its neighbours.
Products of float32 are computed as such on every device, so that figures are those of the published
code, too, and not those of a faster type.

Clips of different lengths: CLAP takes ten seconds of each; VGGish is given patches; PANNs takes
clips padded to whole seconds and reads nothing behind their ends, so that one program serves all
clips of about one length.

Dimensions: n clips, S samples, B clips of a batch, N patches, d features.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from flax.errors import FlaxError
from jaxtyping import Array, Float, Int
from tqdm import tqdm

from fasttta_jax.config import ComputeDtype
from fasttta_jax.evaluation.embedders import AUDIOSET, BLOCK, Features, stacked
from fasttta_jax.parallel.local import local_copies, local_rows, on_local_devices
from fasttta_jax.pretrained import clap_audio, clap_mel, clap_text, panns, vggish
from fasttta_jax.pretrained.clap_audio import ClapAudio
from fasttta_jax.pretrained.clap_mel import ClapMelConfig
from fasttta_jax.pretrained.clap_text import ClapText
from fasttta_jax.storage.weights import ConvertedError
from fasttta_jax.text.networks import CLAP_TOKENS, LENGTH_UNIT
from fasttta_jax.text.tokenize import encode, load_tokenizer
from fasttta_jax.typing import Params, TokenIds
from fasttta_jax.workdir.hashes import tree_hash

VERSION = 1
"""Part of every hash; goes up where the same weights give other features than before."""
BATCH_SIZE = 8
"""Clips of a device's batch."""
CAPTIONS = 32
"""Captions of a device's batch."""
PATCHES = 32
"""Patches of a device's batch."""


def _in_batches(
    program: Callable[..., Any],
    items: Sequence[Any],
    make: Callable[[Sequence[Any]], tuple[np.ndarray, ...]],
    rows: int,
    bar: str | None = None,
) -> Any:
    """What a program computes from many clips, `rows` of a device at a time; NumPy.

    Args:
      program: arrays [B, ...] to a tree of arrays [B, ...].
      items: n of them.
      make: some of them to the arrays that the program takes.
      rows: a device's part of B.
      bar: its title, where many clips have one.

    Raises:
      ConvertedError: the parameters are not those of the network.
    """
    rows *= jax.local_device_count()
    batches = []
    with tqdm(total=len(items), desc=bar, disable=None if bar else True) as progress:
        for start in range(0, len(items), rows):
            some = items[start : start + rows]
            padded = [_filled_up(array, rows) for array in make(some)]
            try:
                with on_local_devices():
                    found = program(*local_rows(padded))
            except FlaxError as error:  # of the first call, where the program is traced
                raise ConvertedError(
                    "the weights of a network are not those that its weights.json describes: "
                    f"{str(error).split(' (http')[0]}; convert again"
                ) from error
            batches.append(_first(found, len(some)))
            progress.update(len(some))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *batches)


def _first(tree: Any, count: int) -> Any:
    """The first rows of every array; NumPy."""
    return jax.tree.map(lambda values: np.asarray(values)[:count], tree)


def _filled_up(array: np.ndarray, rows: int) -> np.ndarray:
    """The last row again and again behind the others, up to `rows`."""
    missing = rows - len(array)
    return array if not missing else np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])


def _check(waveforms: Sequence[np.ndarray], name: str, shortest: int, sample_rate: int) -> None:
    """Raises ValueError where there are no clips, or one cannot be embedded; says which."""
    if not len(waveforms):
        raise ValueError(f"there are no clips for {name}; allowed: one or more")
    for index, waveform in enumerate(waveforms):
        if waveform.ndim != 1 or len(waveform) < shortest:
            raise ValueError(
                f"clip {index} has shape {waveform.shape}; {name} takes one channel of at least "
                f"{shortest} samples, {shortest / sample_rate:.3g} s"
            )
        if not np.isfinite(waveform).all():
            raise ValueError(f"clip {index} has NaN or infinity")


@dataclasses.dataclass(frozen=True, eq=False)
class Network(abc.ABC):
    """What the public networks share as embedders.

    Attributes:
      name: what `load_network` and metrics call it.
      params: parameters.
      dtype: of the matrix products, "float32" or "bfloat16".

    Raises:
      ValueError: the dtype is neither.
    """

    name: str
    params: Params
    dtype: str

    def __post_init__(self) -> None:
        if self.dtype not in get_args(ComputeDtype):
            allowed = ", ".join(get_args(ComputeDtype))
            raise ValueError(f"{self.name}: dtype is {self.dtype!r}; allowed: {allowed}")

    @property
    @abc.abstractmethod
    def sample_rate(self) -> int:
        """Samples per second of the waveforms that it takes."""

    @property
    @abc.abstractmethod
    def settings(self) -> Any:
        """Everything beside the parameters that changes features; its repr goes into the hash."""

    @property
    def hash(self) -> str:
        """SHA-256 of weights and settings."""
        return self._hash

    @functools.cached_property
    def _hash(self) -> str:
        settings = f"{VERSION} {self.name} {self.dtype} {self.settings!r}"
        return hashlib.sha256(f"{settings} {tree_hash(self.params)}".encode()).hexdigest()

    @functools.cached_property
    def _placed(self) -> Any:
        """The parameters on every device of this host."""
        return local_copies(self.params)

    def _bar(self, waveforms: Sequence[Any]) -> str | None:
        """The title of a bar, where there are more clips than a cache gives at a time."""
        return self.name if len(waveforms) > BLOCK else None

    @abc.abstractmethod
    def embed_each(self, waveforms: Sequence[Float[np.ndarray, " _"]]) -> list[Features]:
        """Features of waveforms of any lengths, each by itself, in their order.

        Args:
          waveforms: in [-1, 1], at `sample_rate`.

        Raises:
          ValueError: there are none, or one is too short or not finite; says which.
        """

    def embed(self, audio: Float[np.ndarray, "n S"]) -> Features:
        """Features of waveforms of one length; otherwise as `embed_each`."""
        return stacked(self.embed_each(list(audio)))


@dataclasses.dataclass(frozen=True, eq=False)
class PannsEmbedder(Network):
    """Cnn14: the embedding "2048", and the logits of AudioSet's 527 classes.

    Attributes:
      config: front end and sizes.
    """

    config: panns.PannsConfig

    @property
    def sample_rate(self) -> int:
        """16 or 32 kHz."""
        return self.config.sample_rate

    @property
    def settings(self) -> Any:
        """The front end."""
        return self.config

    def embed_each(self, waveforms: Sequence[Float[np.ndarray, " _"]]) -> list[Features]:
        """Features with logits {"audioset": [n, 527]}."""
        _check(waveforms, self.name, self.config.min_samples, self.sample_rate)
        lengths = {len(waveform) for waveform in waveforms}
        unit = self.sample_rate if len(lengths) > 1 else lengths.pop()
        groups: dict[int, list[int]] = {}
        for row, waveform in enumerate(waveforms):
            groups.setdefault(-(-len(waveform) // unit) * unit, []).append(row)
        network = panns.Panns(self.config, jnp.dtype(self.dtype))
        found: dict[int, Features] = {}
        for total, rows in sorted(groups.items()):
            output = _in_batches(
                functools.partial(_panns, self._placed, network=network),
                [waveforms[row] for row in rows],
                functools.partial(_padded, total=total),
                BATCH_SIZE,
                self._bar(waveforms),
            )
            features = Features(output.embeddings, logits={AUDIOSET: output.logits})
            found |= zip(rows, features.each(), strict=True)
        return [found[row] for row in range(len(waveforms))]


def _padded(waveforms: Sequence[np.ndarray], total: int) -> tuple[np.ndarray, np.ndarray]:
    audio = np.zeros((len(waveforms), total), np.float32)
    for row, waveform in zip(audio, waveforms, strict=True):
        row[: len(waveform)] = waveform
    return audio, np.asarray([len(waveform) for waveform in waveforms], np.int32)


@functools.partial(jax.jit, static_argnames="network")
def _panns(
    params: Params, audio: Float[Array, "B S"], lengths: Int[Array, " B"], network: panns.Panns
) -> panns.PannsOutput:
    return network.apply({"params": params}, audio, lengths)  # type: ignore[return-value]


@dataclasses.dataclass(frozen=True, eq=False)
class VggishEmbedder(Network):
    """VGGish: an embedding for each 0.96 s of a clip; what is left at its end is dropped.

    Attributes:
      config: sizes.
      final_relu: whether the last layer is followed by a ReLU.
      pca: whether embeddings are projected onto their principal components.
      quantize: whether those are rounded to 8 bits.
    """

    config: vggish.VggishConfig
    final_relu: bool = False
    pca: bool = False
    quantize: bool = False

    @property
    def sample_rate(self) -> int:
        """16 kHz."""
        return vggish.SAMPLE_RATE

    @property
    def settings(self) -> Any:
        """Sizes, and what comes behind the last layer."""
        return self.config, self.final_relu, self.pca, self.quantize

    def embed_each(self, waveforms: Sequence[Float[np.ndarray, " _"]]) -> list[Features]:
        """Features whose embeddings are [1, P, d], with P by the length of the clip."""
        _check(waveforms, self.name, vggish.MIN_SAMPLES, self.sample_rate)
        # A patch reads nothing outside of it, so that those of all clips go through one program.
        counts = [vggish.num_patches(len(waveform)) for waveform in waveforms]
        hop, size = vggish.PATCH_FRAMES * vggish.GRID.hop_length, vggish.MIN_SAMPLES
        patches = [
            waveform[index * hop : index * hop + size]
            for waveform, count in zip(waveforms, counts, strict=True)
            for index in range(count)
        ]
        network = vggish.Vggish(
            self.config, self.final_relu, self.pca, self.quantize, jnp.dtype(self.dtype)
        )
        embeddings = _in_batches(
            functools.partial(_vggish, self._placed, network=network),
            patches,
            lambda some: (np.stack(some).astype(np.float32),),
            PATCHES,
            self._bar(waveforms),
        )
        of_clips = np.split(embeddings, np.cumsum(counts)[:-1])
        return [Features(of_clip[None]) for of_clip in of_clips]


@functools.partial(jax.jit, static_argnames="network")
def _vggish(
    params: Params, patches: Float[Array, "N S"], network: vggish.Vggish
) -> Float[Array, "N d"]:
    return network.apply({"params": params}, patches)[:, 0]  # type: ignore[index]


@dataclasses.dataclass(frozen=True, eq=False)
class ClapEmbedder(Network):
    """CLAP: audio and captions as vectors of unit length in one space.

    Of a longer clip the first ten seconds count: the published code takes ten at random, so that no
    score can be measured twice. A shorter one is repeated as often as it fits, then filled up with
    silence. A network with fusion is never given a clip longer than that, and its excerpts are not
    needed.

    Attributes:
      audio: sizes of the audio tower.
      text: of the text tower.
      tokenizer: of the text tower.
    """

    audio: clap_audio.ClapAudioConfig
    text: clap_text.ClapTextConfig
    tokenizer: tokenizers.Tokenizer

    @property
    def sample_rate(self) -> int:
        """48 kHz."""
        return clap_mel.SAMPLE_RATE

    @property
    def mel(self) -> ClapMelConfig:
        """The front end that the weights were trained with."""
        return ClapMelConfig("fusion" if self.audio.enable_fusion else "rand_trunc", crop="start")

    @property
    def settings(self) -> Any:
        """Sizes, front end, crop and tokenizer."""
        vocabulary = hashlib.sha256(self.tokenizer.to_str().encode()).hexdigest()
        return self.audio, self.text, self.mel, clap_mel.NUM_SAMPLES, CLAP_TOKENS, vocabulary

    def embed_each(self, waveforms: Sequence[Float[np.ndarray, " _"]]) -> list[Features]:
        """Features whose embeddings [n, d] have unit length."""
        _check(waveforms, self.name, 1, self.sample_rate)
        alone = dataclasses.replace(self.audio, enable_fusion=False)
        embeddings = _in_batches(
            functools.partial(
                _clap_audio,
                self._placed["audio"],
                network=ClapAudio(alone, jnp.dtype(self.dtype)),
                mel=self.mel,
            ),
            [waveform[: clap_mel.NUM_SAMPLES] for waveform in waveforms],
            functools.partial(clap_mel.batch_waveforms, config=self.mel),
            BATCH_SIZE,
            self._bar(waveforms),
        )
        return Features(embeddings).each()

    def embed_text(self, captions: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """One vector of unit length a caption.

        Raises:
          ValueError: there are none.
        """
        if not captions:
            raise ValueError(f"there are no captions for {self.name}; allowed: one or more")
        ids, mask = encode(self.tokenizer, captions, min(CLAP_TOKENS, self.text.max_length))
        # In order of length, so that a batch of short captions is not padded to the longest of all.
        tokens = mask.sum(axis=1)
        order = np.argsort(tokens, kind="stable").tolist()

        def make(rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
            longest = -(-int(tokens[rows].max()) // LENGTH_UNIT) * LENGTH_UNIT
            return ids[rows, :longest], mask[rows, :longest]

        found = _in_batches(
            functools.partial(
                _clap_text,
                self._placed["text"],
                network=ClapText(self.text, jnp.dtype(self.dtype)),
            ),
            order,
            make,
            CAPTIONS,
            f"{self.name} captions" if len(captions) > BLOCK else None,
        )
        embeddings = np.empty_like(found)
        embeddings[order] = found
        return embeddings


@functools.partial(jax.jit, static_argnames=("network", "mel"))
def _clap_audio(
    params: Params,
    audio: Float[Array, "B S"],
    lengths: Int[Array, " B"],
    network: ClapAudio,
    mel: ClapMelConfig,
) -> Float[Array, "B d"]:
    with jax.default_matmul_precision("highest"):
        features = clap_mel.clap_mel(audio, lengths, mel).features[:, :1]
        return network.apply({"params": params}, features)  # type: ignore[return-value]


@functools.partial(jax.jit, static_argnames="network")
def _clap_text(
    params: Params, ids: TokenIds, mask: Array, network: ClapText
) -> Float[Array, "B d"]:
    with jax.default_matmul_precision("highest"):
        return network.apply({"params": params}, ids, mask)  # type: ignore[return-value]


def load_panns(
    folder: str | os.PathLike[str], sample_rate: int, *, dtype: str = "float32"
) -> PannsEmbedder:
    """Cnn14 at one of its sample rates.

    Raises:
      ConvertedError: the folder holds no converted weights, those of another kind, or Cnn14 at
        another rate.
    """
    config, params = panns.load_panns(folder)
    name = f"panns_{sample_rate // 1000}k"
    if config.sample_rate != sample_rate:
        raise ConvertedError(
            f"{folder} holds {panns.KIND} at {config.sample_rate} Hz; {name} is {panns.KIND} at "
            f"{sample_rate} Hz"
        )
    return PannsEmbedder(name, params, dtype, config)


def load_vggish(
    folder: str | os.PathLike[str],
    *,
    final_relu: bool = False,
    pca: bool = False,
    quantize: bool = False,
    dtype: str = "float32",
) -> VggishEmbedder:
    """VGGish, by default as audioldm_eval has it; the options are those of `VggishEmbedder`.

    Raises:
      ConvertedError: the folder holds no converted weights, those of another kind, or none of the
        principal components, which are asked for.
      ValueError: `quantize` without `pca`.
    """
    config, params = vggish.load_vggish(folder)
    if pca and not config.pca:
        raise ConvertedError(
            f"{folder} has no principal components; convert VGGish with the file that holds them"
        )
    if quantize and not pca:
        raise ValueError("quantize is True and pca False; allowed: both, or no quantize")
    return VggishEmbedder("vggish", params, dtype, config, final_relu, pca, quantize)


def load_clap(folder: str | os.PathLike[str], *, dtype: str = "float32") -> ClapEmbedder:
    """Both towers of CLAP.

    Raises:
      ConvertedError: the folder holds no converted weights, those of another kind, or one tower
        only.
    """
    audio, audio_params = clap_audio.load_audio(folder)
    text, text_params = clap_text.load(folder)
    params = {"audio": audio_params, "text": text_params}
    return ClapEmbedder("clap", params, dtype, audio, text, load_tokenizer(folder))


LOADERS: Mapping[str, Callable[[pathlib.Path], Network]] = {
    "panns_16k": functools.partial(load_panns, sample_rate=16_000),
    "panns_32k": functools.partial(load_panns, sample_rate=32_000),
    "vggish": load_vggish,
    "clap": load_clap,
}
"""By name, what reads a network from a folder of converted weights."""


def load_network(name: str, folder: str | os.PathLike[str]) -> Network:
    """A public network as an embedder, with the settings that the literature means.

    Args:
      name: of `LOADERS`.
      folder: what `python -m fasttta_jax.convert` wrote.

    Raises:
      ValueError: there is no such network; lists those that there are.
      ConvertedError: the folder holds no converted weights, or those of another network.
    """
    if name not in LOADERS:
        raise ValueError(f"the network is {name!r}; allowed: {', '.join(LOADERS)}")
    return LOADERS[name](pathlib.Path(folder))
