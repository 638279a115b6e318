"""Protocols of the literature: which figures, of which networks, from waveforms prepared how.

The same sounds have another FD under another resampling, another cut or another pairing, so a
figure means something only with its protocol. Each is one entry of `PROTOCOLS`.

Sources: audioldm_eval (github.com/haoheliu/audioldm_eval, commit 8dc07ee); av-benchmark
(github.com/hkchengrex/av-benchmark, commit 050a5cd), the evaluation of MMAudio and MeanAudio.
Dimensions: R samples of a file, S samples for a network.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Literal

import librosa
import numpy as np
from jaxtyping import Float

from fasttta_jax.audio.sinc import resample_sinc

Key = Literal["name", "stem"]
"""What pairs a generated file with a real one: its name with the ending, or without."""


@dataclasses.dataclass(frozen=True)
class Preparation:
    """What is done to the samples of a file before a network gets them, in this order.

    Attributes:
      channel: the first one, or the mean of all.
      subtract_mean: whether the waveform's mean is removed.
      resampler: "sinc", torchaudio's windowed sinc, or "soxr", its high quality.
      longest_seconds: what is behind that is cut; None keeps all.
      least_samples: a shorter waveform is filled up to that with zeros, at the network's rate.
    """

    channel: Literal["first", "mean"] = "mean"
    subtract_mean: bool = False
    resampler: Literal["sinc", "soxr"] = "soxr"
    longest_seconds: float | None = None
    least_samples: int = 0

    def __call__(
        self, samples: Float[np.ndarray, "R channels"], source_rate: int, sample_rate: int
    ) -> Float[np.ndarray, " S"]:
        """The waveform of a network.

        Args:
          samples: of a file.
          source_rate: of the file.
          sample_rate: of the network.
        """
        audio = samples[:, 0] if self.channel == "first" else samples.mean(axis=1)
        audio = audio.astype(np.float32)
        if self.subtract_mean:
            audio = audio - audio.mean(dtype=np.float64).astype(np.float32)
        if source_rate != sample_rate:
            audio = self._resampled(audio, source_rate, sample_rate)
        if self.longest_seconds is not None:
            audio = audio[: int(sample_rate * self.longest_seconds)]
        return np.pad(audio, (0, max(self.least_samples - len(audio), 0)))

    def _resampled(
        self, audio: Float[np.ndarray, " R"], source_rate: int, sample_rate: int
    ) -> Float[np.ndarray, " S"]:
        if self.resampler == "sinc":
            return resample_sinc(audio, source_rate, sample_rate)
        return librosa.resample(
            audio, orig_sr=source_rate, target_sr=sample_rate, res_type="soxr_hq"
        ).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Protocol:
    """A way to judge that others have used, or ours.

    Attributes:
      name: of its entry in `PROTOCOLS`.
      words: what it is, in a sentence for the reader of a report.
      metrics: names of its figures, in the order of the columns.
      preparation: of every waveform, by the network's name; under "" for all others.
      key: how files are paired.
      weights: the checkpoints of the literature, by the network's name, in words.
    """

    name: str
    words: str
    metrics: tuple[str, ...]
    preparation: Mapping[str, Preparation]
    key: Key = "name"
    weights: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def prepare(self, network: str) -> Preparation:
        """The preparation for a network."""
        return self.preparation.get(network, self.preparation[""])


CNN14_16K = "PANNs Cnn14 at 16 kHz (Cnn14_16k_mAP=0.438)"
VGGISH = "VGGish without its last ReLU and without PCA"
CLAP_8998 = "LAION CLAP, HTSAT-base (music_speech_audioset_epoch_15_esc_89.98)"
TWO_SECONDS = 32_000

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "audioldm_eval",
            "FD and KL of AudioLDM, Tango and many after them, with backbone cnn14: the first "
            "channel without its mean, resampled by a windowed sinc, filled up to 2 s and never "
            "cut; files are paired by their names",
            ("fd_panns", "fad_vggish", "kl_softmax", "kl_sigmoid", "inception_score"),
            {
                "": Preparation(
                    "first", subtract_mean=True, resampler="sinc", least_samples=TWO_SECONDS
                )
            },
            "name",
            {"panns_16k": CNN14_16K, "vggish": VGGISH},
        ),
        Protocol(
            "av_benchmark",
            "the evaluation of MMAudio and MeanAudio, for AudioCaps with audio_length 10: the mean "
            "of the channels without its mean, resampled by a windowed sinc, cut to 10 s; files "
            "are paired by their names without the ending",
            ("fd_panns", "fad_vggish", "kl_softmax_plain", "inception_score", "clap_score"),
            {"": Preparation("mean", subtract_mean=True, resampler="sinc", longest_seconds=10.0)},
            "stem",
            {"panns_16k": CNN14_16K, "vggish": VGGISH, "clap": CLAP_8998},
        ),
        Protocol(
            "ours",
            "every figure that the given networks allow: the mean of the channels, resampled with "
            "soxr, filled up to 2 s; CLAP hears the first 10 s",
            (
                "fd_panns",
                "fd_panns_limit",
                "fad_vggish",
                "kad_panns",
                "kad_vggish",
                "kad_clap",
                "kl_softmax",
                "inception_score",
                "clap_score",
                "clap_audio",
                "precision",
                "recall",
                "density",
                "coverage",
                "c2st",
            ),
            {
                "": Preparation(least_samples=TWO_SECONDS),
                "clap": Preparation(longest_seconds=10.0, least_samples=TWO_SECONDS),
            },
            "stem",
        ),
    )
}


@dataclasses.dataclass(frozen=True)
class KnownList:
    """A list of captions that published figures were taken on.

    Attributes:
      words: whose it is.
      clips: how many captions it has.
      sha256: `caption_list_sha256` of them; None where the list is not known here.
    """

    words: str
    clips: int
    sha256: str | None = None


KNOWN_LISTS = (
    KnownList("AudioCaps' own test split, all five captions of 975 clips", 4875),
    KnownList("the list of audioldm_eval", 964),
    KnownList("the clips of SoundCTM and, with other captions, of MeanAudio and FdAudio", 957),
    KnownList("the list of Tango and Tango 2", 886),
    KnownList("the list of ConsistencyTTA", 882),
)
"""Lists of AudioCaps test captions. A hash is entered by whoever holds the list, never guessed."""


def caption_list_sha256(captions: Sequence[str]) -> str:
    """The hash of a list of captions: SHA-256 of its stripped captions, sorted, a line feed each.

    It is the same for every order, so that files may be named and sorted in any way. (A data set's
    `captions_sha256` is another: it holds the ids of its clips, too.)
    """
    lines = sorted(caption.strip() for caption in captions)
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def about_list(clips: int, sha256: str | None, known: Sequence[KnownList] = KNOWN_LISTS) -> str:
    """What is known of a list of captions, in words; nothing is guessed from a number alone.

    Args:
      clips: how many captions it has.
      sha256: their hash; None where the clips have no captions.
      known: published lists.
    """
    matching = [one for one in known if sha256 is not None and one.sha256 == sha256]
    if matching:
        return f"{clips} clips: {matching[0].words}, by the hash of the captions"
    as_many = [one for one in known if one.clips == clips]
    if not as_many:
        return f"{clips} clips: none of the published lists has as many"
    said = f"{clips} clips: as many as {as_many[0].words}"
    if sha256 is None:
        return f"{said}; whether they are those is not known, as the clips have no captions"
    if any(one.sha256 is None for one in as_many):
        return f"{said}; its captions' hash is not known here"
    return f"{said}, but with other captions"
