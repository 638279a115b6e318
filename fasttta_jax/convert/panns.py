"""Published Cnn14 of PANNs to the parameters of `pretrained.panns`.

A checkpoint of the project is torch's file with the state dict below "model", beside what its
training needs to go on. The rate of the waveforms follows from the length of the window. The
spectrogram's kernels and mel bands are stored, too; they are compared with our front end and then
dropped.
Source: the key names of github.com/qiuqiangkong/audioset_tagging_cnn and torchlibrosa.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from fasttta_jax.audio.mel import hann_window, mel_matrix
from fasttta_jax.convert import layouts, names
from fasttta_jax.convert.names import Entry, Table, axis
from fasttta_jax.convert.source import Source
from fasttta_jax.convert.stored import ConversionError
from fasttta_jax.convert.write import Conversion
from fasttta_jax.pretrained.panns import CNN14_16K, CNN14_32K, KIND, NUM_BLOCKS, PannsConfig

STATE = "model"
LAST_BLOCK = f"conv_block{NUM_BLOCKS}."
GRIDS = {config.n_fft: config for config in (CNN14_16K, CNN14_32K)}
"""Published front ends by the length of their windows, which alone tells them apart."""
COSINES = "spectrogram_extractor.stft.conv_real.weight"
SINES = "spectrogram_extractor.stft.conv_imag.weight"
BANDS = "logmel_extractor.melW"
FRONT_END_TOLERANCE = 1e-4
"""Relative to the largest entry: versions of librosa differ by rounding, spectrograms by far
more."""
COMPUTED = "computed by the front end, which was found to be the same"
COUNTER = "a counter of training"


def convert(source: Source) -> Conversion:
    """Reads Cnn14.

    Args:
      source: an opened checkpoint; the state dict may lie below "model" or be bare.

    Returns:
      Parameters of `Panns`, and their description.

    Raises:
      ConversionError: the keys are not those of Cnn14, a shape is wrong, or the stored front end is
        another than ours.
    """
    state, dropped, layout = dict(source.state), {}, "bare"
    if isinstance(inner := state.get(STATE), Mapping):
        dropped = {str(key): "not the model" for key in state if key != STATE}
        state, layout = dict(inner), STATE
    chosen = layouts.choose(state, _fits, source.name)
    state = dict(chosen.state)
    _recognise(state, source.name)
    config = _config(state, source.name)
    table = _table(config)
    front_end = _front_end(config)
    stored: Table = {key: Entry("", values.shape) for key, values in front_end.items()}
    counters = {key: COUNTER for key in state if str(key).endswith(".num_batches_tracked")}
    names.check(state, table | stored, counters, source=f"{source.name} (as {KIND})")
    for key, values in front_end.items():
        found = state[key].read()
        error = np.abs(found - values).max() / np.abs(values).max()
        if not error <= FRONT_END_TOLERANCE:
            raise ConversionError(
                f"{source.name}: {key} is off by {error:.1g} of its largest entry from that of the "
                f"published front end (Hann window of {config.n_fft} samples, {config.num_mels} "
                f"Slaney bands from {config.f_min:g} to {config.f_max:g} Hz at "
                f"{config.sample_rate} Hz); the network was trained with another spectrogram"
            )
    dropped |= dict.fromkeys(front_end, COMPUTED) | counters
    metadata = source.describe(KIND, layout, dropped, config=config, **chosen.said)
    return Conversion(names.take(state, table), metadata)


def _fits(state: Mapping[str, Any]) -> bool:
    return any(str(key).startswith(LAST_BLOCK) for key in state)


def _recognise(state: Mapping[str, Any], source: str) -> None:
    if not _fits(state):
        raise ConversionError(
            f"{source} holds no Cnn14: there is none of {LAST_BLOCK}*; {layouts.beginning(state)}"
        )
    if "DecisionLevel" in source:
        raise ConversionError(
            f"{source} has the keys of Cnn14, but its name is that of a network that pools "
            "decisions over time and is another function; allowed: Cnn14_mAP=0.431.pth, "
            "Cnn14_16k_mAP=0.438.pth and their like"
        )


def _config(state: Mapping[str, Any], source: str) -> PannsConfig:
    """The front end that the window tells, with the sizes that the shapes tell."""

    def size(key: str, index: int) -> int:
        found = axis(state, key, index)
        if found is None:
            raise ConversionError(
                f"{source}: {key} is missing or has fewer axes than {index + 1}, so the sizes of "
                "the network are unknown"
            )
        return found

    n_fft = size(COSINES, 2)
    if n_fft not in GRIDS:
        known = ", ".join(f"{length} ({grid.sample_rate} Hz)" for length, grid in GRIDS.items())
        raise ConversionError(f"{source}: the window has {n_fft} samples; allowed: {known}")
    blocks = range(1, NUM_BLOCKS + 1)
    sizes: dict[str, Any] = {
        "num_mels": size("bn0.weight", 0),
        "widths": tuple(size(f"conv_block{block}.conv2.weight", 0) for block in blocks),
        "embedding_size": size("fc1.weight", 0),
        "num_classes": size("fc_audioset.weight", 0),
    }
    try:
        return dataclasses.replace(GRIDS[n_fft], **sizes)
    except ValueError as error:
        raise ConversionError(f"{source}: {error}") from error


def _table(config: PannsConfig) -> Table:
    table = names.batch_norm("bn0", "norm", config.num_mels)
    width_in = 1
    for block, width in enumerate(config.widths):
        for index in range(2):
            key, path = f"conv_block{block + 1}", f"block_{block}"
            table[f"{key}.conv{index + 1}.weight"] = Entry(
                f"{path}/conv_{index}/kernel", (width, width_in, 3, 3), names.channels_last
            )
            table |= names.batch_norm(f"{key}.bn{index + 1}", f"{path}/norm_{index}", width)
            width_in = width
    table |= names.linear("fc1", "embedding", width_in, config.embedding_size)
    return table | names.linear("fc_audioset", "classes", config.embedding_size, config.num_classes)


def _front_end(config: PannsConfig) -> dict[str, np.ndarray]:
    """What the keys of the front end must hold, as torchlibrosa lays it out."""
    n_fft = config.n_fft
    turns = np.outer(np.arange(n_fft // 2 + 1), np.arange(n_fft)) % n_fft / n_fft
    window = hann_window(n_fft)
    kernels = {COSINES: np.cos(2 * np.pi * turns), SINES: -np.sin(2 * np.pi * turns)}
    front_end = {key: (values * window)[:, None] for key, values in kernels.items()}
    return front_end | {BANDS: mel_matrix(config.grid).T}
