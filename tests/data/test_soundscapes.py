"""The embedded dataset: sounds that match their attributes, captions that are true, one result."""

from __future__ import annotations

import json
import pathlib
import re
import string

import numpy as np
import pytest
import tensorflow_datasets as tfds

from data.common import records as builder
from data.soundscapes import (
    build as soundscapes,
)
from data.soundscapes import (
    caption_grammar,
    events,
    synthesis,
)

RATE = soundscapes.SAMPLE_RATE
NUM_SAMPLES = 40_960
CONDITIONS = [
    (event, own, distance)
    for event in events.EVENTS
    for own in events.AXES[events.EVENT_AXES[event][0]]
    for distance in events.AXES["distance"]
]


def _sound(event: str, own: str, distance: str, seed: int = 0) -> np.ndarray:
    attributes = dict(zip(events.EVENT_AXES[event], (own, distance), strict=True))
    rng = np.random.default_rng([seed, events.EVENTS.index(event)])
    return synthesis.synthesise(event, attributes, rng, NUM_SAMPLES, RATE)


def _centroid(audio: np.ndarray) -> float:
    power = np.abs(np.fft.rfft(audio)) ** 2
    return float(np.sum(np.fft.rfftfreq(audio.size, 1 / RATE) * power) / np.sum(power))


def _rms(audio: np.ndarray) -> float:
    return float(np.sqrt(np.mean(audio**2)))


def _loudness(audio: np.ndarray) -> np.ndarray:
    # Of 16 ms windows.
    return np.sqrt(np.mean(audio.reshape(-1, 256) ** 2, axis=1))


def _modulation_rate(audio: np.ndarray) -> float:
    # The strongest rate of change of the loudness, in Hz.
    loudness = _loudness(audio)
    power = np.abs(np.fft.rfft(loudness - loudness.mean(), 8 * loudness.size))
    return float(np.fft.rfftfreq(8 * loudness.size, 256 / RATE)[np.argmax(power)])


def _unsteadiness(audio: np.ndarray) -> float:
    loudness = _loudness(audio)
    return float(loudness.std() / loudness.mean())


def _captions(split: str, count: int) -> list[tuple[events.Scene, str, dict[str, list[str]]]]:
    described = []
    for index in range(count):
        scene = soundscapes.make_scene(3, split, index)
        rng = np.random.default_rng(index)
        described.append((scene, *caption_grammar.describe(scene, rng, split == "test")))
    return described


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z-]+", text))


def _frame_words(frame: str) -> set[str]:
    return set().union(*(_words(literal) for literal, *_ in string.Formatter().parse(frame)))


def test_there_are_twelve_events_with_one_own_axis_each() -> None:
    assert len(events.EVENTS) == 12
    for own, distance in events.EVENT_AXES.values():
        assert own in ("pitch", "speed")
        assert distance == "distance"


