"""Audio files survive the way in and out, and unusable ones are named with the reason."""

import errno
import os
import pathlib

import numpy as np
import pytest
import soundfile

from fasttta_jax.audio import files as audio_lib

RATE = 16_000


def tone(frequency: float, rate: int = RATE, seconds: float = 0.5, peak: float = 0.5) -> np.ndarray:
    times = np.arange(int(rate * seconds)) / rate
    return (peak * np.sin(2 * np.pi * frequency * times)).astype(np.float32)


def peak_frequency(audio: np.ndarray, rate: int = RATE) -> float:
    spectrum = np.abs(np.fft.rfft(audio * np.hanning(audio.size)))
    return float(np.argmax(spectrum)) * rate / audio.size


@pytest.mark.parametrize(
    ("suffix", "channels"),
    [(suffix, channels) for suffix in ("wav", "flac", "ogg", "mp3") for channels in (1, 2)],
)
@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
def test_any_file_becomes_mono_at_the_asked_rate(tmp_path, suffix, rate, channels):
    gains = np.linspace(1.0, 0.5, channels)
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, tone(1000, rate)[:, None] * gains[None, :], rate)
    audio = audio_lib.read_audio(path, RATE)
    assert audio.dtype == np.float32
    assert audio.ndim == 1
    assert audio.size == RATE // 2
    assert peak_frequency(audio) == pytest.approx(1000, abs=2)
    middle = audio[RATE // 8 : -RATE // 8]
    tolerance = 0.01 if suffix in ("wav", "flac") else 0.1
    expected = 0.5 * gains.mean() / np.sqrt(2)
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_any_sample_width_is_read(tmp_path, subtype):
    soundfile.write(tmp_path / "tone.wav", tone(440), RATE, subtype=subtype)
    step = 2.0**-7 if subtype == "PCM_U8" else 2.0**-15
    np.testing.assert_allclose(
        audio_lib.read_audio(tmp_path / "tone.wav", RATE), tone(440), rtol=0, atol=step
    )


def test_content_above_the_new_nyquist_does_not_alias(tmp_path):
    path = tmp_path / "two.wav"
    soundfile.write(path, tone(1000, 48_000) + tone(10_000, 48_000, peak=0.4), 48_000, "FLOAT")
    audio = audio_lib.read_audio(path, RATE)[1000:-1000]  # the tones start and end abruptly
    spectrum = np.abs(np.fft.rfft(audio * np.blackman(audio.size)))
    alias = round(6000 * audio.size / RATE)
    assert spectrum[alias - 20 : alias + 20].max() < 1e-4 * spectrum.max()


def test_blocks_join_without_a_seam(tmp_path, monkeypatch):
    noise = (0.1 * np.random.default_rng(0).standard_normal((5000, 2))).astype(np.float32)
    soundfile.write(tmp_path / "noise.flac", noise, 44_100)
    whole = audio_lib.read_audio(tmp_path / "noise.flac", RATE)
    monkeypatch.setattr(audio_lib, "_READ_FRAMES", 777)
    np.testing.assert_array_equal(audio_lib.read_audio(tmp_path / "noise.flac", RATE), whole)


def _garbage(path: pathlib.Path) -> None:
    path.write_bytes(b"this is a text file, whatever its name says\n" * 50)


def _truncated_flac(path: pathlib.Path) -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(RATE * 5)
    soundfile.write(path, noise, RATE, format="FLAC")
    path.write_bytes(path.read_bytes()[:40_000])


def _float_wav(values: list[float]):
    def write(path: pathlib.Path) -> None:
        audio = np.concatenate([tone(440), np.asarray(values, np.float32)])
        soundfile.write(path, audio, RATE, "FLOAT", format="WAV")

    return write


def _wav(audio: np.ndarray, rate: int = RATE):
    return lambda path: soundfile.write(path, audio, rate, "FLOAT", format="WAV")


OPPOSITE = np.stack([tone(440), -tone(440)], axis=1)
RUBBISH = {
    "nothing there": (lambda path: None, "missing"),
    "a folder": (lambda path: path.mkdir(), "missing"),
    "no bytes": (lambda path: path.touch(), "empty"),
    "no samples": (_wav(np.zeros((0, 2))), "empty"),
    "not audio": (_garbage, "unreadable"),
    "cut short": (_truncated_flac, "unreadable"),
    "absurd rate": (_wav(tone(440), 7), "unreadable"),
    "NaN": (_float_wav([np.nan]), "not finite"),
    "infinity": (_float_wav([0.0, -np.inf]), "not finite"),
    "zeros": (_wav(np.zeros(RATE)), "silent"),
    "below -80 dBFS": (_wav(tone(440, peak=0.9e-4)), "silent"),
    "only an offset": (_wav(np.full(44_100, 0.3), 44_100), "silent"),
    "channels that cancel": (_wav(OPPOSITE), "silent"),
    "three channels": (_wav(np.stack([tone(440)] * 3, axis=1)), "channels"),
    "only above the band": (_wav(tone(30_000, 96_000) * np.hanning(48_000), 96_000), "silent"),
}


@pytest.mark.parametrize("suffix", ["wav", "raw", "mp3"])
@pytest.mark.parametrize("case", RUBBISH)
def test_rubbish_is_refused_by_name_and_reason(tmp_path, case, suffix):
    write, reason = RUBBISH[case]
    path = tmp_path / f"rubbish.{suffix}"
    if suffix == "raw" and reason not in ("missing", "empty"):
        reason = "unreadable"  # a .raw has no header, so nothing tells what its bytes mean
    if (case, suffix) == ("no samples", "raw"):
        reason = "unreadable"
    write(path)
    with pytest.raises(audio_lib.AudioError) as caught:
        audio_lib.read_audio(path, RATE)
    assert caught.value.reason == reason
    assert str(path) in str(caught.value)
    assert caught.value.path == str(path)


def test_bytes_and_samples_are_read_as_files_are(tmp_path):
    stereo = np.stack([tone(440, 48_000), tone(550, 48_000)], axis=1)
    path = tmp_path / "stereo.wav"
    soundfile.write(path, stereo, 48_000, "FLOAT")
    expected = audio_lib.read_audio(path, RATE)
    from_bytes = audio_lib.read_audio_bytes(path.read_bytes(), RATE, name="clip 7")
    np.testing.assert_array_equal(from_bytes, expected)
    samples = audio_lib.resample_audio(stereo, 48_000, RATE, name="clip 7")
    np.testing.assert_array_equal(samples, expected)
    for reason, bad in (("channels", np.tile(stereo, 2)), ("not finite", stereo * np.nan)):
        with pytest.raises(audio_lib.AudioError, match=f"clip 7: {reason}"):
            audio_lib.resample_audio(bad, 48_000, RATE, name="clip 7")
    for reason, bytes_ in (("empty", b""), ("unreadable", b"not audio")):
        with pytest.raises(audio_lib.AudioError, match=f"clip 7: {reason}"):
            audio_lib.read_audio_bytes(bytes_, RATE, name="clip 7")


def test_quiet_is_not_silent(tmp_path):
    soundfile.write(tmp_path / "quiet.wav", tone(440, peak=1.1e-4), RATE, "FLOAT")
    assert audio_lib.read_audio(tmp_path / "quiet.wav", RATE).size


def test_a_promise_of_more_samples_than_there_are_costs_no_memory(tmp_path):
    path = tmp_path / "liar.flac"
    soundfile.write(path, tone(440), RATE)
    data = bytearray(path.read_bytes())
    data[21] |= 0x0F  # the upper bits of the 36-bit sample count in STREAMINFO
    path.write_bytes(data)
    assert soundfile.info(path).frames > 1 << 35
    with pytest.raises(audio_lib.AudioError, match="unreadable"):
        audio_lib.read_audio(path, RATE)


def test_level_centres_and_scales():
    levelled = audio_lib.level(tone(440, peak=0.07) + np.float32(0.2))
    assert levelled.dtype == np.float32
    assert np.mean(levelled, dtype=np.float64) == pytest.approx(0, abs=1e-7)
    assert np.max(np.abs(levelled)) == pytest.approx(0.5)
    np.testing.assert_allclose(audio_lib.level(levelled), levelled, rtol=0, atol=1e-7)
    assert np.max(np.abs(audio_lib.level(tone(440, peak=1e-6)))) < 2e-6
    assert audio_lib.level(np.zeros(0, np.float32)).size == 0


@pytest.mark.parametrize("peak_dbfs", [0.0, -1.0, -12.0])
@pytest.mark.parametrize("gain", [1e-3, 0.3, 1.0, 40.0])
def test_playback_level_keeps_the_shape_and_the_ceiling(peak_dbfs, gain):
    noise = np.random.default_rng(0).standard_normal(RATE)
    audio = (gain * noise / np.max(np.abs(noise))).astype(np.float32)
    played = audio_lib.playback_level(audio, peak_dbfs=peak_dbfs)
    assert played.dtype == np.float32
    ceiling = audio_lib.amplitude(peak_dbfs)
    assert np.max(np.abs(played)) <= np.float32(ceiling)
    ratio = np.max(np.abs(played)) / np.max(np.abs(audio))
    np.testing.assert_allclose(played, audio * ratio, rtol=1e-5)
    at_ceiling = np.max(np.abs(played)) == pytest.approx(ceiling, rel=1e-5)
    assert at_ceiling if gain > ceiling else np.array_equal(played, audio)


def test_gated_level_ignores_the_pauses():
    loud = tone(1000, seconds=0.512, peak=0.2)  # whole frames
    paused = np.concatenate([loud, np.zeros(10 * audio_lib.GATE_FRAME, np.float32)])
    assert audio_lib.gated_rms(paused) == pytest.approx(audio_lib.gated_rms(loud))
    assert audio_lib.gated_rms(loud) == pytest.approx(0.2 / np.sqrt(2), rel=1e-3)


def test_playback_level_of_silence():
    for silence in (np.zeros(0), np.zeros(100), np.full(100, 1e-6)):
        played = audio_lib.playback_level(silence)
        np.testing.assert_array_equal(played, silence.astype(np.float32))


@pytest.mark.usefixtures("unchecked")
def test_playback_level_refuses_what_is_not_sound():
    with pytest.raises(ValueError, match="1 of 3 samples are NaN or infinite"):
        audio_lib.playback_level(np.array([0.0, np.nan, 0.1]))
    with pytest.raises(ValueError, match=r"float32\[2, 3\]"):
        audio_lib.playback_level(np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match="peak_dbfs is 3"):
        audio_lib.playback_level(np.zeros(3), peak_dbfs=3)


@pytest.mark.parametrize("format", ["wav", "flac", "ogg", "mp3"])
def test_written_files_read_back(tmp_path, format):
    path = tmp_path / f"tone.{format}"
    tags = audio_lib.Tags("a 犬 barks", '{"seed": 3}', "fasttta_jax")
    audio_lib.write_audio(path, tone(440, peak=1.0), RATE, format, tags)
    assert soundfile.info(path).format == format.upper()
    with soundfile.SoundFile(path) as file:
        found = file.copy_metadata()
    assert (found["title"], found["comment"]) == (tags.title, tags.comment)
    assert format == "mp3" or found["software"].startswith(tags.software)
    audio = audio_lib.read_audio(path, RATE)
    assert audio.size == RATE // 2
    half_step = 2.0**-16
    error = np.abs(audio - np.minimum(tone(440, peak=1.0), 1 - 2 * half_step))
    assert np.max(error) <= {"ogg": 0.05, "mp3": 0.5}.get(format, half_step)  # mp3: at its ends
    first = path.read_bytes()
    audio_lib.write_audio(path, tone(440, peak=1.0), RATE, format, tags)
    if format != "ogg":
        assert path.read_bytes() == first
    np.testing.assert_array_equal(audio_lib.read_audio(path, RATE), audio)
    assert os.listdir(tmp_path) == [path.name]


def test_minutes_of_vorbis_are_written(tmp_path):
    noise = 0.1 * np.random.default_rng(0).standard_normal(8_000 * 240)
    audio_lib.write_audio(tmp_path / "long.ogg", noise.astype(np.float32), 8_000, "ogg")
    assert soundfile.info(tmp_path / "long.ogg").frames == noise.size


def test_a_failed_write_leaves_the_old_file_and_names_it(tmp_path, monkeypatch):
    path = tmp_path / "tone.wav"
    audio_lib.write_audio(path, tone(440), RATE)
    before = path.read_bytes()

    def full(self: pathlib.Path, data: bytes) -> None:
        with open(self, "wb") as file:
            file.write(data[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"could not be written \(No space left.*tone\.wav"):
        audio_lib.write_audio(path, tone(880), RATE)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["tone.wav"]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere/tone\.wav"):
        audio_lib.write_audio(tmp_path / "nowhere" / "tone.wav", tone(440), RATE)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"file/tone\.wav"):
        audio_lib.write_audio(tmp_path / "file" / "tone.wav", tone(440), RATE)


def test_rates_at_which_the_encoder_of_vorbis_ends_the_process_are_refused():
    for rate in (1, 7_999, 192_001, 655_350):
        with pytest.raises(ValueError, match=f"'ogg', whose encoder has no rate of {rate} Hz"):
            audio_lib.encode_audio(tone(440), rate, "ogg")
    for rate in audio_lib.OGG_RATES:
        assert audio_lib.encode_audio(tone(440), rate, "ogg")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("audio", "format", "message"),
    [
        (tone(440, peak=1.2), "wav", "the peak is 1.2.* call playback_level"),
        (np.array([0.0, np.inf]), "flac", "1 of 2 samples are NaN or infinite"),
        (np.zeros(0), "wav", "no samples"),
        (np.zeros((2, 5)), "wav", r"float64\[2, 5\]"),
        (np.zeros(5, np.int16), "wav", r"int16\[5\]"),
        (tone(440), "mp4", "format is 'mp4'; allowed: .*'wav', 'flac', 'ogg'"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, audio, format, message):
    with pytest.raises(ValueError, match=message):
        audio_lib.write_audio(tmp_path / "x", audio, RATE, format)
    assert not os.listdir(tmp_path)
