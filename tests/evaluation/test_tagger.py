"""The tagger learns what its labels say, tells clips apart one by one, and comes back from disk."""

import dataclasses
import json
import math
import pathlib
import types

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
import safetensors.numpy

from fasttta_jax.evaluation import tagger, tagger_training
from fasttta_jax.evaluation.labels import UNKNOWN, labels_to_arrays, mentioned_mask
from fasttta_jax.evaluation.tagger import Tagger, TaggerSpec, vocabulary_in
from fasttta_jax.evaluation.tagger_training import (
    TaggerData,
    augment,
    train_tagger,
)
from fasttta_jax.metrics.accuracy import attribute_accuracy, event_accuracy, recall_at_k
from tests.support.tolerance import ELEMENTARY, assert_close, kernel_terms, rounding, worst_rounding

NUM_SAMPLES = 8192
SPEC = TaggerSpec(
    events=("tone", "noise", "clicks"),
    axes={"pitch": ("low", "high"), "speed": ("slow", "fast")},
    num_samples=NUM_SAMPLES,
)
EVENT_AXES = {"tone": "pitch", "noise": "pitch", "clicks": "speed"}


def sound(event: str, value: str, rng: np.random.Generator) -> np.ndarray:
    time = np.arange(NUM_SAMPLES) / 16_000
    if event == "tone":
        frequency = rng.uniform(*{"low": (250, 400), "high": (2500, 4000)}[value])
        return 0.4 * np.sin(2 * np.pi * (frequency * time + rng.random()))
    if event == "noise":
        noise = rng.normal(size=NUM_SAMPLES)
        spectrum = np.fft.rfft(noise)
        cut = NUM_SAMPLES // 16
        spectrum[cut:] *= value == "high"
        spectrum[:cut] *= value == "low"
        filtered = np.fft.irfft(spectrum)
        return 0.15 * filtered / filtered.std()
    period = {"slow": 0.16, "fast": 0.05}[value]
    phase = (time / period + rng.random()) % 1.0
    return rng.normal(size=NUM_SAMPLES) * 0.5 * np.exp(-phase * period / 0.008)


def make_clips(num: int, seed: int, *, two_events: bool = False) -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    audio, labels = [], []
    for _ in range(num):
        names = rng.choice(SPEC.events, size=2 if two_events else 1, replace=False).tolist()
        values = {n: str(rng.choice(SPEC.axes[EVENT_AXES[n]])) for n in names}
        mixed = sum(sound(name, values[name], rng) for name in names)
        audio.append(np.clip(mixed, -1, 1).astype(np.float32))
        attributes = {name: {EVENT_AXES[name]: values[name]} for name in names}
        mentioned = [{name: [] for name in names}, {n: [EVENT_AXES[n]] for n in names}]
        labels.append(
            json.dumps({"events": names, "attributes": attributes, "mentioned": mentioned})
        )
    return np.stack(audio), labels


def training_data() -> TaggerData:
    single, single_labels = make_clips(256, seed=0)
    double, double_labels = make_clips(96, seed=1, two_events=True)
    audio = np.concatenate([single, double])
    labels = labels_to_arrays(single_labels + double_labels, SPEC.vocabulary)
    return TaggerData(np.round(audio * 32767).astype(np.int16), *labels)


@pytest.fixture(scope="module")
def trained() -> Tagger:
    """Compiled with optimisations, whose seconds the steps give back."""
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        return train_tagger(training_data(), SPEC, seed=0, num_steps=80, progress=False)
    finally:
        jax.config.update("jax_disable_most_optimizations", True)


def test_recognises_held_out_clips_and_their_attributes(trained: Tagger) -> None:
    audio, texts = make_clips(90, seed=2)
    labels = labels_to_arrays(texts, SPEC.vocabulary)
    output = trained.predict(audio)
    assert event_accuracy(output.event_probabilities, labels.events.argmax(axis=1)).value >= 0.95
    mask = mentioned_mask(texts, [1] * len(texts), list(SPEC.axes))
    np.testing.assert_array_equal(mask, labels.attributes != UNKNOWN)
    probabilities = output.attribute_probabilities
    assert attribute_accuracy(list(probabilities.values()), labels.attributes, mask).value >= 0.95
    for values in probabilities.values():
        # a softmax over two values
        np.testing.assert_allclose(values.sum(axis=1), 1.0, rtol=worst_rounding(2 + ELEMENTARY))
    assert output.embeddings.shape == (90, 64)
    assert np.isfinite(output.embeddings).all()


