"""Synthesis of the twelve sound events, and the mixing of scenes.

Sources are sums of swept harmonics, noise shaped in the frequency domain, and impulses that ring
two-pole resonators. A far source is low-passed, reverberated by exponentially decaying noise and
made quieter. The two values of an axis draw their parameters from ranges that do not overlap.

Dimensions: S audio samples.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import scipy.fft
import scipy.signal
from jaxtyping import Float

from data.soundscapes import events

NEAR_PEAK = (0.42, 0.47)
FAR_PEAK = (0.11, 0.15)
EDGE_FADE_SECONDS = 0.01
SEQUENCE_FADE_SECONDS = 0.04

Signal = Float[np.ndarray, "S"]


@dataclasses.dataclass(frozen=True)
class Source:
    """A time axis with a stream of random numbers, and the means to make sound on it.

    Attributes:
      rng: where every random parameter comes from.
      num_samples: length S.
      sample_rate: samples per second.
    """

    rng: np.random.Generator
    num_samples: int
    sample_rate: int

    @property
    def time(self) -> Signal:
        """Seconds since the start."""
        return np.arange(self.num_samples) / self.sample_rate

    def between(self, low: float, high: float) -> float:
        """One uniform draw."""
        return float(self.rng.uniform(low, high))

    def noise(self, low: float, high: float, tilt: float = 0.0) -> Signal:
        """Gaussian noise of unit power between `low` and `high` Hz, falling as frequency^-tilt.

        The band's edges have second-order skirts.
        """
        size = scipy.fft.next_fast_len(self.num_samples, real=True)
        frequency = np.maximum(scipy.fft.rfftfreq(size, 1 / self.sample_rate), 1.0)
        gain = frequency**-tilt
        gain /= np.sqrt((1 + (low / frequency) ** 4) * (1 + (frequency / high) ** 4))
        real, imaginary = self.rng.standard_normal((2, frequency.size), dtype=np.float32)
        spectrum = (gain * (real + 1j * imaginary)).astype(np.complex64)
        signal = np.asarray(scipy.fft.irfft(spectrum, size))[: self.num_samples]
        return signal / np.sqrt(np.mean(signal**2))

    def impulses(self, times: np.ndarray, strengths: np.ndarray | float = 1.0) -> Signal:
        """A unit impulse of the given strength at each of `times` seconds that lies in the clip."""
        positions = np.round(np.asarray(times) * self.sample_rate).astype(int)
        strengths = np.broadcast_to(strengths, positions.shape)
        inside = (positions >= 0) & (positions < self.num_samples)
        return np.bincount(positions[inside], strengths[inside], self.num_samples)

    def ring(self, excitation: Signal, frequency: float, decay: float) -> Signal:
        """Rings a two-pole resonator: an impulse becomes a sine that falls to 1/e in `decay` s."""
        radius = np.exp(-1 / (decay * self.sample_rate))
        angle = 2 * np.pi * frequency / self.sample_rate
        feedback = [1.0, -2 * radius * np.cos(angle), radius**2]
        return np.asarray(scipy.signal.lfilter([np.sin(angle)], feedback, excitation))

    def decay(self, excitation: Signal, seconds: float) -> Signal:
        """An envelope: an impulse becomes an exponential that falls to 1/e in `seconds`."""
        feedback = [1.0, -np.exp(-1 / (seconds * self.sample_rate))]
        return np.asarray(scipy.signal.lfilter([1.0], feedback, excitation))

    def harmonics(self, frequency: Signal | float, amplitudes: Sequence[float]) -> Signal:
        """A harmonic tone that follows `frequency` in Hz; partials near Nyquist are left out."""
        frequency = np.broadcast_to(frequency, (self.num_samples,))
        cycles = np.cumsum(frequency) / self.sample_rate + self.rng.uniform()
        phase = (2 * np.pi * (cycles % 1.0)).astype(np.float32)
        highest = float(frequency.max())
        tone = np.zeros(self.num_samples, np.float32)
        for number, amplitude in enumerate(amplitudes, start=1):
            if amplitude and number * highest < 0.47 * self.sample_rate:
                tone += np.float32(amplitude) * np.sin(np.float32(number) * phase)
        return tone

    def wander(self, rate: float) -> Signal:
        """A slow random curve in [-1, 1] made of three sines around `rate` Hz."""
        rates = rate * self.rng.uniform(0.5, 1.5, 3)
        phases = self.rng.uniform(0, 2 * np.pi, 3)
        time = self.time
        knots = np.linspace(0, time[-1], 2 + int(50 * rate * time[-1]))
        curve = np.sin(2 * np.pi * rates * knots[:, None] + phases).mean(axis=1)
        return np.interp(time, knots, curve)

    def beats(self, rate: float, jitter: float = 0.0) -> np.ndarray:
        """Times of a regular pulse of `rate` per second; `jitter` is a fraction of the period."""
        start = self.between(0.03, 0.15)
        count = int(np.ceil(self.num_samples / self.sample_rate * rate)) + 1
        return start + (np.arange(count) + self.rng.uniform(-jitter, jitter, count)) / rate


def _gate(source: Source, phase: Signal, duty: float, period: float) -> Signal:
    # On for the first `duty` of each period, with 8 ms edges so that switching does not click.
    edge = 0.008 / period
    return np.clip(phase / edge, 0, 1) * np.clip((duty - phase) / edge, 0, 1)


def _siren(source: Source, value: str) -> Signal:
    centre = source.between(*{"low": (400, 540), "high": (1150, 1500)}[value])
    wail = np.sin(2 * np.pi * (source.between(0.6, 1.1) * source.time + source.between(0, 1)))
    frequency = centre * source.between(1.25, 1.35) ** wail
    return source.harmonics(frequency, (1, 0.6, 0.4, 0.25, 0.15, 0.1, 0.08))


def _bell(source: Source, value: str) -> Signal:
    prime = source.between(*{"low": (240, 330), "high": (900, 1200)}[value])
    strikes = source.impulses(source.beats(source.between(0.8, 1.2)), source.between(0.8, 1))
    ratios = (0.5, 1, 1.19, 1.5, 2, 2.66, 3.01, 4.17, 5.43)
    strengths = (0.4, 0.9, 0.7, 0.3, 1, 0.4, 0.4, 0.3, 0.2)
    decays = (1.1, 0.9, 0.6, 0.4, 0.5, 0.3, 0.25, 0.18, 0.12)
    sound = 0.4 * source.noise(1500, 7000) * source.decay(strikes, 0.006)
    for ratio, strength, decay in zip(ratios, strengths, decays, strict=True):
        frequency = prime * ratio * source.between(0.99, 1.01)
        sound += strength * source.between(0.7, 1) * source.ring(strikes, frequency, decay)
    return sound


def _rain(source: Source, value: str) -> Signal:
    rate = source.between(*{"slow": (8, 12), "fast": (280, 420)}[value])
    hiss, ring_decay = {"slow": (0.03, 0.008), "fast": (0.35, 0.002)}[value]
    sound = hiss * source.noise(1200, 7000)
    seconds = source.num_samples / source.sample_rate
    for low, high in ((650, 900), (950, 1300), (1500, 2100), (2600, 3800)):
        count = max(1, round(rate * seconds / 4))
        # One drop in each of `count` equal slots: random, yet never absent for long.
        times = (np.arange(count) + source.rng.uniform(0, 1, count)) * seconds / count
        drops = source.impulses(times, source.rng.uniform(0.4, 1, count))
        sound += source.ring(drops, source.between(low, high), ring_decay)
        sound += 0.3 * source.noise(2000, 7500) * source.decay(drops, 0.002)
    return sound


def _wind(source: Source, value: str) -> Signal:
    centre = source.between(*{"low": (170, 260), "high": (750, 1000)}[value])
    frequency = centre * 1.3 ** source.wander(0.7)
    phase = 2 * np.pi * (np.cumsum(frequency) / source.sample_rate % 1.0)
    # Noise below a tenth of the centre, carried up to a centre that moves: a howl.
    howl = source.noise(1, 0.1 * centre) * np.cos(phase)
    howl += source.noise(1, 0.1 * centre) * np.sin(phase)
    gust = 0.6 + 0.4 * source.wander(0.9)
    return gust * (howl + 0.5 * gust * source.noise(400, 6500, tilt=0.3))


def _engine(source: Source, value: str) -> Signal:
    rate = source.between(*{"slow": (9, 13), "fast": (75, 105)}[value])
    phase = 2 * np.pi * np.cumsum(rate * 1.04 ** source.wander(0.8)) / source.sample_rate
    firing = np.exp(6 * (np.cos(phase) - 1)).astype(np.float32)
    rattle = firing * source.noise(500, 5000, tilt=0.3)
    excitation = firing - firing.mean() + 0.3 * firing * source.noise(60, 1000)
    sound = np.zeros(source.num_samples)
    for low, high, strength in ((80, 110, 1.0), (180, 240, 0.7), (380, 480, 0.5)):
        body = source.ring(excitation, source.between(low, high), 0.012)
        sound += strength * body / np.sqrt(np.mean(body**2))
    return sound + 0.5 * rattle / np.sqrt(np.mean(rattle**2))


def _footsteps(source: Source, value: str) -> Signal:
    rate = source.between(*{"slow": (1.3, 1.7), "fast": (3.4, 4.2)}[value])
    heels = source.beats(rate, jitter=0.03)
    strengths = source.rng.uniform(0.8, 1, heels.size) * np.where(np.arange(heels.size) % 2, 0.8, 1)
    steps = source.impulses(heels, strengths)
    steps += source.impulses(heels + source.between(0.07, 0.09), 0.5 * strengths)
    thump = source.ring(steps, source.between(90, 130), 0.03)
    thump += 0.6 * source.ring(steps, source.between(210, 290), 0.02)
    return thump + 0.3 * source.noise(500, 5000, tilt=0.5) * source.decay(steps, 0.025)


def _clock(source: Source, value: str) -> Signal:
    rate = source.between(*{"slow": (1.7, 2.2), "fast": (8.0, 10.0)}[value])
    times = source.beats(rate)
    pitch = source.between(0.92, 1.08)
    sound = np.zeros(source.num_samples)
    # The tock that answers every tick is lower and softer.
    for start, scale, strength in ((0, 1.0, 1.0), (1, 0.8, 0.8)):
        ticks = source.impulses(times[start::2], strength)
        for frequency, partial in ((1500, 0.6), (2500, 1.0), (4100, 0.6)):
            sound += partial * source.ring(ticks, frequency * scale * pitch, 0.009)
        sound += 0.5 * source.noise(2500, 7500) * source.decay(ticks, 0.003)
    return sound


def _phone(source: Source, value: str) -> Signal:
    tone = source.between(*{"low": (470, 600), "high": (1350, 1750)}[value])
    warble = np.sin(2 * np.pi * (source.between(13, 16) * source.time + source.between(0, 1)))
    frequency = tone * 1.3 ** np.clip(4 * warble, 0, 1)
    period = source.between(0.85, 1.05)
    ring = _gate(source, (source.time / period + source.between(0, 0.1)) % 1.0, 0.66, period)
    return ring * source.harmonics(frequency, (1, 0.5, 0.35, 0.25, 0.15))


def _bird(source: Source, value: str) -> Signal:
    pitch = source.between(*{"low": (1350, 1700), "high": (3700, 4600)}[value])
    period = source.between(0.17, 0.24)
    position = source.time / period
    syllable = position.astype(int)
    count = int(syllable[-1]) + 1
    through = np.clip((position - syllable) / 0.72, 0, 1)
    sweep = (source.rng.uniform(0.25, 0.4, count) * source.rng.choice((-1, 1), count))[syllable]
    step = source.rng.uniform(-0.12, 0.12, count)[syllable]
    # Every fifth syllable or so is a rest.
    loud = np.where(np.arange(count) % 5 == source.rng.integers(2, 5), 0, 1)[syllable]
    frequency = pitch * 2 ** (sweep * (2 * through - 1) + step)
    envelope = loud * np.sin(np.pi * through) ** 2
    song = source.harmonics(np.where(through < 1, frequency, pitch), (1, 0.25, 0.1))
    return envelope * (song + 0.05 * source.noise(1500, 7500))


def _thunder(source: Source, value: str) -> Signal:
    if value == "slow":
        centres = source.between(0.4, 0.6) + np.arange(6) * source.between(0.65, 0.8)
        heights = source.rng.uniform(0.5, 1.0, centres.size)
        bumps = np.exp(-(((source.time[:, None] - centres) / 0.26) ** 2))
        envelope = 0.12 + (bumps * heights).max(axis=1)
        crackle = 0.12 * envelope
    else:
        start = source.between(0.08, 0.2)
        cracks = start + np.array([0, *source.rng.uniform(0.03, 0.12, 2)])
        strikes = source.impulses(cracks, np.array([1.0, 0.6, 0.5]))
        envelope = source.decay(strikes, source.between(0.22, 0.3))
        crackle = source.decay(strikes, 0.1)
    rumble = envelope * source.noise(45, 180, tilt=0.3)
    return rumble + crackle * source.noise(250, 6000, tilt=0.5)


def _alarm(source: Source, value: str) -> Signal:
    tone = source.between(*{"low": (620, 780), "high": (1850, 2200)}[value])
    period = source.between(0.26, 0.32)
    beep = _gate(source, (source.time / period + source.between(0, 0.3)) % 1.0, 0.5, period)
    return beep * source.harmonics(tone, (1, 0, 0.5, 0, 0.35, 0, 0.25, 0, 0.2))


def _wave(source: Source, value: str) -> Signal:
    period = source.between(*{"slow": (2.1, 2.5), "fast": (0.75, 0.95)}[value])
    phase = (source.time / period + source.between(0.1, 0.35)) % 1.0
    rise = np.minimum(phase / 0.6, 1) ** 2
    swell = np.where(phase < 0.6, rise, np.exp(-(phase - 0.6) / 0.13))
    body = (0.12 + swell) * source.noise(250, 1800, tilt=0.3)
    return body + 0.9 * swell**1.5 * source.noise(1500, 6500)


_EVENT_SOUNDS: dict[str, Callable[[Source, str], Signal]] = {
    "siren": _siren,
    "bell": _bell,
    "rain": _rain,
    "wind": _wind,
    "engine": _engine,
    "footsteps": _footsteps,
    "clock": _clock,
    "phone": _phone,
    "bird": _bird,
    "thunder": _thunder,
    "alarm": _alarm,
    "wave": _wave,
}


def _move_away(source: Source, dry: Signal) -> Signal:
    # Air takes the treble and the surroundings answer: low-pass at 1.1 to 1.5 kHz, and a
    # diffuse tail, a third as strong in energy, that falls by 60 dB in 0.6 to 0.9 s.
    size = scipy.fft.next_fast_len(2 * source.num_samples, real=True)
    cutoff = source.between(1100, 1500)
    frequency = scipy.fft.rfftfreq(size, 1 / source.sample_rate).astype(np.float32)
    low_pass = 1 / np.sqrt(1 + (frequency / np.float32(cutoff)) ** 4)
    tail = source.rng.standard_normal(source.num_samples, dtype=np.float32)
    tail *= np.exp(-source.time / (source.between(0.6, 0.9) / np.log(1e3))).astype(np.float32)
    tail /= np.sqrt(3 * np.sum(tail**2))
    tail[0] += 1
    spectrum = np.asarray(scipy.fft.rfft(dry.astype(np.float32), size))
    spectrum = spectrum * np.asarray(scipy.fft.rfft(tail, size)) * low_pass
    return np.asarray(scipy.fft.irfft(spectrum, size))[: source.num_samples]


def _fade(signal: Signal, seconds: float, sample_rate: int) -> Signal:
    length = min(round(seconds * sample_rate), signal.size // 2)
    ramp = np.sin(np.pi / 2 * (np.arange(length) + 0.5) / max(length, 1)).astype(np.float32) ** 2
    signal[:length] *= ramp
    signal[signal.size - length :] *= ramp[::-1]
    return signal


def synthesise(
    event: str,
    attributes: Mapping[str, str],
    rng: np.random.Generator,
    num_samples: int,
    sample_rate: int,
) -> Signal:
    """One event that lasts the whole clip.

    Args:
      event: a name from `events.EVENTS`.
      attributes: a value for both axes of the event.
      rng: where every random parameter comes from.
      num_samples: length S of the clip.
      sample_rate: samples per second.

    Returns:
      Waveform, float32 [S]; its peak lies in NEAR_PEAK or FAR_PEAK.

    Raises:
      ValueError: unknown event, axis or value.
    """
    events.check_attributes(event, attributes)
    source = Source(rng, num_samples, sample_rate)
    own_axis = next(axis for axis in events.EVENT_AXES[event] if axis != "distance")
    sound = _EVENT_SOUNDS[event](source, attributes[own_axis])
    if attributes["distance"] == "far":
        sound = _move_away(source, sound)
    sound = _fade(np.asarray(sound, np.float32), EDGE_FADE_SECONDS, sample_rate)
    peak = source.between(*{"near": NEAR_PEAK, "far": FAR_PEAK}[attributes["distance"]])
    return sound * np.float32(peak / np.max(np.abs(sound)))


def render(
    scene: events.Scene, rng: np.random.Generator, num_samples: int, sample_rate: int
) -> Signal:
    """The waveform of a scene, float32 [S]: events summed, or each in its part of the clip."""
    if scene.arrangement != "sequence":
        sounds = [
            synthesise(event, scene.attributes[event], rng, num_samples, sample_rate)
            for event in scene.events
        ]
        return np.sum(sounds, axis=0)
    bounds = [num_samples * i // len(scene.events) for i in range(len(scene.events) + 1)]
    parts = [
        synthesise(event, scene.attributes[event], rng, end - start, sample_rate)
        for event, (start, end) in zip(scene.events, itertools.pairwise(bounds), strict=True)
    ]
    return np.concatenate([_fade(part, SEQUENCE_FADE_SECONDS, sample_rate) for part in parts])