@pytest.mark.parametrize(("event", "own", "distance"), CONDITIONS)
def test_every_sound_is_finite_audible_and_unclipped(event: str, own: str, distance: str) -> None:
    for seed in range(2):
        audio = _sound(event, own, distance, seed)
        assert audio.dtype == np.float32
        assert audio.shape == (NUM_SAMPLES,)
        assert np.all(np.isfinite(audio))
        low, high = {"near": synthesis.NEAR_PEAK, "far": synthesis.FAR_PEAK}[distance]
        assert low * 0.999 < np.abs(audio).max() < high * 1.001
        assert _rms(audio) > 0.002
        assert _rms(audio[: NUM_SAMPLES // 2]) > 0.002


@pytest.mark.parametrize("event", events.EVENTS)
def test_far_is_quieter_and_duller_than_near(event: str) -> None:
    own_axis = events.EVENT_AXES[event][0]
    for own in events.AXES[own_axis]:
        near, far = _sound(event, own, "near"), _sound(event, own, "far")
        assert _rms(far) < 0.7 * _rms(near)
        treble = [
            np.sum(np.abs(np.fft.rfft(audio))[round(3500 * NUM_SAMPLES / RATE) :] ** 2)
            / np.sum(np.abs(np.fft.rfft(audio)) ** 2)
            for audio in (near, far)
        ]
        # Only the high bird lives above the low-pass, whose level is made up for.
        assert treble[1] < treble[0] * (1.0 if (event, own) == ("bird", "high") else 0.3)


@pytest.mark.parametrize("event", [e for e, axes in events.EVENT_AXES.items() if "pitch" in axes])
@pytest.mark.parametrize("distance", events.AXES["distance"])
def test_low_lies_below_high(event: str, distance: str) -> None:
    lows, highs = (
        [_centroid(_sound(event, own, distance, seed)) for seed in range(4)]
        for own in events.AXES["pitch"]
    )
    assert max(lows) < min(highs)


@pytest.mark.parametrize("distance", events.AXES["distance"])
def test_slow_changes_more_slowly_than_fast(distance: str) -> None:
    def group(event: str, own: str) -> list[np.ndarray]:
        return [_sound(event, own, distance, seed) for seed in range(4)]

    for event in ("footsteps", "clock", "wave"):
        slow, fast = (group(event, own) for own in events.AXES["speed"])
        assert max(map(_modulation_rate, slow)) < min(map(_modulation_rate, fast))
    # Drops of fast rain, and strokes of a fast engine, run together: the loudness is steadier.
    for event in ("rain", "engine"):
        slow, fast = (group(event, own) for own in events.AXES["speed"])
        assert min(map(_unsteadiness, slow)) > max(map(_unsteadiness, fast))
    # A fast thunder is over soon.
    slow, fast = (group("thunder", own) for own in events.AXES["speed"])
    assert min(map(_rms, (audio[NUM_SAMPLES // 2 :] for audio in slow))) > 4 * max(
        map(_rms, (audio[NUM_SAMPLES // 2 :] for audio in fast))
    )


def test_bad_events_and_attributes_are_named() -> None:
    rng = np.random.default_rng(0)
    for event, attributes, message in (
        ("dog", {}, r"'dog'.*siren"),
        ("bell", {"pitch": "low"}, r"bell.*'distance'"),
        ("bell", {"pitch": "fast", "distance": "near"}, r"'fast'.*'low', 'high'"),
    ):
        with pytest.raises(ValueError, match=message):
            synthesis.synthesise(event, attributes, rng, NUM_SAMPLES, RATE)
    with pytest.raises(ValueError, match="2 different"):
        events.Scene("together", ("bell",), {"bell": {"pitch": "low", "distance": "near"}})
    with pytest.raises(ValueError, match=r"'dev'.*validation"):
        soundscapes.make_clip(0, "dev", 0)


def test_loudest_mix_stays_below_full_scale() -> None:
    assert 2 * synthesis.NEAR_PEAK[1] < 0.95


def test_each_half_of_a_sequence_holds_its_own_event() -> None:
    quiet = {"pitch": "low", "distance": "far"}
    loud = {"pitch": "high", "distance": "near"}
    scene = events.Scene("sequence", ("siren", "alarm"), {"siren": quiet, "alarm": loud})
    audio = synthesis.render(scene, np.random.default_rng(0), NUM_SAMPLES, RATE)
    first, second = np.split(audio, 2)
    assert audio.shape == (NUM_SAMPLES,)
    assert _rms(second) > 2 * _rms(first)
    assert _centroid(second) > 2 * _centroid(first)


def test_a_clip_depends_on_seed_split_and_index_only() -> None:
    first = soundscapes.make_clip(5, "train", 11)
    soundscapes.make_clip(5, "train", 12)
    again = soundscapes.make_clip(5, "train", 11)
    np.testing.assert_array_equal(first.audio, again.audio)
    assert (first.id, first.captions, first.labels) == (again.id, again.captions, again.labels)
    for other in ((6, "train", 11), (5, "test", 11), (5, "train", 12)):
        assert not np.array_equal(first.audio, soundscapes.make_clip(*other).audio)


def test_scenes_are_balanced() -> None:
    # 960 clips hold 14 whole cycles of the 48 single conditions.
    scenes = [soundscapes.make_scene(0, "train", index) for index in range(960)]
    arrangements = [scene.arrangement for scene in scenes]
    assert [arrangements.count(name) for name in events.ARRANGEMENTS] == [672, 144, 144]
    singles = [
        (scene.events[0], *scene.attributes[scene.events[0]].values())
        for scene in scenes
        if scene.arrangement == "single"
    ]
    assert {singles.count(condition) for condition in CONDITIONS} == {14}
    pairs = [scene.events for scene in scenes if scene.arrangement == "sequence"]
    assert len(set(pairs)) == 132


def test_a_sequence_of_many_events_gives_each_an_equal_part_and_names_them_in_order() -> None:
    scenes = [soundscapes.make_scene(3, "test", index, max_events=4) for index in range(200)]
    numbers = [len(scene.events) for scene in scenes if scene.arrangement == "sequence"]
    assert len(numbers) == 120
    assert set(numbers) == {2, 3, 4}
    index = next(i for i, scene in enumerate(scenes) if len(scene.events) == 4)
    clip = soundscapes.make_clip(3, "test", index, clip_seconds=4.0, max_events=4)
    quiet = [_rms(clip.audio[RATE * part - 160 : RATE * part + 160]) for part in (1, 2, 3)]
    parts = [_rms(part) for part in np.split(clip.audio, 4)]
    assert max(quiet) < 0.5 * min(parts)
    nouns = "|".join(
        f"(?P<{event}_{number}>{noun})"
        for event in events.EVENTS
        for number, (noun, _) in enumerate(caption_grammar.NOUNS[event])
    )
    named = [
        str(found.lastgroup).split("_")[0]
        for found in re.finditer(rf"\b(?:{nouns})\b", clip.captions[0])
    ]
    assert tuple(named) == scenes[index].events == tuple(clip.labels["events"])


def test_scenes_hold_two_to_four_events() -> None:
    for number in (1, 5):
        with pytest.raises(ValueError, match=rf"max_events is {number}; allowed: 2 to 4"):
            soundscapes.build(
                "unused",
                num_train=1,
                num_validation=1,
                num_test=1,
                seed=0,
                workers=1,
                max_events=number,
            )


@pytest.mark.parametrize("split", builder.SPLITS)
def test_captions_mention_what_they_say_and_only_what_is_true(split: str) -> None:
    for scene, caption, mentioned in _captions(split, 400):
        assert set(mentioned) == set(scene.events)
        mentions = {
            (axis, scene.attributes[event][axis])
            for event, axes in mentioned.items()
            for axis in axes
        }
        said = {
            key
            for table in (caption_grammar.ADJECTIVES, caption_grammar.ADVERBIALS)
            for key, phrases in table.items()
            if any(re.search(rf"(?<![\w-]){phrase}(?![\w-])", caption) for phrase in phrases)
        }
        assert said == mentions, caption
        for event in events.EVENTS:
            named = any(
                re.search(rf"\b{noun}\b", caption) for noun, _ in caption_grammar.NOUNS[event]
            )
            assert named == (event in scene.events), caption


def test_about_sixty_percent_of_the_axes_are_mentioned() -> None:
    counts = [
        len(axes) for _, _, mentioned in _captions("train", 1000) for axes in mentioned.values()
    ]
    assert 0.55 < np.mean(counts) / 2 < 0.65
    assert set(counts) == {0, 1, 2}


def test_held_out_wordings_never_occur_in_training() -> None:
    training = {
        caption for split in ("train", "validation") for _, caption, _ in _captions(split, 4000)
    }
    training_words = set().union(*map(_words, training))
    test = {caption for _, caption, _ in _captions("test", 2000)}
    assert not training & test
    frame_words = set()
    for arrangement, frames in caption_grammar.HELD_OUT_FRAMES.items():
        assert len(caption_grammar.FRAMES[arrangement]) >= (8 if arrangement == "single" else 5)
        for frame in frames:
            assert _frame_words(frame) - training_words, f"{frame!r} holds no new word"
            frame_words |= _frame_words(frame)
    # Whatever names an event or an attribute is known from training.
    assert set().union(*map(_words, test)) - frame_words <= training_words


def test_reserved_adjectives_are_known_but_never_paired_in_training() -> None:
    for event in events.EVENTS:
        own_axis = events.EVENT_AXES[event][0]
        for value in events.AXES[own_axis]:
            word = caption_grammar.held_out_adjective(event, own_axis, value)
            attributes = {event: {own_axis: value, "distance": "far"}}
            scene = events.Scene("single", (event,), attributes)
            pattern = re.compile(rf"(?<!at a )(?<!in a )(?<![\w-]){word}(?![\w-])")
            found = {
                held_out: sum(
                    bool(pattern.search(caption_grammar.describe(scene, rng, held_out)[0]))
                    for rng in map(np.random.default_rng, range(100))
                )
                for held_out in (False, True)
            }
            assert found[False] == 0
            assert found[True] > 0
    assert caption_grammar.held_out_adjective("bell", "distance", "far") is None


def test_labels_follow_the_schema() -> None:
    for split, captions in soundscapes.NUM_CAPTIONS.items():
        for index in range(20):
            clip = soundscapes.make_clip(0, split, index)
            assert np.abs(clip.audio).max() < 0.95
            assert len(set(clip.captions)) == len(clip.captions) == captions
            labels = json.loads(json.dumps(clip.labels))
            assert set(labels) == {"events", "attributes", "mentioned", "arrangement"}
            assert len(labels["mentioned"]) == captions
            for event in labels["events"]:
                events.check_attributes(event, labels["attributes"][event])


def _build(out: pathlib.Path, *, workers: int = 1, seed: int = 1) -> pathlib.Path:
    counts = {"num_train": 9, "num_validation": 2, "num_test": 3}
    return soundscapes.build(out, **counts, seed=seed, workers=workers, clip_seconds=1.0)


def _files(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*array_record*")}


def test_build_is_the_same_for_any_number_of_workers(tmp_path: pathlib.Path) -> None:
    alone, shared = _build(tmp_path / "a"), _build(tmp_path / "b", workers=2)
    assert _files(alone) == _files(shared)
    info = tfds.builder_from_directory(str(alone)).info
    assert {split: info.splits[split].num_examples for split in info.splits} == {
        "train": 9,
        "validation": 2,
        "test": 3,
    }
    for key, value in {
        "events": list(events.EVENTS),
        "event_axes": {event: list(axes) for event, axes in events.EVENT_AXES.items()},
        "axes": {axis: list(values) for axis, values in events.AXES.items()},
        "sample_rate": 16_000,
        "clip_seconds": 1.0,
        "seed": 1,
        "version": soundscapes.VERSION,
    }.items():
        assert info.metadata[key] == value
    records = list(tfds.builder_from_directory(str(alone)).as_data_source("train"))
    assert {len(record["audio"]) for record in records} == {16_000}
    assert {len(record["captions"]) for record in records} == {3}


def test_a_dataset_that_is_there_is_kept(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _build(tmp_path)
    before = _files(folder)
    capsys.readouterr()
    assert _build(tmp_path, workers=2) == folder
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(ValueError, match=re.escape(str(folder)) + ".*seed is 1 there and 2 here"):
        _build(tmp_path, seed=2)
    assert _files(folder) == before


def test_impossible_settings_are_named(tmp_path: pathlib.Path) -> None:
    good = {"num_train": 1, "num_validation": 1, "num_test": 1, "seed": 0, "workers": 1}
    for field, value in (("num_test", 0), ("workers", 0), ("seed", -1), ("clip_seconds", 0.1)):
        with pytest.raises(ValueError, match=rf"{field} is {value}"):
            soundscapes.build(tmp_path, **(good | {field: value}))
