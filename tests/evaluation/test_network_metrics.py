"""Metrics of the literature find their embedders, captions and reference, and have intervals."""

from __future__ import annotations

import numpy as np
import pytest

from fasttta_jax.evaluation.captions import caption_embeddings
from fasttta_jax.evaluation.clips import Clips
from fasttta_jax.evaluation.embedders import FeatureCache, Features
from fasttta_jax.evaluation.estimating import Estimated
from fasttta_jax.evaluation.metric import EstimatingMetric, Metric, NotMeasured
from fasttta_jax.evaluation.network_metrics import NETWORK_METRICS, network_metrics
from fasttta_jax.evaluation.scoring import Scorer, Scores
from fasttta_jax.metrics import divergence, neighbours
from fasttta_jax.metrics.bootstrap import paired_difference
from fasttta_jax.metrics.frechet import frechet_distance
from fasttta_jax.metrics.kernel import kernel_distance
from fasttta_jax.metrics.two_sample import wilson

NUM_CLIPS, NUM_SAMPLES = 24, 12


class StubNetwork:
    """A linear map of the samples; captions are embedded by their lengths."""

    sample_rate = 16_000

    def __init__(self, name: str, shape: tuple[int, ...], classes: int = 0) -> None:
        self.name, self.hash, self.shape, self.classes = name, f"{name} 1", shape, classes
        self.weights = np.random.default_rng(len(name)).normal(size=(NUM_SAMPLES, *shape))
        self.captions: list[str] = []

    def embed(self, audio):
        embeddings = np.tensordot(audio, self.weights, 1).astype(np.float32)
        logits = {"audioset": embeddings[:, : self.classes]} if self.classes else {}
        return Features(embeddings, logits=logits)


class StubClap(StubNetwork):
    def embed_text(self, captions):
        self.captions += captions
        return np.stack([np.full(self.shape, len(one)) for one in captions]).astype(np.float32)


NETWORKS = {
    "panns_16k": lambda: StubNetwork("panns_16k", (6,), 5),
    "vggish": lambda: StubNetwork("vggish", (3, 4)),
    "clap": lambda: StubClap("clap", (4,)),
}


def audio(seed: int, shift: float = 0.0) -> np.ndarray:
    made = np.random.default_rng(seed).normal(shift, 0.2, size=(NUM_CLIPS, NUM_SAMPLES))
    return made.astype(np.float32)


def real_clips(captions: tuple[str, ...] | None = None) -> Clips:
    captions = captions or tuple(f"{'a' * (row % 3)} sound" for row in range(NUM_CLIPS))
    return Clips(audio(0), captions, ({},) * NUM_CLIPS)


def score(tmp_path, clips: Clips, test: Clips, networks=NETWORKS, metrics=None) -> Scores:
    scorer = Scorer(
        list((metrics or network_metrics(num_resamples=50)).values()),
        networks,
        test,
        lambda: pytest.fail("these metrics need no training clips"),
        16_000,
        FeatureCache(tmp_path),
    )
    return scorer.score(clips)


def test_every_metric_has_its_value_and_an_interval_around_it(tmp_path):
    test = real_clips()
    found = score(tmp_path, test.with_audio(audio(1, 0.1)), test)
    assert not found.not_measured
    assert set(found.values) == set(NETWORK_METRICS)
    limit = found.values["fd_panns_limit"]
    assert limit.value < found.values["fd_panns"].value
    assert (limit.interval, limit.count) == (None, NUM_CLIPS)
    for name in set(found.values) - {"fd_panns_limit"}:
        one = found.values[name]
        low, high = one.interval
        assert low <= one.value <= high, name
        assert one.standard_error >= 0, name
        assert one.count == (2 * NUM_CLIPS if name == "c2st" else NUM_CLIPS), name


def test_figures_are_those_of_the_functions_on_the_embedders_features(tmp_path):
    test, generated = real_clips(), audio(2, 0.2)
    found = score(tmp_path, test.with_audio(generated), test).values
    panns, vggish = NETWORKS["panns_16k"](), NETWORKS["vggish"]()
    x, y = panns.embed(generated), panns.embed(test.audio)
    assert found["fd_panns"].value == pytest.approx(frechet_distance(x.embeddings, y.embeddings))
    patches = [vggish.embed(side).embeddings.reshape(-1, 4) for side in (generated, test.audio)]
    assert found["fad_vggish"].value == pytest.approx(frechet_distance(*patches))
    assert found["kad_vggish"].value == pytest.approx(kernel_distance(*patches).value)
    kl = divergence.kl_softmax(x.logits["audioset"], y.logits["audioset"])
    assert found["kl_softmax"].value == pytest.approx(kl.mean())
    assert found["kl_softmax_plain"].value == pytest.approx(kl.mean(), rel=1e-2)
    assert found["inception_score"].value == pytest.approx(
        divergence.inception_score(x.logits["audioset"])[0].value
    )
    recall = neighbours.recall(x.embeddings, y.embeddings)
    assert found["recall"].value == recall.mean()
    assert found["recall"].standard_error == pytest.approx(recall.std(ddof=1) / NUM_CLIPS**0.5)
    assert found["c2st"] == wilson(round(2 * NUM_CLIPS * found["c2st"].value), 2 * NUM_CLIPS)
    clap = NETWORKS["clap"]().embed(generated).embeddings.astype(np.float64)
    cosines = clap.sum(axis=1) / np.linalg.norm(clap, axis=1) / 2
    assert found["clap_score"].value == pytest.approx(cosines.mean())
    assert found["clap_score_percent"].value == pytest.approx(100 * cosines.clip(0).mean())


