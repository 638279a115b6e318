"""Audio files in and out: decoding to mono float32 at one sample rate, levels, and atomic writing.

Levels in training follow AudioLDM: the mean is removed and the peak is scaled to 0.5. Levels for
playback are set on the gated root mean square, in the spirit of the gate of ITU-R BS.1770.
Dimensions: S audio samples, R samples at another rate.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Literal, NamedTuple, get_args

import librosa
import numpy as np
import soundfile
from jaxtyping import Float

from fasttta_jax.storage.whole import whole

AudioFormat = Literal["wav", "flac", "ogg", "mp3"]
AudioFault = Literal["missing", "unreadable", "empty", "channels", "not finite", "silent"]

SUFFIXES = (".aif", ".aiff", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".wav")
"""Of the files that are taken for audio, in lower case."""
SILENCE_DBFS = -80.0
"""A waveform whose peak around its mean lies below this is digital silence."""
TRAINING_PEAK = 0.5
INT16_SCALE = 32767.0
"""Datasets keep samples as whole numbers: full scale is this, so that 1 and -1 both have one."""
FILE_SCALE = 32768.0
"""Full scale of 16 bits as libsndfile and TFDS read files: 1 itself is clipped in writing."""
PLAYBACK_PEAK_DBFS = -1.0
GATE_DB = 40.0
"""Frames this far below the loudest do not count towards the level of a waveform."""
GATE_FRAME = 1024

MAX_CHANNELS = 2
"""Files with more are refused: the mean of surround channels is not what was heard."""

_READ_FRAMES = 1 << 18
_WRITE_FRAMES = 1 << 14  # libsndfile overflows its stack when Vorbis gets minutes in one call
_SOURCE_RATES = (1_000, 1_000_000)
_SUBTYPES = {"wav": "PCM_16", "flac": "PCM_16", "ogg": "VORBIS", "mp3": "MPEG_LAYER_III"}
OGG_RATES = (8_000, 192_000)
"""Beyond these libsndfile's encoder of Vorbis ends the process."""
MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)


class Tags(NamedTuple):
    """What a sound file says of itself."""

    title: str = ""
    comment: str = ""
    software: str = ""


NO_TAGS = Tags()


class AudioError(ValueError):
    """An audio file that cannot be used.

    Attributes:
      path: the file.
      reason: what is wrong, in a word that can be counted (`AudioFault`).
    """

    def __init__(self, path: str | os.PathLike[str], reason: AudioFault, detail: str) -> None:
        super().__init__(f"{os.fspath(path)}: {reason}: {detail}")
        self.path = os.fspath(path)
        self.reason = reason
        self.detail = detail


def amplitude(dbfs: float) -> float:
    """Amplitude of a level in decibels relative to full scale."""
    return 10.0 ** (dbfs / 20.0)


def is_silent(audio: Float[np.ndarray, " S"]) -> bool:
    """Whether the peak around the mean lies below `SILENCE_DBFS`; an empty waveform is silent."""
    if not audio.size:
        return True
    return bool(np.max(np.abs(audio - np.mean(audio, dtype=np.float64))) < amplitude(SILENCE_DBFS))


def read_audio(
    path: str | os.PathLike[str],
    sample_rate: int,
    *,
    start: float = 0.0,
    duration: float | None = None,
) -> Float[np.ndarray, " S"]:
    """Decodes an audio file: the mean of its channels, resampled with soxr (high quality).

    WAV, FLAC, Ogg and MP3 are read, and whatever else the installed libsndfile knows; the content
    decides, not the suffix. A WAV, Ogg or MP3 file that was cut short gives the part that is left.

    Args:
      path: the file.
      sample_rate: samples per second of the result.
      start: seconds into the file where the part to read begins; what lies before is not decoded.
      duration: seconds to read; None for all that follows. A file that ends earlier gives less.

    Returns:
      float32 [S], S > 0, finite, not silent; nominally in [-1, 1], but floating-point files and
      resampling may pass that.

    Raises:
      AudioError: the file is missing, unreadable, empty, of more than `MAX_CHANNELS` channels, not
        finite or silent; see its `reason`.
    """
    _check_there(path)
    return _decoded(path, path, sample_rate, start, duration)


