"""The tagger: a small network that says which sound events a clip holds, and with which attributes.

It classifies generated audio for data whose labels are known (the synthetic soundscapes, ESC-10).
Its input is log-mel magnitudes only, so that reconstructed phase does not count. It is trained on
real clips of the dataset's own training split (`tagger_training`): its figures compare models on
that dataset, and are not comparable with those of public audio networks.

Dimensions: n clips, S samples, T frames, F mel bands, E events, V values of an attribute axis,
D = 64.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import Array, Float, Num

from fasttta_jax.audio.files import INT16_SCALE
from fasttta_jax.audio.mel import MelConfig, log_mel
from fasttta_jax.evaluation.embedders import Features
from fasttta_jax.evaluation.labels import Vocabulary
from fasttta_jax.storage.files import damage, write_atomically
from fasttta_jax.typing import Params
from fasttta_jax.workdir.hashes import tree_hash

EMBEDDING_DIM = 64
EVENTS = "event"
"""Name of the classification of events among the tagger's features."""
AXIS = "attribute/"
"""Before the name of an attribute axis, its classification among them."""
PREDICT_BATCH = 64
TAGGER_MEL = MelConfig(floor=1e-2)


@dataclasses.dataclass(frozen=True)
class TaggerSpec:
    """What a tagger listens for.

    Attributes:
      events: names of the sound events.
      axes: for each attribute axis, its values; empty where a dataset has no attributes.
      num_samples: length of a clip S; callers pad or cut to it.
      mel: the analysis grid. Its floor is high on purpose: what lies below it is mostly the noise
        that phase reconstruction adds.
    """

    events: tuple[str, ...]
    axes: Mapping[str, tuple[str, ...]]
    num_samples: int
    mel: MelConfig = TAGGER_MEL

    def __post_init__(self) -> None:
        if not self.events or len(set(self.events)) != len(self.events):
            raise ValueError(f"spec.events is {self.events}; expected distinct names, at least one")
        for axis, values in self.axes.items():
            if len(values) < 2 or len(set(values)) != len(values):
                raise ValueError(
                    f"spec.axes[{axis!r}] is {values}; expected distinct values, at least two"
                )
        if self.num_samples <= self.mel.n_fft:
            raise ValueError(
                f"spec.num_samples is {self.num_samples}; it must exceed mel.n_fft = "
                f"{self.mel.n_fft}"
            )

    @property
    def vocabulary(self) -> Vocabulary:
        """Events and axes, in the order of the network's outputs."""
        return Vocabulary(self.events, self.axes)

    def to_json(self) -> str:
        """The spec as a JSON object."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> TaggerSpec:
        """The inverse of `to_json`."""
        fields = json.loads(text)
        return cls(
            events=tuple(fields["events"]),
            axes={axis: tuple(values) for axis, values in fields["axes"].items()},
            num_samples=fields["num_samples"],
            mel=MelConfig(**fields["mel"]),
        )


class TaggerNetwork(nn.Module):
    """Patches of 4 frames x 2 bands, then three strided convolutions, pooled over time.

    Frequency is not pooled: where a sound lies is what tells a low bell from a high one. Time keeps
    its mean and its maximum: how often something happens, and whether it happens at all.

    Attributes:
      num_events: E.
      axis_sizes: V of each axis.
      widths: channels of the patches and of each convolution.
    """

    num_events: int
    axis_sizes: tuple[int, ...]
    widths: tuple[int, ...] = (16, 32, 64, 96)

    @nn.compact
    def __call__(
        self, spectrograms: Float[Array, "n T F"]
    ) -> tuple[Float[Array, "n E"], tuple[Float[Array, "n V"], ...], Float[Array, "n D"]]:
        """Standardised log-mels to event logits, logits of each axis, and embeddings."""
        x = nn.Conv(self.widths[0], kernel_size=(4, 2), strides=(4, 2))(spectrograms[..., None])
        x = nn.relu(nn.GroupNorm(num_groups=8)(x))
        for width in self.widths[1:]:
            x = nn.Conv(width, kernel_size=(3, 3), strides=(2, 2))(x)
            x = nn.relu(nn.GroupNorm(num_groups=8)(x))
        # Not `x.max`, whose gradient compares x with its maximum: XLA may compute x twice, rounded
        # once in one way and once in another, and where no element is the maximum it divides by 0.
        highest = nn.max_pool(x, (x.shape[1], 1))[:, 0]
        pooled = jnp.concatenate([x.mean(axis=1), highest], axis=-1)
        embeddings = nn.relu(nn.Dense(EMBEDDING_DIM)(pooled.reshape(len(pooled), -1)))
        event_logits = nn.Dense(self.num_events)(embeddings)
        axis_logits = tuple(nn.Dense(size)(embeddings) for size in self.axis_sizes)
        return event_logits, axis_logits, embeddings


def network_for(spec: TaggerSpec) -> TaggerNetwork:
    """The network that fits `spec`."""
    return TaggerNetwork(len(spec.events), tuple(len(values) for values in spec.axes.values()))


class TaggerOutput(NamedTuple):
    """What the tagger says about n clips; NumPy, float32.

    Attributes:
      event_probabilities: for each event, the probability that it is present.
      attribute_probabilities: for each axis, a distribution over its values; it means something
        where the clip holds one event that has the axis.
      embeddings: the features before the last layer, for `frechet_distance`.
    """

    event_probabilities: Float[np.ndarray, "n E"]
    attribute_probabilities: dict[str, Float[np.ndarray, "n V"]]
    embeddings: Float[np.ndarray, "n D"]


@dataclasses.dataclass(frozen=True)
class Tagger:
    """A trained tagger.

    Attributes:
      spec: what it listens for.
      params: weights of `network_for(spec)`.
      mean: mean of the log-mels of the training clips.
      deviation: their standard deviation.
    """

    spec: TaggerSpec
    params: Params
    mean: float
    deviation: float

    @property
    def name(self) -> str:
        """What metrics ask for."""
        return "tagger"

    @property
    def sample_rate(self) -> int:
        """Samples per second of the waveforms that it takes."""
        return self.spec.mel.sample_rate

    @property
    def hash(self) -> str:
        """SHA-256 of weights, spec and scale."""
        settings = f"{self.spec.to_json()} {self.mean!r} {self.deviation!r}"
        return hashlib.sha256(f"{settings} {tree_hash(self.params)}".encode()).hexdigest()

    def embed(self, audio: Num[np.ndarray, "n S"]) -> Features:
        """The tagger as an embedder; arguments and errors are those of `predict`."""
        output = self.predict(audio)
        axes = {axis_name(axis): values for axis, values in self.spec.axes.items()}
        probabilities = {
            axis_name(axis): values for axis, values in output.attribute_probabilities.items()
        }
        return Features(
            output.embeddings,
            {EVENTS: output.event_probabilities, **probabilities},
            {EVENTS: self.spec.events, **axes},
        )

    def predict(self, audio: Num[np.ndarray, "n S"]) -> TaggerOutput:
        """Tags clips, in padded batches of one fixed size, so that the network compiles once.

        Args:
          audio: waveforms of `spec.num_samples` samples at `spec.mel.sample_rate`: floating in
            [-1, 1], or int16.

        Raises:
          ValueError: the clips have another length, there are none, or a sample is not finite.
        """
        audio = checked_audio(audio, self.spec)
        scale = np.asarray([self.mean, self.deviation], np.float32)
        batches = []
        for start in range(0, len(audio), PREDICT_BATCH):
            batch = to_float(audio[start : start + PREDICT_BATCH])
            padded = np.zeros((PREDICT_BATCH, self.spec.num_samples), np.float32)
            padded[: len(batch)] = batch
            output = _predict(self.params, padded, scale, network_for(self.spec), self.spec.mel)
            batches.append(jax.tree.map(np.asarray, output))
        events, axes, embeddings = jax.tree.map(
            lambda *parts: np.concatenate(parts)[: len(audio)], *batches
        )
        return TaggerOutput(events, dict(zip(self.spec.axes, axes, strict=True)), embeddings)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes weights and spec to one safetensors file (the spec as JSON in its metadata)."""
        flat = flax.traverse_util.flatten_dict(dict(self.params), sep="/")
        tensors = {name: np.asarray(value) for name, value in flat.items()}
        metadata = {
            "format": "fasttta_jax.tagger",
            "spec": self.spec.to_json(),
            "mean": repr(self.mean),
            "deviation": repr(self.deviation),
        }
        write_atomically(path, safetensors.numpy.save(tensors, metadata))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tagger:
        """Reads what `save` wrote.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: the file is not a tagger, or its weights do not fit its spec.
        """
        path = pathlib.Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"there is no tagger at {path}; train one and save it there")
        with damage(path), safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata.get("format") != "fasttta_jax.tagger":
            raise ValueError(
                f"{path} is not a tagger: its format is {metadata.get('format')!r}, "
                "expected 'fasttta_jax.tagger'"
            )
        with damage(path):
            spec = TaggerSpec.from_json(metadata["spec"])
        params = flax.traverse_util.unflatten_dict(flat, sep="/")
        found, expected = _shapes(params), _shapes(abstract_params(spec))
        if found != expected:
            wrong = sorted(set(found.items()) ^ set(expected.items()))
            raise ValueError(f"{path}: weights do not fit the spec: {wrong}")
        return cls(spec, params, float(metadata["mean"]), float(metadata["deviation"]))