def test_real_clips_beside_themselves_are_as_good_as_can_be(tmp_path):
    test = real_clips()
    found = {name: one.value for name, one in score(tmp_path, test, test).values.items()}
    assert found["fd_panns"] == pytest.approx(0, abs=1e-6)
    assert found["kl_softmax_plain"] == pytest.approx(0, abs=1e-9)
    assert found["clap_audio"] == pytest.approx(1)
    assert (found["precision"], found["recall"], found["coverage"]) == (1, 1, 1)
    assert found["c2st"] == 0.5


def test_captions_are_embedded_once_and_kept(tmp_path):
    network = StubClap("clap", (4,))
    captions = ["a dog", "rain", "a dog"]
    vectors = caption_embeddings(network, captions, tmp_path)
    np.testing.assert_array_equal(vectors[:, 0], [5, 4, 5])
    assert sorted(network.captions) == ["a dog", "rain"]
    again = caption_embeddings(network, captions[::-1], tmp_path)
    np.testing.assert_array_equal(again, vectors[::-1])
    assert len(network.captions) == 2, "kept"
    (path,) = tmp_path.iterdir()
    path.write_bytes(b"damaged")
    np.testing.assert_array_equal(caption_embeddings(network, captions, tmp_path), vectors)
    network.hash = "clap 2"
    caption_embeddings(network, captions, tmp_path)
    assert len(network.captions) == 6, "another network"


def test_what_cannot_be_measured_says_why(tmp_path):
    without = real_clips(("",) * 3 + ("rain",) * (NUM_CLIPS - 3))
    networks = {name: NETWORKS[name] for name in ("panns_16k", "clap")}
    found = score(tmp_path, without, without, networks)
    assert "no embedder 'vggish'" in found.not_measured["fad_vggish"]
    assert found.not_measured["clap_score"] == "3 of 24 clips have no caption, first clip 0"
    assert "clap_audio" in found.values
    with pytest.raises(NotMeasured, match="embedder vggish takes no captions"):
        caption_embeddings(NETWORKS["vggish"](), ["rain"], tmp_path)
    few = without.take(range(9))
    found = score(tmp_path, few, few, networks)
    assert found.not_measured["inception_score"] == ("10 clips are needed on either side; found 9")
    assert "inception_score_unsplit" in found.values


def test_two_systems_are_compared_by_their_estimates(tmp_path):
    test = real_clips()
    metric = network_metrics(num_resamples=100)["fd_panns"]
    assert isinstance(metric, Metric)
    assert isinstance(metric, EstimatingMetric)
    panns = NETWORKS["panns_16k"]()

    def embedded(waveforms: np.ndarray) -> Clips:
        features = panns.embed(waveforms)
        return Clips(waveforms, test.prompts, test.labels, features)

    near, far = audio(3, 0.1), audio(3, 0.1) + 0.3
    estimates = [metric.estimate(embedded(one), embedded(test.audio)) for one in (far, near)]
    difference = paired_difference(*estimates)
    assert difference.value == pytest.approx(estimates[0].value - estimates[1].value)
    assert difference.interval[0] > 0
    assert metric.measured(estimates[0]) == metric.score(
        embedded(far), embedded(test.audio), 16_000
    )
    with pytest.raises(NotMeasured, match="no reference clips"):
        metric.estimate(embedded(far), None)


def test_the_rate_of_panns_the_draws_and_the_seed_can_be_chosen():
    metrics = network_metrics(panns="panns_32k", num_resamples=7, seed=5)
    assert list(metrics) == list(NETWORK_METRICS)
    assert {one.needs.embedder for one in metrics.values()} == {"panns_32k", "vggish", "clap"}
    assert {one.seed for one in metrics.values()} == {5}
    assert {one.num_resamples for one in metrics.values() if isinstance(one, Estimated)} == {7}
    assert all(name == one.quantity.name for name, one in metrics.items())