def test_recognises_two_events_at_once(trained: Tagger) -> None:
    audio, texts = make_clips(60, seed=3, two_events=True)
    events = labels_to_arrays(texts, SPEC.vocabulary).events
    assert recall_at_k(trained.predict(audio).event_probabilities, events).value >= 0.85


def test_recognises_clips_whose_phase_was_reconstructed(trained: Tagger) -> None:
    audio, texts = make_clips(30, seed=4)
    grid = {"hop_length": 160, "n_fft": 1024}
    rebuilt = np.stack(
        [
            librosa.griffinlim(
                np.abs(librosa.stft(clip, **grid)),
                n_iter=16,
                length=NUM_SAMPLES,
                random_state=0,
                **grid,
            )
            for clip in audio
        ]
    )
    events = labels_to_arrays(texts, SPEC.vocabulary).events
    probabilities = trained.predict(rebuilt).event_probabilities
    assert event_accuracy(probabilities, events.argmax(axis=1)).value >= 0.9


def test_a_clip_is_tagged_alone_and_the_network_compiles_once(trained: Tagger) -> None:
    audio, _ = make_clips(70, seed=5)
    together = trained.predict(audio)
    compiled = tagger._predict._cache_size()
    for row in (0, 63, 64, 69):
        alone = trained.predict(audio[row : row + 1])
        bound = rounding(kernel_terms(trained.params))
        assert_close(alone.embeddings[0], together.embeddings[row], bound)
    assert tagger._predict._cache_size() == compiled


def test_int16_and_float_audio_are_the_same_clip(trained: Tagger) -> None:
    audio, _ = make_clips(4, seed=6)
    integers = np.round(audio * 32767).astype(np.int16)
    from_integers = trained.predict(integers).embeddings
    from_floats = trained.predict(integers.astype(np.float64) / 32767).embeddings
    # a sample rounds twice, as nothing beside the network
    assert_close(from_integers, from_floats, rounding(kernel_terms(trained.params)))


def test_comes_back_from_disk_and_equal_taggers_are_equal_files(
    trained: Tagger, tmp_path: pathlib.Path
) -> None:
    trained.save(tmp_path / "folder" / "tagger.safetensors")
    loaded = Tagger.load(tmp_path / "folder" / "tagger.safetensors")
    assert loaded.spec == trained.spec
    assert (loaded.mean, loaded.deviation) == (trained.mean, trained.deviation)
    audio, _ = make_clips(3, seed=7)
    for expected, found in zip(
        jax.tree.leaves(trained.predict(audio)), jax.tree.leaves(loaded.predict(audio)), strict=True
    ):
        np.testing.assert_array_equal(expected, found)
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["tagger.safetensors"]
    assert loaded.hash == trained.hash
    assert dataclasses.replace(loaded, mean=loaded.mean + 1).hash != trained.hash


def test_as_an_embedder_it_names_its_classes(trained: Tagger) -> None:
    audio, _ = make_clips(3, seed=9)
    features, output = trained.embed(audio), trained.predict(audio)
    assert (trained.name, trained.sample_rate) == ("tagger", 16_000)
    assert vocabulary_in(features) == SPEC.vocabulary
    np.testing.assert_array_equal(features.embeddings, output.embeddings)
    np.testing.assert_array_equal(features.probabilities["event"], output.event_probabilities)
    for axis, values in output.attribute_probabilities.items():
        np.testing.assert_array_equal(features.probabilities[f"attribute/{axis}"], values)


