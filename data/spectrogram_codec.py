"""Fits the spectrogram codec on a training split; it encodes datasets without any weights.

    python -m data.spectrogram_codec --data runs/demo/data --out runs/demo/codec --token_dim 64
    python -m data.encode_latents --data runs/demo/data --out runs/demo/encoded \\
        --codec runs/demo/codec

--data is what `data.encode_latents` takes. Shows the share of the log-mel variance that the tokens
keep. Fitting again on the same data gives the same codec. With --measure=CODEC in place of --out,
nothing is fitted: the share is that of an existing codec's tokens on --data.
Dimensions: V values of a patch.
"""

from __future__ import annotations

import pathlib
import tempfile

import numpy as np
from absl import flags

from data.common import batches
from data.common.arguments import define_source_flags
from data.common.codecs import find_codec, hash_part
from data.common.sources import WORKERS, AudioSource, open_audio_source
from fasttta_jax import cli
from fasttta_jax.audio.mel import MelConfig
from fasttta_jax.codecs import load_codec
from fasttta_jax.codecs.base import CONFIG_FILE
from fasttta_jax.codecs.columns import num_columns
from fasttta_jax.codecs.spectrogram import SpectrogramCodec, SpectrogramConfig, StatisticsFitter
from fasttta_jax.storage.whole import whole_folder


def _moments(
    config: SpectrogramConfig, source: AudioSource, description: str, workers: int
) -> StatisticsFitter:
    """First and second moments of all patches; the silence behind short clips does not count."""
    fitter = StatisticsFitter(config)
    stride = config.patch_frames * config.mel.hop_length
    clips = batches.read_split(source, "train", description, workers)
    for _, group, audio in batches.padded_batches(clips, stride):
        own = [num_columns(len(clip.audio), stride) for clip in group]
        for columns in sorted(set(own)):
            rows = [row for row, found in enumerate(own) if found == columns]
            fitter.add(audio[rows, : columns * stride])
    return fitter


def fit(
    config: SpectrogramConfig, source: AudioSource, workers: int = WORKERS
) -> tuple[SpectrogramCodec, float]:
    """The codec for a training split, and the share of variance that its tokens keep."""
    statistics, kept = _moments(config, source, "fitting the codec", workers).finish()
    return SpectrogramCodec(config, statistics), kept


def variance_kept(codec: SpectrogramCodec, source: AudioSource, workers: int = WORKERS) -> float:
    """Share of a training split's log-mel variance, about its own mean, that a codec's tokens keep.

    1 minus the squared error of the reconstruction over the variance; below 0 where the codec's own
    mean would be the better guess.

    Raises:
      ValueError: the data has no variance.
    """
    moments = _moments(codec.config, source, "measuring the codec", workers)
    error, total = 0.0, 0.0
    for band in range(codec.config.bands):
        mean = moments.total[band] / moments.count
        covariance = moments.products[band] / moments.count - np.outer(mean, mean)
        basis = codec.statistics.basis[band].astype(np.float64)
        shift = mean - codec.statistics.mean[band]
        total += np.trace(covariance)
        error += np.trace(covariance) - np.sum(basis * (covariance @ basis))
        error += np.sum((shift - basis @ (basis.T @ shift)) ** 2)
    if total <= 0:
        raise ValueError("the data has no variance: every patch is the same")
    return float(1.0 - error / total)


def write_codec(
    source: AudioSource,
    out: str | pathlib.Path,
    config: SpectrogramConfig,
    *,
    workers: int = WORKERS,
) -> pathlib.Path:
    """Fits a codec on a training split, puts it into the folder `out`, returns that.

    Args:
      source: of the codec's sample rate.
      out: folder of the codec; may hold the same one already.
      config: layout of the tokens.
      workers: reading threads; the result does not depend on it.

    Raises:
      ValueError: there are too few patches or no variance, or `out` holds something else.
    """
    out = pathlib.Path(out)
    if out.is_dir() and any(out.iterdir()) and not (out / CONFIG_FILE).is_file():
        raise ValueError(f"--out is {str(out)!r}, which holds other files; choose another folder")
    codec, kept = fit(config, source, workers)
    print(f"the tokens keep {kept:.1%} of the log-mel variance")
    if not out.exists():
        with whole_folder(out) as folder:
            codec.save(folder)
            load_codec(folder)  # what cannot be read appears nowhere
        return out
    with tempfile.TemporaryDirectory() as temporary:
        codec.save(temporary)
        same = hash_part(pathlib.Path(temporary)) == hash_part(out)
    if not same:
        raise ValueError(f"--out is {str(out)!r}, which holds another codec; choose another folder")
    return out


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the command line; not done at import, where tests would define it a second time."""

    def integer(name: str, default: int, help: str) -> None:
        flags.DEFINE_integer(name, default, help, flag_values=values)

    def number(name: str, default: float, help: str) -> None:
        flags.DEFINE_float(name, default, help, flag_values=values)

    define_source_flags(values)
    flags.DEFINE_string("out", None, "Folder of the codec.", flag_values=values)
    flags.DEFINE_string(
        "measure", None, "Folder of an existing codec to measure on --data.", flag_values=values
    )
    flags.mark_flags_as_mutual_exclusive(["out", "measure"], required=True, flag_values=values)
    integer("token_dim", 64, "Channels per token (principal components).")
    integer("patch_frames", 16, "Spectrogram frames per token.")
    integer("bands", 2, "Tokens per column: the mel axis is cut into this many.")
    integer("num_mels", 64, "Mel bands of the spectrogram.")
    number("floor", 1e-2, "Mel magnitudes below this count as silence.")
    number("whitening", 0.5, "0 keeps component variances, 1 equalises them.")
    integer(
        "overlap_frames",
        0,
        "Frames on either side of a border between columns that both tokens see.",
    )
    integer(
        "griffin_lim_iterations", 32, "Phase reconstruction steps when tokens become audio again."
    )


def chosen_config(values: flags.FlagValues) -> SpectrogramConfig:
    """What the flags ask for.

    Raises:
      ValueError: settings that no codec can have.
    """
    return SpectrogramConfig(
        mel=MelConfig(floor=values.floor, num_mels=values.num_mels),
        patch_frames=values.patch_frames,
        bands=values.bands,
        token_dim=values.token_dim,
        whitening=values.whitening,
        overlap_frames=values.overlap_frames,
        griffin_lim_iterations=values.griffin_lim_iterations,
    )


def main() -> None:
    """The command line."""
    values = flags.FLAGS
    measured = None if values.measure is None else load_codec(find_codec(values.measure))
    if not isinstance(measured, SpectrogramCodec | None):
        raise ValueError(f"--measure is {values.measure!r}; allowed: a spectrogram codec")
    config = chosen_config(values) if measured is None else measured.config
    source = open_audio_source(
        values.data,
        config.mel.sample_rate,
        source_rate=values.sample_rate,
        with_captions=not values.without_captions,
    )
    if measured is None:
        folder = write_codec(source, values.out, config, workers=values.workers)
        print(f"{folder}: {config.bands} tokens of {config.token_dim} numbers a column")
    else:
        kept = variance_kept(measured, source, values.workers)
        print(f"the tokens keep {kept:.1%} of the log-mel variance")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
