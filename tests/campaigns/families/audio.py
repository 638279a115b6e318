"""Audio files of many formats, rates, lengths and channels, whole and damaged."""

from __future__ import annotations

import io
import math
import pathlib

import numpy as np
import soundfile

from fasttta_jax.audio.files import AudioError, read_audio, read_channels
from tests.campaigns.damage import damaged
from tests.campaigns.draws import Draw
from tests.campaigns.fuzz_world import World
from tests.campaigns.trying import RIGHT, SKIPPED, Kind, expect, may_refuse, unchanged

RATE = 16_000
FORMATS = (
    ("wav", "PCM_16"), ("wav", "FLOAT"), ("wav", "PCM_U8"), ("wav", "ULAW"), ("wav", "PCM_24"),
    ("wav", "DOUBLE"), ("flac", "PCM_16"), ("flac", "PCM_24"), ("ogg", "VORBIS"), ("ogg", "OPUS"),
    ("mp3", "MPEG_LAYER_III"), ("aiff", "PCM_16"), ("aiff", "FLOAT"), ("wav", "IMA_ADPCM"),
)  # fmt: skip
EXACT = {"PCM_16": 2.0**-15, "PCM_24": 2.0**-23, "FLOAT": 2.0**-23, "DOUBLE": 2.0**-23}
"""Largest error of a sample, for encodings that keep samples."""
RATES = (
    16_000, 44_100, 48_000, 8_000, 11_025, 96_000, 22_050, 32_000, 192_000, 24_000, 44_100,
    16_000, 48_000, 16_000, 1, 999, 655_350,
)  # fmt: skip
CODED_RATES = (16_000, 48_000, 8_000)
HEADER = 60
"""Bytes in which most headers lie."""


def attempt(world: World, draw: Draw, folder: pathlib.Path) -> Kind:
    form, subtype = draw.pick(FORMATS)
    rate, channels = draw.pick(RATES), draw.pick((*(1, 2) * 8, 3, 6))
    length = draw.pick((2_000, 4_000, 3_000, 400, 12_345, 9_600, 5_000, 1, 2, 17, 0))
    signal = _signal(draw, length, channels)
    if subtype not in EXACT:  # libsndfile's coders crash at what nobody encodes
        rate, channels = draw.pick(CODED_RATES), min(channels, 2)
        signal = np.clip(np.nan_to_num(signal[:, :channels]), -1, 1)
    content = _encoded(signal, rate, form, subtype)
    if content is None:  # libsndfile writes no such file
        rate, channels, signal = RATE, 1, np.clip(np.nan_to_num(signal[:, :1]), -1, 1)
        content = _encoded(signal, rate, form, subtype) or b""
    whole = not draw.chance(3)
    if not whole and draw.chance():
        position = draw.below(min(HEADER, len(content)) or 1)
        content = content[:position] + draw.bytes(8) + content[position + 4 :]
    elif not whole:
        content = damaged(draw, content)
    path = folder / f"sound.{draw.pick((*(form,) * 12, 'wav', 'WAV', 'flac', 'mp3', 'raw'))}"
    path.write_bytes(content)
    start, seconds = (
        draw.pick((*(0.0,) * 16, 0.01, 0.02, 1e6)),
        draw.pick((None, 0.05, 1e9)),
    )
    with unchanged(folder):
        try:
            with may_refuse(path, error=AudioError):
                heard = read_audio(path, RATE, start=start, duration=seconds)
                raw, found_rate = read_channels(path)
        except Exception as error:
            # What makes a dataset of the file counts it by this reason.
            if isinstance(error.__cause__, AudioError):
                return SKIPPED
            raise
    expect(heard.dtype == np.float32 and heard.ndim == 1 and heard.size > 0, "no waveform")
    expect(bool(np.isfinite(heard).all()), "a waveform is not finite")
    if whole:
        expect((found_rate, raw.shape[1]) == (rate, channels), "another rate, or other channels")
        if subtype in EXACT and np.isfinite(signal).all() and path.suffix != ".raw":
            clipped = signal if subtype in ("FLOAT", "DOUBLE") else np.clip(signal, -1, 1)
            same = raw.shape == signal.shape and _close(raw, clipped, EXACT[subtype])
            expect(bool(same), "other samples")
            left = max(length / rate - start, 0)
            left = left if seconds is None else min(left, seconds)
            expect(
                math.isclose(heard.size / RATE, left, abs_tol=2 / RATE + 2 / rate), "another length"
            )
    return RIGHT


def _close(found: np.ndarray, right: np.ndarray, error: float) -> bool:
    largest = max(1.0, float(np.abs(right).max(initial=0.0)))
    return bool((np.abs(found - right) <= error * largest).all())


def _signal(draw: Draw, length: int, channels: int) -> np.ndarray:
    time = np.arange(length)[:, None] * np.arange(1, channels + 1)
    signal = 0.5 * np.sin(0.1 * time)
    match draw.below(24):
        case 1:
            signal[:] = 0.0
        case 2:
            signal[:] = 0.3
        case 3:
            signal[length // 2 :] = np.nan
        case 4:
            signal *= 1e30
        case 5:
            signal *= 1e-6
    return signal


def _encoded(signal: np.ndarray, rate: int, form: str, subtype: str) -> bytes | None:
    file = io.BytesIO()
    try:
        soundfile.write(file, signal, rate, format=form.upper(), subtype=subtype)
    except (soundfile.SoundFileError, ValueError, AssertionError):
        return None
    return file.getvalue()