def read_channels(path: str | os.PathLike[str]) -> tuple[Float[np.ndarray, "S channels"], int]:
    """Decodes an audio file as it is: every channel, at its own rate; silence is a sound.

    Returns:
      float32 [S, channels], S > 0, finite; and the samples per second.

    Raises:
      AudioError: the file is missing, unreadable, empty, of more than `MAX_CHANNELS` channels or
        not finite; see its `reason`.
    """
    _check_there(path)
    with _decoding(path):
        audio, rate = _decode(path, path)
    _check_samples(audio, rate, path)
    return audio, rate


def read_audio_bytes(
    data: bytes,
    sample_rate: int,
    *,
    name: str,
    start: float = 0.0,
    duration: float | None = None,
) -> Float[np.ndarray, " S"]:
    """As `read_audio`, for the content of a file; errors call it `name`."""
    if not data:
        raise AudioError(name, "empty", "the file has 0 bytes")
    return _decoded(io.BytesIO(data), name, sample_rate, start, duration)


def resample_audio(
    samples: Float[np.ndarray, " R"] | Float[np.ndarray, "R channels"],
    source_rate: int,
    sample_rate: int,
    *,
    name: str | os.PathLike[str],
) -> Float[np.ndarray, " S"]:
    """Samples at any rate as `read_audio` gives those of a file.

    Args:
      samples: floating, full scale at 1.
      source_rate: their number per second.
      sample_rate: that of the result.
      name: what errors call them.

    Raises:
      AudioError: as `read_audio`.
    """
    if samples.ndim == 2:
        _check_channels(name, samples.shape[1])
        samples = samples.mean(axis=1, dtype=np.float64)
    return _checked(samples.astype(np.float32), source_rate, sample_rate, name)


def _decoded(
    file: str | os.PathLike[str] | io.BytesIO,
    name: str | os.PathLike[str],
    sample_rate: int,
    start: float,
    duration: float | None,
) -> np.ndarray:
    with _decoding(name):
        audio, source_rate = _decode(file, name, start, duration)
    mono = audio.mean(axis=1, dtype=np.float64).astype(np.float32)
    return _checked(mono, source_rate, sample_rate, name)