def axis_name(axis: str) -> str:
    """Name of the classification of an attribute axis among the tagger's features."""
    return f"{AXIS}{axis}"


def vocabulary_in(features: Features) -> Vocabulary:
    """Events and axes that the tagger which made these features listens for."""
    axes = {
        name.removeprefix(AXIS): values
        for name, values in features.classes.items()
        if name.startswith(AXIS)
    }
    return Vocabulary(features.classes[EVENTS], axes)


def abstract_params(spec: TaggerSpec) -> Any:
    """Shapes and dtypes of the weights for `spec`."""
    frames = spec.mel.num_frames(spec.num_samples)
    spectrogram = jax.ShapeDtypeStruct((1, frames, spec.mel.num_mels), jnp.float32)
    return jax.eval_shape(network_for(spec).init, jax.random.key(0), spectrogram)["params"]


def checked_audio(audio: np.ndarray, spec: TaggerSpec) -> np.ndarray:
    """`audio` itself, once it is known to be clips that `spec` can take."""
    audio = np.asarray(audio)
    if audio.ndim != 2 or audio.shape[1] != spec.num_samples or len(audio) == 0:
        raise ValueError(
            f"audio has shape {audio.shape}; the tagger expects [clips, {spec.num_samples}] "
            "with at least one clip: pad or cut to that length"
        )
    if audio.dtype != np.int16:
        if not np.issubdtype(audio.dtype, np.floating):
            raise ValueError(f"audio is {audio.dtype}; allowed: int16 or a floating type")
        finite = np.isfinite(audio).all(axis=1)
        if not finite.all():
            raise ValueError(f"audio has NaN or infinity, first in clip {int(np.argmin(finite))}")
    return audio


def to_float(audio: Num[np.ndarray, "*n S"]) -> Float[np.ndarray, "*n S"]:
    """Waveforms in [-1, 1] as float32, from int16 or any floating type."""
    if audio.dtype == np.int16:
        return audio.astype(np.float32) / np.float32(INT16_SCALE)
    return audio.astype(np.float32)


@functools.partial(jax.jit, static_argnames=("network", "mel"))
def _predict(
    params: Params,
    audio: Float[Array, "n S"],
    scale: Float[Array, " 2"],
    network: TaggerNetwork,
    mel: MelConfig,
) -> tuple[Array, tuple[Array, ...], Array]:
    spectrograms = (log_mel(audio, mel) - scale[0]) / scale[1]
    logits: Any = network.apply({"params": params}, spectrograms)
    event_logits, axis_logits, embeddings = logits
    return jax.nn.sigmoid(event_logits), tuple(map(jax.nn.softmax, axis_logits)), embeddings


def _shapes(params: Any) -> dict[str, tuple[int, ...]]:
    flat: dict[str, Any] = flax.traverse_util.flatten_dict(dict(params), sep="/")
    return {name: tuple(value.shape) for name, value in flat.items()}