def test_wrong_files_are_named(trained: Tagger, tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no tagger at"):
        Tagger.load(tmp_path / "missing")
    other = tmp_path / "other.safetensors"
    other.write_bytes(safetensors.numpy.save({"x": np.zeros(2, np.float32)}))
    with pytest.raises(ValueError, match="is not a tagger"):
        Tagger.load(other)
    larger = TaggerSpec(("a", "b", "c", "d"), SPEC.axes, NUM_SAMPLES)
    Tagger(larger, trained.params, trained.mean, trained.deviation).save(other)
    with pytest.raises(ValueError, match="weights do not fit the spec"):
        Tagger.load(other)


def test_the_same_seed_gives_the_same_tagger_and_another_does_not() -> None:
    data = training_data()
    data = TaggerData(*(field[:40] for field in data))
    arguments = {"num_steps": 3, "progress": False}
    first, second, other = (train_tagger(data, SPEC, seed=s, **arguments) for s in (0, 0, 1))
    for a, b in zip(jax.tree.leaves(first.params), jax.tree.leaves(second.params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(
        not np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(first.params), jax.tree.leaves(other.params), strict=True)
    )


def test_works_without_attributes() -> None:
    spec = TaggerSpec(SPEC.events, {}, NUM_SAMPLES)
    audio, texts = make_clips(16, seed=8)
    texts = [json.dumps({"events": json.loads(text)["events"]}) for text in texts]
    data = TaggerData(audio, *labels_to_arrays(texts, spec.vocabulary))
    assert data.attributes.shape == (16, 0)
    trained = train_tagger(data, spec, num_steps=1, batch_size=8, progress=False)
    output = trained.predict(audio)
    assert output.attribute_probabilities == {}
    assert output.event_probabilities.shape == (16, 3)


@pytest.mark.usefixtures("unchecked")
def test_the_loss_counts_known_attributes_only() -> None:
    network = types.SimpleNamespace(
        apply=lambda variables, spectrograms: (*variables["params"], None)  # logits as parameters
    )
    events = np.eye(3, dtype=bool)[[0, 1, 2, 0]]
    attributes = np.array([[0, -1], [1, -1], [-1, -1], [-1, -1]], np.int32)
    batch = tagger_training._Batch(jnp.zeros((4, 1, 1)), events, attributes)
    logits = (jnp.zeros((4, 3)), (jnp.zeros((4, 2)), jnp.zeros((4, 2))))
    loss, gradient = jax.value_and_grad(tagger_training._loss)(logits, batch, network)
    # Three undecided events a clip, and one undecided axis of two values.
    bound = worst_rounding(3 * 4 + 2 * 4 + ELEMENTARY)  # means over clips and logits
    assert float(loss) == pytest.approx(4 * math.log(2), rel=bound)
    assert np.all(gradient[0] != 0)
    np.testing.assert_array_equal(np.any(gradient[1][0] != 0, axis=1), [True, True, False, False])
    assert not np.any(gradient[1][1])


def test_augmentation_keeps_the_shape_and_the_floor_and_changes_clips_differently() -> None:
    floor = math.log(1e-2)
    one = jnp.maximum(jax.random.normal(jax.random.key(0), (1, 60, 64)) * 2 - 2, floor)
    spectrograms = jnp.tile(one, (5, 1, 1))
    changed = np.asarray(augment(spectrograms, jax.random.key(1), floor=floor))
    assert changed.shape == spectrograms.shape
    assert changed.min() >= np.float32(floor)
    assert len({one.tobytes() for one in changed}) == 5
    again = np.asarray(augment(spectrograms, jax.random.key(1), floor=floor))
    np.testing.assert_array_equal(changed, again)


def test_bad_input_is_named(trained: Tagger) -> None:
    with pytest.raises(ValueError, match=r"audio has shape \(2, 100\).* 8192\]"):
        trained.predict(np.zeros((2, 100), np.float32))
    with pytest.raises(ValueError, match="audio is int32"):
        trained.predict(np.zeros((2, NUM_SAMPLES), np.int32))
    audio = np.zeros((3, NUM_SAMPLES), np.float32)
    audio[1, 5] = np.nan
    with pytest.raises(ValueError, match="first in clip 1"):
        trained.predict(audio)
    data = TaggerData(*(field[:8] for field in training_data()))
    with pytest.raises(ValueError, match=r"batch_size is 32; allowed: 1 to the 8 clips"):
        train_tagger(data, SPEC, progress=False)
    with pytest.raises(ValueError, match=r"events has shape \(8, 2\); expected \(8, 3\)"):
        train_tagger(data._replace(events=data.events[:, :2]), SPEC, progress=False)
    wrong = np.full_like(data.attributes, 7)
    with pytest.raises(ValueError, match="axis 'pitch' range from 7 to 7"):
        train_tagger(data._replace(attributes=wrong), SPEC, progress=False)
    with pytest.raises(ValueError, match="distinct names"):
        TaggerSpec(("a", "a"), {}, NUM_SAMPLES)
    with pytest.raises(ValueError, match=r"spec.axes\['pitch'\]"):
        TaggerSpec(("a",), {"pitch": ("low",)}, NUM_SAMPLES)