@contextlib.contextmanager
def _decoding(name: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except (soundfile.SoundFileError, OSError, TypeError) as error:  # TypeError: a headerless .raw
        reason = getattr(error, "error_string", str(error))
        raise AudioError(name, "unreadable", f"libsndfile cannot decode it: {reason}") from error


def _decode(
    source: str | os.PathLike[str] | io.BytesIO,
    name: str | os.PathLike[str],
    start: float = 0.0,
    duration: float | None = None,
) -> tuple[Float[np.ndarray, "S channels"], int]:
    """Samples and their rate; by blocks, because a broken header can promise any length."""
    with soundfile.SoundFile(source) as file:
        _check_channels(name, file.channels)
        rate = file.samplerate
        if first := round(start * rate):
            if first >= file.frames:
                ends = f"it ends at {file.frames / rate:g} s, before {start:g} s"
                raise AudioError(name, "empty", ends)
            file.seek(first)
        left = sys.maxsize if duration is None else round(duration * rate)
        blocks: list[np.ndarray] = [np.zeros((0, file.channels), np.float32)]
        while len(block := file.read(min(_READ_FRAMES, left), dtype="float32", always_2d=True)):
            blocks.append(block)
            left -= len(block)
    return np.concatenate(blocks), rate


def _check_there(path: str | os.PathLike[str]) -> None:
    if not os.path.isfile(path):
        raise AudioError(path, "missing", "there is no such file")
    if not os.path.getsize(path):
        raise AudioError(path, "empty", "the file has 0 bytes")


def _check_channels(name: str | os.PathLike[str], channels: int) -> None:
    if channels > MAX_CHANNELS:
        raise AudioError(name, "channels", f"it has {channels}; allowed: 1 to {MAX_CHANNELS}")


def _check_samples(audio: np.ndarray, source_rate: int, name: str | os.PathLike[str]) -> None:
    if not audio.size:
        raise AudioError(name, "empty", "the file holds no samples")
    if not np.all(np.isfinite(audio)):
        count = audio.size - np.count_nonzero(np.isfinite(audio))
        raise AudioError(name, "not finite", f"{count} of {audio.size} samples are NaN or infinite")
    if not _SOURCE_RATES[0] <= source_rate <= _SOURCE_RATES[1]:
        allowed = f"{_SOURCE_RATES[0]} to {_SOURCE_RATES[1]} Hz"
        raise AudioError(
            name, "unreadable", f"its sample rate is {source_rate}; allowed: {allowed}"
        )


def _checked(
    audio: np.ndarray, source_rate: int, sample_rate: int, name: str | os.PathLike[str]
) -> np.ndarray:
    """Mono samples at `sample_rate`, refused where there is nothing to hear in them."""
    _check_samples(audio, source_rate, name)
    # Before resampling, whose ripple at the ends of a constant offset would pass for sound.
    if is_silent(audio):
        raise AudioError(name, "silent", f"its peak is below {SILENCE_DBFS:g} dBFS")
    if source_rate != sample_rate:
        audio = librosa.resample(
            audio, orig_sr=source_rate, target_sr=sample_rate, res_type="soxr_hq"
        ).astype(np.float32)
        if is_silent(audio):
            raise AudioError(name, "silent", f"nothing is left of it below {sample_rate / 2:g} Hz")
    return audio


def level(audio: Float[np.ndarray, " S"], peak: float = TRAINING_PEAK) -> Float[np.ndarray, " S"]:
    """Prepares a waveform for training as AudioLDM does: no mean, and the peak at `peak`.

    Silence keeps its amplitude, so that rounding noise is not blown up.
    """
    if not audio.size:
        return audio.astype(np.float32)
    centred = audio.astype(np.float64) - np.mean(audio, dtype=np.float64)
    if not is_silent(audio):
        centred *= peak / np.max(np.abs(centred))
    return centred.astype(np.float32)


def gated_rms(audio: Float[np.ndarray, " S"]) -> float:
    """Root mean square over the frames within `GATE_DB` of the loudest; 0 for an empty waveform."""
    if not audio.size:
        return 0.0
    starts = np.arange(0, audio.size, GATE_FRAME)
    lengths = np.diff(starts, append=audio.size)
    energy = np.add.reduceat(np.square(audio, dtype=np.float64), starts)
    power = energy / lengths
    loud = power >= np.max(power) * 10.0 ** (-GATE_DB / 10.0)
    return float(np.sqrt(np.sum(energy[loud]) / np.sum(lengths[loud])))


def playback_level(
    audio: Float[np.ndarray, " S"], *, peak_dbfs: float = PLAYBACK_PEAK_DBFS
) -> Float[np.ndarray, " S"]:
    """Scales a waveform, as a whole, so that it does not clip; `loudness.Level` sets a level.

    Args:
      audio: waveform, any float dtype.
      peak_dbfs: ceiling of the peak, at most 0.

    Returns:
      float32 [S].

    Raises:
      ValueError: samples are not finite, or the ceiling is above full scale.
    """
    if peak_dbfs > 0:
        raise ValueError(f"peak_dbfs is {peak_dbfs}; allowed: at most 0 (full scale)")
    _check_waveform(audio, "the waveform to play")
    peak = float(np.max(np.abs(audio), initial=0.0))
    gain = min(1.0, amplitude(peak_dbfs) / peak) if peak else 1.0
    return (audio.astype(np.float64) * gain).astype(np.float32)


def check_format(format: AudioFormat, sample_rate: int) -> None:
    """Raises ValueError where a format is unknown, or cannot hold sound of this rate."""
    if format not in _SUBTYPES:
        raise ValueError(f"format is {format!r}; allowed: {get_args(AudioFormat)}")
    if format == "mp3" and sample_rate not in MP3_RATES:
        raise ValueError(
            f"format is 'mp3', which has no rate of {sample_rate} Hz; allowed: another format, or "
            f"{', '.join(map(str, MP3_RATES))} Hz"
        )
    if format == "ogg" and not OGG_RATES[0] <= sample_rate <= OGG_RATES[1]:
        raise ValueError(
            f"format is 'ogg', whose encoder has no rate of {sample_rate} Hz; allowed: another "
            f"format, or {OGG_RATES[0]} to {OGG_RATES[1]} Hz"
        )


def write_audio(
    path: str | os.PathLike[str],
    audio: Float[np.ndarray, " S"],
    sample_rate: int,
    format: AudioFormat = "wav",
    tags: Tags = NO_TAGS,
) -> None:
    """Writes a mono file, which appears whole or not at all; see `encode_audio`.

    Args:
      path: file to write; its folder must exist, and an older file is replaced.
      audio: samples in [-1, 1].
      sample_rate: samples per second.
      format: container and coding.
      tags: what the file says of itself.

    Raises:
      ValueError: see `encode_audio`; names the file.
      OSError: the file cannot be written; the message names it.
    """
    try:
        encoded = encode_audio(audio, sample_rate, format, tags)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from error
    try:
        with whole(path) as temporary:
            temporary.write_bytes(encoded)
    except OSError as error:
        raise OSError(
            error.errno, f"the audio file could not be written ({error.strerror})", str(path)
        ) from error


def encode_audio(
    audio: Float[np.ndarray, " S"],
    sample_rate: int,
    format: AudioFormat = "wav",
    tags: Tags = NO_TAGS,
) -> bytes:
    """The content of a mono file: 16-bit WAV, 16-bit FLAC, Ogg Vorbis, or MP3.

    Equal input gives equal bytes but in Ogg, which carries a random stream number that libsndfile
    does not let one set; there only the decoded samples are equal. MP3 keeps no `software`.

    Raises:
      ValueError: an unknown format, or a rate that it does not have; no samples, or samples not
        finite or beyond [-1, 1].
    """
    check_format(format, sample_rate)
    _check_waveform(audio, "the waveform to write")
    if not audio.size:
        raise ValueError("there are no samples to write")
    if (peak := float(np.max(np.abs(audio)))) > 1.0:
        raise ValueError(f"the peak is {peak:.3f} and would clip; call playback_level first")
    samples = np.asarray(audio, np.float32)
    if format in ("wav", "flac"):  # libsndfile rounds differently for WAV and for FLAC
        samples = np.clip(np.round(samples * FILE_SCALE), -FILE_SCALE, FILE_SCALE - 1).astype(
            np.int16
        )
    encoded = io.BytesIO()
    with soundfile.SoundFile(
        encoded, "w", sample_rate, 1, subtype=_SUBTYPES[format], format=format.upper()
    ) as file:
        for name, value in tags._asdict().items():
            if value:
                setattr(file, name, value)
        for start in range(0, audio.size, _WRITE_FRAMES):
            file.write(samples[start : start + _WRITE_FRAMES])
    return encoded.getvalue()


def _check_waveform(audio: np.ndarray, where: str) -> None:
    if audio.ndim != 1 or not np.issubdtype(audio.dtype, np.floating):
        raise ValueError(
            f"{where}: needs floats of shape [S]; found {audio.dtype}{list(audio.shape)}"
        )
    if not np.all(np.isfinite(audio)):
        count = audio.size - np.count_nonzero(np.isfinite(audio))
        raise ValueError(f"{where}: {count} of {audio.size} samples are NaN or infinite")
